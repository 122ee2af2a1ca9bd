"""Where the guests run: libvirt inside the daemon, which dies with it, or libvirtd beside it."""

import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.lab.disk import disk_guest_files
from tests.lab.domain import Guest, kernel_words, shell_path, template_xml
from tests.lab.embed import end_process, lab_folder, qemu_pids
from tests.lab.fixtures import TMPFS, fresh_root
from tests.lab.initramfs import guest_files
from tests.lab.libvirtd import Libvirtd
from tests.lab.program import Lab, Running


class GuestHost(ABC):
    """What guests are made with; `root` is a folder that every QEMU's command line names."""

    uri: str
    root: Path
    prefix: tuple[str, ...] = ()

    @abstractmethod
    def start(self, *, silent: bool) -> Running:
        """Start the guest web1, before the daemon is."""

    @abstractmethod
    def running(self, name: str) -> Running:
        """A guest that the daemon has made."""

    @abstractmethod
    def end_all(self) -> None:
        """The host has no power: no QEMU, and nothing of libvirt's that is on tmpfs."""

    @abstractmethod
    def template(self, *words: str) -> str:
        """The operator's template of guests on a disk, with more words for their kernel."""


class Embedded(GuestHost):
    """libvirt's QEMU driver in the daemon's own process."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self.uri, self.root = lab.uri, lab.root

    def start(self, *, silent: bool) -> Running:
        (guest,) = self._lab.start(*["--silent"] * silent)
        return guest

    def running(self, name: str) -> Running:
        return self._lab.running(name)

    def end_all(self) -> None:
        while pids := list(qemu_pids(self.root)):
            for pid in pids:
                end_process(pid)
        shutil.rmtree(self.root / "run", ignore_errors=True)

    def template(self, *words: str) -> str:
        model = Guest("any", kernel_words=words)
        folder = lab_folder(self.root)
        return template_xml(model, files=disk_guest_files().boot, folder=folder)


class Beside(GuestHost):
    """A libvirtd of its own: it goes on with what it was asked for."""

    def __init__(self, libvirtd: Libvirtd) -> None:
        self._libvirtd = libvirtd
        self.uri, self.root, self.prefix = libvirtd.uri, libvirtd.folder, libvirtd.inside

    def start(self, *, silent: bool) -> Running:
        guest = Guest("web1", kernel_words=kernel_words(silent=silent))
        (running,) = self._libvirtd.start_guests(guest)
        return running

    def running(self, name: str) -> Running:
        shell = shell_path(self._libvirtd.xml(name))
        log = self._libvirtd.log
        return Running(name=name, uuid="", mac="", uri=self.uri, log=log, shell=shell)

    def end_all(self) -> None:
        raise NotImplementedError("the tmpfs that is libvirtd's /run ends with its namespace")

    def template(self, *words: str) -> str:
        return self._libvirtd.template(disk_guest_files().boot, *words)


@contextmanager
def embedded() -> Iterator[GuestHost]:
    """A fresh one; at the end no guest and no file is left."""
    with fresh_root() as root:
        yield Embedded(Lab(root=root, files=guest_files()))


@contextmanager
def beside() -> Iterator[GuestHost]:
    """The same."""
    with tempfile.TemporaryDirectory(prefix="lv-", dir=TMPFS) as name:
        folder = Path(name)
        folder.chmod(0o755)  # QEMU's user has to come to its kernel
        libvirtd = Libvirtd(folder, files=guest_files())
        try:
            libvirtd.start()
            yield Beside(libvirtd)
        finally:
            libvirtd.close()
