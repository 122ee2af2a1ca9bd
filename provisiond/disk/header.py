"""Headers of image files, read by ourselves: quick, bounded, and the same while a guest writes.

The functions block; callers run them in a thread.
"""

import os
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from provisiond.api.requests import DiskFormat
from provisiond.disk import vhd
from provisiond.disk.chain import DiskImage, parse_format
from provisiond.disk.image_file import opened
from provisiond.disk.qcow_format import MAGIC, QcowHeader, needed_head, parse_header
from provisiond.disk.vhd_format import has_footer_cookie
from provisiond.errors import ImageNotFound, ImageRefused


def read_header(path: Path, *, disk_format: DiskFormat) -> DiskImage:
    """The image at `path` by its own header; what it stands on is not looked at.

    Raises ImageNotFound, or ImageRefused where it is no image of that format.
    """
    with opened(path) as descriptor:
        status = os.fstat(descriptor)
        if disk_format in (DiskFormat.QCOW2, DiskFormat.QCOW):
            header = read_qcow(descriptor, path)
            require_version(header, disk_format, path)
            virtual_size, (backing, backing_format) = header.virtual_size, backing_of(header, path)
        elif disk_format is DiskFormat.VHD:
            return replace(vhd.read_image(path), file_size=_taken(status))
        else:
            virtual_size, backing, backing_format = status.st_size, None, None
    return DiskImage(path, disk_format, virtual_size, _taken(status), backing, backing_format)


def _taken(status: os.stat_result) -> int:
    return status.st_blocks * 512


def require_version(header: QcowHeader, disk_format: DiskFormat, path: Path) -> None:
    """Refuse a qcow2 image that was said to be qcow (version 1), and the other way round."""
    found = DiskFormat.QCOW if header.version == 1 else DiskFormat.QCOW2
    if found is not disk_format:
        raise ImageRefused(f"{path}: is {found}, not {disk_format}")


def read_qcow(descriptor: int, path: Path) -> QcowHeader:
    """The qcow or qcow2 header of an open file; `path` names it in ImageRefused."""
    untrusted = os.pread(descriptor, 32, 0)
    return parse_header(os.pread(descriptor, needed_head(untrusted), 0), path=path)


def backing_of(header: QcowHeader, path: Path) -> tuple[Path | None, DiskFormat | None]:
    """What the image `path` stands on, as QEMU finds it: a relative name starts in its own folder.

    Raises ImageRefused for a name that is more than a file's.
    """
    name, named_format = header.backing, header.backing_format
    if name is None:
        return None, None
    if not name or not name.isprintable() or ":" in name.partition("/")[0]:
        raise ImageRefused(f"{path}: stands on {name!r}, which is no file")
    backing_format = None if named_format is None else parse_format(named_format, of=path)
    return Path(os.path.realpath(path)).parent / name, backing_format


def read_overlays(*folders: Path) -> dict[Path | None, list[Path]]:
    """The image files of our folders by what they stand on, half written ones too.

    Under None are those of which that cannot be told.
    """
    overlays: dict[Path | None, list[Path]] = defaultdict(list)
    for folder in folders:
        for file in sorted(folder.iterdir()) if folder.exists() else []:
            # A raw disk stands on nothing; what it begins with, its guest has written.
            if file.suffix in (".json", f".{DiskFormat.RAW}"):
                continue
            try:
                backing = _find_backing(file)
            except ImageNotFound:
                continue  # removed meanwhile
            except ImageRefused:
                overlays[None].append(file)
                continue
            if backing is not None:
                overlays[Path(os.path.realpath(backing))].append(file)
    return overlays


def _find_backing(path: Path) -> Path | None:
    """What an image stands on, whatever its format is; what is named so is not opened."""
    with opened(path) as descriptor:
        if os.pread(descriptor, 4, 0) == MAGIC:
            return backing_of(read_qcow(descriptor, path), path)[0]
        if has_footer_cookie(os.pread(descriptor, 8, 0)):
            return vhd.read_image(path).backing
    return None
