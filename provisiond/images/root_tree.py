"""The files of the root in an image, by what fits: debugfs for ext2/3/4, else libguestfs."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from provisiond.api.requests import DiskFormat
from provisiond.images import image_disk
from provisiond.images.file_tree import FileTree
from provisiond.images.guestfs_files import guestfs_root
from provisiond.images.root_system import Elsewhere, find_ext_root


@asynccontextmanager
async def opened_root(
    image: Path, *, disk_format: DiskFormat, writable: bool, said: Callable[[str], None]
) -> AsyncIterator[FileTree]:
    """The root's files for the block; what was written is in the image at its end.

    `writable` is for a file of the caller's own. Raises as image_disk.opened and find_ext_root do.
    """
    async with image_disk.opened(image, disk_format=disk_format, writable=writable) as disk:
        found = await find_ext_root(disk)
        if not isinstance(found, Elsewhere):
            yield found[1]
            return
    said(f"{found.reason}: libguestfs is asked, which boots a small guest of its own")
    async with guestfs_root(image, disk_format=disk_format, writable=writable) as tree:
        yield tree
