"""An image's file, opened so that nothing blocks and nothing happens by it.

The function blocks; callers run it in a thread.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from provisiond.errors import ImageNotFound, ImageRefused


@contextmanager
def opened(path: Path, *, writable: bool = False) -> Iterator[int]:
    """A descriptor of the regular file `path`; a symbolic link to one is followed.

    Raises ImageNotFound, or ImageRefused for whatever is no regular file: opening a device or a
    FIFO may block or do something, so it is not even opened.
    """
    flags = os.O_RDWR if writable else os.O_RDONLY
    try:
        _require_regular(path, path.stat())
        descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise ImageNotFound(f"{path}: cannot be opened: {error.strerror}") from error
    try:
        _require_regular(path, os.fstat(descriptor))
        yield descriptor
    finally:
        os.close(descriptor)


def _require_regular(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise ImageRefused(f"{path}: is no regular file")
