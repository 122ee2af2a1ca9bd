"""provisionctl image extract's work, on real images; what it made is read by other programs."""

import gzip
import os
import re
import signal
import stat
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from provisiond.api.requests import DiskFormat
from provisiond.errors import DiskExists, ImageBusy, ImageRefused, NoSpace
from provisiond.images.cpio import write_cpio
from provisiond.images.extraction import Extracted, extract
from provisiond.images.root_copy import copy_tree
from tests.daemon.command import PROVISIONCTL
from tests.disk.conftest import mounted
from tests.disk.images import MIB, tool, writing_guest
from tests.images.golden import LAYOUTS, debugfs, make_golden, make_tree, put
from tests.lab.packages import fetch_kernel, fetch_package

RAW, QCOW2 = DiskFormat.RAW, DiskFormat.QCOW2
SAME, STRANGE, LATIN = b"usr/bin/same", b'srv/a\n"b" -rf', b"srv/\xe4"
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")  # cap_net_raw+ep


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A root with everything that a copy may lose."""
    tree = make_tree(tmp_path / "tree", LAYOUTS["systemd"])
    for path in ("boot", "dev", "srv/outside", "run"):
        (tree / path).mkdir(parents=True)
    put(tree, "boot/vmlinuz-6.1.9", "old")
    put(tree, "boot/vmlinuz-6.1.10", "new")
    put(tree, "boot/initrd.img-6.1.10", "its initrd")
    put(tree, "boot/vmlinuz-0-rescue-7", "none to boot from")
    put(tree, "usr/bin/tool", "ELF")
    (tree / "usr/bin/tool").chmod(0o4755)
    (tree / "usr/bin/same").hardlink_to(tree / "usr/bin/tool")
    os.chown(tree / "srv", 1000, 1001)
    for name in (STRANGE, LATIN):
        Path(os.fsdecode(os.fsencode(tree) + b"/" + name)).write_bytes(b"strange")
    with (tree / "srv/holes").open("wb") as file:
        file.truncate(3 * MIB)
        file.seek(2 * MIB)
        file.write(b"data")
    put(tree, "srv/leads-out", "->/etc/shadow")
    put(tree, "etc/fstab", "UUID=1 / ext4 defaults 0 1\n")
    os.utime(tree / "usr/bin/tool", (1_000_000_000, 1_000_000_000))
    return tree


@pytest.fixture
def image(tmp_path: Path, tree: Path) -> Path:
    image = make_golden(tmp_path / "a.qcow2", tree, table="label: gpt\ntype=linux\n")
    debugfs(
        image,
        "cd /dev",
        "mknod null c 1 3",
        "mknod disk b 8 0",
        "cd /srv",
        "mknod pipe p",
        "ea_set /usr/bin/tool user.note kept",
        start=MIB,
    )
    (tmp_path / "capability").write_bytes(CAPABILITY)
    debugfs(image, f"ea_set -f {tmp_path}/capability /usr/bin/tool security.capability", start=MIB)
    tool("qemu-img", "convert", "-f", "raw", "-O", "qcow2", image, tmp_path / "converted")
    return (tmp_path / "converted").rename(image)


@pytest.fixture
def small_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of 4 MiB."""
    (tmp_path / "small").mkdir()
    with mounted("tmpfs", "size=4M", tmp_path / "small") as folder:
        yield folder


def said_nothing(_line: str) -> None:
    pass


async def root_of(image: Path, target: Path, *, force: bool = False) -> Extracted:
    return await extract(image, disk_format=QCOW2, rootfs=target, force=force, said=said_nothing)


# ---------------------------------------------------------------- kernel and initrd
async def test_the_newest_kernel_and_its_initrd_come_out(tmp_path: Path, image: Path) -> None:
    kernel, initrd = tmp_path / "k", tmp_path / "i"
    told = await extract(image, disk_format=QCOW2, kernel=kernel, initrd=initrd, said=said_nothing)
    assert kernel.read_text() == "new"
    assert initrd.read_text() == "its initrd"
    assert (told.version, told.kernel) == ("6.1.10", "/boot/vmlinuz-6.1.10")


async def test_the_kernel_that_the_image_names_as_its_default_comes_out(
    tmp_path: Path, tree: Path
) -> None:
    put(tree, "vmlinuz", "->boot/vmlinuz-6.1.9")
    image = make_golden(tmp_path / "b.raw", tree)
    kernel = tmp_path / "k"
    await extract(image, disk_format=RAW, kernel=kernel, said=said_nothing)
    assert kernel.read_text() == "old"
    with pytest.raises(ImageRefused, match=r"6\.1\.9 has no initrd"):
        await extract(image, disk_format=RAW, initrd=tmp_path / "i", said=said_nothing)
    assert not (tmp_path / "i").exists()


