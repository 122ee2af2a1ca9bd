"""A tree of files becomes a disk: what is on it is read with the tools of others."""

import json
import struct
import subprocess
from pathlib import Path

import pytest

from provisiond.errors import BuildFailed, NoSpace
from provisiond.images.bootable_disk import (
    FIRST_SECTOR,
    first_sector,
    link_newest_kernel,
    new_uuid,
    write_boot_files,
    write_disk,
)

MIB = 2**20


def make_tree(tree: Path, *, core: int = 30_000) -> Path:
    """A tree with what GRUB has left in it, as far as the disk is concerned."""
    (tree / "usr/lib/grub/i386-pc").mkdir(parents=True)
    (tree / "usr/lib/grub/i386-pc/boot.img").write_bytes(b"\xeb\x63" + b"B" * 510)
    (tree / "etc").mkdir()
    (tree / "etc/hostname").write_text("golden\n")
    write_boot_files(tree, root_uuid=new_uuid(), title="Debian")
    (tree / "boot/grub/core.img").write_bytes(b"C" * core)
    return tree


def run(*argv: str | Path) -> str:
    return subprocess.run(
        argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True
    ).stdout


async def test_the_disk_has_the_boot_loader_one_partition_and_the_tree(tmp_path: Path) -> None:
    disk, root_uuid, size = tmp_path / "image.qcow2", new_uuid(), 64 * MIB
    tree = make_tree(tmp_path / "tree")
    await write_disk(tree, disk, size=size, root_uuid=root_uuid, said=lambda _line: None)
    told = json.loads(run("qemu-img", "info", "--output=json", "-f", "qcow2", disk))
    assert told["virtual-size"] == size
    assert sorted(path.name for path in tmp_path.iterdir()) == ["image.qcow2", "tree"]
    raw = tmp_path / "raw"
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", disk, raw)
    content = raw.read_bytes()
    assert content[:2] == b"\xeb\x63"
    assert content[512:][:30_000] == b"C" * 30_000
    assert content[510:512] == b"\x55\xaa"
    status, kind, first, count = struct.unpack("<B3xB3xII", content[446:462])
    assert (status, kind, first, count) == (0x80, 0x83, FIRST_SECTOR, size // 512 - FIRST_SECTOR)
    assert content[462:510] == bytes(48)
    device = f"{raw}?offset={FIRST_SECTOR * 512}"
    assert "golden" in run("debugfs", "-R", "cat /etc/hostname", device)
    assert root_uuid in run("debugfs", "-R", "stats -h", device)
    run("e2fsck", "-fn", device)


async def test_a_tree_that_does_not_fit_is_told_with_what_to_do(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")
    (tree / "large").write_bytes(b"x" * 40 * MIB)
    with pytest.raises(NoSpace, match="does not fit") as caught:
        await write_disk(
            tree,
            tmp_path / "image.qcow2",
            size=32 * MIB,
            root_uuid=new_uuid(),
            said=lambda _line: None,
        )
    assert "--size" in caught.value.hint


async def test_a_boot_loader_that_does_not_fit_its_gap_is_refused(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree", core=FIRST_SECTOR * 512)
    with pytest.raises(BuildFailed, match="gap"):
        await write_disk(
            tree,
            tmp_path / "image.qcow2",
            size=32 * MIB,
            root_uuid=new_uuid(),
            said=lambda _line: None,
        )


def test_the_first_sector_is_one_and_ends_the_boot_code_where_the_table_begins() -> None:
    sector = first_sector(b"B" * 512, size=2**30, signature=b"SIGN")
    assert len(sector) == 512
    assert sector[439:446] == b"BSIGN\0\0"


def test_the_newest_kernel_that_has_an_initrd_is_booted(tmp_path: Path) -> None:
    (tmp_path / "boot").mkdir()
    for name in ("6.1.0-9", "6.1.0-10", "6.1.0-11"):
        (tmp_path / f"boot/vmlinuz-{name}-amd64").write_text("")
    with pytest.raises(BuildFailed, match="initrd"):
        link_newest_kernel(tmp_path)
    for name in ("6.1.0-9", "6.1.0-10"):
        (tmp_path / f"boot/initrd.img-{name}-amd64").write_text("")
    link_newest_kernel(tmp_path)
    assert (tmp_path / "vmlinuz").readlink() == Path("boot/vmlinuz-6.1.0-10-amd64")
    assert (tmp_path / "initrd.img").readlink() == Path("boot/initrd.img-6.1.0-10-amd64")
    link_newest_kernel(tmp_path)  # fine where they are there
