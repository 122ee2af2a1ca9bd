"""Images that nobody should open, each made with qemu-img or out of one that was."""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from provisiond.api.requests import DiskFormat
from provisiond.disk.vhd_differencing import build_differencing
from provisiond.disk.vhd_format import RAW_PARENT
from tests.disk.images import MIB, make_image, make_overlay, tool

RAW, QCOW2, QCOW, VHD = DiskFormat.RAW, DiskFormat.QCOW2, DiskFormat.QCOW, DiskFormat.VHD


@dataclass(frozen=True, slots=True)
class Hostile:
    """An image that is given out as `disk_format`; `secret` is a file that it is after."""

    name: str
    disk_format: DiskFormat
    reason: str
    make: Callable[[Path, Path], None]


def patch(path: Path, layout: str, offset: int, *values: int | bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(struct.pack(layout, *values))


def _qcow2(path: Path, *options: str) -> Path:
    words = [word for option in options for word in ("-o", option)]
    tool("qemu-img", "create", "-q", "-f", "qcow2", *words, path, 8 * MIB)
    return path


def _patched(layout: str, offset: int, *values: int | bytes) -> Callable[[Path, Path], None]:
    """A sound qcow2 image with one field of its header (docs/interop/qcow2.txt) changed."""
    return lambda path, _secret: patch(_qcow2(path), layout, offset, *values)


def _over_secret(path: Path, secret: Path) -> None:
    make_overlay(path, secret, base_format=RAW)


def _qcow_over_secret(path: Path, secret: Path) -> None:
    make_overlay(path, secret, disk_format=QCOW, base_format=RAW)


def _json_over_secret(path: Path, secret: Path) -> None:
    name = f'json:{{"driver":"raw","file":{{"driver":"file","filename":"{secret}"}}}}'.encode()
    _qcow2(path)
    patch(path, f">{len(name)}s", 1024, name)
    patch(path, ">QI", 8, 1024, len(name))


def _escapes_in_name(path: Path, secret: Path) -> None:
    base = secret.with_name("\x1b[2J")
    base.write_bytes(bytes(512))
    make_overlay(path, base, base_format=RAW)


def _data_in_secret(path: Path, secret: Path) -> None:
    # qemu-img writes over the file that shall hold the data: it gets another one first.
    stand_in = path.with_name("d" * len(secret.name))
    _qcow2(path, f"data_file={stand_in}", "data_file_raw=on")
    content = path.read_bytes()
    assert content.count(bytes(stand_in)) == 1
    path.write_bytes(content.replace(bytes(stand_in), bytes(secret)))


def _snapshots(path: Path, _secret: Path) -> None:
    tool("qemu-img", "snapshot", "-c", "before", make_image(path, disk_format=QCOW2))


def _cut(path: Path, _secret: Path) -> None:
    with _qcow2(path).open("r+b") as file:
        file.truncate(1024)


def _cut_header(path: Path, _secret: Path) -> None:
    with _qcow2(path).open("r+b") as file:
        file.truncate(80)


def _vmdk_text(path: Path, secret: Path) -> None:
    # What QEMU needs to hand out any file of its host as a disk.
    path.write_text(
        "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n"
        f'createType="monolithicFlat"\nRW 1 FLAT "{secret}" 0\n'.ljust(1024)
    )


def _made_by_qemu(name: str) -> Callable[[Path, Path], None]:
    return lambda path, _secret: void(tool("qemu-img", "create", "-q", "-f", name, path, 8 * MIB))


def void(_: object) -> None:
    """Nothing."""


def _fixed_vhd(path: Path, _secret: Path) -> None:
    options = "subformat=fixed,force_size=on"
    tool("qemu-img", "create", "-q", "-f", "vpc", "-o", options, path, 8 * MIB)


def _starts_with(content: bytes) -> Callable[[Path, Path], None]:
    return lambda path, _secret: void(path.write_bytes(content.ljust(MIB, b"\0")))


def _differencing(path: Path, secret: Path) -> None:
    path.write_bytes(
        build_differencing(
            size=secret.stat().st_size,
            parent=secret.name,
            parent_uuid=RAW_PARENT,
            parent_timestamp=0,
            uuid=uuid4(),
            timestamp=0,
        )
    )


def _empty(path: Path, _secret: Path) -> None:
    path.touch()


def _odd(path: Path, _secret: Path) -> None:
    path.write_bytes(bytes(1000))


def _huge(path: Path, _secret: Path) -> None:
    tool("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=2M", path, "65T")


HOSTILE = [
    Hostile("a secret as backing file", QCOW2, "stands on another image", _over_secret),
    Hostile("the same as qcow", QCOW, "stands on another image", _qcow_over_secret),
    Hostile("the same by JSON", QCOW2, "stands on 'json:.*', which is no file", _json_over_secret),
    Hostile("escapes in the name", QCOW2, r"stands on '.*/\\x1b\[2J', which", _escapes_in_name),
    Hostile("a secret as data file", QCOW2, "keeps its data in another file", _data_in_secret),
    Hostile("a data file, unnamed", QCOW2, "keeps its data in another", _patched(">Q", 72, 4)),
    Hostile("unknown features", QCOW2, "features that nobody here", _patched(">Q", 72, 1 << 40)),
    Hostile("marked dirty", QCOW2, "was not closed by the last", _patched(">Q", 72, 1)),
    Hostile("marked corrupt", QCOW2, "is marked as damaged", _patched(">Q", 72, 2)),
    Hostile("encrypted with AES", QCOW2, "is encrypted", _patched(">I", 32, 1)),
    Hostile("encrypted with LUKS", QCOW2, "is encrypted", _patched(">I", 32, 2)),
    Hostile("internal snapshots", QCOW2, "holds 1 internal snapshots", _snapshots),
    Hostile("a version to come", QCOW2, "qcow of version 9", _patched(">I", 4, 9)),
    Hostile("huge clusters", QCOW2, "clusters have a size", _patched(">I", 20, 30)),
    Hostile("a huge L1 table", QCOW2, "tables of a size", _patched(">I", 36, 2**31)),
    Hostile("a small L1 table", QCOW2, "tables are too small", _patched(">Q", 24, 2**44)),
    Hostile("a far L1 table", QCOW2, "is cut off", _patched(">Q", 40, 2**40)),
    Hostile("huge refcounts", QCOW2, "tables of a size", _patched(">I", 56, 2**30)),
    Hostile("wide refcounts", QCOW2, "a length or a width", _patched(">I", 96, 60)),
    Hostile("a long header", QCOW2, "a length or a width", _patched(">I", 100, 2**30)),
    Hostile("a far name", QCOW2, "lies outside of its header", _patched(">QI", 8, 2**40, 9)),
    Hostile("a long name", QCOW2, "lies outside of its header", _patched(">QI", 8, 1024, 5000)),
    Hostile("no text as name", QCOW2, "is no text", _patched(">QI", 8, 0x70, 8)),
    Hostile("cut off in its tables", QCOW2, "is cut off", _cut),
    Hostile("cut off in its header", QCOW2, "ends in the middle", _cut_header),
    Hostile("an empty disk", QCOW2, "is empty", _patched(">Q", 24, 0)),
    Hostile("half a sector", QCOW2, "no whole number of sectors", _patched(">Q", 24, 1000)),
    Hostile("a larger disk than any", QCOW2, "is more than", _huge),
    Hostile("qcow2 as qcow", QCOW, "is qcow2, not qcow", _patched(">Q", 72, 0)),
    Hostile("nothing as qcow2", QCOW2, "has no qcow2 header", _starts_with(b"")),
    Hostile("an empty file", RAW, "is empty", _empty),
    Hostile("half a sector, raw", RAW, "no whole number of sectors", _odd),
    Hostile("qcow2 as raw", RAW, "is a qcow or qcow2 image, not raw", _over_secret),
    Hostile("a VMDK of a secret as raw", RAW, "is a VMDK image", _vmdk_text),
    Hostile("VMDK as raw", RAW, "is a VMDK image", _made_by_qemu("vmdk")),
    Hostile("VMDK of ESX 2 as raw", RAW, "is a VMDK image", _starts_with(b"COWD")),
    Hostile("VDI as raw", RAW, "is a VDI image", _made_by_qemu("vdi")),
    Hostile("VHDX as raw", RAW, "is a VHDX image", _made_by_qemu("vhdx")),
    Hostile("QED as raw", RAW, "is a QED image", _made_by_qemu("qed")),
    Hostile("Parallels as raw", RAW, "is a Parallels image", _made_by_qemu("parallels")),
    Hostile("LUKS as raw", RAW, "is a LUKS image", _starts_with(b"LUKS\xba\xbe\0\1")),
    Hostile("a dynamic VHD as raw", RAW, "is a VHD image", _made_by_qemu("vpc")),
    Hostile("a fixed VHD as raw", RAW, "is a VHD image", _fixed_vhd),
    Hostile("a differencing VHD", VHD, "is a differencing VHD, which QEMU", _differencing),
    Hostile("qcow2 as VHD", VHD, "it has no VHD footer", _over_secret),
]
