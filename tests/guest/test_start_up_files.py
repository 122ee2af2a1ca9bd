"""The start-up files, read as their init systems read them. `make test-guests` boots with them."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.guest.machine import package
from tests.lab.initramfs import GUEST_SCRIPT

INIT_FILES = GUEST_SCRIPT.parent / "init"
UPSTART = INIT_FILES / "provision-guest.upstart"
SHELL_FILES = [
    GUEST_SCRIPT,
    *(INIT_FILES / f"provision-guest.{name}" for name in ("openrc", "sysv")),
    INIT_FILES / "rc.local.snippet",
]
# init(5) of upstart 1.13, the last one; the longest first. How many words may follow each.
STANZAS = {
    "respawn limit": r"\d+ \d+|unlimited",
    "normal exit": r"[\d ]+",
    "description": r'"[^"]+"',
    "start on": r".+",
    "stop on": r".+",
    "respawn": r"",
    "exec": r".+",
}
# What upstart itself and Ubuntu's mountall say while they start and end a machine.
EVENTS = {"filesystem", "local-filesystems", "runlevel", "startup"}


@pytest.mark.parametrize("path", SHELL_FILES, ids=[path.name for path in SHELL_FILES])
def test_the_shell_of_the_smallest_systems_can_read_it(path: Path) -> None:
    busybox = package("busybox-static") / "bin/busybox"
    ended = subprocess.run(
        [busybox, "ash", "-n", path], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def upstart_stanzas() -> list[tuple[str, str]]:
    """Each stanza with what follows it; fails at a line that begins with none of init(5)."""
    lines = (line.strip() for line in UPSTART.read_text().splitlines())
    found = []
    for line in lines:
        if not line or line.startswith("#"):
            continue
        stanza = next((name for name in STANZAS if f"{line} ".startswith(f"{name} ")), None)
        assert stanza is not None, f"init(5) knows no stanza {line!r}"
        found.append((stanza, line.removeprefix(stanza).strip()))
    return found


def test_upstart_knows_every_line_of_its_file() -> None:
    stanzas = upstart_stanzas()
    for stanza, rest in stanzas:
        assert re.fullmatch(STANZAS[stanza], rest), f"{stanza} {rest}"
    names = [stanza for stanza, _ in stanzas]
    assert len(set(names)) == len(names)
    assert {"start on", "stop on", "exec"} <= set(names)


def test_upstart_is_given_events_that_it_says_and_a_command_that_a_shell_can_read() -> None:
    stanzas = dict(upstart_stanzas())
    for condition in (stanzas["start on"], stanzas["stop on"]):
        event, *arguments = condition.split()
        assert event in EVENTS
        assert all(re.fullmatch(r"!?(\w+=)?\[!?\d+\]", argument) for argument in arguments)
    assert shlex.split(stanzas["exec"])[0] == "/usr/sbin/provision-guest"
    subprocess.run(["sh", "-n", "-c", f"exec {stanzas['exec']}"], check=True)
