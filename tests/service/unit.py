"""provisiond as systemd runs it in the container, with the files of systemd/ and a libvirtd."""

import asyncio
import shutil
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import libvirt

from provisiond.disk.folder import make_mutable
from tests.daemon.hold import holding
from tests.daemon.program import PROVISIOND, Api
from tests.lab.domain import Guest, domain_xml
from tests.lab.embed import copy_missing
from tests.lab.initramfs import PROJECT, GuestFiles
from tests.lab.libvirtd import QEMU_SETTINGS, kept_capabilities
from tests.service.container import Container

CONFIG = "/etc/provisiond/provisiond.toml"
DROP_IN = "/etc/systemd/system/provisiond.service.d/test.conf"
STATE = "/var/lib/provisiond"
ISO_FOLDER = "/run/provisiond/iso"
GUESTS = "/var/lib/guests"
CAPABILITIES = "/var/cache/libvirt/qemu/capabilities"
# What libvirt-daemon-system would bring; and no polkit is there to be asked.
LIBVIRTD_UNIT = """\
[Service]
Type=notify
ExecStart=/usr/sbin/libvirtd
KillMode=process
"""
LIBVIRTD_SETTINGS = 'auth_unix_ro = "none"\nauth_unix_rw = "none"\n'


class Unit(Api):
    """The installed unit, and guests beside it."""

    def __init__(self, container: Container, files: GuestFiles) -> None:
        self.container = container
        self._files = files

    # ------------------------------------------------------------ installed once
    def install(self) -> None:
        """What README.md has an operator do; and a libvirtd is started."""
        for name in ("provisiond.service", "provisiond.socket"):
            self._copy(PROJECT / "systemd" / name, f"/etc/systemd/system/{name}")
        self._copy(
            PROJECT / "systemd/sysusers.d/provisiond.conf", "/usr/lib/sysusers.d/provisiond.conf"
        )
        self.path("/usr/bin/provisiond").unlink(missing_ok=True)
        self.path("/usr/bin/provisiond").symlink_to(PROVISIOND)
        self.container.run("systemd-sysusers")
        self.write("/etc/systemd/system/libvirtd.service", LIBVIRTD_UNIT)
        self.write("/etc/libvirt/libvirtd.conf", LIBVIRTD_SETTINGS)
        self.write("/etc/libvirt/qemu.conf", QEMU_SETTINGS)
        copy_missing(kept_capabilities(), self.path(CAPABILITIES))
        self._copy(self._files.kernel, f"{GUESTS}/kernel")
        self._copy(self._files.initramfs, f"{GUESTS}/initramfs")
        self.systemctl("daemon-reload")
        self.systemctl("start", "libvirtd")

    def keep_capabilities(self) -> None:
        """What libvirtd has found out about QEMU, for the next one."""
        copy_missing(self.path(CAPABILITIES), kept_capabilities())

    def set_up(self, settings: Mapping[str, object], *, drop_in: str = "") -> None:
        """Stopped and as new, with these settings alone, and this in the unit's [Service]."""
        self.systemctl("stop", "provisiond.socket", "provisiond.service")
        self.systemctl("reset-failed")
        for base in self.path(STATE).glob("images/bases/*"):
            make_mutable(base)
        for folder in (STATE, "/run/provisiond"):
            shutil.rmtree(self.path(folder), ignore_errors=True)
        self.write(CONFIG, "".join(f"{key} = {_toml(settings[key])}\n" for key in settings))
        self.write(DROP_IN, f"[Service]\n{drop_in}")
        self.systemctl("daemon-reload")

    # ------------------------------------------------------------ systemd
    def systemctl(self, *words: str) -> str:
        """What systemctl prints; it has to succeed."""
        return self.container.run("systemctl", *words)

    def start(self) -> None:
        """Returns when it has said READY=1."""
        self.systemctl("start", "provisiond")

    def show(self, name: str, unit: str = "provisiond.service") -> str:
        """One property of a unit."""
        return self.systemctl("show", f"--property={name}", "--value", unit).strip()

    async def started_again(self, *, since: str) -> None:
        """Returns when systemd has a main process that is another than `since`, and it is ready."""
        async with asyncio.timeout(120):
            while True:
                state, pid = self.show("ActiveState"), self.show("MainPID")
                if state == "active" and pid != since:
                    return
                await asyncio.sleep(0.1)

    # ------------------------------------------------------------ Api
    @property
    def socket(self) -> Path:
        return self.path("/run/provisiond/provisiond.sock")

    def said(self) -> str:
        return self.container.run("journalctl", "--output=cat", "--no-pager", "--boot")

    # ------------------------------------------------------------ its files and threads
    def path(self, path: str) -> Path:
        """A path of the container, from here."""
        return self.container.path(path)

    def write(self, path: str, text: str) -> None:
        """A file in the container."""
        self.path(path).parent.mkdir(parents=True, exist_ok=True)
        self.path(path).write_text(text)

    def _copy(self, source: Path, target: str) -> None:
        self.path(target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, self.path(target))

    def holding(self, which: str) -> AbstractAsyncContextManager[None]:
        """While this lasts, these threads of the daemon do not run."""
        return holding(which, int(self.show("MainPID")), *self.container.argv())

    # ------------------------------------------------------------ guests
    def start_guest(self, guest: Guest) -> None:
        """Define and start it, under libvirtd."""
        files = GuestFiles(kernel=Path(GUESTS, "kernel"), initramfs=Path(GUESTS, "initramfs"))
        connection = libvirt.open(
            f"qemu+unix:///system?socket={self.path('/run/libvirt/libvirt-sock')}"
        )
        try:
            connection.defineXML(domain_xml(guest, files=files, folder=Path(GUESTS))).create()
        finally:
            connection.close()

    def isos(self) -> list[Path]:
        """The config ISOs that are there."""
        return list(self.path(ISO_FOLDER).iterdir())


def _toml(value: object) -> str:
    return str(value) if isinstance(value, int | list) else f'"{value}"'