async def test_a_kernel_on_a_boot_partition_comes_out(tmp_path: Path, tree: Path) -> None:
    (tree / "boot").rename(tmp_path / "boot")
    (tree / "boot").mkdir()
    table = "label: dos\nsize=4MiB, type=83\ntype=83\n"
    image = make_golden(tmp_path / "b.raw", tree, table=table)
    place = f"root_owner=0:0,offset={MIB}"
    tool("mke2fs", "-q", "-F", "-t", "ext4", "-E", place, "-d", tmp_path / "boot", image, "4096k")
    await extract(image, disk_format=RAW, kernel=tmp_path / "k", said=said_nothing)
    assert (tmp_path / "k").read_text() == "new"


async def test_a_kernel_that_is_a_link_outwards_or_absurdly_large_stays_where_it_is(
    tmp_path: Path, tree: Path
) -> None:
    for path in (tree / "boot").iterdir():
        path.unlink()
    put(tree, "boot/vmlinuz-1", "->/etc/shadow")
    with (tree / "boot/vmlinuz-2").open("wb") as file:
        file.truncate(2**30 + 1)
    image = make_golden(tmp_path / "b.raw", tree)
    with pytest.raises(ImageRefused, match="1073741825 bytes"):
        await extract(image, disk_format=RAW, kernel=tmp_path / "k", said=said_nothing)
    debugfs(image, "rm /boot/vmlinuz-2")
    with pytest.raises(ImageRefused, match="no file"):
        await extract(image, disk_format=RAW, kernel=tmp_path / "k", said=said_nothing)
    assert not (tmp_path / "k").exists()


# ---------------------------------------------------------------- the root
@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.zst"])
async def test_an_archive_loses_nothing(tmp_path: Path, image: Path, suffix: str) -> None:
    target = tmp_path / f"root{suffix}"
    await root_of(image, target)
    if suffix == ".tar.zst":
        tool("zstd", "-q", "-d", target, "-o", tmp_path / "root.tar")
        target = tmp_path / "root.tar"
    with tarfile.open(target) as archive:
        found = {os.fsencode(one.name).removeprefix(b"./"): one for one in archive}
        content = archive.extractfile(found[STRANGE])
        assert content is not None
        assert content.read() == b"strange"
    assert LATIN in found
    one, other = sorted((found[SAME], found[b"usr/bin/tool"]), key=lambda entry: entry.islnk())
    assert other.islnk()
    assert other.linkname.removeprefix("./") == one.name.removeprefix("./")
    assert (one.mode, one.mtime) == (0o4755, 1_000_000_000)
    assert one.pax_headers["SCHILY.xattr.user.note"] == "kept"
    assert "SCHILY.xattr.security.capability" in one.pax_headers
    assert (found[b"srv"].uid, found[b"srv"].gid) == (1000, 1001)
    assert found[b"dev/null"].ischr()
    assert found[b"srv/leads-out"].linkname == "/etc/shadow"
    assert found[b"srv/holes"].size == 3 * MIB
    assert b"lost+found" not in found


async def test_a_folder_has_all_but_devices(tmp_path: Path, image: Path) -> None:
    target = tmp_path / "nfs"
    told = await root_of(image, target)
    tools = (target / "usr/bin/tool").stat()
    assert (stat.S_IMODE(tools.st_mode), tools.st_nlink) == (0o4755, 2)
    assert tools.st_mtime == 1_000_000_000
    assert os.getxattr(target / "usr/bin/same", "user.note") == b"kept"
    assert os.getxattr(target / "usr/bin/same", "security.capability") == CAPABILITY
    assert (target / "srv").stat().st_uid == 1000
    for name in (STRANGE, LATIN):
        assert Path(os.fsdecode(os.fsencode(target) + b"/" + name)).read_bytes() == b"strange"
    holes = target / "srv/holes"
    assert holes.read_bytes() == bytes(2 * MIB) + b"data" + bytes(MIB - 4)
    assert holes.stat().st_blocks * 512 < 2 * MIB
    assert stat.S_ISFIFO((target / "srv/pipe").stat().st_mode)
    assert (target / "srv/leads-out").readlink() == Path("/etc/shadow")
    assert sorted(told.left_out) == ["dev/disk", "dev/null"]
    assert stat.S_IMODE(target.stat().st_mode) == 0o755
    assert list((target / "dev").iterdir()) == []


