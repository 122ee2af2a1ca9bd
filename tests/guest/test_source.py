"""The script and its start-up files as their auditor reads them: short and plain."""

import re
import subprocess

import pytest

from tests.lab.initramfs import GUEST_SCRIPT

FOLDER = GUEST_SCRIPT.parent
TEXT = GUEST_SCRIPT.read_text()
CODE = [line.strip() for line in TEXT.splitlines() if line.strip() and line.strip()[0] != "#"]
# No interpreter of their own is named in these, so the linter of all shell scripts passes them by.
INIT_SCRIPTS = ["provision-guest.openrc", "rc.local.snippet"]


@pytest.mark.parametrize("name", INIT_SCRIPTS)
def test_shellcheck_finds_nothing_in_the_start_up_files(name: str) -> None:
    ended = subprocess.run(
        ["shellcheck", "--shell=sh", "--exclude=SC2034,SC2148", FOLDER / "init" / name],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (0, "")


def test_it_can_be_read_over_a_coffee() -> None:
    lines = TEXT.splitlines()
    assert len(lines) < 800
    assert [line for line in lines if len(line.expandtabs(4)) > 120] == []


def test_nothing_is_executed_that_came_as_data() -> None:
    for word in ("eval", "source", "python", "perl", "curl", "wget", "exec", "export -p"):
        assert not [line for line in CODE if re.search(rf"(^|[\s;&|(]){word}\s", line)], word
    assert not [line for line in CODE if re.match(r"\.\s", line)]


def test_every_function_says_why_it_is_there() -> None:
    lines = TEXT.splitlines()
    functions = [number for number, line in enumerate(lines) if re.match(r"[a-z_]+\(\) \{", line)]
    assert len(functions) > 40
    bare = [lines[number] for number in functions if not lines[number - 1].startswith("# ")]
    assert bare == []


def test_every_start_up_file_starts_the_script() -> None:
    for path in sorted((FOLDER / "init").iterdir()):
        assert "/usr/sbin/provision-guest" in path.read_text(), path.name
