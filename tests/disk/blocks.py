"""What tapdisk does with a VHD while a guest runs, as little as a test needs; libvhdi as a reader.

Written from the specification's section "Block Allocation Table and Data Blocks", without anything
of provisiond's.
"""

import contextlib
import struct
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pyvhdi

SECTOR = 512
Reader = Callable[[int], bytes]


def write_sectors(path: Path, data: bytes, *, at: int) -> None:
    """Write whole sectors of the disk, from the byte `at` on; blocks are made where needed."""
    with path.open("r+b") as file:
        for start in range(0, len(data), SECTOR):
            _write_sector(file, (at + start) // SECTOR, data[start : start + SECTOR])


def _write_sector(file: BinaryIO, number: int, data: bytes) -> None:
    table, sectors_of_block = _geometry(file)
    block, inside = divmod(number, sectors_of_block)
    bitmap_size = max(sectors_of_block // 8, SECTOR)
    file.seek(table + 4 * block)
    (first,) = struct.unpack(">I", file.read(4))
    if first == 0xFFFFFFFF:
        first = _append_block(file, bitmap_size + sectors_of_block * SECTOR)
        file.seek(table + 4 * block)
        file.write(struct.pack(">I", first))
    file.seek(first * SECTOR + inside // 8)
    (bits,) = file.read(1)
    file.seek(first * SECTOR + inside // 8)
    file.write(bytes([bits | 0x80 >> inside % 8]))
    file.seek(first * SECTOR + bitmap_size + inside * SECTOR)
    file.write(data)


def _append_block(file: BinaryIO, size: int) -> int:
    file.seek(-SECTOR, 2)
    start = file.tell()
    footer = file.read(SECTOR)
    file.seek(start)
    file.write(bytes(SECTOR))  # where the footer was is the bitmap now
    file.truncate(start + size)
    file.seek(start + size)
    file.write(footer)
    return start // SECTOR


def read_sector(path: Path, number: int, *, below: Reader) -> bytes:
    """One sector of the disk; where the image does not have it, what the reader `below` gives."""
    with path.open("rb") as file:
        table, sectors_of_block = _geometry(file)
        block, inside = divmod(number, sectors_of_block)
        file.seek(table + 4 * block)
        (first,) = struct.unpack(">I", file.read(4))
        if first == 0xFFFFFFFF:
            return below(number)
        file.seek(first * SECTOR + inside // 8)
        if not file.read(1)[0] & 0x80 >> inside % 8:
            return below(number)
        file.seek(first * SECTOR + max(sectors_of_block // 8, SECTOR) + inside * SECTOR)
        return file.read(SECTOR)


def _geometry(file: BinaryIO) -> tuple[int, int]:
    file.seek(16)
    (header,) = struct.unpack(">Q", file.read(8))
    file.seek(header + 16)
    (table,) = struct.unpack(">Q", file.read(8))
    file.seek(header + 32)
    (block_size,) = struct.unpack(">I", file.read(4))
    return table, block_size // SECTOR


class Merged:
    """A chain, top first, as libvhdi reads it; to be closed."""

    def __init__(self, *paths: Path) -> None:
        self._files = []
        for path in paths:
            file = pyvhdi.file()
            file.open(str(path))
            self._files.append(file)
        for child, parent in zip(self._files, self._files[1:], strict=False):
            child.set_parent(parent)

    @property
    def size(self) -> int:
        return int(self._files[0].get_media_size())

    @property
    def parent_identities(self) -> list[tuple[str, str]]:
        """What each asks of its parent, and what that one says of itself."""
        return [
            (child.get_parent_identifier(), parent.get_identifier())
            for child, parent in zip(self._files, self._files[1:], strict=False)
        ]

    @property
    def parent_name(self) -> str:
        return str(self._files[0].get_parent_filename())

    def read(self, size: int, *, at: int) -> bytes:
        return bytes(self._files[0].read_buffer_at_offset(size, at))

    def close(self) -> None:
        for file in self._files:
            file.close()


merged = contextlib.closing
