"""A file that is changed as a whole or not at all: the work is done on a copy beside it, which then
takes its name.

An overlay that is committed in the end would be half in the file while it is committed. A copy is
one rename, and costs nothing where the file system shares blocks (XFS, Btrfs); elsewhere the time
and the room of the file's data, holes left out.
"""

import asyncio
import errno
import fcntl
import os
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from provisiond.disk.folder import explained, refuse_writers, require_room, sync
from provisiond.images.image_lock import require_still
from provisiond.threads import call_until_told

_FICLONE = 0x40049409  # ioctl_ficlone(2)
_PIECE = 64 * 2**20  # bytes at once; a cancelled copy ends after one of them
_OVERHEAD = 32 * 2**20


@asynccontextmanager
async def working_copy(path: Path, descriptor: int) -> AsyncIterator[Path]:
    """A copy of the open file `path` for the block; it takes the file's place when that ends well.

    The caller lets nobody else write, nor make another copy. What a kill leaves is the copy, in the
    same folder under the name `.NAME.part`, and the next one writes over it. Owner, mode and
    extended attributes are the file's. Raises NoSpace, StateUnwritable, and ImageBusy where in the
    end somebody has the file open for writing, or `path` is another file.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        await call_until_told(partial(_copy, descriptor, part))
        yield part
        await asyncio.to_thread(_take_place, part, path, descriptor)
    finally:
        part.unlink(missing_ok=True)


def _copy(descriptor: int, part: Path, ended: threading.Event) -> None:
    status = os.fstat(descriptor)
    with explained(part):
        part.unlink(missing_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        target = os.open(part, flags, 0o600)
        try:
            if not _shared(descriptor, target):
                require_room(part.parent, status.st_blocks * 512 + _OVERHEAD, reserve=0)
                _copy_data(descriptor, target, status.st_size, ended)
        finally:
            os.close(target)


def _shared(descriptor: int, target: int) -> bool:
    """Whether the file system has given `target` the blocks of the other."""
    try:
        fcntl.ioctl(target, _FICLONE, descriptor)
    except OSError:
        return False
    return True


def _copy_data(descriptor: int, target: int, size: int, ended: threading.Event) -> None:
    os.ftruncate(target, size)
    for start, end in _data(descriptor, size):
        at = start
        while at < end and not ended.is_set():
            at += _copy_piece(descriptor, target, at, min(_PIECE, end - at))


def _data(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Where the file has data, lseek(2); all of it where the file system does not say."""
    at = 0
    while at < size:
        try:
            start = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # a hole to the end
                return
            raise
        at = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, at


def _copy_piece(descriptor: int, target: int, at: int, length: int) -> int:
    try:
        copied = os.copy_file_range(descriptor, target, length, at, at)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        copied = os.pwrite(target, os.pread(descriptor, min(length, 2**20), at), at)
    if not copied:
        raise OSError(errno.EIO, "it became shorter while it was copied")
    return copied


def _take_place(part: Path, path: Path, descriptor: int) -> None:
    status = os.fstat(descriptor)
    with explained(part):
        os.chown(part, status.st_uid, status.st_gid)
        part.chmod(status.st_mode & 0o7777)
        for name in os.listxattr(descriptor):
            os.setxattr(part, name, os.getxattr(descriptor, name))
        sync(part)
        # Not everybody heeds the caller's lock: tapdisk and loop devices know nothing of it.
        refuse_writers(path)
        require_still(descriptor, path)
        part.replace(path)
        sync(path.parent)
