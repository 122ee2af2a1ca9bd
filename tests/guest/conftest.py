"""The machines that the tests of the guest's script ask for."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.guest.machine import SHELLS, Machine

MakeMachine = Callable[[str], Machine]


@pytest.fixture
def make_machine() -> Iterator[MakeMachine]:
    """Makes machines by the name of their shell; all of them are gone after the test."""
    with ExitStack() as stack:

        def make(shell: str) -> Machine:
            folder = Path(tempfile.mkdtemp(prefix="provision-guest-", dir="/dev/shm"))
            stack.callback(shutil.rmtree, folder)
            return stack.enter_context(Machine(folder, shell))

        yield make


@pytest.fixture(params=SHELLS)
def machine(request: pytest.FixtureRequest, make_machine: MakeMachine) -> Machine:
    """A machine under each shell: dash and bash with GNU tools, ash with busybox alone."""
    return make_machine(request.param)


@pytest.fixture
def system(make_machine: MakeMachine) -> Machine:
    """A machine under dash with GNU tools, where the shell makes no difference."""
    return make_machine("dash")


@pytest.fixture(scope="package", autouse=True)
def _this_host_stays_as_it_is() -> Iterator[None]:
    """The script writes these files; no mistake here may let it write this host's."""
    names = (
        "passwd",
        "shadow",
        "group",
        "hosts",
        "hostname",
        "resolv.conf",
        "localtime",
        "timezone",
    )
    before = [_stat_of(Path("/etc", name)) for name in names]
    yield
    assert [_stat_of(Path("/etc", name)) for name in names] == before


def _stat_of(path: Path) -> tuple[int, int, int] | None:
    if not path.is_symlink() and not path.exists():
        return None
    status = path.lstat()
    return status.st_ino, status.st_ctime_ns, status.st_size
