"""What the script says on the port: the grammar of provisiond.guest.verdict, and nothing else."""

import os
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from provisiond.guest.verdict import Done, Failed, Hello, LogLine, Word, parse_word
from tests.guest.conftest import MakeMachine
from tests.guest.machine import ENVIRONMENT, LOG_FILE, NONCE, SECRET, Machine
from tests.guest.machine import configuration as conf

PORT = "/dev/virtio-ports/org.provisiond.0"


@contextmanager
def port_of(machine: Machine) -> Iterator[int]:
    """A FIFO where the virtio port stands: like the port, it blocks while nobody reads."""
    path = machine.path(PORT)
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    # Read and write: the end never comes, whoever else opens and closes it.
    reader = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    try:
        yield reader
    finally:
        os.close(reader)


def lines_of(reader: int) -> list[bytes]:
    """Every line that is waiting in the port."""
    found = b""
    while select.select([reader], [], [], 0)[0]:
        found += os.read(reader, 65536)
    assert found == b"" or found.endswith(b"\n")
    return found.splitlines(keepends=True)


def words(lines: list[bytes]) -> list[Word]:
    parsed = [parse_word(line, nonce=NONCE) for line in lines]
    assert None not in parsed, lines
    assert all(len(line) <= 1900 for line in lines)
    assert all(line[:-1].isascii() and line[:-1].decode().isprintable() for line in lines)
    return [word for word in parsed if word is not None]


def test_done_is_said_with_the_nonce(machine: Machine) -> None:
    with port_of(machine) as reader:
        assert machine.provision(conf()).status == 0
        said = words(lines_of(reader))
        assert said
        assert set(said) == {Done()}


def test_it_is_said_again_for_what_is_applied_already(system: Machine) -> None:
    assert system.provision(conf()).status == 0
    with port_of(system) as reader:
        assert system.provision(conf()).status == 0
        assert set(words(lines_of(reader))) == {Done()}


def test_a_failure_brings_the_log_then_the_step_and_the_reason(machine: Machine) -> None:
    with port_of(machine) as reader:
        assert machine.provision(conf(TIMEZONE="Mars/Olympus", PASSWORD_HASH=SECRET)).status == 1
        lines = lines_of(reader)
    said = words(lines)
    first_failed = next(number for number, word in enumerate(said) if isinstance(word, Failed))
    assert first_failed > 3
    assert all(isinstance(word, LogLine) for word in said[:first_failed])
    assert set(said[first_failed:]) == {
        Failed("timezone", "there is no /usr/share/zoneinfo/Mars/Olympus")
    }
    assert LogLine("step timezone") in said
    assert SECRET.encode() not in b"".join(lines)


def test_what_a_tool_says_cannot_break_the_grammar(system: Machine) -> None:
    """Control characters, other lines and too much text come from a tool; a line comes out."""
    noise = f"#!/bin/sh\nread -r x\nprintf 'no\\033[2J\\n{NONCE} done\\n\\303\\274'\n"
    system.write(
        "/usr/sbin/chpasswd",
        noise + "i=0\nwhile [ $i -lt 300 ]; do printf 'much text '; i=$((i + 1)); done\nexit 1\n",
        mode=0o755,
    )
    with port_of(system) as reader:
        assert system.provision(conf(PASSWORD_HASH=SECRET)).status == 1
        said = words(lines_of(reader))
    assert Done() not in said
    failed = [word for word in said if isinstance(word, Failed)]
    assert failed
    assert failed[0].step == "password"
    assert "no[2J" in failed[0].message
    assert len(failed[0].message) <= 1000


def test_nothing_is_said_and_no_file_is_made_where_there_is_no_port(system: Machine) -> None:
    assert system.provision(conf()).status == 0
    assert not system.path("/dev/virtio-ports").exists()


def test_without_a_nonce_nothing_is_said(system: Machine) -> None:
    with port_of(system) as reader:
        assert system.provision(conf(NONCE="not-a-nonce")).status == 1
        assert lines_of(reader) == []


def next_line(reader: int, *, within: float = 15) -> bytes:
    assert select.select([reader], [], [], within)[0], "the script said nothing"
    return os.read(reader, 65536)


@contextmanager
def waiting(machine: Machine) -> Iterator[subprocess.Popen[bytes]]:
    """The script as a start-up file starts it: without an argument."""
    script = subprocess.Popen(
        machine.script(), stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT
    )
    try:
        yield script
    finally:
        script.kill()
        script.wait()


def processes(machine: Machine) -> list[str]:
    """The command lines in the machine, without its own first process."""
    shown = machine.run(
        "sh", "-c", "for p in /proc/[0-9]*/cmdline; do tr '\\0' ' ' <$p; echo; done"
    )
    return [line for line in shown.splitlines() if "provision-guest" in line]


def test_it_says_hello_while_it_waits_and_ends_by_a_signal(machine: Machine) -> None:
    with port_of(machine) as reader, waiting(machine):
        line = next_line(reader).splitlines(keepends=True)[0]
        version = machine.run(*machine.script_inside("--version")).strip()
        assert parse_word(line, nonce=NONCE) == Hello(version)
        pid = machine.read("/run/provision-guest.pid").strip()
        machine.run("sh", "-c", f"kill -TERM {pid}")
        deadline = time.monotonic() + 10
        while processes(machine):
            assert time.monotonic() < deadline, processes(machine)
            time.sleep(0.05)
        assert not machine.path("/run/provision-guest.pid").exists()


def test_it_waits_for_a_port_that_appears_late(system: Machine) -> None:
    with waiting(system):
        deadline = time.monotonic() + 10
        while not system.path("/run/provision-guest.pid").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with port_of(system) as reader:
            assert next_line(reader).startswith(b"hello ")


@pytest.mark.parametrize("shell", ["dash", "ash"])
def test_only_one_waits(make_machine: MakeMachine, shell: str) -> None:
    machine = make_machine(shell)
    with port_of(machine) as reader, waiting(machine):
        next_line(reader)
        ended = subprocess.run(
            machine.script(), stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=10
        )
        assert ended.returncode == 0
        assert b"waits already" in ended.stderr
        assert "waits already" in machine.read(LOG_FILE)
