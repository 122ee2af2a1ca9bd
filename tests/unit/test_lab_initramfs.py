"""The archive is one that a real cpio unpacks, and the same input gives the same bytes."""

import stat
import subprocess
from pathlib import Path

import pytest

from tests.lab.initramfs import Entry, initramfs_bytes, load_order, parse_depends
from tests.lab.packages import fetch_package

ENTRIES = [
    Entry("etc/passwd", stat.S_IFREG | 0o640, b"root:x:0:0\n"),
    Entry("bin/sh", stat.S_IFLNK | 0o777, b"/bin/busybox"),
    Entry("odd", stat.S_IFREG | 0o755, b"\x00\x01\x02"),
    Entry("root", stat.S_IFDIR | 0o700),
]


def test_a_real_cpio_unpacks_what_was_written(tmp_path: Path) -> None:
    busybox = fetch_package("busybox-static") / "bin/busybox"
    argv = [str(busybox), "cpio", "-i", "-d", "-m", "--quiet"]
    subprocess.run(argv, input=initramfs_bytes(ENTRIES), cwd=tmp_path, check=True)
    unpacked = {str(path.relative_to(tmp_path)): path for path in tmp_path.rglob("*")}
    assert sorted(unpacked) == ["bin", "bin/sh", "etc", "etc/passwd", "odd", "root"]
    assert unpacked["etc/passwd"].read_bytes() == b"root:x:0:0\n"
    assert unpacked["odd"].read_bytes() == b"\x00\x01\x02"
    assert str(unpacked["bin/sh"].readlink()) == "/bin/busybox"
    modes = {path: f"{unpacked[path].stat().st_mode:o}" for path in ("etc/passwd", "odd", "root")}
    assert modes == {"etc/passwd": "100640", "odd": "100755", "root": "40700"}


def test_the_order_of_the_entries_changes_no_byte() -> None:
    assert initramfs_bytes(ENTRIES) == initramfs_bytes(reversed(ENTRIES))


def test_the_archive_ends_as_the_kernel_wants_it() -> None:
    archive = initramfs_bytes([])
    assert archive.startswith(b"070701")
    assert b"TRAILER!!!\0" in archive
    assert len(archive) % 4 == 0


def test_a_module_comes_after_all_that_it_needs_and_once() -> None:
    needs = {"net": ["ring", "failover"], "scsi": ["ring"], "ring": ["core"]}
    order = load_order(["net", "scsi"], lambda module: needs.get(module, []))
    assert order == ["core", "ring", "failover", "net", "scsi"]


def test_depends_are_read_from_a_module() -> None:
    assert parse_depends(b"\x7fELF\0license=GPL\0depends=virtio,virtio_ring\0name=x\0") == [
        "virtio",
        "virtio_ring",
    ]
    assert parse_depends(b"\0depends=xen-privcmd\0") == ["xen_privcmd"]
    assert parse_depends(b"\0depends=\0") == []
    with pytest.raises(ValueError, match="no depends="):
        parse_depends(b"not a module")
