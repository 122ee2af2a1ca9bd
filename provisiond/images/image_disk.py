"""An image as the disk that a guest sees in it: a path at which its raw bytes are, no privilege.

A raw image is that itself. Of any other one qemu-storage-daemon makes a file by FUSE, in a mount
namespace of its own: however this process ends, server and mount end with it.
"""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from provisiond.api.requests import DiskFormat
from provisiond.disk import image_file
from provisiond.disk.chain import QEMU_NAMES
from provisiond.disk.inspection import inspect
from provisiond.errors import ProvisionError, ToolFailed
from provisiond.images.image_lock import lock_for_reading
from provisiond.process import require_tool, running

# qemu-storage-daemon reserves far more addresses than memory, 8 MiB a thread.
_SERVER_LIMIT = 8 * 2**30


@dataclass(frozen=True, slots=True)
class ImageDisk:
    """A guest's disk of `size` bytes. `raw` names our open `descriptor` of it, as process.py hands
    it to other programs."""

    raw: Path
    descriptor: int
    size: int


@asynccontextmanager
async def opened(
    path: Path, *, disk_format: DiskFormat, writable: bool = False
) -> AsyncIterator[ImageDisk]:
    """The disk in the image `path` for the block. What was written is in the file at its end.

    Nobody writes to it meanwhile: others may read it where `writable` is false. Raises
    ImageNotFound, ImageBusy, ImageRefused (disk.inspection says what is), ToolMissing, ToolFailed.
    """
    with image_file.opened(path, writable=writable) as descriptor:
        held = Path(f"/proc/self/fd/{descriptor}")
        try:
            inspect(held, disk_format=disk_format)
            if not writable:
                lock_for_reading(descriptor, held)
            if disk_format is DiskFormat.RAW:
                yield ImageDisk(held, descriptor, os.fstat(descriptor).st_size)
                return
            async with _served(held, disk_format, writable=writable) as disk:
                yield disk
        except ProvisionError as error:
            error.message = error.message.replace(str(held), str(path))
            error.args = (error.message,)
            raise


@asynccontextmanager
async def _served(
    held: Path, disk_format: DiskFormat, *, writable: bool
) -> AsyncIterator[ImageDisk]:
    require_tool("qemu-storage-daemon", package="qemu-utils")
    # The file's own place: a mount hides it from nobody outside of the namespace.
    point = Path(os.path.realpath(held))
    argv = server_argv(held, point, disk_format=disk_format, writable=writable)
    async with running(argv) as server:
        said = await _until_ready(server)
        flags = os.O_RDWR if writable else os.O_RDONLY
        try:
            descriptor = os.open(f"/proc/{server.pid}/root{point}", flags | os.O_CLOEXEC)
        except OSError as error:
            raise ToolFailed(f"the disk in {held} cannot be opened: {error.strerror}") from error
        try:
            if os.fstat(descriptor).st_dev == held.stat().st_dev:
                raise ToolFailed(f"{held} was not exported: {said}")
            size = os.fstat(descriptor).st_size
            yield ImageDisk(Path(f"/proc/self/fd/{descriptor}"), descriptor, size)
            if writable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        await _end(server)


async def _until_ready(server: asyncio.subprocess.Process) -> str:
    """It greets a client of its monitor once it has done all that its command line asks for."""
    if server.stdout is None:
        raise RuntimeError("the stream was not asked for as a pipe")
    said = ""
    while line := (await server.stdout.readline()).decode(errors="replace"):
        if '"QMP"' in line:
            return said
        said += line
    raise ToolFailed(f"qemu-storage-daemon ended: {said.strip()[-2000:]}")


async def _end(server: asyncio.subprocess.Process) -> None:
    """On SIGTERM it writes what it has kept in memory, and closes the image."""
    server.send_signal(signal.SIGTERM)
    said = b"" if server.stdout is None else await server.stdout.read()
    if status := await server.wait():
        words = said.decode(errors="replace").strip()[-2000:]
        raise ToolFailed(f"qemu-storage-daemon ended with status {status}: {words}")


def server_argv(
    held: Path, point: Path, *, disk_format: DiskFormat, writable: bool
) -> Sequence[str]:
    """The command that serves the image `held` as the file `point` in a mount namespace."""
    image: dict[str, object] = {
        "node-name": "disk",
        "driver": QEMU_NAMES[disk_format],
        "read-only": not writable,
        "file": {"driver": "file", "filename": str(held)},
    }
    if disk_format in (DiskFormat.QCOW2, DiskFormat.QCOW):
        image["backing"] = None
    export = {
        "type": "fuse",
        "id": "disk",
        "node-name": "disk",
        "mountpoint": str(point),
        "writable": writable,
    }
    return [
        *own_mounts_argv(),
        *("prlimit", f"--as={_SERVER_LIMIT}"),
        "qemu-storage-daemon",
        *("--blockdev", json.dumps(image)),
        *("--export", json.dumps(export)),
        *("--chardev", "stdio,id=monitor"),
        *("--monitor", "chardev=monitor"),
    ]


def own_mounts_argv() -> Sequence[str]:
    """What comes before a command that shall have mounts of its own and end with this process."""
    return [
        *("unshare", "--mount", "--propagation", "private"),
        # Who is not root is root in a user namespace, which is all that a FUSE mount needs.
        *([] if os.geteuid() == 0 else ["--user", "--map-root-user"]),
        # For the owner of a new user namespace the kernel forgets with whom it shall end.
        *("setpriv", "--pdeathsig", "KILL"),
    ]
