"""The look at an image that comes from outside, before any tool opens it.

An image is hostile until this has let it pass: a header may name other files of this host, which
qemu-img would then read and copy, or tables that take hours to walk. The function blocks; callers
run it in a thread.
"""

import os
import re
from pathlib import Path

from provisiond.api.requests import LARGEST_DISK, DiskFormat
from provisiond.disk import vhd
from provisiond.disk.chain import DiskImage
from provisiond.disk.header import backing_of, read_qcow, require_version
from provisiond.disk.image_file import opened
from provisiond.disk.qcow_format import MAGIC, refuse_hostile
from provisiond.disk.vhd_format import has_footer_cookie
from provisiond.errors import ImageRefused

_SECTOR = 512
_HEAD = 2048  # bytes; more than QEMU looks at when it guesses a format

# What makes QEMU take a file for an image of some kind: the probes of its block drivers, where they
# look at the first bytes alone.
_PREFIXES = {
    MAGIC: "a qcow or qcow2 image",
    b"QED\0": "a QED image",
    b"KDMV": "a VMDK image",
    b"COWD": "a VMDK image",
    b"vhdxfile": "a VHDX image",
    b"LUKS\xba\xbe": "a LUKS image",
    b"WithoutFreeSpace": "a Parallels image",
    b"WithouFreSpacExt": "a Parallels image",
    b"Bochs Virtual HD Image": "a Bochs image",
    b"#!/bin/sh\n#V2.0 Format\n": "a cloop image",
}
_VDI_MAGIC, _VDI_MAGIC_AT = b"\x7f\x10\xda\xbe", 64
# A text that names other files as the parts of a disk.
_VMDK_TEXT = re.compile(rb"(?:#[^\n]*\n|[ \r]*\n)*version=\d")


def inspect(path: Path, *, disk_format: DiskFormat, parent: DiskImage | None = None) -> None:
    """Refuse the image at `path` if it is not what it was said to be, or holds what none may hold.

    That is: no regular file (a symbolic link to one is followed), another format than was said, a
    backing file that is not `parent`, a data file, unknown features, encryption, internal
    snapshots, a differencing VHD, fields that cannot be, an empty or absurd size, an end too early.
    Raises ImageRefused with the reason, or ImageNotFound.
    """
    with opened(path) as descriptor:
        if disk_format is DiskFormat.RAW:
            size = _inspect_raw(descriptor, path)
        elif disk_format is DiskFormat.VHD:
            size = _inspect_vhd(path)
        else:
            size = _inspect_qcow(descriptor, path, disk_format=disk_format, parent=parent)
    if size == 0:
        raise ImageRefused(f"{path}: is empty")
    if size % _SECTOR:
        raise ImageRefused(f"{path}: its size, {size} bytes, is no whole number of sectors")
    if size > LARGEST_DISK:
        raise ImageRefused(f"{path}: its size, {size} bytes, is more than {LARGEST_DISK}")
    if parent is not None and disk_format in (DiskFormat.RAW, DiskFormat.VHD):
        raise ImageRefused(f"{path}: stands on nothing, so it has no parent")


# ---------------------------------------------------------------- qcow2, qcow
def _inspect_qcow(
    descriptor: int, path: Path, *, disk_format: DiskFormat, parent: DiskImage | None
) -> int:
    header = read_qcow(descriptor, path)
    require_version(header, disk_format, path)
    refuse_hostile(header, path=path, file_size=os.fstat(descriptor).st_size)
    _require_backing(path, *backing_of(header, path), parent=parent)
    return header.virtual_size


def _require_backing(
    path: Path,
    backing: Path | None,
    backing_format: DiskFormat | None,
    *,
    parent: DiskImage | None,
) -> None:
    if backing is None and parent is None:
        return
    if backing is None:
        raise ImageRefused(f"{path}: stands on nothing, so it has no parent")
    if parent is None:
        raise ImageRefused(
            f"{path}: stands on another image ({backing})",
            hint="Import that one first and name it as the parent, or make the image stand alone.",
        )
    if not _same_file(backing, parent.path):
        raise ImageRefused(
            f"{path}: stands on {backing}, not on its parent {parent.path}",
            hint=f"Rebase it: qemu-img rebase -u -b {parent.path}, if the two hold the same.",
        )
    # qcow (version 1) does not name it, and QEMU guesses: right for all but a VHD, as a raw image
    # that it would take for another one was refused when it was imported.
    guessed = None if parent.format is not DiskFormat.VHD else parent.format
    if backing_format not in (parent.format, guessed):
        raise ImageRefused(f"{path}: takes its parent for {backing_format}, not {parent.format}")


def _same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


# ---------------------------------------------------------------- VHD
def _inspect_vhd(path: Path) -> int:
    image = vhd.read_image(path)
    if image.backing is not None:
        raise ImageRefused(
            f"{path}: is a differencing VHD, which QEMU reads as zeros",
            hint="Coalesce it with vhd-util, or make a full copy, where it comes from.",
        )
    vhd.check_image(path)
    return image.virtual_size


# ---------------------------------------------------------------- raw
def _inspect_raw(descriptor: int, path: Path) -> int:
    """Raw is what nothing else is: QEMU would take what starts like an image for that image,
    wherever it has to guess."""
    size = os.fstat(descriptor).st_size
    head = os.pread(descriptor, _HEAD, 0)
    tail = os.pread(descriptor, _SECTOR, max(0, size - _SECTOR))
    if (found := recognise(head, tail)) is not None:
        raise ImageRefused(
            f"{path}: is {found}, not raw",
            hint="Say its real format, or make it raw where it comes from.",
        )
    return size


def recognise(untrusted_head: bytes, untrusted_tail: bytes) -> str | None:
    """What kind of image a file is that begins and ends so; None where it is none but raw."""
    for prefix, kind in _PREFIXES.items():
        if untrusted_head.startswith(prefix):
            return kind
    if has_footer_cookie(untrusted_head) or has_footer_cookie(untrusted_tail):
        return "a VHD image"
    if untrusted_head.startswith(_VDI_MAGIC, _VDI_MAGIC_AT):
        return "a VDI image"
    if _VMDK_TEXT.match(untrusted_head):
        return "a VMDK image"
    return None
