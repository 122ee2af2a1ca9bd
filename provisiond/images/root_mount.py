"""The root of an image as a folder that can be read, without a mount by the kernel's own drivers.

fuse2fs, a program like any other, reads ext2/3/4; libguestfs reads all else in a guest of its own.
Both mount by FUSE in a mount namespace that ends with this process. debugfs' rdump would lose hard
links, devices and extended attributes, and a loop mount would let the host's kernel parse what
others wrote.
"""

import asyncio
import os
import select
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from provisiond.api.requests import DiskFormat
from provisiond.errors import ToolFailed
from provisiond.images import image_disk
from provisiond.images.guestfs_files import guestfs_root
from provisiond.images.image_disk import own_mounts_argv
from provisiond.images.root_system import Elsewhere, find_ext_root
from provisiond.process import require_tool, running

_LOOK_AGAIN = 100  # milliseconds; a change of the mounts is told at once


@asynccontextmanager
async def mounted_root(
    image: Path, *, disk_format: DiskFormat, said: Callable[[str], None]
) -> AsyncIterator[Path]:
    """The folder of the root for the block, read-only. Nobody writes to the image meanwhile.

    Raises as root_tree.opened_root does; ToolFailed for a user who is not root, to whom the owners
    of the files could not be shown.
    """
    if os.geteuid() != 0:
        raise ToolFailed(
            "the files of an image belong to many users", hint="Ask again as root: sudo."
        )
    async with image_disk.opened(image, disk_format=disk_format) as disk:
        found = await find_ext_root(disk)
        if not isinstance(found, Elsewhere):
            require_tool("fuse2fs", package="fuse2fs")
            options = f"ro,norecovery,offset={found[0].start}"
            async with _mounted(["fuse2fs", "-f", "-o", options, str(disk.raw)]) as folder:
                yield folder
            return
    said(f"{found.reason}: libguestfs is asked, which boots a small guest of its own")
    async with guestfs_root(image, disk_format=disk_format, writable=False) as tree:
        with tempfile.TemporaryDirectory(prefix="provisiond-") as point:
            yield await tree.mount_here(point)


@asynccontextmanager
async def _mounted(argv: Sequence[str]) -> AsyncIterator[Path]:
    with tempfile.TemporaryDirectory(prefix="provisiond-") as point:
        async with running([*own_mounts_argv(), *argv, point]) as server:
            if not await asyncio.to_thread(_wait_for_mount, server.pid, point):
                said = b"" if server.stdout is None else await server.stdout.read()
                words = said.decode(errors="replace").strip()[-2000:]
                raise ToolFailed(f"{' '.join(argv)} mounted nothing: {words}")
            yield Path(f"/proc/{server.pid}/root{point}")
            server.send_signal(signal.SIGTERM)
            if server.stdout is not None:
                await server.stdout.read()
            await server.wait()


def _wait_for_mount(pid: int, point: str) -> bool:
    """Return once the process has something mounted at `point`, or has ended: then False.

    The kernel tells of each change of a namespace's mounts, proc(5); but the process first goes
    into a namespace of its own, so the file is opened anew.
    """
    while True:
        try:
            with Path(f"/proc/{pid}/mountinfo").open() as mounts:
                lines = mounts.readlines()
                if any(line.split(" ")[4] == point for line in lines):
                    return True
                if not lines:
                    return False
                changed = select.poll()
                changed.register(mounts, select.POLLPRI | select.POLLERR)
                changed.poll(_LOOK_AGAIN)
        except OSError:
            return False
