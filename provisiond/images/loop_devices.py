"""Loop devices that a killed builder has left: unlike its mounts, no namespace ends them.

The functions block.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_LOOP_CLR_FD = 0x4C01  # loop(4)
_DELETED = " (deleted)"


def detach_below(folder: Path) -> list[Path]:
    """Detach every loop device whose file is, or was, in the folder; those that were detached.

    The kernel detaches one that is still in use when its last user lets go of it. Raises OSError
    where this user may not.
    """
    detached = []
    for device, file in _attached():
        if folder in file.parents:
            descriptor = os.open(device, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(descriptor, _LOOP_CLR_FD)
            finally:
                os.close(descriptor)
            detached.append(device)
    return detached


def _attached() -> Iterator[tuple[Path, Path]]:
    """Each loop device that has a file, and that file."""
    for told in Path("/sys/block").glob("loop*/loop/backing_file"):
        with suppress(OSError):  # it was detached meanwhile
            text = os.fsdecode(told.read_bytes()).rstrip("\n").removesuffix(_DELETED)
            yield Path("/dev", told.parts[3]), Path(text)
