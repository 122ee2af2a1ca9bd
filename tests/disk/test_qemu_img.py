"""qemu-img itself: what it is told to do, and what it lets happen that we do not."""

import asyncio
import json
import os
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisiond.api.requests import DiskFormat
from provisiond.disk.chain import DiskImage
from provisiond.disk.header import read_header
from provisiond.disk.qemu_img import (
    check,
    convert,
    convert_argv,
    create_argv,
    create_blank,
    create_overlay,
    measure,
    parse_progress,
    read_chain,
    read_image,
)
from provisiond.errors import ImageNotFound, ImageRefused, NoSpace
from tests.disk.images import MIB, holds, make_image, make_overlay, tool, write

RAW, QCOW2, QCOW, VHD = DiskFormat.RAW, DiskFormat.QCOW2, DiskFormat.QCOW, DiskFormat.VHD


# ---------------------------------------------------------------- what it is told
def test_formats_are_always_said() -> None:
    base = DiskImage(Path("/b/x.vhd"), VHD, MIB, 0, None, None)
    argv = create_argv(Path("/d/y"), disk_format=QCOW2, base=base, size=MIB)
    assert " ".join(argv) == "qemu-img create -q -f qcow2 -b /b/x.vhd -F vpc /d/y 1048576"
    argv = create_argv(Path("/d/y"), disk_format=VHD, base=None, size=MIB)
    assert " ".join(argv) == "qemu-img create -q -f vpc -o force_size=on /d/y 1048576"
    argv = convert_argv(Path("/s"), Path("/d/y"), from_format=QCOW2, to_format=QCOW2, parent=base)
    assert " ".join(argv[:-2]).endswith("qemu-img convert -p -O qcow2 -B /b/x.vhd -F vpc")
    kind, _, described = argv[-2].partition(":")
    assert (kind, json.loads(described)) == (
        "json",
        {
            "driver": "qcow2",
            "file": {"driver": "file", "filename": "/s"},
            "backing": {"driver": "vpc", "file": {"driver": "file", "filename": "/b/x.vhd"}},
        },
    )


def test_a_path_that_could_be_a_protocol_is_a_defect() -> None:
    with pytest.raises(ValueError, match="no absolute path"):
        create_argv(Path("nbd:host:1"), disk_format=QCOW2, base=None, size=MIB)


def test_progress_is_the_last_one_told() -> None:
    assert parse_progress("    (0.00/100%)\r    (12.34/100%)\r") == pytest.approx(0.1234)
    assert parse_progress("    (100.00/100%)\n") == 1.0
    assert parse_progress("Image resized.") is None


@given(st.text())
def test_progress_never_leaves_its_range(text: str) -> None:
    for words in (text, f"({text}/100%)"):
        told = parse_progress(words)
        assert told is None or 0 <= told <= 1


# ---------------------------------------------------------------- what it does
@pytest.mark.parametrize("disk_format", DiskFormat)
async def test_a_blank_image_has_the_size_that_was_asked_for(
    tmp_path: Path, disk_format: DiskFormat
) -> None:
    path, size = tmp_path / "blank", 10 * MIB + 512  # no whole number of cylinders or clusters
    await create_blank(path, disk_format=disk_format, size=size)
    image = await read_image(path, disk_format=disk_format)
    assert (image.format, image.virtual_size, image.backing) == (disk_format, size, None)
    assert image.file_size <= MIB


async def test_a_name_with_a_colon_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "nbd:localhost:1"
    await create_blank(path, disk_format=QCOW2, size=MIB)
    assert (await read_image(path, disk_format=QCOW2)).path == path


@pytest.mark.parametrize("disk_format", [QCOW2, QCOW])
async def test_an_overlay_reads_back_with_all_that_it_stands_on(
    tmp_path: Path, disk_format: DiskFormat
) -> None:
    base = await read_image(make_image(tmp_path / "base", disk_format=RAW), disk_format=RAW)
    await create_overlay(tmp_path / "top", disk_format=disk_format, base=base, size=16 * MIB)
    chain = await read_chain(tmp_path / "top", disk_format=disk_format)
    assert [image.path for image in chain.images] == [tmp_path / "top", tmp_path / "base"]
    assert (chain.top.virtual_size, chain.images[-1]) == (16 * MIB, base)
    assert holds(tmp_path / "top", disk_format=disk_format, pattern=0x5A)


