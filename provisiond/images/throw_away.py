"""A host that is thrown away: provisiond with libvirt's QEMU driver inside, and its guests, in
namespaces of their own. The daemon is the real one; so is all that it is asked for.

    async with throw_away_host(image, …) as host:
        with host.client() as provisiond: …

When the block is left, and when this process ends in whatever way, all of it ends: the first
process of the namespaces (`main`) sees that its pipe has closed, kills the others and removes the
folder. Where that one is killed the kernel does the same but for the folder, which the next host
removes. The image is the base there by a read-only mount of its own, through which not even root
can write it; the network has nothing but QEMU's own.
"""

import asyncio
import fcntl
import json
import os
import select
import shutil
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from provisiond.api.client import ProvisiondClient
from provisiond.disk.folder import write_whole
from provisiond.disk.manifest import Manifest
from provisiond.errors import NotPermitted, ProvisionError, SettingsError, ToolFailed
from provisiond.plan import bases_folder
from provisiond.process import output_of, require_tool, run, run_as_init
from provisiond.virt.kvm import QEMU

# Sockets of libvirt's lie below it, and a Unix address has 107 bytes.
_LONGEST = 40
_PREFIX = "verify-"
_MARKER = ".provisiond-throw-away"  # only what has it is ever removed
_READY = b"ready\n"
_RESERVE_MIB = 64
_TAIL = 2000  # characters of a log that go into an error
# Consoles go to their files without virtlogd, which is not there. As root libvirt would also give
# files to another user and put each guest into cgroups; the namespaces here hold all of them.
_QEMU_CONF = """\
stdio_handler = "file"
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
namespaces = []
cgroup_controllers = []
"""


@dataclass(frozen=True, slots=True)
class ThrowAwayHost:
    """Everything of it is in `folder`."""

    folder: Path

    def client(self) -> ProvisiondClient:
        """A client of its provisiond. One that is gone does not come back."""
        return ProvisiondClient(self.socket, away_seconds=0)

    @property
    def socket(self) -> Path:
        return self.folder / "provisiond.sock"

    @property
    def log(self) -> Path:
        """What the daemon says."""
        return self.folder / "log"

    @property
    def templates(self) -> Path:
        return self.folder / "templates"

    @property
    def settings(self) -> Path:
        return self.folder / "provisiond.toml"

    @property
    def images(self) -> Path:
        return self.folder / "images"

    @property
    def _libvirt(self) -> Path:
        return self.folder / "lv"

    @property
    def _runtime(self) -> Path:
        return self.folder / "run"

    def _base(self, manifest: Manifest) -> Path:
        return bases_folder(self.images) / manifest.file_name

    # ------------------------------------------------------------ before it starts
    def prepare(self, manifest: Manifest, *, template: str, limits: Mapping[str, float]) -> None:
        """Write all that it starts with; the base's file is empty until the image is mounted."""
        for path in (self.templates, bases_folder(self.images), self._runtime):
            path.mkdir(parents=True)
        (self._libvirt / "etc").mkdir(parents=True)
        (self._libvirt / "etc/qemu.conf").write_text(_QEMU_CONF)
        _copy_changed(_kept_capabilities(), self._capabilities)
        (self.templates / "default.xml").write_text(template)
        self._base(manifest).touch(mode=0o444)
        self._base(manifest).with_suffix(".json").write_bytes(manifest.to_json())
        settings = {
            "libvirt_uri": f"qemu:///embed?root={self._libvirt}",
            "state_dir": str(self.folder / "state"),
            "runtime_dir": str(self._runtime),
            "image_dir": str(self.images),
            "template_dir": str(self.templates),
            "reserve_mib": _RESERVE_MIB,
            "socket": str(self.socket),
        } | dict(limits)
        # What JSON writes of texts and numbers is TOML as well.
        lines = (f"{name} = {json.dumps(value)}\n" for name, value in settings.items())
        self.settings.write_text("".join(lines))

    @property
    def _capabilities(self) -> Path:
        return self._libvirt / "cache/qemu/capabilities"

    def keep_capabilities(self) -> None:
        """For the next host: what libvirt has found out about QEMU, which took it seconds."""
        with suppress(OSError, ProvisionError):  # then it takes the next one as long
            _copy_changed(self._capabilities, _kept_capabilities())

    # ------------------------------------------------------------ inside
    async def mount(self, image: Path, base: str) -> None:
        """Secrets on a tmpfs that nobody else sees; the image as a base that nobody can write."""
        await run(["mount", "-t", "tmpfs", "-o", "mode=0700,size=64m", "tmpfs", self._runtime])
        place = bases_folder(self.images) / base
        await run(["mount", "--bind", "-o", "ro", image, place])

    async def unmount(self, base: str) -> None:
        """So that the folder can be removed."""
        for place in (self._runtime, bases_folder(self.images) / base):
            await run(["umount", "--lazy", place], check=False)


def require_means() -> None:
    """Raises NotPermitted without root, ToolMissing without QEMU."""
    if os.geteuid() != 0:
        raise NotPermitted("mounts and processes of a guest's own are root's to make")
    require_tool(QEMU, package="qemu-system-x86 libvirt-daemon-driver-qemu")


