"""The bytes of a VHD: footer, header, table.

The paper is Microsoft's "Virtual Hard Disk Image Format Specification" of 2006; its sections are
named where they count. Every number is big-endian. Where tapdisk, which runs these images, differs
from the paper, tapdisk counts. What is read may come from a stranger: it is bounded before it is
used, and what does not fit is ImageRefused with the reason; the caller knows the file's name.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from uuid import UUID

from provisiond.errors import ImageRefused

SECTOR = 512
FOOTER_SIZE = 512
HEADER_SIZE = 1024
BLOCK_SIZE = 2 * 1024 * 1024
FIRST_FREE = FOOTER_SIZE + HEADER_SIZE  # behind the copy of the footer and the header
MAX_SIZE = 0xFF000000 * SECTOR  # 2040 GiB: what a table of 32-bit sector numbers can hold
MAX_LOCATOR = 4096  # bytes of a parent's path
EPOCH = 946_684_800  # 2000-01-01 00:00:00 UTC, in seconds since 1970
RAW_PARENT = UUID(int=0)
"""The parent's identity where the parent is a raw disk, which has none (tapdisk's convention)."""
UNUSED = 0xFFFFFFFF
"""The entry of the block allocation table for a block that is not there."""

_FOOTER = struct.Struct(">8sIIQI4sI4sQQIII16sB427x")
_HEADER = struct.Struct(">8sQQIIII16sI4x512s192s256x")
_LOCATOR = struct.Struct(">4sIIIQ")
_FOOTER_CHECKSUM = 64
_HEADER_CHECKSUM = 36
_GEOMETRY = 56
_COOKIE = b"conectix"
_HEADER_COOKIE = b"cxsparse"
_VERSION = 0x00010000
_RESERVED_FEATURE = 2  # "this bit must always be set to 1"
_NO_OFFSET = 2**64 - 1
_BLOCK_SIZES = (BLOCK_SIZE // 4, BLOCK_SIZE // 2, BLOCK_SIZE)  # tapdisk takes none larger
_MOST_BLOCKS = MAX_SIZE + BLOCK_SIZE  # bytes of all blocks that a table may count


class DiskType(IntEnum):
    """Hard Disk Footer Format, "Disk Type"."""

    FIXED = 2
    DYNAMIC = 3
    DIFFERENCING = 4


class LocatorCode(StrEnum):
    """How a parent's path is written; Dynamic Disk Header Format, "Parent Locator Entries"."""

    MAC_URL = "MacX"
    ABSOLUTE = "W2ku"
    RELATIVE = "W2ru"


_OTHER_CODES = (b"Wi2r", b"Wi2k", b"Mac ")  # deprecated; nobody reads them, tapdisk neither


@dataclass(frozen=True, slots=True)
class Geometry:
    """What an ATA controller would show of the disk."""

    cylinders: int
    heads: int
    sectors: int


@dataclass(frozen=True, slots=True)
class Footer:
    """Hard Disk Footer Format. Sizes are in bytes, `timestamp` in seconds since 2000 (EPOCH)."""

    disk_type: DiskType
    current_size: int
    original_size: int
    geometry: Geometry
    data_offset: int
    """Where the header is; a fixed disk has none."""
    uuid: UUID
    timestamp: int
    creator: bytes = b"pvsd"
    """Never `tap `, which promises a map of full blocks behind the table."""
    creator_version: int = _VERSION
    creator_os: bytes = b"Wi2k"
    saved_state: int = 0


@dataclass(frozen=True, slots=True)
class ParentLocator:
    """Where in the file a parent's path stands; `data_space` and `data_length` are in bytes."""

    code: LocatorCode
    data_space: int
    data_length: int
    data_offset: int


@dataclass(frozen=True, slots=True)
class DynamicHeader:
    """Dynamic Disk Header Format; the fields of a parent are empty where there is none."""

    table_offset: int
    max_table_entries: int
    block_size: int = BLOCK_SIZE
    parent_uuid: UUID = RAW_PARENT
    parent_timestamp: int = 0
    parent_name: str = ""
    locators: tuple[ParentLocator, ...] = ()


