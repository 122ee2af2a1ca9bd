"""The headers of qcow2 and of its forerunner qcow, as QEMU's docs/interop/qcow2.txt has them.

Nothing of a header is believed: a field that points outside the file, or that no writer of images
would write, is ImageRefused with the reason.
"""

import struct
from dataclasses import dataclass
from pathlib import Path

from provisiond.errors import ImageRefused

MAGIC = b"QFI\xfb"
HEAD = 65536  # bytes; a default image's first cluster, which holds its whole header
LARGEST_HEAD = 2**21  # bytes; the largest first cluster that there may be

_DIRTY, _CORRUPT, _DATA_FILE = 1, 2, 4
_KNOWN_FEATURES = 0b11111  # with compression type (8) and extended L2 entries (16)
_BACKING_FORMAT, _DATA_FILE_NAME = 0xE2792ACA, 0x44415441
_MOST_L1 = 2**25  # bytes, as in QEMU
_MOST_REFCOUNT_TABLE = 2**23  # bytes, as in QEMU
_LONGEST_NAME = 1023


@dataclass(frozen=True, slots=True)
class QcowHeader:
    """What a header says. `version` 1 is qcow, 2 and 3 are qcow2. `backing` is as it is written."""

    version: int
    virtual_size: int
    cluster_bits: int
    backing: str | None
    backing_format: str | None
    encryption: int
    snapshots: int
    l1_offset: int
    l1_bytes: int
    refcount_offset: int
    refcount_bytes: int
    features: int
    data_file: str | None


def needed_head(untrusted: bytes) -> int:
    """How many bytes of the file `parse_header` needs, from the first 32 or more of them."""
    version, cluster_bits = struct.unpack_from(">4xI12xI", untrusted.ljust(32, b"\0"))
    return LARGEST_HEAD if version != 1 and cluster_bits > 16 else HEAD


def parse_header(untrusted: bytes, *, path: Path) -> QcowHeader:
    """The header in the first `needed_head` bytes of the file `path`, which is only named here.

    Raises ImageRefused where it is no header, or one with a field that cannot be.
    """
    if untrusted[:4] != MAGIC or len(untrusted) < 72:
        raise ImageRefused(f"{path}: has no qcow2 header")
    (version,) = struct.unpack_from(">I", untrusted, 4)
    if version == 1:
        return _parse_first(untrusted, path=path)
    if version in (2, 3):
        return _parse_second(untrusted, path=path, version=version)
    raise ImageRefused(f"{path}: is qcow of version {version}, which nobody here knows")


def _parse_first(untrusted: bytes, *, path: Path) -> QcowHeader:
    name_offset, name_size, virtual_size = struct.unpack_from(">QI4xQ", untrusted, 8)
    cluster_bits, l2_bits, encryption, l1_offset = struct.unpack_from(">BB2xIQ", untrusted, 32)
    if not 9 <= cluster_bits <= 16 or not 6 <= l2_bits <= 13:
        raise ImageRefused(f"{path}: its clusters or tables have a size that cannot be")
    reach = cluster_bits + l2_bits
    return QcowHeader(
        version=1,
        virtual_size=virtual_size,
        cluster_bits=cluster_bits,
        backing=_name(untrusted, name_offset, name_size, path=path),
        backing_format=None,
        encryption=encryption,
        snapshots=0,
        l1_offset=l1_offset,
        l1_bytes=8 * -(-virtual_size >> reach) if virtual_size else 0,
        refcount_offset=0,
        refcount_bytes=0,
        features=0,
        data_file=None,
    )


