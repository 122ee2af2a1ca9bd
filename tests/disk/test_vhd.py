"""VHD files: overlays read back by libvhdi, bases by qemu-img too, and hostile ones refused."""

import asyncio
import json
import os
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from provisiond.api.requests import DiskFormat
from provisiond.disk.chain import DiskImage
from provisiond.disk.vhd import (
    check_image,
    create_differencing,
    mend_geometry,
    read_chain,
    read_image,
    snapshot_argv,
    tapdisk_available,
)
from provisiond.disk.vhd_format import checksum, chs_geometry, parse_footer
from provisiond.errors import (
    DiskExists,
    ImageNotFound,
    ImageRefused,
    NoSpace,
    SizeTooSmall,
    VhdNeedsTapdisk,
)
from provisiond.threads import Threads
from provisiond.virt.disk_xml import refuse_misread
from tests.disk.blocks import SECTOR, Merged, merged, read_sector, write_sectors

MIB = 2**20
BASE_SIZE = 5 * MIB + 3 * SECTOR  # no multiple of a block's 2 MiB
FIRST = bytes(range(256)) * 2
SECOND = b"2" * SECTOR
THIRD = b"3" * SECTOR


@pytest.fixture
def threads() -> Iterator[Threads]:
    threads = Threads(size=1, name="disk")
    yield threads
    threads.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of images, as provisiond has it."""
    (tmp_path / "bases").mkdir()
    (tmp_path / "disks").mkdir()
    return tmp_path


def qemu_img(*argv: str | Path) -> bytes:
    return subprocess.run(["qemu-img", *argv], check=True, stdout=subprocess.PIPE).stdout


def raw_image(path: Path) -> DiskImage:
    size = path.stat().st_size
    return DiskImage(path, DiskFormat.RAW, size, size, None, None)


def make_base(path: Path, *, content: bytes, subformat: str = "dynamic") -> DiskImage:
    """A golden base as provisiond makes it: qemu-img, and its geometry mended."""
    raw = path.with_suffix(".raw")
    raw.write_bytes(content)
    qemu_img(
        *("convert", "-f", "raw", "-O", "vpc", "-o", f"force_size=on,subformat={subformat}"),
        *(raw, path),
    )
    raw.unlink()
    mend_geometry(path)
    return read_image(path)


@pytest.fixture
def base(folder: Path) -> DiskImage:
    content = FIRST + bytes(BASE_SIZE - 2 * SECTOR) + FIRST
    return make_base(folder / "bases" / "golden.vhd", content=content)


@pytest.fixture
async def overlay(folder: Path, base: DiskImage, threads: Threads) -> DiskImage:
    part = folder / "disks" / "web1.vhd"
    await create_differencing(part, parent=base, size=base.virtual_size, threads=threads)
    return read_image(part)


# ---------------------------------------------------------------- overlays that are sound
async def test_an_overlay_is_small_private_and_says_what_it_stands_on(
    base: DiskImage, overlay: DiskImage
) -> None:
    assert overlay.format is DiskFormat.VHD
    assert overlay.virtual_size == base.virtual_size == BASE_SIZE
    assert (overlay.backing, overlay.backing_format) == (base.path, DiskFormat.VHD)
    assert overlay.file_size == overlay.path.stat().st_size < 8192
    assert stat.S_IMODE(overlay.path.stat().st_mode) == 0o600
    assert read_chain(overlay.path).images == (overlay, base)


async def test_libvhdi_reads_the_base_through_an_overlay_and_what_was_written_to_it(
    base: DiskImage, overlay: DiskImage
) -> None:
    before = base.path.read_bytes()
    last = BASE_SIZE - SECTOR
    write_sectors(overlay.path, SECOND, at=2 * MIB)
    write_sectors(overlay.path, THIRD, at=last)
    with merged(Merged(overlay.path, base.path)) as disk:
        assert disk.size == BASE_SIZE
        assert disk.parent_name == base.path.name
        ((wanted, found),) = disk.parent_identities
        assert wanted == found
        assert disk.read(SECTOR, at=0) == FIRST
        assert disk.read(SECTOR, at=2 * MIB) == SECOND
        assert disk.read(SECTOR, at=2 * MIB + SECTOR) == bytes(SECTOR)
        assert disk.read(SECTOR, at=last) == THIRD
    with merged(Merged(base.path)) as disk:
        assert disk.read(SECTOR, at=last) == FIRST
    assert base.path.read_bytes() == before
    check_image(overlay.path)


async def test_libvhdi_reads_a_chain_of_three_overlays(
    folder: Path, base: DiskImage, overlay: DiskImage, threads: Threads
) -> None:
    write_sectors(overlay.path, SECOND * 2, at=SECTOR)
    chain = [base, overlay]
    for name in ("two.vhd", "three.vhd"):
        part = folder / "disks" / name
        await create_differencing(part, parent=chain[-1], size=BASE_SIZE, threads=threads)
        chain.append(read_image(part))
    write_sectors(chain[-1].path, THIRD, at=2 * SECTOR)
    assert read_chain(chain[-1].path).images[0].backing == chain[-2].path
    assert len(read_chain(chain[-1].path).images) == 4
    with merged(Merged(*(image.path for image in reversed(chain)))) as disk:
        assert disk.read(4 * SECTOR, at=0) == FIRST + SECOND + THIRD + bytes(SECTOR)
        assert all(wanted == found for wanted, found in disk.parent_identities)


async def test_a_parent_without_data_is_the_parent_all_the_same(
    folder: Path, overlay: DiskImage, threads: Threads
) -> None:
    part = folder / "disks" / "upper.vhd"
    await create_differencing(part, parent=overlay, size=BASE_SIZE, threads=threads)
    assert read_image(part).backing == overlay.path


async def test_an_overlay_over_a_raw_disk_reads_the_raw_disk(
    folder: Path, threads: Threads
) -> None:
    raw = folder / "bases" / "golden.raw"
    raw.write_bytes(FIRST * 8 * 1024)
    part = folder / "disks" / "web1.vhd"
    await create_differencing(part, parent=raw_image(raw), size=4 * MIB, threads=threads)
    top, bottom = read_chain(part).images
    assert (top.backing, top.backing_format) == (raw, DiskFormat.RAW)
    assert bottom == raw_image(raw)
    write_sectors(part, SECOND, at=SECTOR)

    def below(number: int) -> bytes:
        return raw.read_bytes()[number * SECTOR :][:SECTOR]

    assert [read_sector(part, number, below=below) for number in range(3)] == [FIRST, SECOND, FIRST]


async def test_an_overlay_may_be_larger_than_its_base_and_than_a_32_bit_number(
    folder: Path, base: DiskImage, threads: Threads
) -> None:
    size = 5 * 2**30 + SECTOR
    part = folder / "disks" / "web1.vhd"
    await create_differencing(part, parent=base, size=size, threads=threads)
    write_sectors(part, SECOND, at=0)
    write_sectors(part, THIRD, at=size - SECTOR)
    with merged(Merged(part, base.path)) as disk:
        assert disk.size == size
        assert disk.read(SECTOR, at=0) == SECOND
        assert disk.read(SECTOR, at=size - SECTOR) == THIRD
    assert part.stat().st_size < 5 * MIB
    check_image(part)


async def test_an_overlay_stays_right_where_the_whole_tree_is_moved(
    folder: Path, tmp_path: Path, overlay: DiskImage
) -> None:
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("bases", "disks"):
        (folder / name).rename(moved / name)
    top, bottom = read_chain(moved / "disks" / overlay.path.name).images
    assert top.backing == bottom.path == moved / "bases" / "golden.vhd"


def test_vhd_util_is_asked_not_to_skip_an_empty_parent() -> None:
    parent = DiskImage(Path("/i/b.vhd"), DiskFormat.VHD, MIB, MIB, None, None)
    raw = DiskImage(Path("/i/b.raw"), DiskFormat.RAW, MIB, MIB, None, None)
    start = ["vhd-util", "snapshot", "-n", Path("/i/x"), "-p"]
    assert snapshot_argv(Path("/i/x"), parent=parent) == [*start, parent.path, "-e"]
    assert snapshot_argv(Path("/i/x"), parent=raw) == [*start, raw.path, "-m"]


# ---------------------------------------------------------------- overlays that are not made
async def test_an_overlay_is_never_smaller_than_its_base(
    folder: Path, base: DiskImage, threads: Threads
) -> None:
    part = folder / "disks" / "web1.vhd"
    with pytest.raises(SizeTooSmall, match="web1"):
        await create_differencing(part, parent=base, size=BASE_SIZE - SECTOR, threads=threads)
    assert not part.exists()


@pytest.mark.parametrize("size", [BASE_SIZE + 1, 2041 * 2**30])
async def test_a_size_that_no_vhd_can_have_is_refused(
    folder: Path, base: DiskImage, threads: Threads, size: int
) -> None:
    part = folder / "disks" / "web1.vhd"
    with pytest.raises(ImageRefused, match=f"{size} bytes"):
        await create_differencing(part, parent=base, size=size, threads=threads)
    assert not part.exists()


async def test_a_file_that_exists_is_never_overwritten(
    folder: Path, base: DiskImage, threads: Threads
) -> None:
    part = folder / "disks" / "web1.vhd"
    part.write_bytes(b"somebody's")
    with pytest.raises(DiskExists, match="web1"):
        await create_differencing(part, parent=base, size=BASE_SIZE, threads=threads)
    assert part.read_bytes() == b"somebody's"


async def test_a_vhd_stands_on_no_qcow2(folder: Path, threads: Threads) -> None:
    path = folder / "bases" / "golden.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    parent = DiskImage(path, DiskFormat.QCOW2, MIB, path.stat().st_size, None, None)
    with pytest.raises(ImageRefused, match="which is qcow2"):
        await create_differencing(folder / "x", parent=parent, size=MIB, threads=threads)


async def test_a_parent_that_is_gone_leaves_nothing(folder: Path, threads: Threads) -> None:
    for disk_format in (DiskFormat.RAW, DiskFormat.VHD):
        gone = DiskImage(folder / "gone", disk_format, MIB, MIB, None, None)
        with pytest.raises(ImageNotFound, match="gone"):
            await create_differencing(folder / "x", parent=gone, size=MIB, threads=threads)
        assert not (folder / "x").exists()


async def test_a_name_that_tapdisk_cannot_read_is_refused(folder: Path, threads: Threads) -> None:
    raw = folder / "bases" / "gr\u00fcn.raw"
    raw.write_bytes(bytes(MIB))
    with pytest.raises(ImageRefused, match="x: "):
        await create_differencing(folder / "x", parent=raw_image(raw), size=MIB, threads=threads)
    assert not (folder / "x").exists()


async def test_an_overlay_is_whole_or_absent_wherever_its_making_is_cancelled(
    folder: Path, base: DiskImage, threads: Threads
) -> None:
    part = folder / "disks" / "web1.vhd"
    ends = set()
    for turns in range(100):
        making = asyncio.create_task(
            create_differencing(part, parent=base, size=BASE_SIZE, threads=threads)
        )
        for _ in range(turns):
            await asyncio.sleep(0)
        making.cancel()
        await asyncio.wait([making])
        ends.add(making.cancelled())
        assert part.exists() is not making.cancelled()
        part.unlink(missing_ok=True)
    assert True in ends


@pytest.fixture
def full_tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A real tmpfs of 16 KiB, too small for the table of a large VHD."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


async def test_a_full_file_system_leaves_nothing(
    full_tmpfs: Path, base: DiskImage, threads: Threads
) -> None:
    part = full_tmpfs / "x.vhd"
    with pytest.raises(NoSpace, match="full"):
        await create_differencing(part, parent=base, size=2000 * 2**30, threads=threads)
    assert not list(full_tmpfs.iterdir())


# ---------------------------------------------------------------- QEMU
async def test_qemu_reads_an_overlay_as_zeros_and_so_is_kept_from_it(
    folder: Path, base: DiskImage, overlay: DiskImage
) -> None:
    assert base.path.read_bytes().count(FIRST) == 2
    out = folder / "out.raw"
    qemu_img("convert", "-f", "vpc", "-O", "raw", overlay.path, out)  # it says nothing: status 0
    assert not any(out.read_bytes())

    with pytest.raises(VhdNeedsTapdisk, match=overlay.path.name):
        refuse_misread(read_chain(overlay.path), is_xen=False)
    refuse_misread(read_chain(base.path), is_xen=False)


def test_tapdisk_is_for_a_control_domain_that_has_it(tmp_path: Path) -> None:
    capabilities, programs = tmp_path / "capabilities", tmp_path / "bin"
    programs.mkdir()
    tap_ctl = programs / "tap-ctl"

    def available() -> bool:
        return tapdisk_available(capabilities=capabilities, search_path=str(programs))

    tap_ctl.touch(mode=0o755)
    assert not available()
    capabilities.write_text("control_d\n")
    assert available()
    capabilities.write_text("")
    assert not available()
    capabilities.write_text("control_d\n")
    tap_ctl.unlink()
    assert not available()


# ---------------------------------------------------------------- bases by qemu-img
@pytest.mark.parametrize("subformat", ["dynamic", "fixed"])
@pytest.mark.parametrize("size", [MIB, BASE_SIZE, 100 * MIB + SECTOR, 3 * 2**30 + SECTOR])
def test_a_base_has_the_geometry_of_its_size_and_everybody_reads_it(
    tmp_path: Path, subformat: str, size: int
) -> None:
    path = tmp_path / "base.vhd"
    options = f"force_size=on,subformat={subformat}"
    qemu_img("create", "-q", "-f", "vpc", "-o", options, path, str(size))
    before = path.stat().st_size
    forced = parse_footer(end_of(path))
    assert forced.geometry != chs_geometry(size)

    mend_geometry(path)

    mended = end_of(path)
    assert parse_footer(mended).geometry == chs_geometry(size)
    if subformat == "dynamic":
        assert start_of(path) == mended
    mend_geometry(path)
    assert end_of(path) == mended
    assert path.stat().st_size == before
    image = read_image(path)
    assert (image.virtual_size, image.backing) == (size, None)
    told = json.loads(qemu_img("info", "--output=json", "-f", "vpc", path))
    assert told["virtual-size"] == size
    with merged(Merged(path)) as disk:
        assert disk.size == size
        assert disk.read(SECTOR, at=size - SECTOR) == bytes(SECTOR)
    check_image(path)


def test_half_a_mending_is_completed(tmp_path: Path) -> None:
    path = tmp_path / "base.vhd"
    qemu_img("create", "-q", "-f", "vpc", "-o", "force_size=on", path, str(BASE_SIZE))
    unmended = start_of(path)
    mend_geometry(path)
    with path.open("r+b") as file:
        file.write(unmended)
    with pytest.raises(ImageRefused, match="differ"):
        read_image(path)
    mend_geometry(path)
    assert start_of(path) == end_of(path)


async def test_a_vhd_of_another_program_is_not_mended(overlay: DiskImage) -> None:
    before = overlay.path.read_bytes()
    with pytest.raises(ImageRefused, match="not made by qemu-img"):
        mend_geometry(overlay.path)
    assert overlay.path.read_bytes() == before


# ---------------------------------------------------------------- hostile and damaged files
def start_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(512)


def end_of(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-512, os.SEEK_END)
        return file.read(512)


def change(path: Path, at: int, value: bytes) -> None:
    """Change bytes of both footers or of the header, with checksums that fit again."""
    content = bytearray(path.read_bytes())
    places = [(0, 512, 64), (len(content) - 512, 512, 64)] if at < 512 else [(512, 1024, 36)]
    for start, size, sum_at in places:
        structure = content[start : start + size]
        offset = at if at < 512 else at - 512
        structure[offset : offset + len(value)] = value
        structure[sum_at : sum_at + 4] = checksum(bytes(structure), at=sum_at).to_bytes(4, "big")
        content[start : start + size] = structure
    path.write_bytes(content)


def locate(path: Path, url: bytes) -> None:
    """Make this the only parent that a differencing disk names."""
    change(path, 512 + 576, struct.pack(">4sIIIQ", b"MacX", 512, len(url), 0, 2048) + bytes(168))
    with path.open("r+b") as file:
        file.seek(2048)
        file.write(url)


def refused(path: Path, reason: str) -> None:
    with pytest.raises(ImageRefused, match=reason) as refusal:
        read_chain(path)
    assert refusal.value.message.startswith(str(path.parent))


def test_what_is_no_vhd_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.vhd"
    for content in (b"", b"conectix", bytes(4096), b"QFI\xfb" + bytes(4096)):
        path.write_bytes(content)
        refused(path, "no VHD footer")


def test_what_is_no_regular_file_is_not_opened(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path, Path("/dev/zero")):
        with pytest.raises(ImageRefused, match=f"^{path}: is no regular file$"):
            read_image(path)
    with pytest.raises(ImageNotFound, match="No such file"):
        read_image(tmp_path / "absent")


def test_a_wrong_checksum_is_refused(base: DiskImage) -> None:
    content = bytearray(base.path.read_bytes())
    for at in (len(content) - 512 + 100, 512 + 900, 70):
        damaged = bytearray(content)
        damaged[at] ^= 1
        base.path.write_bytes(damaged)
        refused(base.path, "checksum")


@pytest.mark.parametrize(
    ("at", "value", "reason"),
    [
        (16, (2**63).to_bytes(8, "big"), "header reaches out"),
        (16, (2**64 - 1).to_bytes(8, "big"), "header reaches out"),
        (16, (1024).to_bytes(8, "big"), "no header"),
        (512 + 16, (2**62).to_bytes(8, "big"), "allocation table reaches out"),
        (512 + 28, (2**32 - 1).to_bytes(4, "big"), "allocation table reaches out"),
        (512 + 28, (2).to_bytes(4, "big"), "too small"),
        (48, (2**40).to_bytes(8, "big"), "too small"),
        (512 + 576 + 8, (2**32 - 1).to_bytes(4, "big"), "locator has"),
        (512 + 576 + 8, bytes(4), "locator has 0"),
        (512 + 576 + 16, (2**64 - 1).to_bytes(8, "big"), "locator reaches out"),
        (60, (3).to_bytes(4, "big"), "names a parent, but is no differencing disk"),
        (512 + 576, bytes(192), "names no parent"),
        (512 + 40, UUID(int=7).bytes, "not the image that it was made over"),
    ],
)
async def test_fields_that_lead_out_of_the_file_or_contradict_are_refused(
    overlay: DiskImage, at: int, value: bytes, reason: str
) -> None:
    change(overlay.path, at, value)
    refused(overlay.path, reason)


def test_a_table_as_large_as_memory_is_refused_in_a_sparse_file(base: DiskImage) -> None:
    change(base.path, 512 + 28, (2**32 - 1).to_bytes(4, "big"))
    end = end_of(base.path)
    with base.path.open("r+b") as file:
        file.truncate(2**35)
        file.seek(2**35)
        file.write(end)
    refused(base.path, "absurdly large")


async def test_a_differencing_disk_cannot_be_given_as_a_plain_one(overlay: DiskImage) -> None:
    change(overlay.path, 60, (2).to_bytes(4, "big"))  # type: fixed
    refused(overlay.path, "another one at its start")
    change(overlay.path, 60, (4).to_bytes(4, "big"))
    change(overlay.path, 512 + 576, bytes(192))  # no locators
    refused(overlay.path, "names no parent")


def test_a_fixed_disk_whose_guest_writes_a_footer_to_its_start_is_refused(tmp_path: Path) -> None:
    fixed = make_base(tmp_path / "fixed.vhd", content=bytes(BASE_SIZE), subformat="fixed")
    other = make_base(tmp_path / "other.vhd", content=bytes(BASE_SIZE))
    with fixed.path.open("r+b") as file:
        file.write(other.path.read_bytes()[: 3 * 512])
    refused(fixed.path, "another one at its start")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        (b"file://../bases/../../../../../../../etc/shadow", "'..' where none belongs"),
        (b"file://../bases/golden.vhd\0", "characters"),
        (b"file://../bases/golden.vhd\n", "characters"),
        (b"file://\xc3\xbc", "not ASCII"),
        (b"file://nbd:localhost:1", "':'"),
        (b"https://example.com/base.vhd", "names no file"),
        (b"file://", "no name"),
        (b"file://web1.vhd", "stands on itself"),
    ],
)
async def test_a_parent_is_never_searched_where_a_stranger_says(
    overlay: DiskImage, url: bytes, reason: str
) -> None:
    locate(overlay.path, url)
    refused(overlay.path, reason)


async def test_a_parent_may_lie_in_the_images_own_folder(folder: Path, overlay: DiskImage) -> None:
    beside = folder / "bases" / "beside.vhd"
    beside.write_bytes(overlay.path.read_bytes())
    locate(beside, b"file://./golden.vhd")
    assert read_image(beside).backing == folder / "bases" / "golden.vhd"


async def test_locators_that_lead_to_different_files_are_refused(overlay: DiskImage) -> None:
    content = overlay.path.read_bytes()
    honest = ".\\..\\bases\\golden.vhd".encode("utf-16-le")
    other = ".\\..\\bases\\secret.vhd".encode("utf-16-le")
    assert content.count(honest) == 2
    overlay.path.write_bytes(content.replace(honest, other, 1))
    refused(overlay.path, "different files")


async def test_a_parent_of_another_identity_is_refused(base: DiskImage, overlay: DiskImage) -> None:
    base.path.unlink()
    make_base(base.path, content=bytes(BASE_SIZE))
    refused(overlay.path, "not the image that it was made over")


@pytest.mark.parametrize("missing", [1, 512, 4096, MIB])
def test_a_truncated_base_is_noticed(base: DiskImage, missing: int) -> None:
    check_image(base.path)
    os.truncate(base.path, base.file_size - missing)
    with pytest.raises(ImageRefused, match="truncated"):
        check_image(base.path)


def test_a_block_that_lies_out_of_the_file_is_noticed(base: DiskImage) -> None:
    with base.path.open("r+b") as file:
        file.seek(1536)
        file.write((base.file_size // SECTOR).to_bytes(4, "big"))
    assert read_image(base.path) == base
    with pytest.raises(ImageRefused, match="lies out of the file"):
        check_image(base.path)


def test_a_truncated_fixed_disk_is_refused(tmp_path: Path) -> None:
    image = make_base(tmp_path / "fixed.vhd", content=FIRST * 4096, subformat="fixed")
    end = end_of(image.path)
    os.truncate(image.path, image.file_size - 512 - MIB)
    with image.path.open("ab") as file:
        file.write(end)
    refused(image.path, "shorter than its footer says")


async def test_a_disk_that_tapdisk_has_grown_is_read_before_it_is_closed(
    overlay: DiskImage,
) -> None:
    write_sectors(overlay.path, SECOND, at=0)
    os.truncate(overlay.path, overlay.path.stat().st_size - 512)
    assert read_image(overlay.path).backing == overlay.backing


def test_a_hostile_table_takes_no_time_and_no_memory(base: DiskImage) -> None:
    """A process that may have 1 GiB reads a file that claims 2040 GiB."""
    change(base.path, 48, (0xFF000000 * 512).to_bytes(8, "big"))
    change(base.path, 512 + 28, (0xFF000000 * 512 // (2 * MIB)).to_bytes(4, "big"))
    end = end_of(base.path)
    with base.path.open("r+b") as file:
        file.truncate(2**40)
        file.seek(2**40)
        file.write(end)
    code = (
        "import sys; from pathlib import Path; from provisiond.disk import vhd;"
        "vhd.read_image(Path(sys.argv[1])); vhd.check_image(Path(sys.argv[1]))"
    )
    ended = subprocess.run(
        ["prlimit", "--as=1073741824", "--cpu=20", sys.executable, "-c", code, base.path],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert "lies out of the file" in ended.stderr
