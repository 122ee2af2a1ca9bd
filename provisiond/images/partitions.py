"""Where the file systems of a disk begin, and of which kind they are; read by ourselves, bounded.

Sectors have 512 bytes: no image of another kind boots on Xen or QEMU as they are set up here.
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from provisiond.errors import ImageRefused

_SECTOR = 512
_GPT_PROTECTIVE = 0xEE
_EXTENDED = (0x05, 0x0F, 0x85)
_MOST = 128  # partitions; what comes behind is not looked at


class FileSystem(StrEnum):
    """What a partition begins with."""

    EXT = "ext2/3/4"
    XFS = "xfs"
    BTRFS = "btrfs"
    LVM = "an LVM physical volume"
    LUKS = "LUKS"
    SWAP = "swap"
    OTHER = "something else"


@dataclass(frozen=True, slots=True)
class Partition:
    """`number` is 0 where a file system is on the bare disk; start and size are bytes."""

    number: int
    start: int
    size: int
    file_system: FileSystem


def read_partitions(descriptor: int, *, size: int) -> list[Partition]:
    """The partitions of an open disk of `size` bytes, or the one file system on the bare disk.

    Raises ImageRefused where there is neither.
    """
    # The table first: a disk that was partitioned may still have what was on the bare disk before.
    found = [
        Partition(number, start, length, read_file_system(descriptor, start))
        for number, start, length in _table(descriptor)
        if start > 0 and length > 0 and start + length <= size
    ]
    if found:
        return found
    bare = read_file_system(descriptor, 0)
    if bare is FileSystem.OTHER:
        raise ImageRefused(
            "the disk has no partition table and no file system that is known",
            hint="Is its format right? provisionctl image takes disks, not archives.",
        )
    return [Partition(0, 0, size, bare)]


# ---------------------------------------------------------------- tables
def _table(descriptor: int) -> list[tuple[int, int, int]]:
    sector = os.pread(descriptor, _SECTOR, 0)
    if len(sector) < _SECTOR or sector[510:512] != b"\x55\xaa":
        return []
    entries = _dos_entries(sector)
    if any(kind == _GPT_PROTECTIVE for _, kind, _, _ in entries):
        return list(_gpt(descriptor))
    return list(_dos(descriptor, entries))


def _dos_entries(sector: bytes) -> list[tuple[int, int, int, int]]:
    """Of the four entries: number, kind, first sector, sectors."""
    return [
        (number + 1, sector[at + 4], *struct.unpack_from("<II", sector, at + 8))
        for number, at in enumerate(range(446, 510, 16))
    ]


def _dos(
    descriptor: int, entries: list[tuple[int, int, int, int]]
) -> Iterator[tuple[int, int, int]]:
    for number, kind, first, sectors in entries:
        if kind in _EXTENDED:
            yield from _logical(descriptor, first)
        elif kind:
            yield number, first * _SECTOR, sectors * _SECTOR


def _logical(descriptor: int, extended: int) -> Iterator[tuple[int, int, int]]:
    """The logical partitions: a chain of tables, each of which names the next; it may be a ring."""
    at = extended
    for number in range(5, 5 + _MOST):
        sector = os.pread(descriptor, _SECTOR, at * _SECTOR)
        if len(sector) < _SECTOR or sector[510:512] != b"\x55\xaa":
            return
        (_, kind, first, sectors), (_, next_kind, next_at, _), *_ = _dos_entries(sector)
        if kind:
            yield number, (at + first) * _SECTOR, sectors * _SECTOR
        if next_kind not in _EXTENDED or not next_at:
            return
        at = extended + next_at


def _gpt(descriptor: int) -> Iterator[tuple[int, int, int]]:
    """The entries of the first table; UEFI specification, 5.3."""
    header = os.pread(descriptor, 92, _SECTOR)
    if not header.startswith(b"EFI PART") or len(header) < 92:
        return
    at, count, length = struct.unpack_from("<QII", header, 72)
    if length not in (128, 256, 512):
        return
    table = os.pread(descriptor, min(count, _MOST) * length, min(at, 2**40) * _SECTOR)
    for number in range(len(table) // length):
        kind, first, last = struct.unpack_from("<16s16xQQ", table, number * length)
        if any(kind) and first <= last < 2**50:
            yield number + 1, first * _SECTOR, (last - first + 1) * _SECTOR


# ---------------------------------------------------------------- file systems
_MAGICS = (
    (FileSystem.XFS, 0, b"XFSB"),
    (FileSystem.LUKS, 0, b"LUKS\xba\xbe"),
    (FileSystem.BTRFS, 0x10040, b"_BHRfS_M"),
    (FileSystem.SWAP, 4086, b"SWAPSPACE2"),
    (FileSystem.EXT, 1080, b"\x53\xef"),
)


def read_file_system(descriptor: int, start: int) -> FileSystem:
    """What begins at the byte `start`."""
    head = os.pread(descriptor, 0x10048, start)
    # pvcreate puts its label into one of the first four sectors.
    if any(head.startswith(b"LABELONE", sector * _SECTOR) for sector in range(4)):
        return FileSystem.LVM
    for file_system, at, magic in _MAGICS:
        if head.startswith(magic, at):
            return file_system
    return FileSystem.OTHER
