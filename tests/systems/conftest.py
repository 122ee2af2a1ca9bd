"""The golden images, the killed build, and the table that every run ends with."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.systems.golden import golden_roots
from tests.systems.killed_build import KilledBuild, build_killed_and_resumed

ROWS = pytest.StashKey[list["Row"]]()


@dataclass
class Row:
    """One line of the table; times are in seconds."""

    init: str
    network: str
    booted: float | None = None
    configured: float | None = None
    second_boot: float | None = None
    passed: bool = False

    def line(self) -> str:
        times = (self.booted, self.configured, self.second_boot)
        cells = " ".join(f"{'-' if time is None else f'{time:.1f}':>12}" for time in times)
        result = "ok" if self.passed else "FAILED"
        return f"{self.init:<16} {self.network:<18} {result:<7}{cells}"


NewRow = Callable[[str, str], Row]


@pytest.fixture(scope="session")
def golden() -> dict[str, Path]:
    """The roots of all systems by name."""
    return golden_roots()


@pytest.fixture(scope="session")
def killed_build() -> Iterator[KilledBuild]:
    """One build for all tests that need a Debian of provisionctl's own making."""
    # On a disk: an image is made in it.
    with tempfile.TemporaryDirectory(prefix="build-", dir="/var/tmp") as name:
        yield build_killed_and_resumed(Path(name))


@pytest.fixture
def new_row(pytestconfig: pytest.Config) -> NewRow:
    """Makes the line of one system, by its init and the owner of its network."""

    def new_row(init: str, network: str) -> Row:
        row = Row(init, network)
        pytestconfig.stash.setdefault(ROWS, []).append(row)
        return row

    return new_row


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Init system × owner of the network × result."""
    if rows := config.stash.get(ROWS, []):
        head = f"{'init':<16} {'network':<18} {'result':<7}"
        times = " ".join(f"{name:>12}" for name in ("booted s", "configured s", "2nd boot s"))
        terminalreporter.section("systems")
        for line in (f"{head}{times}", *(row.line() for row in rows)):
            terminalreporter.write_line(line)
