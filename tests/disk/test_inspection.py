"""What comes from outside is refused for what it is, before anything opens what it names."""

import json
import os
import struct
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from provisiond.api.requests import DiskFormat
from provisiond.disk.header import read_header
from provisiond.disk.inspection import inspect, recognise
from provisiond.disk.qcow_format import MAGIC, parse_header, refuse_hostile
from provisiond.disk.qemu_img import read_image
from provisiond.errors import ImageNotFound, ImageRefused
from tests.disk.hostile import HOSTILE, Hostile
from tests.disk.images import MIB, make_image, make_overlay, tool

RAW, QCOW2, QCOW, VHD = DiskFormat.RAW, DiskFormat.QCOW2, DiskFormat.QCOW, DiskFormat.VHD


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_bytes(b"only for root\n".ljust(1024, b"!"))
    return path


@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda hostile: hostile.name.replace(" ", "-"))
def test_a_hostile_image_is_refused_for_what_it_is(
    tmp_path: Path, secret: Path, hostile: Hostile
) -> None:
    path = tmp_path / "from-outside"
    hostile.make(path, secret)
    with pytest.raises(ImageRefused, match=f"{path}: .*{hostile.reason}"):
        inspect(path, disk_format=hostile.disk_format)


def test_what_is_no_file_is_not_even_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "device").symlink_to("/dev/zero")
    for name in ("fifo", "device", "."):
        with pytest.raises(ImageRefused, match="is no regular file"):
            inspect(tmp_path / name, disk_format=RAW)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("absent", "dangling"):
        with pytest.raises(ImageNotFound, match="No such file"):
            inspect(tmp_path / name, disk_format=RAW)


@pytest.mark.parametrize("disk_format", DiskFormat)
def test_an_honest_image_passes_also_through_a_link(
    tmp_path: Path, disk_format: DiskFormat
) -> None:
    path = make_image(tmp_path / "honest", disk_format=disk_format)
    (tmp_path / "link").symlink_to(path)
    for one in (path, tmp_path / "link"):
        inspect(one, disk_format=disk_format)


@pytest.mark.parametrize(
    "option",
    [
        "compat=0.10",
        "compression_type=zstd",
        "extended_l2=on",
        "cluster_size=2M",
        "cluster_size=512",
    ],
)
def test_an_honest_qcow2_of_another_kind_passes(tmp_path: Path, option: str) -> None:
    path = tmp_path / "honest"
    tool("qemu-img", "create", "-q", "-f", "qcow2", "-o", option, path, "1G")
    inspect(path, disk_format=QCOW2)


def test_a_raw_disk_with_a_partition_table_or_an_iso_passes(tmp_path: Path) -> None:
    table = bytearray(MIB)
    struct.pack_into("<B3xB3xII", table, 446, 0x80, 0x83, 1, 2047)
    table[510:512] = b"\x55\xaa"
    (tmp_path / "dos").write_bytes(table)
    gpt = bytearray(table)
    struct.pack_into("<BBBBB3xII", gpt, 446, 0, 0, 2, 0, 0xEE, 1, 2047)
    gpt[512:520] = b"EFI PART"
    (tmp_path / "gpt").write_bytes(gpt)
    (tmp_path / "iso").write_bytes(bytes(32768) + b"\x01CD001".ljust(32768, b"\0"))
    for name in ("dos", "gpt", "iso"):
        inspect(tmp_path / name, disk_format=RAW)


# ---------------------------------------------------------------- a parent
@pytest.mark.parametrize("disk_format", [QCOW2, QCOW])
@pytest.mark.parametrize("base_format", [RAW, QCOW2])
async def test_an_overlay_passes_over_its_own_parent_alone(
    tmp_path: Path, disk_format: DiskFormat, base_format: DiskFormat
) -> None:
    base = make_image(tmp_path / "base", disk_format=base_format)
    other = make_image(tmp_path / "other", disk_format=base_format)
    overlay = make_overlay(
        tmp_path / "overlay", base, disk_format=disk_format, base_format=base_format
    )
    inspect(
        overlay, disk_format=disk_format, parent=await read_image(base, disk_format=base_format)
    )
    with pytest.raises(ImageRefused, match=f"stands on {base}, not on its parent {other}"):
        inspect(
            overlay,
            disk_format=disk_format,
            parent=await read_image(other, disk_format=base_format),
        )


async def test_an_overlay_that_takes_its_parent_for_something_else_is_refused(
    tmp_path: Path,
) -> None:
    base = make_image(tmp_path / "base", disk_format=QCOW2)
    overlay = make_overlay(tmp_path / "overlay", base, base_format=RAW)  # qemu-img allows it
    with pytest.raises(ImageRefused, match="takes its parent for raw, not qcow2"):
        inspect(overlay, disk_format=QCOW2, parent=await read_image(base, disk_format=QCOW2))


