"""A golden image that boots under systemd-nspawn, with the real script and its start-up file in it.

Its root is an overlay over the golden root: what it writes stays from boot to boot and is gone with
the test. It has two network interfaces of its own, at whose other ends answers a street: gateways
and a name server's address, in a network namespace beside it.
"""

import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.guest.machine import MACS
from tests.lab.fixtures import TMPFS
from tests.service.container import BOOT_SECONDS, Container, in_namespaces, spawned
from tests.systems.golden import System, install
from tests.systems.hardware import MOUNT_ISO, Hardware

STREET = (
    "10.0.0.1/24 dev street0",
    "10.0.0.254/24 dev street0",
    "fd00::1/64 dev street0 nodad",
    "fd00::fe/64 dev street0 nodad",
    "fd00::53/64 dev street0 nodad",
    "192.168.7.1/30 dev street1",
)
BOOT = f"""
set -e
cd "$1"
lower=$2 enable=$3
shift 3
mkdir -p upper work root
mount -t overlay -o "lowerdir=$lower,upperdir=upper,workdir=work" overlay root
[ -e enabled ] || chroot root sh -c "$enable"
touch enabled
mkdir -p /run/netns
mount -t tmpfs tmpfs /run/netns
ip netns add street
number=0
for mac in {" ".join(MACS)}; do
    ip link add "eth$number" address "$mac" type veth peer name "street$number" netns street
    ip -n street link set "street$number" up
    number=$((number + 1))
done
{chr(10).join(f"ip -n street addr add {address}" for address in STREET)}
echo "$$" >"$CGROUP/cgroup.procs"
exec systemd-nspawn --directory=root "$@"
"""


class Machine:
    """One machine; what it has on its disk outlives its boots."""

    def __init__(self, folder: Path, system: System, golden: Path) -> None:
        self.folder = folder
        self.system = system
        self._golden = golden
        self._boots = 0
        install(folder / "upper", system)
        helper = folder / "upper/usr/sbin/mount.iso9660"
        helper.write_text(MOUNT_ISO)
        helper.chmod(0o755)

    @contextmanager
    def booted(self) -> Iterator["Boot"]:
        """The machine at the end of its boot: services are up, or the console asks for a login."""
        self._boots += 1
        hardware = Hardware(self.folder / f"hardware-{self._boots}")
        console = _Console()
        arguments: list[str | Path] = [
            self.folder,
            self._golden,
            self.system.start_up.enable,
            *self._options(hardware.folder),
        ]
        argv = in_namespaces("--mount", "--net", boot=BOOT, arguments=arguments)
        started = time.monotonic()
        try:
            with spawned(argv, folder=self.folder, console=console.entrance) as container:
                if not self.system.has_systemd:
                    console.wait_for(" login: ", within=BOOT_SECONDS)
                yield Boot(container, hardware, seconds=time.monotonic() - started)
        finally:
            console.close()
            hardware.close()
            print(f"--- console of boot {self._boots}\n{console.text()}")

    def _options(self, hardware: Path) -> list[str]:
        return [
            f"--machine=provision-{os.getpid()}",
            "--hostname=without-a-name",  # the next boot shall bring the configured one
            "--register=no",
            "--keep-unit",
            f"--notify-ready={'yes' if self.system.has_systemd else 'no'}",
            "--link-journal=no",
            "--resolv-conf=off",
            "--timezone=off",
            "--console=read-only",
            # The network is that of the namespace where systemd-nspawn runs, all of it.
            "--capability=CAP_NET_ADMIN",
            "--bind=/dev/fuse",
            f"--bind={hardware}:/hardware",
            "/bin/sh",
            "/hardware/plug-in",
        ]


class Boot:
    """A machine that runs; `seconds` is how long it took."""

    def __init__(self, container: Container, hardware: Hardware, *, seconds: float) -> None:
        self.container = container
        self.hardware = hardware
        self.seconds = seconds
        self.run = container.run
        self.power_off = container.power_off

    def succeeds(self, command: str) -> bool:
        """Whether a shell command ends with 0."""
        argv = self.container.argv("sh", "-c", command)
        return subprocess.run(argv, capture_output=True, check=False).returncode == 0

    def read(self, path: str) -> str:
        """A file of the machine, as it reads it itself."""
        return self.run("cat", path)


class _Console:
    """What the machine shows; `entrance` is where it comes in."""

    def __init__(self) -> None:
        exit_, entrance = os.pipe()
        self.entrance = os.fdopen(entrance, "wb")
        self._changed = threading.Condition()
        self._shown = b""
        self._has_ended = False
        self._reader = threading.Thread(target=self._read, args=(exit_,), name="console")
        self._reader.start()

    def text(self) -> str:
        return self._shown.decode(errors="replace")

    def wait_for(self, text: str, *, within: float) -> None:
        """Returns once the text has been shown."""
        with self._changed:
            self._changed.wait_for(lambda: self._has_ended or text in self.text(), within)
            assert text in self.text(), f"the console has not shown {text!r}"

    def close(self) -> None:
        """Returns once all that was shown is here."""
        self.entrance.close()
        self._reader.join()

    def _read(self, end: int) -> None:
        with os.fdopen(end, "rb", buffering=0) as file:
            while came := file.read(65536):
                with self._changed:
                    self._shown += came
                    self._changed.notify_all()
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()


@contextmanager
def installed(system: System, golden: Path) -> Iterator[Machine]:
    """The machine of one test."""
    folder = Path(tempfile.mkdtemp(prefix="system-", dir=TMPFS))
    try:
        yield Machine(folder, system, golden)
    finally:
        shutil.rmtree(folder)