def _parse_second(untrusted: bytes, *, path: Path, version: int) -> QcowHeader:
    name_offset, name_size, cluster_bits, virtual_size = struct.unpack_from(">QIIQ", untrusted, 8)
    encryption, l1_entries, l1_offset = struct.unpack_from(">IIQ", untrusted, 32)
    refcount_offset, refcount_clusters, snapshots = struct.unpack_from(">QII", untrusted, 48)
    if not 9 <= cluster_bits <= 21:
        raise ImageRefused(f"{path}: its clusters have a size that cannot be")
    features, length = 0, 72
    if version == 3:
        if len(untrusted) < 104:
            raise ImageRefused(f"{path}: ends in the middle of its header")
        features, refcount_order, length = struct.unpack_from(">Q16xII", untrusted, 72)
        if refcount_order > 6 or not 104 <= length <= 1 << cluster_bits:
            raise ImageRefused(f"{path}: its header has a length or a width that cannot be")
    extensions = _parse_extensions(untrusted, length, end=name_offset or 1 << cluster_bits)
    backing_format = extensions.get(_BACKING_FORMAT)
    data_file = extensions.get(_DATA_FILE_NAME, b"" if features & _DATA_FILE else None)
    return QcowHeader(
        version=version,
        virtual_size=virtual_size,
        cluster_bits=cluster_bits,
        backing=_name(untrusted, name_offset, name_size, path=path),
        backing_format=None if backing_format is None else backing_format.decode(errors="replace"),
        encryption=encryption,
        snapshots=snapshots,
        l1_offset=l1_offset,
        l1_bytes=8 * l1_entries,
        refcount_offset=refcount_offset,
        refcount_bytes=refcount_clusters << cluster_bits,
        features=features,
        data_file=None if data_file is None else data_file.decode(errors="replace"),
    )


def _parse_extensions(untrusted: bytes, offset: int, *, end: int) -> dict[int, bytes]:
    """The header extensions by type; they end at type 0, before the backing file's name."""
    extensions: dict[int, bytes] = {}
    while offset + 8 <= min(end, len(untrusted)):
        kind, length = struct.unpack_from(">II", untrusted, offset)
        if kind == 0:
            break
        extensions[kind] = untrusted[offset + 8 : offset + 8 + length]
        offset += 8 + (length + 7) // 8 * 8
    return extensions


def _name(untrusted: bytes, offset: int, size: int, *, path: Path) -> str | None:
    if offset == 0:
        return None
    if not 0 < size <= _LONGEST_NAME or offset + size > len(untrusted):
        raise ImageRefused(f"{path}: the name of what it stands on lies outside of its header")
    try:
        return untrusted[offset : offset + size].decode()
    except UnicodeDecodeError:
        raise ImageRefused(f"{path}: the name of what it stands on is no text") from None


def refuse_hostile(header: QcowHeader, *, path: Path, file_size: int) -> None:
    """Refuse what no image from outside may hold: ImageRefused. What it stands on is not judged."""
    if header.data_file is not None:
        raise ImageRefused(f"{path}: keeps its data in another file ({header.data_file!r})")
    if unknown := header.features & ~_KNOWN_FEATURES:
        raise ImageRefused(f"{path}: uses features that nobody here knows ({unknown:#x})")
    if header.features & _CORRUPT:
        raise ImageRefused(f"{path}: is marked as damaged")
    if header.features & _DIRTY:
        raise ImageRefused(
            f"{path}: was not closed by the last who wrote to it",
            hint="Mend it with qemu-img check -r all, then ask again.",
        )
    if header.encryption != 0:
        raise ImageRefused(f"{path}: is encrypted, and its key is not here")
    if header.snapshots != 0:
        raise ImageRefused(
            f"{path}: holds {header.snapshots} internal snapshots",
            hint="qemu-img convert makes a copy that is without.",
        )
    _refuse_tables(header, path=path, file_size=file_size)


def _refuse_tables(header: QcowHeader, *, path: Path, file_size: int) -> None:
    if header.l1_bytes > _MOST_L1 or header.refcount_bytes > _MOST_REFCOUNT_TABLE:
        raise ImageRefused(f"{path}: has tables of a size that cannot be")
    if header.l1_bytes < 8 * _l1_entries(header):
        raise ImageRefused(f"{path}: its tables are too small for its {header.virtual_size} bytes")
    # A qcow file may end before a table's last cluster is full, never before its first entry.
    for offset, size in (
        (header.l1_offset, header.l1_bytes),
        (header.refcount_offset, header.refcount_bytes and 8),
    ):
        if offset + size > file_size:
            raise ImageRefused(f"{path}: is cut off: its tables lie after its end")


def _l1_entries(header: QcowHeader) -> int:
    """How many entries of the L1 table a header of this size needs at least."""
    if header.version == 1:
        return header.l1_bytes // 8
    # An extended L2 entry has 16 bytes instead of 8, so its table reaches half as far.
    l2_bits = header.cluster_bits - (4 if header.features & 16 else 3)
    return -(-header.virtual_size >> (header.cluster_bits + l2_bits))
