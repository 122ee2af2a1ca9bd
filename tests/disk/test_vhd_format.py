"""The bytes of a VHD: what is built is read back, what is damaged is refused, nothing else."""

import contextlib
import json
import struct
import subprocess
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisiond.disk.vhd_differencing import build_differencing, decode_parent, encode_parent
from provisiond.disk.vhd_format import (
    FIRST_FREE,
    FOOTER_SIZE,
    HEADER_SIZE,
    MAX_LOCATOR,
    MAX_SIZE,
    SECTOR,
    UNUSED,
    DiskType,
    DynamicHeader,
    Footer,
    Geometry,
    LocatorCode,
    ParentLocator,
    build_footer,
    build_header,
    check_blocks,
    check_layout,
    checksum,
    choose_footer,
    chs_geometry,
    mend_footer,
    parse_footer,
    parse_header,
)
from provisiond.errors import ImageRefused

GIB = 2**30

sizes = st.integers(1, MAX_SIZE // SECTOR).map(lambda sectors: sectors * SECTOR)
words = st.integers(0, 2**32 - 1)
geometries = st.builds(
    Geometry, st.integers(0, 2**16 - 1), st.integers(0, 255), st.integers(0, 255)
)
footers = st.builds(
    Footer,
    disk_type=st.sampled_from(DiskType),
    current_size=sizes,
    original_size=sizes,
    geometry=geometries,
    data_offset=st.integers(0, 2**64 - 1),
    uuid=st.uuids(),
    timestamp=words,
    creator=st.binary(min_size=4, max_size=4),
    creator_version=words,
    creator_os=st.binary(min_size=4, max_size=4),
    saved_state=st.integers(0, 255),
)
locators = st.builds(
    ParentLocator,
    code=st.sampled_from(LocatorCode),
    data_space=st.integers(1, 64).map(lambda sectors: sectors * SECTOR),
    data_length=st.integers(1, MAX_LOCATOR),
    data_offset=st.integers(0, 2**64 - 1),
)
headers = st.builds(
    DynamicHeader,
    table_offset=st.integers(0, 2**64 - 1),
    max_table_entries=words,
    block_size=st.sampled_from([2**19, 2**20, 2**21]),
    parent_uuid=st.uuids(),
    parent_timestamp=words,
    parent_name=st.text(
        st.characters(exclude_characters="\0", max_codepoint=0xFFFF, exclude_categories=["Cs"]),
        max_size=256,
    ),
    locators=st.lists(locators, max_size=8).map(tuple),
)
names = st.text("abcXYZ019._- %@", min_size=1, max_size=20).filter(lambda n: n not in (".", ".."))
paths = st.builds(
    lambda climbs, parts: "../" * climbs + "/".join(parts),
    st.integers(0, 3),
    st.lists(names, min_size=1, max_size=4),
)


def resealed(structure: bytes, *, at: int) -> bytes:
    """The same bytes with a checksum that fits."""
    return structure[:at] + checksum(structure, at=at).to_bytes(4, "big") + structure[at + 4 :]


def a_footer(disk_type: DiskType = DiskType.DYNAMIC, *, size: int = GIB) -> Footer:
    return Footer(
        disk_type=disk_type,
        current_size=size,
        original_size=size,
        geometry=chs_geometry(size),
        data_offset=FOOTER_SIZE,
        uuid=uuid4(),
        timestamp=0,
    )


# ---------------------------------------------------------------- footer and header
@given(footers)
def test_a_footer_reads_back_as_it_was_built(footer: Footer) -> None:
    assert parse_footer(build_footer(footer)) == footer


@given(headers)
def test_a_header_reads_back_as_it_was_built(header: DynamicHeader) -> None:
    built = build_header(header)
    assert len(built) == HEADER_SIZE
    assert parse_header(built) == header


@given(footers, st.integers(0, FOOTER_SIZE - 1), st.integers(1, 255))
def test_a_footer_with_one_byte_changed_is_refused(footer: Footer, at: int, change: int) -> None:
    damaged = bytearray(build_footer(footer))
    damaged[at] ^= change
    with pytest.raises(ImageRefused):
        parse_footer(bytes(damaged))


@given(headers, st.integers(0, HEADER_SIZE - 1), st.integers(1, 255))
def test_a_header_with_one_byte_changed_is_refused(
    header: DynamicHeader, at: int, change: int
) -> None:
    damaged = bytearray(build_header(header))
    damaged[at] ^= change
    with pytest.raises(ImageRefused):
        parse_header(bytes(damaged))


@given(st.binary(min_size=504, max_size=504), st.binary(min_size=1016, max_size=1016))
def test_whatever_the_bytes_are_they_are_read_or_refused(footer: bytes, header: bytes) -> None:
    for read in (
        lambda: parse_footer(resealed(b"conectix" + footer, at=64)),
        lambda: parse_header(resealed(b"cxsparse" + header, at=36)),
        lambda: parse_footer(footer),
        lambda: parse_header(header),
    ):
        with contextlib.suppress(ImageRefused):
            read()


@given(
    st.lists(st.integers(0, 2**32 - 1) | st.integers(0, 9000) | st.just(UNUSED), max_size=8),
    st.integers(0, 5 * 2**20),
    st.sampled_from([2**19, 2**20, 2**21]),
)
def test_a_block_that_is_taken_lies_in_the_file_with_its_bitmap(
    table: list[int], file_size: int, block_size: int
) -> None:
    header = DynamicHeader(FIRST_FREE, max_table_entries=len(table), block_size=block_size)
    bitmap = max(SECTOR, block_size // SECTOR // 8)
    all_inside = all(
        sector == UNUSED
        or FIRST_FREE <= sector * SECTOR <= file_size - FOOTER_SIZE - bitmap - block_size
        for sector in table
    )
    try:
        check_blocks(header, struct.pack(f">{len(table)}I", *table), file_size=file_size)
    except ImageRefused:
        assert not all_inside
    else:
        assert all_inside


@pytest.mark.parametrize(
    ("at", "value", "reason"),
    [
        (12, bytes(4), "version"),
        (60, (5).to_bytes(4, "big"), "type is 5"),
        (48, bytes(8), "size is 0"),
        (48, (513).to_bytes(8, "big"), "size is 513"),
        (48, (2**63).to_bytes(8, "big"), "size is"),
    ],
)
def test_a_footer_with_a_right_checksum_is_refused_for_its_content(
    at: int, value: bytes, reason: str
) -> None:
    built = build_footer(a_footer())
    with pytest.raises(ImageRefused, match=reason):
        parse_footer(resealed(built[:at] + value + built[at + len(value) :], at=64))


@pytest.mark.parametrize(
    ("at", "value", "reason"),
    [
        (24, bytes(4), "version"),
        (32, bytes(4), "blocks have 0 bytes"),
        (32, (3 * 2**20).to_bytes(4, "big"), "blocks have"),
        (32, (2**31).to_bytes(4, "big"), "blocks have"),
        (64, b"\xd8\x00" * 2, "no UTF-16"),
        (576, b"evil", "unknown kind"),
        (576, b"MacX" + bytes(4) + bytes(4), "has 0 bytes"),
        (576, b"MacX" + bytes(4) + b"\xff\xff\xff\xff", "more than"),
        (576, b"\x80\xff\x00\x01", "unknown kind"),
    ],
)
def test_a_header_with_a_right_checksum_is_refused_for_its_content(
    at: int, value: bytes, reason: str
) -> None:
    built = build_header(DynamicHeader(table_offset=FIRST_FREE, max_table_entries=512))
    with pytest.raises(ImageRefused, match=reason):
        parse_header(resealed(built[:at] + value + built[at + len(value) :], at=36))


def test_a_locators_space_counts_in_sectors_or_in_bytes() -> None:
    locator = ParentLocator(LocatorCode.RELATIVE, SECTOR, 20, FIRST_FREE)
    header = DynamicHeader(table_offset=FIRST_FREE, max_table_entries=1, locators=(locator,))
    built = build_header(header)
    assert built[580:584] == (512).to_bytes(4, "big")
    in_sectors = resealed(built[:580] + (1).to_bytes(4, "big") + built[584:], at=36)
    assert parse_header(in_sectors) == header


# ---------------------------------------------------------------- the two footers
def test_two_programs_never_find_two_disks_in_one_file() -> None:
    fixed = build_footer(a_footer(DiskType.FIXED))
    dynamic, other = build_footer(a_footer()), build_footer(a_footer())
    nothing = bytes(FOOTER_SIZE)

    assert choose_footer(untrusted_start=nothing, untrusted_end=fixed) == parse_footer(fixed)
    assert choose_footer(untrusted_start=dynamic, untrusted_end=dynamic) == parse_footer(dynamic)
    with pytest.raises(ImageRefused, match="another one at its start"):
        choose_footer(untrusted_start=dynamic, untrusted_end=fixed)
    with pytest.raises(ImageRefused, match="differ"):
        choose_footer(untrusted_start=other, untrusted_end=dynamic)
    with pytest.raises(ImageRefused, match="no VHD footer"):
        choose_footer(untrusted_start=nothing, untrusted_end=dynamic)
    with pytest.raises(ImageRefused, match="no VHD footer"):
        choose_footer(untrusted_start=nothing, untrusted_end=nothing)


def test_a_disk_that_tapdisk_has_open_is_known_by_its_first_footer() -> None:
    footer = a_footer(DiskType.DIFFERENCING)
    start = build_footer(footer)
    assert choose_footer(untrusted_start=start, untrusted_end=bytes(FOOTER_SIZE)) == footer
    damaged = start[:100] + b"\1" + start[101:]
    with pytest.raises(ImageRefused, match="checksum"):
        choose_footer(untrusted_start=start, untrusted_end=damaged)
    fixed = build_footer(a_footer(DiskType.FIXED))
    with pytest.raises(ImageRefused, match="at its end"):
        choose_footer(untrusted_start=fixed, untrusted_end=bytes(FOOTER_SIZE))


# ---------------------------------------------------------------- header and footer in a file
@given(footers, headers, st.integers(0, 2**40))
def test_a_layout_that_is_taken_stays_inside_of_the_file(
    footer: Footer, header: DynamicHeader, file_size: int
) -> None:
    try:
        check_layout(footer, header, file_size=file_size)
    except ImageRefused:
        return
    assert header.table_offset + 4 * header.max_table_entries <= file_size
    assert 4 * header.max_table_entries <= 2**25
    assert all(loc.data_offset + loc.data_length <= file_size for loc in header.locators)


@pytest.mark.parametrize(
    ("disk_type", "changes", "reason"),
    [
        (DiskType.DYNAMIC, {"table_offset": 512}, "reaches out"),
        (DiskType.DYNAMIC, {"table_offset": 8192}, "reaches out"),
        (DiskType.DYNAMIC, {"max_table_entries": 2**32 - 1}, "reaches out"),
        (DiskType.DYNAMIC, {"max_table_entries": 511}, "too small"),
        (DiskType.DYNAMIC, {"parent_uuid": UUID(int=1)}, "names a parent"),
        (DiskType.DYNAMIC, {"parent_name": "base.vhd"}, "names a parent"),
        (
            DiskType.DYNAMIC,
            {"locators": (ParentLocator(LocatorCode.MAC_URL, 512, 20, 4096),)},
            "names a parent",
        ),
        (DiskType.DIFFERENCING, {}, "names no parent"),
        (
            DiskType.DIFFERENCING,
            {"locators": (ParentLocator(LocatorCode.MAC_URL, 512, 20, 8192),)},
            "locator reaches out",
        ),
    ],
)
def test_a_layout_that_does_not_fit_is_refused(
    disk_type: DiskType, changes: dict[str, object], reason: str
) -> None:
    fields: dict[str, object] = {"table_offset": FIRST_FREE, "max_table_entries": 512}
    header = DynamicHeader(**(fields | changes))  # type: ignore[arg-type]
    with pytest.raises(ImageRefused, match=reason):
        check_layout(a_footer(disk_type), header, file_size=8192)


# ---------------------------------------------------------------- the parent's path
@given(st.sampled_from(LocatorCode), paths)
def test_a_parents_path_reads_back(code: LocatorCode, path: str) -> None:
    assert decode_parent(code, encode_parent(code, path)) == path


def test_the_locators_are_written_as_vhd_util_writes_them() -> None:
    path = "../bases/base.vhd"
    assert encode_parent(LocatorCode.MAC_URL, path) == b"file://../bases/base.vhd"
    assert encode_parent(LocatorCode.MAC_URL, "base.vhd") == b"file://./base.vhd"
    for code in (LocatorCode.ABSOLUTE, LocatorCode.RELATIVE):
        assert encode_parent(code, path) == ".\\..\\bases\\base.vhd".encode("utf-16-le")


@pytest.mark.parametrize(
    ("code", "untrusted", "path"),
    [
        (LocatorCode.MAC_URL, b"file:///images/base.vhd", "/images/base.vhd"),
        (LocatorCode.MAC_URL, b"file://././/a//base.vhd", "a/base.vhd"),
        (LocatorCode.MAC_URL, b"file://a%20b.vhd", "a%20b.vhd"),
        (LocatorCode.ABSOLUTE, "C:\\images\\base.vhd".encode("utf-16-le"), "/images/base.vhd"),
        (LocatorCode.RELATIVE, ".\\base.vhd".encode("utf-16-le"), "base.vhd"),
    ],
)
def test_a_path_is_read_as_tapdisk_reads_it(code: LocatorCode, untrusted: bytes, path: str) -> None:
    assert decode_parent(code, untrusted) == path


@pytest.mark.parametrize(
    "path",
    [
        "a/../../etc/shadow",
        "/images/../etc/shadow",
        "../..",
        ".",
        "",
        "/",
        "base.vhd\0.img",
        "base.vhd\n",
        "nbd:unix:/run/x",
        "D:\\base.vhd",
        "gr\u00fcn.vhd",
    ],
)
def test_a_path_that_no_honest_writer_writes_is_refused(path: str) -> None:
    with pytest.raises(ImageRefused):
        decode_parent(LocatorCode.MAC_URL, b"file://" + path.encode())
    with pytest.raises(ImageRefused):
        decode_parent(LocatorCode.RELATIVE, path.encode("utf-16-le"))
    with pytest.raises(ImageRefused):
        encode_parent(LocatorCode.RELATIVE, path)


@given(st.sampled_from(LocatorCode), st.binary(max_size=200))
def test_whatever_a_locator_holds_it_is_a_bounded_path_or_refused(
    code: LocatorCode, untrusted: bytes
) -> None:
    for content in (untrusted, b"file://" + untrusted):
        try:
            path = decode_parent(code, content)
        except ImageRefused:
            continue
        assert path.isprintable()
        assert path.isascii()
        assert ".." not in path.lstrip("./").split("/")


@given(paths, sizes.filter(lambda size: size < 2**40))
def test_an_overlay_passes_the_checks_of_its_own_reader(parent: str, size: int) -> None:
    image = build_differencing(
        size=size,
        parent=parent,
        parent_uuid=uuid4(),
        parent_timestamp=1,
        uuid=uuid4(),
        timestamp=2,
    )
    footer = choose_footer(untrusted_start=image[:512], untrusted_end=image[-512:])
    header = parse_header(image[512:1536])
    check_layout(footer, header, file_size=len(image))
    assert footer.current_size == size
    assert footer.creator != b"tap "
    found = {
        decode_parent(loc.code, image[loc.data_offset : loc.data_offset + loc.data_length])
        for loc in header.locators
    }
    assert found == {parent}


# ---------------------------------------------------------------- geometry
@pytest.mark.parametrize(
    ("sectors", "geometry"),
    [
        (0, Geometry(0, 4, 17)),
        (17 * 4 * 1024 - 1, Geometry(1023, 4, 17)),
        (17 * 4 * 1024, Geometry(140, 16, 31)),
        (17 * 16 * 1024 - 1, Geometry(1023, 16, 17)),
        (17 * 16 * 1024, Geometry(561, 16, 31)),
        (31 * 16 * 1024, Geometry(503, 16, 63)),
        (65535 * 16 * 63 - 1, Geometry(65534, 16, 63)),
        (65535 * 16 * 63, Geometry(16191, 16, 255)),
        (2**40, Geometry(65535, 16, 255)),
    ],
)
def test_the_geometry_is_the_one_of_the_appendix(sectors: int, geometry: Geometry) -> None:
    assert chs_geometry(sectors * SECTOR) == geometry


@given(sizes)
def test_a_geometry_is_never_larger_than_the_disk(size: int) -> None:
    geometry = chs_geometry(size)
    assert geometry.cylinders * geometry.heads * geometry.sectors * SECTOR <= size
    assert geometry.cylinders <= 65535
    assert geometry.heads <= 16


@pytest.mark.parametrize("size", ["1M", "100M", "514M", "3G", "60G", "100G"])
def test_qemu_img_calculates_the_same_geometry_where_it_is_not_forced(
    size: str, tmp_path: Path
) -> None:
    path = tmp_path / "disk.vhd"
    subprocess.run(["qemu-img", "create", "-q", "-f", "vpc", path, size], check=True)
    footer = parse_footer(path.read_bytes()[:512])
    assert chs_geometry(footer.current_size) == footer.geometry
    told = subprocess.check_output(["qemu-img", "info", "--output=json", "-f", "vpc", path])
    assert json.loads(told)["virtual-size"] == footer.current_size


@given(footers)
def test_mending_changes_the_geometry_alone_and_only_once(footer: Footer) -> None:
    mended = mend_footer(build_footer(footer))
    read = parse_footer(mended)
    assert read.geometry == chs_geometry(footer.current_size)
    assert mend_footer(mended) == mended
    assert {n for n in range(512) if mended[n] != build_footer(footer)[n]} <= {
        *range(56, 60),
        *range(64, 68),
    }
