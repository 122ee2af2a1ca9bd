"""QEMU's own lock on an image's file, taken by ourselves: no QEMU opens it against our claim.

QEMU's file driver locks single bytes of the file (block/file-posix.c, raw_check_lock_bytes): byte
100 + N says that somebody uses the right N, byte 200 + N that somebody lets nobody else use it.
"""

import errno
import fcntl
import os
import struct
from pathlib import Path

from provisiond.disk.folder import refuse_writers
from provisiond.errors import ImageBusy

_USED, _DENIED = 100, 200
_READ, _WRITE, _WRITE_UNCHANGED, _RESIZE = range(4)
_NO_LOCKS = (errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_FLOCK = "hhqqi4x"  # struct flock of 64-bit Linux: type, whence, start, length, PID


def lock_for_reading(descriptor: int, path: Path) -> None:
    """Nobody writes to the image as long as the descriptor is open; others may read it.

    Raises ImageBusy, which names it `path`, where a program has it open for writing already.
    """
    refuse_writers(path)
    _claim(descriptor, path, used=(_READ,), denied=(_WRITE, _RESIZE))


def lock_for_replacing(descriptor: int, path: Path) -> None:
    """No QEMU has the image, or gets it as long as the descriptor is open. Raises ImageBusy, also
    where `path` is not the open file any more: then nothing is known of the one that it is."""
    refuse_writers(path)
    rights = (_READ, _WRITE, _WRITE_UNCHANGED, _RESIZE)
    _claim(descriptor, path, used=(_READ, _WRITE, _RESIZE), denied=rights)
    require_still(descriptor, path)


def require_still(descriptor: int, path: Path) -> None:
    """Raises ImageBusy where `path` is another file than the open one, or nothing."""
    try:
        is_still = os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        is_still = False
    if not is_still:
        raise ImageBusy(f"{path}: was removed, or another file was put in its place, meanwhile")


def _claim(descriptor: int, path: Path, *, used: tuple[int, ...], denied: tuple[int, ...]) -> None:
    """First say what we claim, then look who else does: of two, at least one sees the other."""
    try:
        for byte in [_USED + right for right in used] + [_DENIED + right for right in denied]:
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _flock(fcntl.F_RDLCK, byte))
        for byte in [_DENIED + right for right in used] + [_USED + right for right in denied]:
            answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _flock(fcntl.F_WRLCK, byte))
            if struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK:
                raise ImageBusy(f"{path}: a guest or a program of QEMU's has it")
    except OSError as error:
        if error.errno not in _NO_LOCKS:  # there QEMU does without them as well
            raise


def _flock(kind: int, byte: int) -> bytes:
    return struct.pack(_FLOCK, kind, os.SEEK_SET, byte, 1, 0)
