"""What --help says: every command in a line that is not cut off, every option with its meaning."""

from collections.abc import Iterator

import pytest
import typer
from typer.testing import CliRunner

from provisiond.cli import app


def commands() -> Iterator[tuple[str, ...]]:
    """The words of every command, of those in groups as well."""
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None)
        yield from ((name,),) if inner is None else ((name, verb) for verb in inner)


def help_of(*words: str) -> str:
    ended = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "80", "LC_ALL": "C.UTF-8"})
    assert ended.exit_code == 0, ended.output
    return ended.output


@pytest.mark.parametrize("group", [(), ("base",), ("disk",), ("image",)])
def test_the_summary_of_every_command_fits_into_its_line(group: tuple[str, ...]) -> None:
    listed = help_of(*group).partition("Commands:\n")[2].partition("\n\n")[0].splitlines()
    expected = {words[-1] for words in commands() if words[:-1] == group}
    assert {line.split()[0] for line in listed} >= expected
    for line in listed:
        assert line.endswith("."), line
        assert not line.endswith("..."), line


@pytest.mark.parametrize("words", list(commands()), ids=" ".join)
def test_every_option_and_argument_has_a_name_and_a_meaning(words: tuple[str, ...]) -> None:
    command = typer.main.get_command(app)
    for word in words:
        command = command.commands[word]  # type: ignore[attr-defined]
    for one in command.params:
        assert getattr(one, "help", None), f"{one.name} says nothing"
    assert "<str>" not in help_of(*words).partition("Options:\n")[2]