@pytest.mark.parametrize(
    ("mode", "capability"), [(0o4755, b""), (0o2755, b""), (0o755, CAPABILITY)]
)
async def test_who_has_a_root_in_a_folder_is_told_of_the_programs_that_give_rights(
    tmp_path: Path, tree: Path, mode: int, capability: bytes
) -> None:
    (tree / "usr/bin/tool").chmod(mode)
    if capability:
        os.setxattr(tree / "usr/bin/tool", "security.capability", capability)
    image = make_golden(tmp_path / "b.raw", tree)
    lines: list[str] = []
    for name in ("nfs", "root.tar", "root.cpio.gz"):
        await extract(image, disk_format=RAW, rootfs=tmp_path / name, said=lines.append)
    told = [line for line in lines if "root alone" in line]
    assert len(told) == 1
    assert told[0].startswith(f"{tmp_path}/nfs: ")
    assert "(1 programs)" in told[0]


async def test_a_root_without_programs_that_give_rights_is_not_spoken_of(
    tmp_path: Path, tree: Path
) -> None:
    (tree / "usr/bin/tool").chmod(0o755)
    (tree / "srv").chmod(0o2775)
    image = make_golden(tmp_path / "b.raw", tree)
    lines: list[str] = []
    await extract(image, disk_format=RAW, rootfs=tmp_path / "nfs", said=lines.append)
    assert not [line for line in lines if "root alone" in line]


async def test_a_kernel_runs_the_root_in_its_memory(tmp_path: Path, tree: Path) -> None:
    busybox = fetch_package("busybox-static") / "bin/busybox"
    (tree / "usr/bin/busybox").write_bytes(busybox.read_bytes())
    (tree / "usr/bin/busybox").chmod(0o755)
    (tree / "usr/bin/busybox-again").hardlink_to(tree / "usr/bin/busybox")
    (tree / "usr/sbin/init").unlink()
    put(
        tree,
        "usr/sbin/init",
        "#!/bin/busybox sh\n"
        "busybox mount -t proc proc /proc\n"
        'busybox echo "in memory: $(busybox-again id -u)"\n'
        'busybox stat -c "%n %h:%u:%g:%a" /bin/tool /srv\n'
        "busybox cat /etc/fstab\n"
        "busybox poweroff -f\n",
    )
    (tree / "proc").mkdir()
    image = make_golden(tmp_path / "b.qcow2", tree, disk_format=QCOW2)
    target = tmp_path / "root.cpio.gz"
    await root_of(image, target)
    (kernel,) = fetch_kernel().glob("boot/vmlinuz-*")
    said = boot(kernel, target)
    assert "in memory: 0" in said
    assert "/bin/tool 2:0:0:4755" in said
    assert re.search(r"/srv \d+:1000:1001:755", said)
    assert "what the image's fstab named is not there" in said


def boot(kernel: Path, initrd: Path) -> str:
    """What a machine without any disk says on its console until it is off."""
    argv = [
        *("qemu-system-x86_64", "-machine", "q35,accel=tcg", "-m", "256"),
        *("-nodefaults", "-nographic", "-no-reboot", "-serial", "stdio"),
        *("-kernel", str(kernel)),
        *("-initrd", str(initrd)),
        *("-append", "console=ttyS0 quiet panic=-1"),
    ]
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=280).stdout


async def test_an_archive_for_a_kernel_is_one_for_cpio_as_well(tmp_path: Path, image: Path) -> None:
    target = tmp_path / "root.cpio.gz"
    await root_of(image, target)
    listed = cpio_list(target)
    lines = {line.split()[-1]: line.split() for line in listed.splitlines() if line.split()}
    assert lines[b"dev/console"][0] == b"crw-------"
    assert lines[b"dev/disk"][0].startswith(b"b")
    assert lines[b"sbin/init"][-3] == b"init"
    assert lines[SAME][0] == b"-rwsr-xr-x"
    assert lines[b"srv"][1] == b"1000/1001"
    assert b"\xe4" in listed


def cpio_list(archive: Path) -> bytes:
    busybox = fetch_package("busybox-static") / "bin/busybox"
    content = gzip.decompress(archive.read_bytes())
    return subprocess.run(
        [busybox, "cpio", "-tv"], input=content, capture_output=True, check=True
    ).stdout


# ---------------------------------------------------------------- whole or not at all
@pytest.mark.parametrize("name", ["root.tar", "root.cpio.gz", "nfs"])
async def test_what_is_there_is_replaced_by_force_alone(
    tmp_path: Path, image: Path, name: str
) -> None:
    target = tmp_path / "out" / name
    target.parent.mkdir()
    if name == "nfs":
        put(target, "srv/old", "->/etc")
    else:
        target.write_text("old")
    with pytest.raises(DiskExists, match="exists already"):
        await root_of(image, target)
    assert target.is_dir() or target.read_text() == "old"
    await root_of(image, target, force=True)
    assert not (target / "srv/old").exists() if name == "nfs" else target.stat().st_size > 1000
    assert [path.name for path in target.parent.iterdir()] == [name]


