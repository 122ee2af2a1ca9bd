"""The config ISO itself: build it in memory, put it on tmpfs whole, overwrite and unlink it.

The functions block for well under a millisecond each on tmpfs and a few for the build; callers run
them in a thread. pycdlib has one importer: this package.
"""

import errno
import io
import logging
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pycdlib import PyCdlib

from provisiond.errors import IsoNotDestroyed, IsoNotWritten, SettingsError
from provisiond.iso.tree import VOLUME_LABEL
from provisiond.plan import Plan

log = logging.getLogger(__name__)

_SECTOR = 2048
# 2000-01-01 00:00:00 UTC, as ECMA-119 8.4.26.1 (volume) and 9.1.5 (directory record) write it.
_VOLUME_DATE = b"2000010100000000\x00"
_RECORD_DATE = bytes((100, 1, 1, 0, 0, 0, 0))
IN_MEMORY = ("tmpfs", "ramfs")  # the file systems that a secret may be on


# ---------------------------------------------------------------- in memory
def build_image(tree: Mapping[str, bytes]) -> bytes:
    """An ISO 9660 image of `tree` (name to content) with Rock Ridge and Joliet, label PROVISION.

    The same tree gives the same bytes: every date is 2000-01-01.
    """
    iso = PyCdlib()
    iso.new(
        interchange_level=3,
        vol_ident=VOLUME_LABEL,
        app_ident_str="PROVISIOND",
        rock_ridge="1.09",
        joliet=3,
    )
    for name, content in sorted(tree.items()):
        iso.add_fp(
            io.BytesIO(content),
            len(content),
            iso_path=f"/{_iso_name(name)};1",
            rr_name=name,
            joliet_path=f"/{name}",
            file_mode=stat.S_IFREG | 0o400,
        )
    out = io.BytesIO()
    iso.write_fp(out)
    iso.close()
    return _with_fixed_dates(out.getbuffer())


def _iso_name(name: str) -> str:
    """`name` in ISO 9660's own alphabet; readers that matter see the Rock Ridge or Joliet name."""
    stem, _, suffix = name.partition(".")
    return re.sub(r"[^A-Z0-9_]", "_", stem.upper()) + "." + suffix.upper()


def _with_fixed_dates(view: memoryview) -> bytes:
    """Set every date of the image: pycdlib takes the clock's and offers no other way."""
    image = bytearray(view)
    sector = 16
    while (kind := image[sector * _SECTOR]) != 255:  # the set terminator, ECMA-119 8.3
        start = sector * _SECTOR
        if kind in (1, 2):  # primary; supplementary, which is Joliet's
            for field in (813, 830, 864):  # created, modified, effective; 847 (expires) is unset
                image[start + field : start + field + 17] = _VOLUME_DATE
            _fix_directory_dates(image, start + 156)
        sector += 1
    return bytes(image)


def _fix_directory_dates(image: bytearray, root: int) -> None:
    """Fix the dates of the directory record at `root` and of all records in that directory."""
    image[root + 18 : root + 25] = _RECORD_DATE
    start = int.from_bytes(image[root + 2 : root + 6], "little") * _SECTOR
    end = start + int.from_bytes(image[root + 10 : root + 14], "little")
    while start < end:
        length = image[start]
        if length == 0:  # records do not cross sectors: the rest of this one is empty
            start += _SECTOR - start % _SECTOR
            continue
        image[start + 18 : start + 25] = _RECORD_DATE
        name_length = image[start + 32]
        _fix_rock_ridge_dates(
            image, start + 33 + name_length + (name_length + 1) % 2, start + length
        )
        start += length


def _fix_rock_ridge_dates(image: bytearray, start: int, end: int) -> None:
    """Fix the TF entry (RRIP 4.1.6, short form) among the system use entries from `start`."""
    while start + 4 <= end and image[start + 2] >= 4:
        length = image[start + 2]
        if image[start : start + 2] == b"TF":
            dates = (length - 5) // len(_RECORD_DATE)
            image[start + 5 : start + length] = _RECORD_DATE * dates
        start += length


# ---------------------------------------------------------------- on tmpfs
def prepare_folder(folder: Path, *, mode: int, allow_disk: bool) -> None:
    """Make the folder of the ISOs, and refuse one that is not on tmpfs; `allow_disk` only warns.

    Raises SettingsError: a secret must not rest on a disk.
    """
    try:
        folder.mkdir(mode=mode, parents=True, exist_ok=True)
        folder.chmod(mode)
    except OSError as error:
        raise SettingsError(f"runtime_dir: cannot make {folder}: {error.strerror}") from error
    if (kind := file_system(folder)) in IN_MEMORY:
        return
    found = f"runtime_dir: {folder} is on {kind}, not on tmpfs"
    if not allow_disk:
        raise SettingsError(
            f"{found}, so a secret would reach a disk",
            hint="Put runtime_dir below /run, or set allow_iso_on_disk = true.",
        )
    log.warning("%s: each secret reaches a disk, as allow_iso_on_disk has it", found)


def write_iso(plan: Plan, image: bytes) -> None:
    """Put `image` at `plan.iso`, mode 0600, whole or not at all; read back before it gets its name.

    Raises IsoNotWritten (no room, a folder that is gone, bytes that differ); then nothing is left.
    Raises IsoNotDestroyed where an older one cannot be removed.
    """
    try:
        destroy_iso(plan)
        _write_synced(plan.iso_part, image)
        if plan.iso_part.read_bytes() != image:
            raise IsoNotWritten(f"{plan.iso_part} does not read back as it was written")
        plan.iso_part.rename(plan.iso)
        _sync_folder(plan.iso.parent)
    except OSError as error:
        destroy_iso(plan)
        gone = isinstance(error, FileNotFoundError)
        raise IsoNotWritten(
            f"cannot write {plan.iso}: {error.strerror}",
            hint="Its folder was removed: restart provisiond." if gone else None,
        ) from error
    except IsoNotWritten:
        destroy_iso(plan)
        raise


def destroy_iso(plan: Plan) -> bool:
    """Overwrite and unlink the ISO and what is half written of it; False where there was no ISO.

    Raises IsoNotDestroyed; it may be asked for again.
    """
    try:
        return _overwrite_and_unlink(plan)
    except OSError as error:
        raise IsoNotDestroyed(f"cannot destroy {plan.iso}: {error.strerror}") from error


def _overwrite_and_unlink(plan: Plan) -> bool:
    destroyed = False
    for path in (plan.iso_part, plan.iso):
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            path.unlink()  # a symbolic link is not ours; where it leads is left alone
            continue
        with _closing(descriptor):
            _write_all(descriptor, bytes(os.fstat(descriptor).st_size))
            os.fsync(descriptor)
        path.unlink()
        destroyed = path == plan.iso
    if plan.iso.parent.exists():
        _sync_folder(plan.iso.parent)
    return destroyed


def _write_synced(path: Path, content: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with _closing(os.open(path, flags, 0o600)) as descriptor:
        _write_all(descriptor, content)
        os.fsync(descriptor)


def _write_all(descriptor: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _sync_folder(folder: Path) -> None:
    with _closing(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as descriptor:
        os.fsync(descriptor)


@contextmanager
def _closing(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def file_system(path: Path) -> str:
    """The type of the file system that `path` is on, from /proc/self/mountinfo (proc(5))."""
    device = path.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[2] == wanted:
            return fields[fields.index("-") + 1]
    return "an unknown file system"
