"""pytest fixtures: a root directory, the guest's files, and a lab that cleans up after itself."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.lab.disk import DiskGuestFiles, disk_guest_files
from tests.lab.embed import destroy_all, lab_folder, prepare_root
from tests.lab.initramfs import GuestFiles, guest_files
from tests.lab.libvirtd import Libvirtd
from tests.lab.program import Lab

TMPFS = Path("/dev/shm")  # config ISOs must never reach a disk; and sockets need a short path
LOG_TAIL = 3000


@pytest.fixture(scope="session", name="guest_files")
def _guest_files() -> GuestFiles:
    """Kernel and initramfs of the tiny guest."""
    return guest_files()


@pytest.fixture(scope="session", name="disk_guest_files")
def _disk_guest_files() -> DiskGuestFiles:
    """The golden image of the tiny guest on a disk, and what boots it."""
    return disk_guest_files()


@pytest.fixture
def guest_root() -> Iterator[Path]:
    """A prepared root for libvirt's embedded driver; at the end no guest and no file is left."""
    with fresh_root() as root:
        yield root


@contextmanager
def fresh_root() -> Iterator[Path]:
    """The same for a fixture that lives longer than one test."""
    root = Path(tempfile.mkdtemp(prefix="lab-", dir=TMPFS))
    prepare_root(root)
    try:
        yield root
    finally:
        for log in sorted(lab_folder(root).glob("*.log")):  # pytest shows it when the test failed
            print(f"--- {log.name}\n{log.read_text(errors='replace')[-LOG_TAIL:]}")
        destroy_all(root)


@pytest.fixture
def lab(guest_root: Path, guest_files: GuestFiles) -> Lab:
    """Starts guests of the test's own."""
    return Lab(root=guest_root, files=guest_files)


@pytest.fixture(scope="module")
def libvirtd_of_module(guest_files: GuestFiles) -> Iterator[Libvirtd]:
    """One for the tests of a module; they ask for `libvirtd`."""
    with tempfile.TemporaryDirectory(prefix="lv-", dir=TMPFS) as name:
        folder = Path(name)
        folder.chmod(0o755)  # QEMU's user has to come to its kernel
        libvirtd = Libvirtd(folder, files=guest_files)
        try:
            libvirtd.start()
            yield libvirtd
        finally:
            libvirtd.close()


@pytest.fixture
def libvirtd(libvirtd_of_module: Libvirtd) -> Iterator[Libvirtd]:
    """A libvirtd that serves, without guests; the test may do to it what it likes."""
    libvirtd_of_module.reset()
    try:
        yield libvirtd_of_module
    finally:
        for log in sorted(libvirtd_of_module.folder.glob("*.log")):
            print(f"--- {log.name}\n{log.read_text(errors='replace')[-LOG_TAIL:]}")