@pytest.mark.parametrize("kind", ["kernel", "initrd", "root.tar", "root.cpio.gz"])
async def test_a_file_never_replaces_a_folder(tmp_path: Path, image: Path, kind: str) -> None:
    target = tmp_path / ("boot" if kind in ("kernel", "initrd") else kind)
    put(target, "vmlinuz-6.1", "the host's")
    option = kind if kind in ("kernel", "initrd") else "rootfs"
    targets = {option: target}
    with pytest.raises(DiskExists, match="is a folder"):
        await extract(image, disk_format=QCOW2, force=True, said=said_nothing, **targets)
    assert (target / "vmlinuz-6.1").read_text() == "the host's"


def test_a_folder_in_which_something_is_mounted_is_not_replaced(
    tmp_path: Path, image: Path
) -> None:
    target = tmp_path / "nfs"
    put(target, "srv/old", "old")
    (target / "mnt").mkdir()
    mount = 'mount -t tmpfs none "$0/mnt" && echo kept >"$0/mnt/file"; "$@"; cat "$0/mnt/file"'
    argv = ["unshare", "--mount", "sh", "-c", mount, str(target), str(PROVISIONCTL)]
    argv += ["image", "extract", str(image), "--rootfs", str(target), "--force"]
    ended = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert f"{target}/mnt is mounted there" in ended.stderr
    assert ended.stdout == "kept\n"
    assert (target / "srv/old").read_text() == "old"


@pytest.mark.parametrize("name", ["root.tar", "root.cpio.gz", "nfs"])
async def test_without_room_nothing_is_left(
    tmp_path: Path, tree: Path, small_folder: Path, name: str
) -> None:
    (tree / "usr/data").write_bytes(os.urandom(6 * MIB))
    image = make_golden(tmp_path / "b.qcow2", tree, disk_format=QCOW2)
    with pytest.raises(NoSpace):
        await root_of(image, small_folder / name)
    assert list(small_folder.iterdir()) == []


async def test_an_extraction_that_is_killed_leaves_no_target_and_no_mount(
    tmp_path: Path, tree: Path
) -> None:
    (tree / "usr/data").write_bytes(os.urandom(8 * MIB))
    image = make_golden(tmp_path / "b.qcow2", tree, disk_format=QCOW2, size=32 * MIB)
    target = tmp_path / "out" / "root.tar"
    target.parent.mkdir()
    kill_an_extraction(image, target)
    assert not target.exists()
    assert "provisiond-" not in Path("/proc/self/mountinfo").read_text()
    await root_of(image, target)
    assert [path.name for path in target.parent.iterdir()] == ["root.tar"]


def kill_an_extraction(image: Path, target: Path) -> None:
    """Start the command, and kill it when the kernel is out and the root is being read."""
    program = Path(sys.executable).with_name("provisionctl")
    kernel = target.with_name("kernel")
    argv: list[str | Path] = [program, "image", "extract", image]
    argv += ["--kernel", kernel, "--rootfs", target]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as extracting:
        assert extracting.stderr is not None
        assert "vmlinuz" in extracting.stderr.readline()
        extracting.send_signal(signal.SIGKILL)
    kernel.unlink()


# ---------------------------------------------------------------- told to end
def test_a_copy_that_is_told_to_end_ends_within_a_file(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root/holes").touch()
    os.truncate(tmp_path / "root/holes", 8 * 1024 * MIB)
    ended, begun = threading.Event(), tmp_path / "copy/holes"
    with ThreadPoolExecutor() as threads:
        copying = threads.submit(copy_tree, tmp_path / "root", tmp_path / "copy", ended)
        while not begun.exists():
            assert not copying.done()
        ended.set()
    copying.result()
    assert begun.stat().st_size < 8 * 1024 * MIB


def test_an_archive_that_is_told_to_end_ends_within_a_file(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root/holes").touch()
    os.truncate(tmp_path / "root/holes", 64 * MIB)
    ended, (reading, writing) = threading.Event(), os.pipe()

    def write() -> None:
        with os.fdopen(writing, "wb") as archive:
            write_cpio(tmp_path / "root", archive, ended)

    with ThreadPoolExecutor() as threads, os.fdopen(reading, "rb") as told:
        writer = threads.submit(write)
        assert told.read(1) == b"0"
        ended.set()  # its first MiB does not fit into the pipe
        assert len(told.read()) < 64 * MIB
    writer.result()


async def test_an_image_that_a_guest_writes_to_is_refused(tmp_path: Path, image: Path) -> None:
    async with writing_guest(image, disk_format=QCOW2):
        with pytest.raises(ImageBusy):
            await root_of(image, tmp_path / "root.tar")
    assert not (tmp_path / "root.tar").exists()
