"""The description for kiwi, read by kiwi itself. It does not build where /sys is read-only."""

import subprocess
from pathlib import Path

import pytest

from provisiond.images.agent_files import read_agent
from provisiond.images.kiwi import build_argv, info_argv, write_description
from provisiond.images.recipe import KiwiRecipe
from tests.builders.tools import builders_environment, with_programs

RECIPE = KiwiRecipe(name="web")


@pytest.fixture(scope="module")
def programs() -> Path:
    return builders_environment()


def kiwi(programs: Path, *argv: str | Path) -> subprocess.CompletedProcess[str]:
    assert argv[0] == "kiwi-ng"
    return subprocess.run(
        argv, env=with_programs(programs), capture_output=True, text=True, check=False
    )


def test_kiwi_reads_the_shipped_description(programs: Path, tmp_path: Path) -> None:
    description = tmp_path / "description"
    write_description(description, recipe=RECIPE)
    ended = kiwi(programs, *info_argv(RECIPE, description), "--print-xml")
    assert ended.returncode == 0, ended.stderr
    said = ended.stdout + ended.stderr
    assert 'format="qcow2"' in said
    script = description / "root" / "usr" / "sbin" / "provision-guest"
    assert script.read_bytes() == read_agent().script
    assert script.stat().st_mode & 0o777 == 0o755


def test_kiwi_refuses_a_description_that_is_none(programs: Path, tmp_path: Path) -> None:
    (tmp_path / "config.xml").write_text("<image schemaversion='7.4' name='x'><nothing/></image>")
    recipe = KiwiRecipe(name="web", description=tmp_path)
    description = tmp_path / "copy"
    write_description(description, recipe=recipe)
    assert kiwi(programs, *info_argv(recipe, description)).returncode != 0


def test_kiwi_knows_every_option_of_our_command_line(programs: Path, tmp_path: Path) -> None:
    """--help behind it: the words before it are parsed, and nothing is built."""
    recipe = KiwiRecipe(name="web", profile="small")
    argv = build_argv(recipe, tmp_path, tmp_path / "target")
    ended = kiwi(programs, *argv, "--help")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    wrong = kiwi(programs, *argv, "--no-such-option", "x")
    assert wrong.returncode != 0