async def test_an_image_that_stands_alone_has_no_parent(tmp_path: Path) -> None:
    parent = await read_image(make_image(tmp_path / "base", disk_format=RAW), disk_format=RAW)
    for disk_format in DiskFormat:
        path = make_image(tmp_path / disk_format, disk_format=disk_format)
        with pytest.raises(ImageRefused, match="stands on nothing, so it has no parent"):
            inspect(path, disk_format=disk_format, parent=parent)


async def test_a_backing_file_is_found_from_the_folder_of_the_image(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    base = make_image(tmp_path / "base", disk_format=RAW)
    overlay = tmp_path / "a" / "overlay"
    tool("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", "../base", overlay)
    inspect(overlay, disk_format=QCOW2, parent=await read_image(base, disk_format=RAW))


# ---------------------------------------------------------------- headers
@pytest.mark.parametrize("disk_format", DiskFormat)
async def test_our_reader_and_qemu_img_see_the_same_image(
    tmp_path: Path, disk_format: DiskFormat
) -> None:
    path = make_image(tmp_path / "image", disk_format=disk_format, size=10 * MIB + 512)
    assert read_header(path, disk_format=disk_format) == await read_image(
        path, disk_format=disk_format
    )


@pytest.mark.parametrize("disk_format", [QCOW2, QCOW])
async def test_our_reader_and_qemu_img_see_the_same_backing_file(
    tmp_path: Path, disk_format: DiskFormat
) -> None:
    base = make_image(tmp_path / "base", disk_format=RAW)
    overlay = make_overlay(tmp_path / "o", base, disk_format=disk_format, base_format=RAW)
    assert read_header(overlay, disk_format=disk_format) == await read_image(
        overlay, disk_format=disk_format
    )


fields = st.sampled_from([0, 1, 8, 16, 72, 104, 512, 2**31, 2**32 - 1]) | st.integers(0, 2**32 - 1)


@given(st.lists(fields, min_size=30, max_size=40), st.integers(0, 4), st.integers(0, 2**40))
@example([0] * 30, 3, 0)
def test_any_qcow_header_is_read_or_refused(words: list[int], version: int, file_size: int) -> None:
    untrusted = MAGIC + struct.pack(f">I{len(words)}I", version, *words)
    try:
        header = parse_header(untrusted, path=Path("/x"))
        refuse_hostile(header, path=Path("/x"), file_size=file_size)
    except ImageRefused:
        return
    assert header.l1_offset + header.l1_bytes <= file_size


MAGICS = [
    *(b"QFI\xfb\0\0\0\2", b"QFI\xfb\0\0\0\1", b"QED\0", b"KDMV", b"COWD", b"vhdxfile"),
    *(b"LUKS\xba\xbe\0\1", b"WithoutFreeSpace\2\0\0\0", b"WithouFreSpacExt\2\0\0\0"),
    b"Bochs Virtual HD Image".ljust(32, b"\0") + b"Redolog".ljust(16, b"\0") + b"Growing",
    b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\n",
    *(b"conectix", bytes(64) + b"\x7f\x10\xda\xbe", b"version=1\n", b"# x\n \n#\nversion=3\r\n"),
]


@given(
    st.sampled_from(["", "# text\n", " \n", "\0"]), st.sampled_from(MAGICS), st.binary(max_size=9)
)
@settings(max_examples=60, deadline=None)
def test_what_qemu_would_guess_to_be_more_than_raw_is_recognised(
    before: str, magic: bytes, behind: bytes
) -> None:
    head = (before.encode() + magic + behind).ljust(2048, b"\0")
    with tempfile.NamedTemporaryFile() as file:
        file.write(head.ljust(MIB, b"\0"))
        file.flush()
        argv = ["qemu-img", "info", "--output=json", file.name]
        guess = subprocess.run(argv, capture_output=True, check=False)
    is_raw = guess.returncode == 0 and json.loads(guess.stdout)["format"] == "raw"
    assert is_raw or recognise(head, bytes(512)) is not None


def test_each_magic_is_one() -> None:
    for magic in MAGICS:
        assert recognise(magic.ljust(2048, b"\0"), bytes(512)) is not None
    assert recognise(bytes(2048), b"conectix".ljust(512)) == "a VHD image"


@given(st.binary(max_size=2048), st.binary(max_size=512))
def test_other_content_is_raw(head: bytes, tail: bytes) -> None:
    assert recognise(b"\xeb\x63\x90" + head, b"." + tail) in (None, "a VDI image")
