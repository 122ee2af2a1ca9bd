"""A systemd of its own over this machine's files, by systemd-nspawn.

Its root is an overlay: what it writes is on tmpfs and gone with it, and of this machine's units it
has those that packages bring, none that is enabled here. Mounts, processes and network are its own.
"""

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from tests.lab.fixtures import LOG_TAIL, TMPFS
from tests.lab.initramfs import PROJECT

BOOT_SECONDS = 120
# The overlay is made where no other process sees it; systemd-nspawn takes the shell's place.
BOOT = """
set -e
cd "$1"
shift
mkdir upper work root
mount -t overlay -o lowerdir=/,upperdir=upper,workdir=work overlay root
# Nothing that was enabled on this machine; the folder is made anew, so the overlay hides the old.
rm -rf root/etc/systemd/system root/var/log/journal
mkdir root/etc/systemd/system
echo "$$" >"$CGROUP/cgroup.procs"
exec systemd-nspawn --directory=root "$@"
"""


class Container:
    """A running container; `leader` is its systemd, as this machine numbers it."""

    def __init__(self, nspawn: subprocess.Popen[bytes], leader: int) -> None:
        self._nspawn = nspawn
        self._leader = leader

    def path(self, path: str | Path) -> Path:
        """Where a path of the container is to be found from here, sockets included."""
        return Path(f"/proc/{self._leader}/root") / str(path).removeprefix("/")

    def argv(self, *argv: str | Path) -> list[str | Path]:
        """What runs a program inside."""
        return ["nsenter", f"--target={self._leader}", "--all", "--wdns=/", *argv]

    def run(self, *argv: str | Path) -> str:
        """What a program inside prints; it has to succeed."""
        ended = subprocess.run(self.argv(*argv), capture_output=True, text=True, check=False)
        assert ended.returncode == 0, f"{argv}: {ended}"
        return ended.stdout

    def power_off(self) -> None:
        """Shuts it down as its operator would; returns once nothing of it runs."""
        # This process dies with the container, so its status says nothing.
        subprocess.run(self.argv("poweroff"), capture_output=True, check=False)
        self._nspawn.wait(BOOT_SECONDS)


@contextmanager
def booted() -> Iterator[Container]:
    """A container whose systemd has reached basic.target."""
    with tempfile.TemporaryDirectory(prefix="nspawn-", dir=TMPFS) as name:
        folder = Path(name)
        log = folder / "console"
        try:
            with log.open("wb") as console:
                options = _options(f"provisiond-{os.getpid()}")
                argv = in_namespaces("--mount", boot=BOOT, arguments=[folder, *options])
                with spawned(argv, folder=folder, console=console) as container:
                    yield container
        finally:
            print(f"--- console\n{log.read_text(errors='replace')[-LOG_TAIL:]}")


def in_namespaces(*namespaces: str, boot: str, arguments: Sequence[str | Path]) -> list[str | Path]:
    """What runs the shell text `boot` with the arguments in new namespaces."""
    return ["unshare", *namespaces, "--propagation=private", "sh", "-c", boot, "sh", *arguments]


@contextmanager
def spawned(argv: Sequence[str | Path], *, folder: Path, console: IO[bytes]) -> Iterator[Container]:
    """A container, once systemd-nspawn says that it is ready; `argv` has to become systemd-nspawn.

    Before that it enters the group "$CGROUP". What the container shows goes to `console`.
    """
    with _own_cgroup() as cgroup:
        nspawn, leader = _boot(argv, folder / "notify", console, cgroup)
        try:
            yield Container(nspawn, leader)
        finally:
            # Nothing in it is to be kept: the kernel ends all of it with its first process.
            if nspawn.poll() is None:
                with suppress(ProcessLookupError):  # it is just ending by itself
                    os.kill(leader, signal.SIGKILL)
            nspawn.wait()


def _boot(
    argv: Sequence[str | Path], notify: Path, console: IO[bytes], cgroup: Path
) -> tuple[subprocess.Popen[bytes], int]:
    """systemd-nspawn, and the container's first process."""
    # Closed as soon as it is up: systemd-nspawn would wait for us to read what else it tells.
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notify.unlink(missing_ok=True)
        notified.bind(str(notify))
        notified.settimeout(1)
        nspawn = subprocess.Popen(
            ["setpriv", "--pdeathsig=TERM", *argv],
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            env=os.environ
            | {
                "CGROUP": str(cgroup),
                "NOTIFY_SOCKET": str(notify),
                "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1",
            },
        )
        try:
            return nspawn, _leader(nspawn, notified)
        except BaseException:
            nspawn.kill()
            nspawn.wait()
            raise


def _options(name: str) -> list[str]:
    return [
        "--boot",
        f"--machine={name}",
        "--register=no",
        "--keep-unit",
        "--notify-ready=yes",
        "--private-network",
        "--link-journal=no",
        "--resolv-conf=off",
        "--timezone=off",
        "--console=read-only",
        f"--bind-ro={PROJECT}",
        "systemd.unit=basic.target",
        "systemd.journald.forward_to_console=0",
    ]


def _leader(nspawn: subprocess.Popen[bytes], notified: socket.socket) -> int:
    """The first process, once it has said that the container is up."""
    said: dict[str, str] = {}
    until = time.monotonic() + BOOT_SECONDS
    while said.get("READY") != "1":
        try:
            message = notified.recv(4096).decode()
        except TimeoutError:
            if nspawn.poll() is not None or time.monotonic() > until:
                raise RuntimeError("the container is not up; its console says why") from None
        else:
            said |= dict(line.split("=", 1) for line in message.splitlines() if "=" in line)
    return int(said["X_NSPAWN_LEADER_PID"])


@contextmanager
def _own_cgroup() -> Iterator[Path]:
    """systemd-nspawn makes groups beside its own: in the root two containers would meet."""
    parent = Path("/sys/fs/cgroup")
    if not (parent / "cgroup.procs").exists():
        parent /= "unified"
    cgroup = Path(tempfile.mkdtemp(prefix="provisiond-", dir=parent))
    try:
        yield cgroup
    finally:
        for root in (parent, parent.with_name("systemd")):
            _remove_cgroup(root / cgroup.name)


def _remove_cgroup(cgroup: Path) -> None:
    for folder, _folders, _files in os.walk(cgroup, topdown=False):
        Path(folder).rmdir()
