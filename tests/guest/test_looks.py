"""How often the script looks for its disk: seldom, and often once a host has taken its hello.

What it asks `sleep` for is read by strace, which sees every process that the script starts.
"""

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from tests.guest.machine import ENVIRONMENT, Machine
from tests.guest.test_words import next_line, port_of

SOON = '"0.05"'
IDLE = '"1"'


@contextmanager
def sleeps_of(machine: Machine) -> Iterator[Iterator[str]]:
    """What the waiting script asks sleep for, as it asks."""
    trace = ["strace", "--follow-forks", "--trace=execve", "--quiet=all", "--signal=none"]
    script = subprocess.Popen(
        [*trace, "--output=/dev/stderr", *machine.script()],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    assert script.stderr is not None
    try:
        asked = (re.search(r'execve\(.*\["sleep", ("[^"]*")\]', line) for line in script.stderr)
        yield (found[1] for found in asked if found)
    finally:
        pid = machine.read("/run/provision-guest.pid").strip()
        machine.run("sh", "-c", f"kill -TERM {pid}")
        script.communicate(timeout=30)


def test_nobody_listens_and_it_looks_once_a_second(machine: Machine) -> None:
    with sleeps_of(machine) as asked:
        assert [seconds for seconds, _ in zip(waits(asked), range(4), strict=False)] == [IDLE] * 4


def test_a_host_has_taken_the_hello_and_it_looks_often_for_a_while(machine: Machine) -> None:
    with port_of(machine) as reader, sleeps_of(machine) as asked:
        looks = waits(asked)
        next(seconds for seconds in looks if seconds == SOON)
        assert next_line(reader).startswith(b"hello ")
        next(seconds for seconds in looks if seconds == IDLE)


def waits(asked: Iterator[str]) -> Iterator[str]:
    """Those between two looks, not those of the child that speaks."""
    return (seconds for seconds in asked if seconds in {SOON, IDLE})
