"""A root's files in an archive that a kernel unpacks as its first root: cpio, "newc".

The format is that of Linux' Documentation/driver-api/early-userspace/buffer-format.rst.
"""

import errno
import os
import stat
import threading
from pathlib import Path
from typing import BinaryIO

from provisiond.errors import ImageRefused
from provisiond.images.root_copy import Copied, File, file_key, join, walk

_PIECE = 2**20
_LARGEST = 2**32 - 1  # a number has eight hexadecimal digits
_FSTAB = b"# This root is in memory; what the image's fstab named is not there.\n"


def write_cpio(source: Path, archive: BinaryIO, ended: threading.Event) -> Copied:
    """Write the archive of the root `source`, devices included.

    In addition it has /init, a link to /sbin/init, and /dev/console where they are missing: a
    kernel needs both. Its /etc/fstab is empty: a system would wait for the disks that it names.
    Extended attributes have no place in it. Raises OSError, ImageRefused for a file of 4 GiB.
    Blocks; `ended` set by another thread ends it after a MiB.
    """
    copied, names, writer = Copied(), set[bytes](), _Writer(archive, ended)
    for name, status in walk(source):
        if ended.is_set():
            break
        if not name:
            continue
        if stat.S_ISSOCK(status.st_mode):
            copied.left_out.append(os.fsdecode(name))
            continue
        names.add(name)
        writer.add(source, name, status)
        copied.count += 1
        copied.attributes.update(os.listxattr(join(source, name), follow_symlinks=False))
    if b"init" not in names:
        writer.add_link(b"init", b"sbin/init")
    if b"dev" in names and b"dev/console" not in names:
        writer.add_device(b"dev/console", os.makedev(5, 1))
    writer.end()
    return copied


class _Writer:
    """The archive's entries. Of several names of one file the first has the content."""

    def __init__(self, archive: BinaryIO, ended: threading.Event) -> None:
        self._archive = archive
        self._ended = ended
        self._files: dict[File, int] = {}
        self._inode = 0

    def add(self, source: Path, name: bytes, status: os.stat_result) -> None:
        """The file, folder, link, device or pipe `name`."""
        is_first, inode = self._number(status)
        content: bytes | None = None
        size = 0
        if stat.S_ISLNK(status.st_mode):
            content = os.readlink(join(source, name))  # noqa: PTH115 - names are bytes
        elif name == b"etc/fstab" and stat.S_ISREG(status.st_mode):
            content = _FSTAB
        elif stat.S_ISREG(status.st_mode) and is_first:
            size = status.st_size
        if size > _LARGEST:
            shown = os.fsdecode(name)
            raise ImageRefused(f"/{shown} in the image is too large for a kernel's archive")
        self._header(
            name,
            mode=status.st_mode,
            size=size if content is None else len(content),
            inode=inode,
            owner=(status.st_uid, status.st_gid),
            links=1 if stat.S_ISDIR(status.st_mode) else status.st_nlink,
            time=int(status.st_mtime),
            device=status.st_rdev,
        )
        if content is not None:
            self._padded(content)
        elif size:
            self._content(join(source, name), size)

    def add_link(self, name: bytes, target: bytes) -> None:
        """A symbolic link."""
        self._inode += 1
        mode = stat.S_IFLNK | 0o777
        self._header(name, mode=mode, size=len(target), inode=self._inode)
        self._padded(target)

    def add_device(self, name: bytes, device: int) -> None:
        """A character device, for root alone."""
        self._inode += 1
        self._header(name, mode=stat.S_IFCHR | 0o600, inode=self._inode, device=device)

    def end(self) -> None:
        """No entry follows."""
        self._header(b"TRAILER!!!", mode=0, inode=0)

    def _number(self, status: os.stat_result) -> tuple[bool, int]:
        """Whether no name of the file has been there, and its number in the archive."""
        key = file_key(status)
        if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
            if (known := self._files.get(key)) is not None:
                return False, known
            self._files[key] = self._inode + 1
        self._inode += 1
        return True, self._inode

    def _content(self, path: bytes, size: int) -> None:
        left = size
        with open(path, "rb") as file:  # noqa: PTH123 - names are bytes
            while left and (piece := file.read(min(_PIECE, left))):
                self._archive.write(piece)
                left -= len(piece)
                if self._ended.is_set():
                    return
        if left:
            raise OSError(errno.EIO, "a file ends before its size")
        self._archive.write(bytes(-size % 4))

    def _header(
        self,
        name: bytes,
        *,
        mode: int,
        inode: int,
        size: int = 0,
        owner: tuple[int, int] = (0, 0),
        links: int = 1,
        time: int = 0,
        device: int = 0,
    ) -> None:
        fields = (
            *(inode, mode, *owner, links, max(time, 0) & _LARGEST, size),
            *(0, 0, os.major(device), os.minor(device)),
            *(len(name) + 1, 0),
        )
        self._padded(b"070701" + "".join(f"{value:08X}" for value in fields).encode() + name, 1)

    def _padded(self, content: bytes, zeros: int = 0) -> None:
        self._archive.write(content + bytes(zeros) + bytes(-(len(content) + zeros) % 4))
