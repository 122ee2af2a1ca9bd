"""A real xenstored with domains: what Xen and libxl do to it, done by a test."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self

from tests.xenstore.program import program
from tests.xenstore.wire import Connection, Request

# xenstored asks the kernel of dom0 for its ring by two files of /proc/xen; /proc is its own here.
# It outlives neither this process, though stopped (the signal), nor a pipe that is closed (stdin).
START = r"""
set -e
mount -t tmpfs none /proc
mkdir /proc/xen
printf 1 >/proc/xen/xsd_port
truncate --size 4096 /proc/xen/xsd_kva
ulimit -n "$(ulimit -Hn)"
exec "$@"
"""

# Made by libxl (libxl__domain_make): read-only for the guest, and the guest's own.
READ_ONLY = ("", "/cpu", "/memory", "/device", "/control")
WRITABLE = (
    "/device/suspend/event-channel",
    "/control/shutdown",
    "/control/feature-poweroff",
    "/control/feature-reboot",
    "/control/feature-suspend",
    "/control/sysrq",
    "/data",
    "/drivers",
    "/feature",
    "/attr",
    "/error",
)


class XenDomain:
    """A domain, and its guest: whoever connects to `socket` is that guest, one at a time."""

    def __init__(self, store: "Xenstored", domid: int, *, uuid: str) -> None:
        self.domid = domid
        self.uuid = uuid
        self.home = f"/local/domain/{domid}"
        self.socket = store.folder / f"dom{domid}.sock"
        self._store = store

    def connect(self) -> Connection:
        """A connection as the guest; while it is open, nobody else is this guest."""
        return Connection(self.socket)

    def write(self, path: str, value: bytes) -> None:
        with self.connect() as guest:
            guest.write(path, value)

    def read(self, path: str) -> bytes:
        with self.connect() as guest:
            return guest.read(path)

    def rm(self, path: str) -> None:
        with self.connect() as guest:
            guest.rm(path)

    def shut_down(self) -> None:
        """The guest powers itself off; libxl removes what it made, and the domain.

        Returns when xenstored has forgotten the domain. @releaseDomain fires twice, as on Xen.
        """
        self._store.remove(self)


class Xenstored:
    """A xenstored of the test's own; a context that has started it, and leaves nothing."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="xs-", dir="/dev/shm"))
        self.socket = self.folder / "socket"
        self._log = self.folder / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        print(f"--- xenstored\n{self.log}")  # pytest shows it when the test failed
        shutil.rmtree(self.folder)

    @property
    def log(self) -> str:
        """What xenstored said on stderr."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def start(self) -> None:
        """A new xenstored with an empty store; returns when it answers.

        From a thread that lives as long as xenstored shall: it dies with the thread.
        """
        assert self._process is None, "it runs already"
        for path in self.folder.glob("*.sock"):  # the kill left them
            path.unlink()
        made = program()
        argv = ["unshare", "--mount", "setpriv", "--pdeathsig", "KILL", "sh", "-c", START, "sh"]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*argv, made.xenstored, "--no-fork"],
                env={
                    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                    "LD_LIBRARY_PATH": str(made.libraries),
                    "LD_BIND_NOW": "1",  # a function that hypervisor.c lacks is named at the start
                    "XENSTORED_RUNDIR": str(self.folder),
                    "XENSTORED_ROOTDIR": str(self.folder),
                },
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        assert self._process.stdout is not None
        if not self._process.stdout.readline():  # "ready", see hypervisor.c
            raise RuntimeError(f"xenstored has not started:\n{self.log}")
        self._connection = Connection(self.socket)

    def kill(self) -> None:
        """SIGKILL; the store is lost. `start` then is what follows a crash."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._process is not None:
            self._process.kill()
            with self._process:  # closes the pipes, and waits
                pass
            self._process = None

    def stop(self) -> None:
        """SIGSTOP: it is there, and does not answer. Returns when it has stopped."""
        self._running.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._running.pid, os.WSTOPPED)

    def resume(self) -> None:
        self._running.send_signal(signal.SIGCONT)

    @property
    def dom0(self) -> Connection:
        """A connection as dom0, the test's own."""
        assert self._connection is not None, "xenstored does not run"
        return self._connection

    def introduce(self, domid: int, *, uuid: str) -> XenDomain:
        """A domain as libxl makes it: its tree, its permissions, and then xenstored is told."""
        (domain,) = self.introduce_all({domid: uuid})
        return domain

    def introduce_all(self, uuids: Mapping[int, str]) -> list[XenDomain]:
        """Many at once, by domid: every domain that xenstored serves makes its next request slower,
        so the trees are made first."""
        domains = self.build_all(uuids)
        for domain in domains:
            # The frame and the port of its ring: any, as hypervisor.c knows the ring by the domain.
            self.dom0.request(Request.INTRODUCE, b"%d\0" % domain.domid, b"1\0", b"1\0")
        return domains

    def build_all(self, uuids: Mapping[int, str]) -> list[XenDomain]:
        """Domains that stand in the store, and of which xenstored is not told: they cannot speak,
        and cost it nothing."""
        domains = [XenDomain(self, domid, uuid=uuid) for domid, uuid in uuids.items()]
        for domain in domains:
            self._order(f"create {domain.domid}")
            self._make_tree(domain)
        return domains

    def _make_tree(self, domain: XenDomain) -> None:
        vm, libxl, name = f"/vm/{domain.uuid}", f"/libxl/{domain.domid}", f"guest{domain.domid}"
        read_only, writable = ["n0", f"r{domain.domid}"], [f"n{domain.domid}"]
        made = [
            *((domain.home + path, read_only) for path in READ_ONLY),
            *((domain.home + path, writable) for path in WRITABLE),
            (vm, read_only),
            (libxl, ["n0"]),
        ]
        values = {
            f"{domain.home}/vm": vm,
            f"{domain.home}/name": name,
            f"{domain.home}/domid": str(domain.domid),
            f"{domain.home}/control/platform-feature-xs_reset_watches": "1",
            f"{vm}/uuid": domain.uuid,
            f"{vm}/name": name,
            f"{libxl}/type": "pv",
        }
        with self.dom0.transaction() as transaction:
            for path, entries in made:
                self.dom0.write(path, b"", transaction=transaction)
                self.dom0.set_permissions(path, entries, transaction=transaction)
            for path, value in values.items():
                self.dom0.write(path, value.encode(), transaction=transaction)

    def remove(self, domain: XenDomain) -> None:
        """What `XenDomain.shut_down` promises."""
        with Connection(self.socket) as dom0:
            dom0.watch("@releaseDomain", "gone")
            dom0.event()  # the one that comes at once
            self._order(f"shutdown {domain.domid}")
            dom0.event()
            for path in (domain.home, f"/vm/{domain.uuid}", f"/libxl/{domain.domid}"):
                with suppress(FileNotFoundError):
                    dom0.rm(path)
            self._order(f"destroy {domain.domid}")
            dom0.event()

    @property
    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "xenstored does not run"
        return self._process

    def _order(self, order: str) -> None:
        """To the hypervisor; see hypervisor.c."""
        pipe = self._running.stdin
        assert pipe is not None
        pipe.write(f"{order}\n".encode())
        pipe.flush()