async def test_an_image_that_a_guest_writes_to_is_read_by_its_header_alone(tmp_path: Path) -> None:
    path = make_image(tmp_path / "disk", disk_format=QCOW2)
    guest = await asyncio.create_subprocess_exec(
        *("qemu-io", "-f", "qcow2", str(path)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert guest.stdin is not None
    assert guest.stdout is not None
    try:
        guest.stdin.write(b"write 0 512\n")
        await guest.stdout.readuntil(b"ops/sec")
        with pytest.raises(ImageRefused, match="lock"):
            await read_image(path, disk_format=QCOW2)
        assert read_header(path, disk_format=QCOW2).virtual_size == 8 * MIB
    finally:
        guest.stdin.close()
        await guest.wait()


async def test_what_is_no_image_of_its_format_is_refused_with_the_tools_words(
    tmp_path: Path,
) -> None:
    path = make_image(tmp_path / "disk", disk_format=RAW)
    with pytest.raises(ImageRefused, match=f"{path}: cannot be read: .*not in qcow2 format"):
        await read_image(path, disk_format=QCOW2)
    with pytest.raises(ImageNotFound, match="does not exist"):
        await read_image(tmp_path / "absent", disk_format=RAW)


@pytest.mark.parametrize("to_format", DiskFormat)
async def test_a_copy_holds_what_the_source_holds_and_tells_of_its_progress(
    tmp_path: Path, to_format: DiskFormat
) -> None:
    source = make_image(tmp_path / "source", disk_format=QCOW2, size=64 * MIB)
    write(source, disk_format=QCOW2, pattern=0xA5, offset=40 * MIB)
    told: list[float] = []
    copy = tmp_path / "copy"
    await convert(source, copy, from_format=QCOW2, to_format=to_format, progress=told.append)
    for pattern, offset in ((0x5A, 0), (0, 20 * MIB), (0xA5, 40 * MIB)):
        assert holds(copy, disk_format=to_format, pattern=pattern, offset=offset)
    assert (await read_image(copy, disk_format=to_format)).virtual_size == 64 * MIB
    assert told[-1] == 1.0
    assert all(earlier <= later for earlier, later in pairwise(told))


@pytest.mark.parametrize("to_format", [QCOW2, QCOW])
async def test_a_copy_over_a_parent_holds_only_what_differs(
    tmp_path: Path, to_format: DiskFormat
) -> None:
    base = make_image(tmp_path / "base", disk_format=RAW, size=32 * MIB)
    write(base, disk_format=RAW, pattern=0x11, size=16 * MIB)
    source = make_overlay(tmp_path / "source", base, base_format=RAW)
    write(source, disk_format=QCOW2, pattern=0x22, offset=MIB)
    parent = await read_image(base, disk_format=RAW)
    copy = tmp_path / "copy"
    await convert(
        source,
        copy,
        from_format=QCOW2,
        to_format=to_format,
        parent=parent,
        progress=lambda _: None,
    )
    chain = await read_chain(copy, disk_format=to_format)
    assert chain.images[1:] == (parent,)
    assert chain.top.file_size < 3 * MIB
    assert holds(copy, disk_format=to_format, pattern=0x11)
    assert holds(copy, disk_format=to_format, pattern=0x22, offset=MIB)


async def test_the_room_of_a_copy_is_known_beforehand(tmp_path: Path) -> None:
    base = make_image(tmp_path / "base", disk_format=RAW, size=256 * MIB)
    write(base, disk_format=RAW, pattern=0x11, size=16 * MIB)
    overlay = make_overlay(tmp_path / "overlay", base, base_format=RAW)
    write(overlay, disk_format=QCOW2, pattern=0x22, offset=100 * MIB)
    whole = await measure(base, disk_format=RAW, to_format=QCOW2)
    alone = await measure(overlay, disk_format=QCOW2, to_format=QCOW2)
    as_vhd = await measure(base, disk_format=RAW, to_format=VHD)
    assert 16 * MIB <= whole < 20 * MIB
    assert MIB <= alone < 3 * MIB
    assert whole <= as_vhd < 32 * MIB


# ---------------------------------------------------------------- damage
async def test_a_sound_image_passes_the_check_and_a_format_without_tables_too(
    tmp_path: Path,
) -> None:
    assert await check(make_image(tmp_path / "a", disk_format=QCOW2), disk_format=QCOW2)
    for disk_format in (RAW, QCOW, VHD):
        path = make_image(tmp_path / disk_format, disk_format=disk_format)
        assert not await check(path, disk_format=disk_format)


async def test_a_truncated_image_does_not_pass_the_check(tmp_path: Path) -> None:
    path = make_image(tmp_path / "cut", disk_format=QCOW2)
    os.truncate(path, path.stat().st_size - 512 * 1024)
    assert tool("qemu-img", "info", path)  # which says nothing of it
    with pytest.raises(ImageRefused, match="is damaged"):
        await check(path, disk_format=QCOW2)


async def test_an_image_with_leaks_does_not_pass_the_check(tmp_path: Path) -> None:
    path = make_image(tmp_path / "leaks", disk_format=QCOW2)
    with path.open("r+b") as file:  # the first entry of the only L1 table: nothing is mapped
        file.seek(3 * 65536)
        file.write(bytes(8))
    with pytest.raises(ImageRefused, match="clusters that belong to nothing") as refused:
        await check(path, disk_format=QCOW2)
    assert "check -r leaks" in refused.value.hint


async def test_a_copy_that_fills_the_file_system_is_no_space(
    tmp_path: Path, small_folder: Path
) -> None:
    source = make_image(tmp_path / "source", disk_format=RAW, pattern=None)
    write(source, disk_format=RAW, pattern=0x33, size=6 * MIB)
    with pytest.raises(NoSpace, match="became full meanwhile"):
        await convert(
            source,
            small_folder / "copy",
            from_format=RAW,
            to_format=QCOW2,
            progress=lambda _: None,
        )
