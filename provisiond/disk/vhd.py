"""VHD images of this host: what they are and stand on, a new overlay, and who may open them.

qemu knows no differencing VHD: it reads one as zeros, and its first write destroys it. So these are
for tapdisk alone. The functions that are no coroutines block for a millisecond or so; callers run
them in a thread.
"""

import errno
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from provisiond.api.requests import DiskFormat
from provisiond.disk.chain import DiskChain, DiskImage
from provisiond.disk.image_file import opened
from provisiond.disk.vhd_differencing import build_differencing, decode_parent
from provisiond.disk.vhd_format import (
    EPOCH,
    FOOTER_SIZE,
    HEADER_SIZE,
    MAX_SIZE,
    RAW_PARENT,
    SECTOR,
    DiskType,
    DynamicHeader,
    Footer,
    check_blocks,
    check_layout,
    choose_footer,
    has_footer_cookie,
    mend_footer,
    parse_footer,
    parse_header,
)
from provisiond.errors import (
    DiskExists,
    ImageRefused,
    NoSpace,
    SizeTooSmall,
    ToolFailed,
)
from provisiond.process import run
from provisiond.threads import Threads

_XEN_CAPABILITIES = Path("/proc/xen/capabilities")
_CREATORS_OF_QEMU = (b"qemu", b"qem2")


@dataclass(frozen=True, slots=True)
class _Metadata:
    footer: Footer
    header: DynamicHeader | None
    parents: frozenset[str]
    """As the locators name it, from the file's folder on."""
    file_size: int


# ---------------------------------------------------------------- read
def read_image(path: Path) -> DiskImage:
    """What a VHD is and stands on.

    The parent's format is what the image says, never guessed from the parent's content; the parent
    itself is not looked at. Raises ImageNotFound, and ImageRefused for whatever is no sound VHD.
    """
    return _image(path, _read(path))


def read_chain(path: Path) -> DiskChain:
    """A VHD and all that it stands on, each link proved: a VHD has the identity that its child asks
    for. A raw parent has none: whether it is the right file, only its path and hash can tell.
    """
    images, seen = [], {Path(os.path.realpath(path))}
    metadata = _read(path)
    while True:
        image = _image(path, metadata)
        images.append(image)
        if image.backing is None or metadata.header is None:
            return DiskChain(tuple(images))
        if image.backing in seen:
            raise ImageRefused(f"{path}: it stands on itself, by way of {image.backing}")
        seen.add(image.backing)
        if image.backing_format is DiskFormat.RAW:
            return DiskChain((*images, _raw_image(image.backing)))
        path, wanted = image.backing, metadata.header.parent_uuid
        metadata = _read(path)
        if metadata.footer.uuid != wanted:
            raise ImageRefused(f"{images[-1].path}: {path} is not the image that it was made over")


def check_image(path: Path) -> None:
    """Raises ImageRefused where a VHD that nobody has open is not whole.

    `qemu-img check` can not check a VHD, and what is missing of one it reads as zeros.
    """
    metadata = _read(path)
    header = metadata.header
    if header is None:
        return
    with opened(path) as descriptor, _named(path):
        if not has_footer_cookie(_read_end(descriptor)):
            raise ImageRefused("its last footer is missing: it is open somewhere, or truncated")
        table = os.pread(descriptor, 4 * header.max_table_entries, header.table_offset)
        check_blocks(header, table, file_size=metadata.file_size)


def _image(path: Path, metadata: _Metadata) -> DiskImage:
    backing = backing_format = None
    if metadata.header is not None and metadata.parents:
        backing = _resolve(path, metadata.parents)
        is_raw = metadata.header.parent_uuid == RAW_PARENT
        backing_format = DiskFormat.RAW if is_raw else DiskFormat.VHD
    return DiskImage(
        path=path,
        format=DiskFormat.VHD,
        virtual_size=metadata.footer.current_size,
        file_size=metadata.file_size,
        backing=backing,
        backing_format=backing_format,
    )


