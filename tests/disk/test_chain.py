"""What qemu-img tells becomes types, and nothing that it does not tell is made up."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisiond.api.requests import DiskFormat
from provisiond.disk.chain import (
    QEMU_NAMES,
    DiskChain,
    DiskImage,
    check_overlay,
    parse_chain,
    parse_info,
)
from provisiond.errors import ChainTooDeep, ImageRefused, SizeTooSmall, ToolFailed

BASE = DiskImage(Path("/b/debian.raw"), DiskFormat.RAW, 4096, 4096, None, None)
TOP = DiskImage(Path("/d/web1.qcow2"), DiskFormat.QCOW2, 8192, 512, BASE.path, DiskFormat.RAW)

ONE: dict[str, Any] = {
    "virtual-size": 8192,
    "filename": "/d/web1.qcow2",
    "format": "qcow2",
    "actual-size": 512,
    "backing-filename": "../b/debian.raw",
    "full-backing-filename": "/b/debian.raw",
    "backing-filename-format": "raw",
    "dirty-flag": False,
}
LOWER = {"virtual-size": 4096, "filename": "/b/debian.raw", "format": "raw", "actual-size": 4096}

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*ONE, "x"]), inner, max_size=9)
    ),
    max_leaves=12,
)


def test_an_image_is_what_qemu_img_tells() -> None:
    assert parse_info(json.dumps(ONE)) == TOP


def test_a_chain_is_in_the_order_of_its_links() -> None:
    chain = parse_chain(json.dumps([ONE, LOWER]))
    assert chain == DiskChain((TOP, BASE))
    assert (chain.top, chain.depth) == (TOP, 2)


def test_a_vhd_has_its_own_name_here() -> None:
    assert parse_info(json.dumps({**LOWER, "format": "vpc"})).format is DiskFormat.VHD


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": "vmdk"}, "the format 'vmdk' is none of raw, qcow2, qcow, vhd"),
        ({"format": None}, "the format None"),
        ({"virtual-size": -1}, "-1 is no size"),
        ({"virtual-size": True}, "True is no size"),
        ({"actual-size": "1"}, "'1' is no size"),
        ({"filename": "nbd://host/x"}, "no absolute path"),
        ({"full-backing-filename": "json:{}"}, "'json:{}' is no absolute path"),
        ({"full-backing-filename": "/b/\x1b[2J"}, r"'/b/\\x1b\[2J' is no absolute path"),
        ({"filename": "/d/\ud800"}, r"an image: '/d/\\ud800' is no absolute path"),
        ({"virtual-size": 2**63}, f"{2**63} is no size"),
        ({"backing-filename-format": "luks"}, "the format 'luks'"),
    ],
)
def test_a_field_that_fits_nothing_is_refused_by_its_name(
    change: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ImageRefused, match=reason):
        parse_info(json.dumps({**ONE, **change}))


def test_a_chain_with_a_missing_link_is_refused() -> None:
    with pytest.raises(ImageRefused, match="is missing from its chain"):
        parse_chain(json.dumps([ONE]))
    with pytest.raises(ImageRefused, match=r"stands on /b/debian.raw, not on /b/other"):
        parse_chain(json.dumps([ONE, {**LOWER, "filename": "/b/other"}]))


@given(anything)
def test_whatever_is_told_is_an_image_or_refused(answer: Any) -> None:
    for parse in (parse_info, parse_chain):
        try:
            found = parse(json.dumps(answer))
        except ImageRefused as refusal:
            assert_can_be_shown(refusal.message)
            continue
        images = found.images if isinstance(found, DiskChain) else (found,)
        for image in images:
            assert_can_be_shown(str(image.path), str(image.backing))
            assert 0 <= image.virtual_size < 2**63


def assert_can_be_shown(*texts: str) -> None:
    assert all(text.isprintable() for text in texts), texts


paths = st.lists(
    st.text(st.characters(categories=["L", "N", "P", "S"], exclude_characters="/"), min_size=1),
    min_size=1,
    max_size=3,
).map(lambda parts: Path("/" + "/".join(parts)))
sizes = st.integers(0, 2**63 - 1)
images = st.builds(
    DiskImage,
    path=paths,
    format=st.sampled_from(DiskFormat),
    virtual_size=sizes,
    file_size=sizes,
    backing=st.none(),
    backing_format=st.none() | st.sampled_from(DiskFormat),
)


@given(st.lists(images, min_size=1, max_size=5))
def test_a_chain_reads_back_as_qemu_img_tells_of_it(told: list[DiskImage]) -> None:
    linked = [replace(upper, backing=lower.path) for upper, lower in pairwise(told)]
    chain = DiskChain((*linked, told[-1]))
    assert parse_chain(json.dumps([as_told(image) for image in chain.images])) == chain
    assert parse_info(json.dumps(as_told(chain.top))) == chain.top


def as_told(image: DiskImage) -> dict[str, Any]:
    backing = {"full-backing-filename": str(image.backing)} if image.backing else {}
    if image.backing_format is not None:
        backing["backing-filename-format"] = QEMU_NAMES[image.backing_format]
    return {
        "filename": str(image.path),
        "format": QEMU_NAMES[image.format],
        "virtual-size": image.virtual_size,
        "actual-size": image.file_size,
        **backing,
    }


@given(st.text())
def test_what_is_no_json_is_refused(text: str) -> None:
    for parse in (parse_info, parse_chain):
        with pytest.raises(ImageRefused):
            parse(text)


# ---------------------------------------------------------------- what was asked for
def test_an_overlay_as_it_was_asked_for_passes() -> None:
    check_overlay(DiskChain((TOP, BASE)), base=DiskChain((BASE,)), size=8192, max_chain=2)


def test_what_a_file_takes_of_the_disk_is_no_difference() -> None:
    shrunk = DiskImage(BASE.path, BASE.format, BASE.virtual_size, 0, None, None)
    check_overlay(DiskChain((TOP, shrunk)), base=DiskChain((BASE,)), size=8192, max_chain=2)


def test_an_overlay_that_is_another_is_told_from_the_one_asked_for() -> None:
    base = DiskChain((BASE,))
    with pytest.raises(ToolFailed, match="made with 8192 bytes instead of 9216"):
        check_overlay(DiskChain((TOP, BASE)), base=base, size=9216, max_chain=2)
    with pytest.raises(SizeTooSmall, match="512 bytes are less than its base's 4096"):
        check_overlay(DiskChain((TOP, BASE)), base=base, size=512, max_chain=2)
    with pytest.raises(ChainTooDeep, match="would be the top of 2 images, and 1 may be"):
        check_overlay(DiskChain((TOP, BASE)), base=base, size=8192, max_chain=1)

    def over(backing: Path | None, taken_for: DiskFormat, lower: DiskImage) -> DiskChain:
        top = DiskImage(TOP.path, TOP.format, 8192, 0, backing, taken_for)
        return DiskChain((top, lower))

    with pytest.raises(ToolFailed, match=r"stands on /etc/shadow instead of /b/debian.raw"):
        check_overlay(
            over(Path("/etc/shadow"), DiskFormat.RAW, BASE), base=base, size=8192, max_chain=2
        )
    with pytest.raises(ToolFailed, match="takes its base for qcow2"):
        check_overlay(over(BASE.path, DiskFormat.QCOW2, BASE), base=base, size=8192, max_chain=2)
    other = DiskImage(BASE.path, BASE.format, 1024, 0, None, None)
    with pytest.raises(ToolFailed, match="what it stands on reads"):
        check_overlay(over(BASE.path, DiskFormat.RAW, other), base=base, size=8192, max_chain=2)
