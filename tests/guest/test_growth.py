"""The root file system grows into a larger disk: real growpart, sfdisk and resize2fs, a real ext4.

A copy of a golden image often has a larger disk than the image had. The machine's root is a
partition of a loop device here, mounted and written to while it grows.
"""

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.guest.machine import (
    ENVIRONMENT,
    ETC,
    build_busybox_root,
    configuration,
    copy_with_libraries,
    package,
)
from tests.lab.initramfs import GUEST_SCRIPT

MIB = 1 << 20
PARTITION = "start=2048, size=65536, type=83\n"
SWAP_BEHIND = "start=67584, size=8192, type=82\n"
PROGRAMS = ("/usr/sbin/sfdisk", "/usr/bin/partx", "/usr/bin/flock", "/usr/sbin/resize2fs")

# $1 the partition's device, $2 the disk's, $3 where to mount. The names below /dev are the
# kernel's; the numbers are given as MAJOR MINOR.
APPLY = r"""
set -e
mount "$1" "$3"
cd "$3"
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t tmpfs tmpfs dev
mount -t tmpfs tmpfs run
mknod dev/null c 1 3
for disk in "$1" "$2"; do
    numbers=$(cat "/sys/class/block/${disk##*/}/dev")
    mknod "dev/${disk##*/}" b "${numbers%:*}" "${numbers#*:}"
done
cp config/provision.conf run/provision.conf
chroot . /bin/sh /usr/sbin/provision-guest --from /run
stat --file-system --format='%b %S' .
"""


def run(*argv: str, stdin: str = "") -> str:
    ended = subprocess.run(
        argv, input=stdin, capture_output=True, text=True, check=False, env=ENVIRONMENT
    )
    print(ended.stderr)
    assert ended.returncode == 0, f"{' '.join(argv)}: {ended.stderr}"
    return ended.stdout + ended.stderr


def image_of(folder: Path, label: str, partitions: str) -> Path:
    """A root on a 32 MiB partition, of an image that has become 128 MiB since."""
    root = folder / "root"
    build_busybox_root(root)
    for name in ("proc", "sys", "dev", "run", "tmp", "config", "var/lib"):
        (root / name).mkdir(exist_ok=True)
    for program in PROGRAMS:
        copy_with_libraries(Path(program), root)
    growpart = package("cloud-guest-utils") / "usr/bin/growpart"
    (root / "usr/bin/growpart").write_bytes(growpart.read_bytes())
    (root / "usr/bin/growpart").chmod(0o755)
    for name, text in ETC.items():
        (root / name).write_text(text)
    (root / "usr/sbin/provision-guest").write_bytes(GUEST_SCRIPT.read_bytes())
    (root / "config/provision.conf").write_text(configuration())
    image = folder / "image.raw"
    with image.open("wb") as file:
        file.truncate(40 * MIB)
    run("sfdisk", "--quiet", str(image), stdin=f"label: {label}\n{partitions}")
    run(*("mke2fs", "-q", "-t", "ext4", "-E", "offset=1048576", "-d", str(root)), str(image), "32M")
    with image.open("r+b") as file:
        file.truncate(128 * MIB)
    return image


@contextmanager
def disk_of(image: Path) -> Iterator[str]:
    """The loop device of an image, with its partitions."""
    disk = run("losetup", "--find", "--show", str(image)).strip()
    try:
        run("partx", "--add", disk)
        yield disk
    finally:
        subprocess.run(["partx", "--delete", disk], check=False)
        run("losetup", "--detach", disk)


def provision_on(disk: str, folder: Path) -> tuple[str, int]:
    """What the script said on this disk, and the bytes that its root then has."""
    place = folder / "mounted"
    place.mkdir()
    node = folder / f"{Path(disk).name}p1"
    numbers = Path(f"/sys/class/block/{node.name}/dev").read_text().strip().split(":")
    run("mknod", str(node), "b", *numbers)
    argv = ("unshare", "--mount", "--uts", "--net", "--pid", "--fork", "--kill-child")
    said = run(*argv, "sh", "-c", APPLY, "sh", str(node), disk, str(place))
    (sizes,) = (line for line in said.splitlines() if line.replace(" ", "").isdigit())
    blocks, size = map(int, sizes.split())
    return said, blocks * size


def partition_of(image: Path) -> int:
    """The bytes of its first partition."""
    found = re.search(r"size= *(\d+)", run("sfdisk", "--dump", str(image)))
    assert found
    return int(found[1]) * 512


def may_resize() -> bool:
    """Whether this process has CAP_SYS_RESOURCE, number 24 of capabilities(7)."""
    found = re.search(r"^CapEff:\s+(\w+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    return bool(int(found[1], 16) >> 24 & 1)


@pytest.mark.parametrize("label", ["dos", "gpt"])
def test_the_root_gets_all_of_a_disk_that_became_larger(tmp_path: Path, label: str) -> None:
    image = image_of(tmp_path, label, PARTITION.replace(", type=83", ""))
    with disk_of(image) as disk:
        said, size = provision_on(disk, tmp_path)
    assert "done: everything was applied and read back" in said
    assert "CHANGED: partition=1 start=2048" in said
    assert partition_of(image) > 126 * MIB
    if may_resize():
        assert size > 110 * MIB
    else:  # in a container the kernel grows no file system that is mounted
        assert "resize2fs: Permission denied to resize filesystem" in said
    run("e2fsck", "-fn", f"{image}?offset=1048576")


def test_a_partition_that_another_one_follows_stays_and_the_job_is_done(tmp_path: Path) -> None:
    image = image_of(tmp_path, "dos", PARTITION + SWAP_BEHIND)
    before = run("sfdisk", "--dump", str(image))
    with disk_of(image) as disk:
        said, size = provision_on(disk, tmp_path)
    assert "NOCHANGE" in said
    assert "done: everything was applied and read back" in said
    assert size < 32 * MIB
    assert run("sfdisk", "--dump", str(image)) == before
