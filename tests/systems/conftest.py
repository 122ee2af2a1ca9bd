"""The golden images, and the table that every run ends with."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.systems.golden import System, golden_roots

ROWS = pytest.StashKey[list["Row"]]()


@dataclass
class Row:
    """One line of the table; times are in seconds."""

    system: System
    booted: float | None = None
    configured: float | None = None
    second_boot: float | None = None
    passed: bool = False

    def line(self) -> str:
        times = (self.booted, self.configured, self.second_boot)
        cells = " ".join(f"{'-' if time is None else f'{time:.1f}':>12}" for time in times)
        result = "ok" if self.passed else "FAILED"
        return f"{self.system.init:<10} {self.system.network:<18} {result:<7}{cells}"


@pytest.fixture(scope="session")
def golden() -> dict[str, Path]:
    """The roots of all systems by name."""
    return golden_roots()


@pytest.fixture
def row(request: pytest.FixtureRequest, pytestconfig: pytest.Config) -> Row:
    """The line of the system that the test is for."""
    made = Row(request.getfixturevalue("system"))
    pytestconfig.stash.setdefault(ROWS, []).append(made)
    return made


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Init system × owner of the network × result."""
    if rows := config.stash.get(ROWS, []):
        head = f"{'init':<10} {'network':<18} {'result':<7}"
        times = " ".join(f"{name:>12}" for name in ("booted s", "configured s", "2nd boot s"))
        terminalreporter.section("systems")
        for line in (f"{head}{times}", *(row.line() for row in rows)):
            terminalreporter.write_line(line)