# ---------------------------------------------------------------- numbers
def chs_geometry(size: int) -> Geometry:
    """The geometry of a disk of `size` bytes (Appendix: CHS Calculation)."""
    total = min(size // SECTOR, 65535 * 16 * 255)
    if total >= 65535 * 16 * 63:
        return Geometry(total // 255 // 16, 16, 255)
    tracks = total // 17
    heads = max(4, (tracks + 1023) // 1024)
    if tracks < heads * 1024 and heads <= 16:
        return Geometry(tracks // heads, heads, 17)
    tracks = total // 31
    if tracks < 16 * 1024:
        return Geometry(tracks // 16, 16, 31)
    return Geometry(total // 63 // 16, 16, 63)


def checksum(structure: bytes, *, at: int) -> int:
    """The one's complement of the sum of all bytes but those of the checksum itself, at `at`."""
    return ~(sum(structure) - sum(structure[at : at + 4])) & 0xFFFFFFFF


def _with_checksum(structure: bytes, *, at: int) -> bytes:
    return b"".join(
        (structure[:at], checksum(structure, at=at).to_bytes(4, "big"), structure[at + 4 :])
    )


# ---------------------------------------------------------------- footer
def has_footer_cookie(untrusted: bytes) -> bool:
    """Whether these bytes say that they are a footer."""
    return untrusted.startswith(_COOKIE)


def parse_footer(untrusted: bytes) -> Footer:
    """The footer in these 512 bytes; raises ImageRefused."""
    _expect(len(untrusted) == FOOTER_SIZE and has_footer_cookie(untrusted), "it has no VHD footer")
    (
        _, _, version, data_offset, timestamp, creator, creator_version, creator_os,
        original_size, current_size, geometry, disk_type, given, uuid, saved_state,
    ) = _FOOTER.unpack(untrusted)  # fmt: skip
    _expect(
        given == checksum(untrusted, at=_FOOTER_CHECKSUM), "the checksum of its footer is wrong"
    )
    _expect(version == _VERSION, f"its version is {version:#010x}")
    _expect(disk_type in list(DiskType), f"its type is {disk_type}: neither 2, 3 nor 4")
    _expect(
        0 < current_size <= MAX_SIZE and current_size % SECTOR == 0,
        f"its size is {current_size} bytes: no number of sectors that a VHD can have",
    )
    return Footer(
        disk_type=DiskType(disk_type),
        current_size=current_size,
        original_size=original_size,
        geometry=Geometry(geometry >> 16, geometry >> 8 & 0xFF, geometry & 0xFF),
        data_offset=data_offset,
        uuid=UUID(bytes=uuid),
        timestamp=timestamp,
        creator=creator,
        creator_version=creator_version,
        creator_os=creator_os,
        saved_state=saved_state,
    )


def build_footer(footer: Footer) -> bytes:
    """Its 512 bytes."""
    return _with_checksum(
        _FOOTER.pack(
            _COOKIE,
            _RESERVED_FEATURE,
            _VERSION,
            footer.data_offset,
            footer.timestamp,
            footer.creator,
            footer.creator_version,
            footer.creator_os,
            footer.original_size,
            footer.current_size,
            _geometry_number(footer.geometry),
            footer.disk_type,
            0,
            footer.uuid.bytes,
            footer.saved_state,
        ),
        at=_FOOTER_CHECKSUM,
    )


def _geometry_number(geometry: Geometry) -> int:
    return geometry.cylinders << 16 | geometry.heads << 8 | geometry.sectors


def mend_footer(footer: bytes) -> bytes:
    """The same footer with the geometry that its size has; every other byte stays."""
    geometry = _geometry_number(chs_geometry(parse_footer(footer).current_size))
    mended = footer[:_GEOMETRY] + geometry.to_bytes(4, "big") + footer[_GEOMETRY + 4 :]
    return _with_checksum(mended, at=_FOOTER_CHECKSUM)


# ---------------------------------------------------------------- header
def parse_header(untrusted: bytes) -> DynamicHeader:
    """The header in these 1024 bytes; raises ImageRefused."""
    _expect(
        len(untrusted) == HEADER_SIZE and untrusted.startswith(_HEADER_COOKIE),
        "no header is where its footer says",
    )
    (
        _, _, table_offset, version, entries, block_size, given,
        parent_uuid, parent_timestamp, name, locators,
    ) = _HEADER.unpack(untrusted)  # fmt: skip
    _expect(
        given == checksum(untrusted, at=_HEADER_CHECKSUM), "the checksum of its header is wrong"
    )
    _expect(version == _VERSION, f"the version of its header is {version:#010x}")
    _expect(
        block_size in _BLOCK_SIZES,
        f"its blocks have {block_size} bytes: none of {_BLOCK_SIZES}",
    )
    return DynamicHeader(
        table_offset=table_offset,
        max_table_entries=entries,
        block_size=block_size,
        parent_uuid=UUID(bytes=parent_uuid),
        parent_timestamp=parent_timestamp,
        parent_name=_parse_name(name),
        locators=_parse_locators(locators),
    )


def _parse_name(untrusted: bytes) -> str:
    """Dynamic Disk Header Format, "Parent Unicode Name": big-endian, unlike the locators."""
    try:
        return untrusted.decode("utf-16-be").partition("\0")[0]
    except UnicodeDecodeError:
        raise ImageRefused("the name of its parent is no UTF-16") from None


def _parse_locators(untrusted: bytes) -> tuple[ParentLocator, ...]:
    locators = []
    for code, space, length, _, offset in _LOCATOR.iter_unpack(untrusted):
        if code == bytes(4) or code in _OTHER_CODES:
            continue
        _expect(
            code.decode("latin-1") in list(LocatorCode), "it has a parent locator of unknown kind"
        )
        _expect(
            0 < length <= MAX_LOCATOR,
            f"a parent locator has {length} bytes: none, or more than {MAX_LOCATOR}",
        )
        # "Data space" is the number of sectors, says the paper; everybody writes bytes.
        in_bytes = space * SECTOR if space < SECTOR else space
        locators.append(ParentLocator(LocatorCode(code.decode()), in_bytes, length, offset))
    return tuple(locators)


def build_header(header: DynamicHeader) -> bytes:
    """Its 1024 bytes."""
    locators = b"".join(
        _LOCATOR.pack(loc.code.encode(), loc.data_space, loc.data_length, 0, loc.data_offset)
        for loc in header.locators
    )
    return _with_checksum(
        _HEADER.pack(
            _HEADER_COOKIE,
            _NO_OFFSET,
            header.table_offset,
            _VERSION,
            header.max_table_entries,
            header.block_size,
            0,
            header.parent_uuid.bytes,
            header.parent_timestamp,
            header.parent_name.encode("utf-16-be"),
            locators,
        ),
        at=_HEADER_CHECKSUM,
    )


# ---------------------------------------------------------------- all of them, in a file
def choose_footer(*, untrusted_start: bytes, untrusted_end: bytes) -> Footer:
    """The footer that counts, of the first and the last 512 bytes of a file; raises ImageRefused.

    qemu looks at the start first, tapdisk at the end. So a file is refused where they would find
    two different disks: whoever can write to the disk's first sector could make such a file.
    """
    if not has_footer_cookie(untrusted_end):
        # tapdisk writes over it while the disk grows, and puts it back when it closes the file.
        footer = parse_footer(untrusted_start)
        _expect(footer.disk_type is not DiskType.FIXED, "it has no VHD footer at its end")
        return footer
    footer = parse_footer(untrusted_end)
    if footer.disk_type is DiskType.FIXED:
        _expect(
            not has_footer_cookie(untrusted_start),
            "it is a fixed disk at its end and another one at its start",
        )
    else:
        _expect(parse_footer(untrusted_start) == footer, "its two footers differ")
    return footer


def check_layout(footer: Footer, header: DynamicHeader, *, file_size: int) -> None:
    """Raises ImageRefused where the two do not fit each other, or reach out of the file."""
    table_size = 4 * header.max_table_entries
    _expect(
        FIRST_FREE <= header.table_offset <= file_size - table_size,
        "its block allocation table reaches out of the file",
    )
    _expect(
        footer.current_size <= header.max_table_entries * header.block_size <= _MOST_BLOCKS,
        "its block allocation table is too small for its size, or absurdly large",
    )
    for locator in header.locators:
        _expect(
            locator.data_offset + locator.data_length <= file_size,
            "a parent locator reaches out of the file",
        )
    if footer.disk_type is DiskType.DIFFERENCING:
        _expect(bool(header.locators), "it is a differencing disk that names no parent")
    else:
        has_parent = header.locators or header.parent_name or header.parent_uuid != RAW_PARENT
        _expect(not has_parent, "it names a parent, but is no differencing disk")


def check_blocks(header: DynamicHeader, untrusted_table: bytes, *, file_size: int) -> None:
    """Raises ImageRefused where a block of the table lies out of the file: it is truncated."""
    # Block Allocation Table and Data Blocks: a bitmap of whole sectors comes before the data.
    bitmap = -(-header.block_size // SECTOR // 8 // SECTOR) * SECTOR
    last = (file_size - FOOTER_SIZE - bitmap - header.block_size) // SECTOR
    for (sector,) in struct.iter_unpack(">I", untrusted_table):
        _expect(
            sector == UNUSED or FIRST_FREE // SECTOR <= sector <= last,
            "a block of its data lies out of the file: is it truncated?",
        )


def _expect(holds: bool, reason: str) -> None:
    if not holds:
        raise ImageRefused(reason)