def _resolve(path: Path, parents: frozenset[str]) -> Path:
    """The parent's file. tapdisk takes the first locator that leads to a file: all must agree."""
    folder = os.path.realpath(path.parent)
    found = {
        Path(os.path.realpath(f"{folder}/{name}" if name[0] != "/" else name)) for name in parents
    }
    if len(found) != 1:
        raise ImageRefused(f"{path}: its parent locators lead to different files")
    (parent,) = found
    return parent


def _raw_image(path: Path) -> DiskImage:
    with opened(path) as descriptor:
        size = os.fstat(descriptor).st_size
    return DiskImage(path, DiskFormat.RAW, -(-size // SECTOR) * SECTOR, size, None, None)


def _read(path: Path) -> _Metadata:
    with opened(path) as descriptor, _named(path):
        size = os.fstat(descriptor).st_size
        footer = choose_footer(
            untrusted_start=os.pread(descriptor, FOOTER_SIZE, 0),
            untrusted_end=_read_end(descriptor),
        )
        if footer.disk_type is DiskType.FIXED:
            if footer.current_size > size - FOOTER_SIZE:
                raise ImageRefused("it is shorter than its footer says")
            return _Metadata(footer, None, frozenset(), size)
        if footer.data_offset > size - HEADER_SIZE:
            raise ImageRefused("its header reaches out of the file")
        header = parse_header(os.pread(descriptor, HEADER_SIZE, footer.data_offset))
        check_layout(footer, header, file_size=size)
        parents = {
            decode_parent(loc.code, os.pread(descriptor, loc.data_length, loc.data_offset))
            for loc in header.locators
        }
        return _Metadata(footer, header, frozenset(parents), size)


def _read_end(descriptor: int) -> bytes:
    return os.pread(descriptor, FOOTER_SIZE, max(0, os.fstat(descriptor).st_size - FOOTER_SIZE))


# ---------------------------------------------------------------- make
async def create_differencing(
    part: Path, *, parent: DiskImage, size: int, threads: Threads
) -> None:
    """Make `part`, a differencing VHD of `size` bytes over `parent` (VHD or raw); 0600, synced.

    By vhd-util where the host has it (it knows no size but the parent's), else by our own writer;
    either way the result is read back. It names its parent by the path from its own folder, so it
    must stay in that folder. When this raises, nothing is left, except what was there before:
    DiskExists, SizeTooSmall, NoSpace, ImageRefused, ToolFailed.
    """
    _check_wish(part, parent=parent, size=size)
    if os.path.lexists(part):
        raise DiskExists(f"{part}: it exists already")
    # Also where vhd-util writes another one: all that is refused is refused in the same words.
    content = await threads.call(_build_overlay, part, parent=parent, size=size)
    try:
        if shutil.which("vhd-util") is not None and size == parent.virtual_size:
            await run(snapshot_argv(part, parent=parent))
            await threads.call(_seal, part)
        else:
            await threads.call(_write_synced, part, content)
        made = await threads.call(read_image, part)
        _check_made(made, parent=parent, size=size)
    except DiskExists:
        raise
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def snapshot_argv(part: Path, *, parent: DiskImage) -> list[str | Path]:
    """vhd-util's command line. It has no long flags.

    Without `-e` it would link to the grandparent where the parent has no data yet.
    """
    return [
        "vhd-util",
        "snapshot",
        *("-n", part),
        *("-p", parent.path),
        "-m" if parent.format is DiskFormat.RAW else "-e",
    ]


def _build_overlay(part: Path, *, parent: DiskImage, size: int) -> bytes:
    parent_uuid = RAW_PARENT
    if parent.format is DiskFormat.VHD:
        parent_uuid = _read(parent.path).footer.uuid
        if parent_uuid == RAW_PARENT:
            raise ImageRefused(f"{parent.path}: it has no identity that an overlay could name")
    with opened(parent.path) as descriptor:
        modified_at = os.fstat(descriptor).st_mtime
    with _named(part):
        return build_differencing(
            size=size,
            parent=os.path.relpath(os.path.realpath(parent.path), os.path.realpath(part.parent)),
            parent_uuid=parent_uuid,
            parent_timestamp=_since_2000(modified_at),
            uuid=uuid.uuid4(),
            timestamp=_since_2000(time.time()),
        )


def _check_wish(part: Path, *, parent: DiskImage, size: int) -> None:
    if parent.format not in (DiskFormat.VHD, DiskFormat.RAW):
        raise ImageRefused(
            f"{part}: a VHD cannot stand on {parent.path}, which is {parent.format}",
            hint="Give a base that is raw or VHD.",
        )
    if size < parent.virtual_size:
        raise SizeTooSmall(
            f"{part}: {size} bytes are fewer than the {parent.virtual_size} of {parent.path}"
        )
    if size > MAX_SIZE or size % SECTOR:
        raise ImageRefused(
            f"{part}: no VHD can have {size} bytes",
            hint=f"Give a multiple of {SECTOR} bytes, at most {MAX_SIZE} (2040 GiB).",
        )


def _check_made(made: DiskImage, *, parent: DiskImage, size: int) -> None:
    wanted = (Path(os.path.realpath(parent.path)), parent.format, size)
    if (made.backing, made.backing_format, made.virtual_size) != wanted:
        raise ToolFailed(f"{made.path}: it does not read back as it was made: {made}")


def _since_2000(seconds: float) -> int:
    return min(max(0, int(seconds) - EPOCH), 2**32 - 1)


# ---------------------------------------------------------------- mend
def mend_geometry(path: Path) -> None:
    """Give a VHD that `qemu-img -o force_size=on` has just made the geometry that its size has.

    qemu-img writes the largest geometry there is into such a file, which vhd-util refuses. Both
    footers are written, where they are not right already, and synced. For fresh files of our own:
    one by another program is ImageRefused.
    """
    with opened(path, writable=True) as descriptor, _named(path):
        end = os.fstat(descriptor).st_size - FOOTER_SIZE
        footer = parse_footer(_read_end(descriptor))
        if footer.creator not in _CREATORS_OF_QEMU:
            raise ImageRefused("it was not made by qemu-img")
        for offset in (end,) if footer.disk_type is DiskType.FIXED else (end, 0):
            found = os.pread(descriptor, FOOTER_SIZE, offset)
            mended = mend_footer(found)
            if mended != found:
                os.pwrite(descriptor, mended, offset)
        os.fsync(descriptor)


# ---------------------------------------------------------------- who may open them
def tapdisk_available(
    *, capabilities: Path = _XEN_CAPABILITIES, search_path: str | None = None
) -> bool:
    """Whether domains of this host can have disks by tapdisk: it is a Xen control domain, and
    blktap's `tap-ctl` or `tapdisk` is on PATH (or `search_path`), as on XenServer and XCP-ng.
    """
    try:
        in_control = "control_d" in capabilities.read_text()
    except OSError:
        return False
    programs = ("tap-ctl", "tapdisk")
    return in_control and any(shutil.which(name, path=search_path) for name in programs)


# ---------------------------------------------------------------- files
@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Puts the file's name before the reason of a refusal."""
    try:
        yield
    except ImageRefused as error:
        raise ImageRefused(f"{path}: {error.message}", hint=error.hint) from error


def _write_synced(path: Path, content: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o600)
    except FileExistsError as error:
        raise DiskExists(f"{path}: it exists already") from error
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    except OSError as error:
        path.unlink()
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(f"{path}: the file system is full") from error
        raise
    finally:
        os.close(descriptor)


def _seal(path: Path) -> None:
    with opened(path) as descriptor:
        os.fchmod(descriptor, 0o600)
        os.fsync(descriptor)
