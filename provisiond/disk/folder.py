"""The folders of images: files appear in them whole, and a job's own are told from a stranger's.

A file is written as `plan.part` and gets its name by `place`. It keeps both names until the job has
stored that it made it; then `settle`. So whatever a crash leaves, `take_back` knows what is ours.
The functions block; callers run them in a thread.
"""

import array
import errno
import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from provisiond.errors import DiskExists, ImageBusy, ImageNotFound, NoSpace, StateUnwritable
from provisiond.plan import FilePlan

# ioctl_iflags(2); the numbers are those of 64-bit Linux, and the argument is an int all the same.
_FS_IOC_GETFLAGS, _FS_IOC_SETFLAGS = 0x80086601, 0x40086602
_FS_IMMUTABLE_FL = 0x10

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What a file system, or a kernel's security module, answers that does not do what is asked.
_UNSUPPORTED = (
    errno.ENOTTY,
    errno.EOPNOTSUPP,
    errno.ENOSYS,
    errno.EINVAL,
    errno.ENOLCK,
    errno.EACCES,
    errno.EPERM,
)


def prepare_folder(folder: Path) -> None:
    """Make the folder of images, as `make_passable` does. Raises StateUnwritable or NoSpace."""
    if folder.is_symlink():
        raise StateUnwritable(
            f"{folder} is a symbolic link",
            hint="Let image_dir itself lead to where the images shall be, or mount it there.",
        )
    with explained(folder):
        make_passable(folder)


def make_passable(folder: Path) -> None:
    """Make the folder and those above it, where they are missing: mode 0711 from the first moment.

    QEMU, which runs as another user, passes through them. The umask is the whole process's: nobody
    else may make files meanwhile. Raises OSError.
    """
    before = os.umask(0)
    try:
        for one in reversed([folder, *folder.parents]):
            if not one.exists():
                one.mkdir(mode=0o711, exist_ok=True)
    finally:
        os.umask(before)


# ---------------------------------------------------------------- files that appear whole
def begin(plan: FilePlan) -> None:
    """Make `plan.part` an empty file that nobody else may read; an older one was half of a file."""
    with explained(plan.part):
        plan.part.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        os.close(os.open(plan.part, flags, 0o600))


def place(plan: FilePlan) -> None:
    """Give the whole file at `plan.part` its name; fine where it has it already.

    Raises DiskExists where a file that is not ours has that name: it is left as it is.
    """
    with explained(plan.path):
        sync(plan.part)
        try:
            plan.path.hardlink_to(plan.part)
        except FileExistsError:
            if not is_placed(plan):
                raise DiskExists(f"{plan.path}: exists already") from None
        sync(plan.path.parent)


def is_placed(plan: FilePlan) -> bool:
    """Whether `plan.path` is the file of this job, which has not stored so yet."""
    try:
        return plan.path.samefile(plan.part)
    except FileNotFoundError:
        return False


def settle(plan: FilePlan) -> None:
    """The job has stored that it made the file: it needs its second name no more."""
    with explained(plan.part):
        plan.part.unlink(missing_ok=True)
        sync(plan.part.parent)


def take_back(plan: FilePlan, *, made: bool) -> None:
    """Remove what the job wrote: the file too where it is the job's.

    It is where the job has stored so (`made`), or where it still has its second name.
    """
    with explained(plan.path):
        if made or is_placed(plan):
            plan.path.unlink(missing_ok=True)
            sync(plan.path.parent)
        plan.part.unlink(missing_ok=True)
        sync(plan.part.parent)


def write_whole(path: Path, content: bytes, *, part: Path) -> None:
    """Put `content` at `path` by way of `part`, over whatever is there; mode 0644."""
    with explained(path):
        part.write_bytes(content)
        part.chmod(0o644)
        sync(part)
        part.replace(path)
        sync(path.parent)


def remove(path: Path) -> None:
    """Remove a file for good; fine where it is gone."""
    with explained(path):
        path.unlink(missing_ok=True)
        sync(path.parent)


def sync(path: Path) -> None:
    """What was written to the file or folder is on the disk when this returns."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """What the file system refuses in the block is NoSpace or StateUnwritable, at `path`."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise NoSpace(f"{path}: {error.strerror}") from error
        raise StateUnwritable(
            f"{path}: {error.strerror}",
            hint="Mend its folder, owner and modes; provisiond's own is its image_dir.",
        ) from error


# ---------------------------------------------------------------- room
def require_room(folder: Path, wanted: int, *, reserve: int) -> None:
    """Raises NoSpace where `wanted` bytes would leave less than `reserve` free."""
    with explained(folder):
        state = os.statvfs(folder)
    free = state.f_bavail * state.f_frsize
    if free - wanted < reserve:
        raise NoSpace(
            f"{folder}: {wanted} bytes are wanted, {free} are free and {reserve} of them reserved"
        )


# ---------------------------------------------------------------- whoever else has a file
def refuse_writers(path: Path) -> None:
    """Raises ImageBusy where any program of this host has the file open for writing.

    The kernel tells by giving a read lease or not (fcntl(2), F_SETLEASE); the lease is given back
    at once. Where a file system has no leases nothing can be known, and the file passes.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise ImageNotFound(f"{path}: does not exist") from None
    except OSError as error:
        if error.errno != errno.EWOULDBLOCK:  # somebody has a lease for writing
            raise ImageNotFound(f"{path}: cannot be opened: {error.strerror}") from error
        raise ImageBusy(f"{path}: is open for writing") from None
    try:
        # Whoever opens it for writing meanwhile waits for the lease's end and sets off a signal;
        # the one that comes by default would end this process, this one is ignored by default.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        if error.errno == errno.EAGAIN:
            raise ImageBusy(f"{path}: is open for writing") from None
        if error.errno not in _UNSUPPORTED:
            raise
    finally:
        os.close(descriptor)


def make_immutable(path: Path) -> bool:
    """Make the file unchangeable, by root too and after a power cut, as chattr +i does; False where
    that cannot be."""
    made = _set_immutable(path, wanted=True)
    if made:
        sync(path)
    return made


def make_mutable(path: Path) -> bool:
    """Make the file changeable again, as chattr -i does; False where it never was otherwise."""
    return _set_immutable(path, wanted=False)


def is_immutable(path: Path) -> bool:
    """Whether the file has the flag of chattr +i."""
    try:
        return bool(_flags(path) & _FS_IMMUTABLE_FL)
    except OSError:
        return False


def _set_immutable(path: Path, *, wanted: bool) -> bool:
    try:
        flags = _flags(path)
        if bool(flags & _FS_IMMUTABLE_FL) is not wanted:
            _flags(path, (flags & ~_FS_IMMUTABLE_FL) | (_FS_IMMUTABLE_FL if wanted else 0))
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        return False
    return True


def _flags(path: Path, new: int | None = None) -> int:
    """The inode flags of the file, set to `new` first where that is given."""
    value = array.array("i", [0 if new is None else new])
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        request = _FS_IOC_GETFLAGS if new is None else _FS_IOC_SETFLAGS
        fcntl.ioctl(descriptor, request, value)
    finally:
        os.close(descriptor)
    return value[0]
