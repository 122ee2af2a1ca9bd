"""Options that several commands take, and what an option's text becomes."""

from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from provisiond.cli.options import JobOptions, mebibytes_of, size_of, spread


@dataclass(frozen=True, kw_only=True)
class Colours:
    wall: Annotated[str, typer.Option(help="Of the wall.")]
    roof: Annotated[list[str] | None, typer.Option(help="Of the roof.")] = None


def run(*words: str) -> tuple[int, str]:
    """How the command ends that takes a dataclass among its own, and what it says."""
    app = typer.Typer(rich_markup_mode=None)

    @app.command()
    @spread
    def paint(house: str, *, colours: Colours, options: JobOptions, twice: bool = False) -> None:
        typer.echo(f"{house} {colours} {options.request_id} {options.as_json} {twice}")

    ended = CliRunner().invoke(app, words)
    return ended.exit_code, ended.output


def test_the_fields_of_a_dataclass_are_options_of_the_command() -> None:
    status, said = run("mine", "--wall", "red", "--roof", "a", "--roof", "b", "--request-id", "x")
    assert status == 0
    assert said == "mine Colours(wall='red', roof=['a', 'b']) x False False\n"
    status, said = run("mine", "--wall", "red", "--json", "--twice")
    assert said == "mine Colours(wall='red', roof=None) None True True\n"


def test_a_field_without_default_is_a_required_option() -> None:
    status, said = run("mine")
    assert status == 2
    assert "--wall" in said


def test_the_help_has_the_fields_in_their_place() -> None:
    _, said = run("--help")
    names = ["--wall", "--roof", "--deadline", "--request-id", "--json", "--twice"]
    places = [said.index(name) for name in names]
    assert places == sorted(places)
    assert "Of the wall." in said


def test_a_size_is_in_bytes_or_in_mebibytes() -> None:
    assert size_of("2G") == 2 * 2**30
    assert mebibytes_of("2G") == 2048
    assert mebibytes_of(str(3 * 2**20)) == 3


@pytest.mark.parametrize(
    ("text", "reason"), [("1.5G", "is no size"), ("1K", "no multiple of 1M"), ("1048577", "of 1M")]
)
def test_what_is_no_size_is_wrong_usage(text: str, reason: str) -> None:
    with pytest.raises(typer.BadParameter, match=reason):
        mebibytes_of(text)
