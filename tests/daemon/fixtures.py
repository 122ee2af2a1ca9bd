"""pytest fixtures: a daemon on libvirt's test driver, and one over real guests."""

import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from provisiond.disk.folder import make_mutable
from tests.daemon.program import Daemon
from tests.lab.fixtures import TMPFS
from tests.lab.libvirtd import Libvirtd
from tests.lab.program import Lab


@pytest.fixture
def daemon_folder() -> Iterator[Path]:
    """A short folder on tmpfs for a daemon's own things."""
    with fresh_folder() as folder:
        yield folder


@contextmanager
def fresh_folder() -> Iterator[Path]:
    """The same for a fixture that lives longer than one test."""
    with tempfile.TemporaryDirectory(prefix="pd-", dir=TMPFS) as folder:
        try:
            yield Path(folder)
        finally:
            for base in Path(folder).glob("images/bases/*"):  # immutable: not even root removes it
                make_mutable(base)


@pytest.fixture
async def idle_daemon(daemon_folder: Path) -> AsyncIterator[Daemon]:
    """Not started yet; libvirt's test driver has one domain, `test`, which runs nothing."""
    daemon = Daemon(daemon_folder, {"libvirt_uri": "test:///default"})
    yield daemon
    await daemon.kill()
    print(f"--- provisiond\n{daemon.log.read_text() if daemon.log.exists() else ''}")


@pytest.fixture
async def daemon(idle_daemon: Daemon) -> Daemon:
    """A daemon that serves, with no guest that could answer."""
    await idle_daemon.start()
    return idle_daemon


@pytest.fixture
async def guest_daemon(lab: Lab, daemon_folder: Path) -> AsyncIterator[Daemon]:
    """Not started yet; it will own the lab's libvirt, so the test starts its guests first."""
    daemon = Daemon(daemon_folder, {"libvirt_uri": lab.uri})
    yield daemon
    await daemon.kill()
    print(f"--- provisiond\n{daemon.log.read_text() if daemon.log.exists() else ''}")


@pytest.fixture
async def system_daemon(libvirtd: Libvirtd, daemon_folder: Path) -> AsyncIterator[Daemon]:
    """Not started yet; QEMU runs as another user, who may pass through its folders."""
    daemon_folder.chmod(0o755)
    daemon = Daemon(daemon_folder, {"libvirt_uri": libvirtd.uri})
    yield daemon
    await daemon.kill()
    print(f"--- provisiond\n{daemon.log.read_text() if daemon.log.exists() else ''}")
