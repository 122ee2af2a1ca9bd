"""What is taken out of an image appears whole at its place, or not at all.

It is made beside its place under the name `.NAME.part`, which is what a kill leaves; the next run
makes it anew. The functions block.
"""

import ctypes
import os
import shutil
from pathlib import Path

from provisiond.disk.folder import explained, sync
from provisiond.errors import DiskExists
from provisiond.images.mount_points import mounts_below

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def part_of(target: Path) -> Path:
    """Where `target` is made."""
    return target.with_name(f".{target.name}.part")


def begin(target: Path, *, is_folder: bool, force: bool) -> Path:
    """The name under which `target` is to be made; nothing has it. Raises as refuse_existing."""
    refuse_existing(target, is_folder=is_folder, force=force)
    part = part_of(target)
    discard(part)
    return part


def refuse_existing(target: Path, *, is_folder: bool, force: bool) -> None:
    """Raises DiskExists where the target is there, unless `force`.

    Even then a file never replaces a folder, which may be meant as the place for the file; and no
    folder is replaced in which something is mounted: what is mounted would be removed with it.
    """
    if not os.path.lexists(target):
        return
    if target.is_dir() and not is_folder:
        raise DiskExists(f"{target}: is a folder", hint="Name the file that is to be made in it.")
    if not force:
        raise DiskExists(
            f"{target}: exists already",
            hint="Say --force to replace it; a folder is removed with all that is in it.",
        )
    if not target.is_symlink():  # of a link to a folder the link alone is replaced
        _refuse_mounts(target)


def _refuse_mounts(folder: Path) -> None:
    if mounted := mounts_below(folder, Path("/proc/self/mountinfo").read_text()):
        raise DiskExists(
            f"{folder}: is not replaced, as {mounted[0]} is mounted there",
            hint="Unmount it, or choose another place.",
        )


def place(target: Path, *, force: bool) -> None:
    """Give what was made its name. What had it before is removed after that."""
    part = part_of(target)
    with explained(target):
        if not part.is_dir():
            sync(part)
        if not os.path.lexists(target):
            part.rename(target)
        else:
            refuse_existing(target, is_folder=part.is_dir(), force=force)
            if part.is_dir() or target.is_dir():
                _exchange(part, target)
                discard(part)
            else:
                part.replace(target)
        sync(target.parent)


def discard(part: Path) -> None:
    """Remove what is half made, or was replaced; fine where nothing is there."""
    with explained(part):
        if part.is_dir() and not part.is_symlink():
            shutil.rmtree(part)
        else:
            part.unlink(missing_ok=True)


def _exchange(one: Path, other: Path) -> None:
    """The two change their names at one moment, renameat2(2); a folder is never replaced else."""
    library = ctypes.CDLL(None, use_errno=True)
    if library.renameat2(
        _AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE
    ):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
