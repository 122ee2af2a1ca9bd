"""One daemon for each directory of state, ISOs and images."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from provisiond.disk.folder import make_passable
from provisiond.errors import AlreadyRunning, StateUnwritable
from provisiond.settings import Settings


@contextmanager
def only_one(settings: Settings) -> Iterator[None]:
    """Hold the directories of state, ISOs and images; the kernel lets go when this process dies."""
    with contextlib.ExitStack() as stack:
        for folder in (settings.state_dir, settings.runtime_dir, settings.image_dir):
            stack.callback(os.close, _lock(folder))
        yield


def _require_writable(folder: Path) -> None:
    """It may be on a file system that is read-only, or is so for this process alone."""
    if not os.access(folder, os.W_OK):
        raise StateUnwritable(
            f"cannot write in {folder}: it is read-only here",
            hint=f"Under systemd: systemctl edit provisiond, [Service], ReadWritePaths={folder}",
        )


def _lock(folder: Path) -> int:
    try:
        make_passable(folder)
        _require_writable(folder)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise StateUnwritable(f"cannot write in {folder}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise AlreadyRunning(f"another provisiond uses {folder}") from error
    return descriptor
