"""A root's files copied into a folder, from which a guest has them over NFS."""

import errno
import os
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_PIECE = 2**20
_CAPABILITIES = "security.capability"
_LOST = b"lost+found"  # the file system's own, and empty in one that is whole


@dataclass(slots=True)
class Copied:
    """How many names there are now; what is left out, and the names of attributes that the place
    does not take. `privileged` are the programs that give rights to whoever runs them."""

    count: int = 0
    privileged: int = 0
    left_out: list[str] = field(default_factory=list)
    attributes: set[str] = field(default_factory=set)


# ---------------------------------------------------------------- a folder
def copy_tree(source: Path, target: Path, ended: threading.Event) -> Copied:
    """Fill the new folder `target`, which nobody else may enter meanwhile. Raises OSError.

    Devices and sockets are left out: a device's node would give its owner this host's device.
    Blocks; `ended` set by another thread ends it after a MiB.
    """
    copied = Copied()
    target.mkdir(mode=0o700)
    known: dict[File, bytes] = {}
    folders: list[tuple[bytes, bytes, os.stat_result]] = []
    for name, status in walk(source):
        if ended.is_set():
            break
        here, there = join(source, name), join(target, name)
        if stat.S_ISDIR(status.st_mode):
            if name:
                os.mkdir(there, 0o700)  # noqa: PTH102 - names are bytes
            folders.append((here, there, status))
        elif (first := known.get(file_key(status))) is not None:
            os.link(first, there, follow_symlinks=False)
        elif _make(here, there, status, ended):
            if status.st_nlink > 1:
                known[file_key(status)] = there
            _settle(here, there, status, copied)
        else:
            copied.left_out.append(os.fsdecode(name))
            continue
        copied.count += 1
    for here, there, status in reversed(folders):  # what is made in a folder changes its time
        _settle(here, there, status, copied)
    return copied


File = tuple[int, int, int, int]


def file_key(status: os.stat_result) -> File:
    """What all names of one file have in common; a root may be made of several file systems, in
    which two files have one number."""
    return status.st_ino, status.st_nlink, status.st_size, status.st_mtime_ns


def walk(source: Path) -> Iterator[tuple[bytes, os.stat_result]]:
    """Every name below the folder, and "" for itself, in order: a folder comes before what is in
    it. Links are not followed."""
    waiting = [b""]
    while waiting:
        name = waiting.pop()
        status = os.lstat(join(source, name))
        yield name, status
        if stat.S_ISDIR(status.st_mode):
            inside = sorted(os.listdir(join(source, name)), reverse=True)  # noqa: PTH208
            waiting += [
                one if not name else name + b"/" + one for one in inside if name or one != _LOST
            ]


def join(folder: Path, name: bytes) -> bytes:
    """The path of a name that `walk` told."""
    return os.fsencode(folder) + b"/" + name if name else os.fsencode(folder)


def _make(here: bytes, there: bytes, status: os.stat_result, ended: threading.Event) -> bool:
    """The file, link or pipe; False for what is none of these."""
    if stat.S_ISLNK(status.st_mode):
        os.symlink(os.readlink(here), there)  # noqa: PTH115, PTH211 - names are bytes
    elif stat.S_ISREG(status.st_mode):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with open(here, "rb") as source, open(os.open(there, flags, 0o600), "wb") as target:  # noqa: PTH123
            while not ended.is_set() and (piece := source.read(_PIECE)):
                if any(piece):
                    target.write(piece)
                else:
                    target.seek(len(piece), os.SEEK_CUR)
            target.truncate()
    elif stat.S_ISFIFO(status.st_mode):
        os.mkfifo(there, 0o600)
    else:
        return False
    return True


def _settle(here: bytes, there: bytes, status: os.stat_result, copied: Copied) -> None:
    """Owner, then mode (a change of owner takes setuid away), attributes, time."""
    os.chown(there, status.st_uid, status.st_gid, follow_symlinks=False)
    if not stat.S_ISLNK(status.st_mode):
        os.chmod(there, stat.S_IMODE(status.st_mode))  # noqa: PTH101 - names are bytes
    for name in os.listxattr(here, follow_symlinks=False):
        value = os.getxattr(here, name, follow_symlinks=False)
        try:
            os.setxattr(there, name, value, follow_symlinks=False)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EPERM, errno.EINVAL):
                raise
            copied.attributes.add(name)
    if stat.S_ISREG(status.st_mode) and _is_privileged(there):
        copied.privileged += 1
    times = (status.st_atime_ns, status.st_mtime_ns)
    os.utime(there, ns=times, follow_symlinks=False)


def _is_privileged(file: bytes) -> bool:
    """Setuid, setgid or with capabilities."""
    if os.lstat(file).st_mode & (stat.S_ISUID | stat.S_ISGID):
        return True
    return _CAPABILITIES in os.listxattr(file, follow_symlinks=False)
