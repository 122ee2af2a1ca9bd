"""How to see that a file has changed: at once by its inode, for certain by its hash."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from provisiond.threads import Threads

_BLOCK = 2**22  # bytes read at once; a cancelled hash ends after one of them


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What the file system says of a file. Whoever writes to it, or puts another in its place,
    changes some of it; `ctime_ns` is the kernel's own, which no program can set back."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


def take_fingerprint(path: Path) -> Fingerprint:
    """The fingerprint of a file, a symbolic link followed; raises OSError."""
    status = path.stat()
    return Fingerprint(
        status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    )


async def hash_file(path: Path, *, threads: Threads, progress: Callable[[float], None]) -> str:
    """The SHA-256 of the file's content, in hex; `progress` is told the fraction that is read."""
    digest = hashlib.sha256()
    done, size = 0, path.stat().st_size
    with path.open("rb", buffering=0) as file:
        while taken := await threads.call(_take_block, file.fileno(), digest):
            done += taken
            progress(min(done / size, 1.0) if size else 1.0)
    return digest.hexdigest()


def _take_block(descriptor: int, digest: "hashlib._Hash") -> int:
    block = os.read(descriptor, _BLOCK)
    digest.update(block)
    return len(block)