@asynccontextmanager
async def throw_away_host(
    image: Path,
    manifest: Manifest,
    *,
    template: Callable[[Path], str],
    limits: Mapping[str, float],
) -> AsyncIterator[ThrowAwayHost]:
    """A host whose one base is `image`, by a bind mount.

    `template` makes the template of its guests, whose sockets may be in the folder that it is
    given; `limits` are settings of its provisiond.

    Raises as `require_means` does, and ToolFailed where it does not start.
    """
    require_means()
    with _own_folder() as (host, lock), _pipe() as (inner, outer):
        await asyncio.to_thread(
            host.prepare, manifest, template=template(host.folder), limits=limits
        )
        async with output_of(_argv(host, image, manifest, inner, lock)) as stream:
            os.close(inner.pop())
            try:
                if (said := await stream.readline()) != _READY:
                    raise _not_up(said + await stream.read())
                yield host
            finally:
                host.keep_capabilities()
                os.close(outer.pop())
                await asyncio.shield(stream.read())  # until nobody is left who could say anything


def _kept_capabilities() -> Path:
    """libvirt itself drops a file that is older than QEMU, libvirt or the kernel."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "/var/cache")
    return cache / "provisiond/libvirt-capabilities"


def _copy_changed(source: Path, destination: Path) -> None:
    destination.mkdir(parents=True, exist_ok=True)
    for path in source.glob("*.xml"):
        place, content = destination / path.name, path.read_bytes()
        if not place.exists() or place.read_bytes() != content:
            write_whole(place, content, part=place.with_suffix(f".{os.getpid()}.part"))


def _argv(
    host: ThrowAwayHost, image: Path, manifest: Manifest, inner: list[int], lock: int
) -> list[str | Path]:
    return [
        "unshare",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount",
        "--mount-proc",
        "--net",  # the guest meets nobody
        *("--propagation", "private"),
        # -P: not a module of the folder that somebody happens to stand in.
        *(sys.executable, "-P", "-m", "provisiond.images.throw_away"),
        host.folder,
        image,
        manifest.file_name,
        *(f"/proc/self/fd/{number}" for number in (*inner, lock)),
    ]


def _not_up(untrusted: bytes) -> ToolFailed:
    lines = untrusted.decode(errors="replace").strip().splitlines()
    said = " ".join(lines[-3:])  # the last are the reason, also of a traceback
    return ToolFailed(
        f"provisiond did not start for it: {said}",
        hint="It needs QEMU and libvirt's driver for it: on Debian, apt install "
        "qemu-system-x86 libvirt-daemon-driver-qemu.",
    )


@contextmanager
def _own_folder() -> Iterator[tuple[ThrowAwayHost, int]]:
    """A new folder, and the lock that says that somebody uses it."""
    parent = Path(os.environ.get("TMPDIR") or "/var/tmp").resolve()  # noqa: S108 - mkdtemp's
    _remove_left(parent)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    try:
        if len(str(folder)) > _LONGEST:
            raise SettingsError(
                f"{parent} is too long for the sockets below it", hint="Set TMPDIR to a short path."
            )
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            (folder / _MARKER).touch()
            yield ThrowAwayHost(folder), lock
        finally:
            os.close(lock)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_left(parent: Path) -> None:
    """Folders of hosts that ended without a chance to remove them, by a power cut for example."""
    for folder in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            left = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                os.stat(_MARKER, dir_fd=left, follow_symlinks=False)
                fcntl.flock(left, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(left).st_uid == os.geteuid():
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(left)


@contextmanager
def _pipe() -> Iterator[tuple[list[int], list[int]]]:
    """Both ends, each in a list that whoever closes it takes it out of."""
    ends = tuple([number] for number in os.pipe())
    try:
        yield ends[0], ends[1]
    finally:
        for end in ends:
            for number in end:
                os.close(number)


# ---------------------------------------------------------------- inside: the first process
def main() -> None:
    """`python -m provisiond.images.throw_away FOLDER IMAGE BASE PIPE LOCK`, by `unshare`."""
    folder, image, base, pipe, _lock = sys.argv[1:]
    host = ThrowAwayHost(Path(folder))
    asked = int(Path(pipe).name)
    try:
        asyncio.run(host.mount(Path(image), base))
        outside = os.dup(sys.stdout.fileno())
        with host.log.open("ab") as log:
            for number in (1, 2):
                os.dup2(log.fileno(), number)
        _serve(host, asked=asked, outside=outside)
        with suppress(BrokenPipeError):  # whoever asked may have ended
            os.write(outside, host.log.read_bytes()[-_TAIL:])
    finally:
        asyncio.run(host.unmount(base))
        shutil.rmtree(folder, ignore_errors=True)


def _serve(host: ThrowAwayHost, *, asked: int, outside: int) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        place = host.folder / "notify"
        notified.bind(str(place))

        def attend() -> None:
            while asked not in select.select([notified.fileno(), asked], [], [])[0]:
                if b"READY=1" in notified.recv(4096).splitlines():
                    os.write(outside, _READY)

        # Settings in the environment would win over those of the file.
        kept = {name: os.environ[name] for name in os.environ if not name.startswith("PROVISIOND_")}
        run_as_init(
            [sys.executable, "-P", "-m", "provisiond", "serve", "--config", host.settings],
            environment=kept | {"NOTIFY_SOCKET": str(place)},
            attend=attend,
        )


if __name__ == "__main__":
    main()
