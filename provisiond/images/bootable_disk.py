"""A tree of files becomes a disk that boots: one ext4, GRUB for BIOS; nothing is mounted.

The disk, in sectors of 512 bytes: 0 has GRUB's boot.img and a DOS partition table, 1 and on its
core.img, 2048 and on the root file system. boot.img and core.img come out of grub-mkimage ready for
these places: boot.img loads sector 1, and the first sector of core.img the others after it (GRUB's
manual, "BIOS installation", the MBR gap). grub-install would ask for devices that are not there.
"""

import os
import re
import struct
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

from provisiond.api.requests import DiskFormat
from provisiond.disk import qemu_img
from provisiond.errors import BuildFailed, NoSpace
from provisiond.process import run

SECTOR = 512
FIRST_SECTOR = 2048
_BOOT_CODE = 440  # bytes of sector 0 before the disk's signature and the partition table
GRUB_PACKAGES = ("grub-common", "grub-pc-bin")
"""What a Debian tree needs for `grub_argv`."""
_MODULES = (
    *("biosdisk", "part_msdos", "ext2"),
    *("normal", "configfile", "search_fs_uuid", "test", "echo"),
    *("linux", "serial", "terminal"),
)
_GRUB = Path("usr/lib/grub/i386-pc")
_CORE = Path("boot/grub/core.img")
_EARLY = Path("boot/grub/early.cfg")
# What the first boot asks of a console: the last one is /dev/console.
CONSOLES = "console=tty0 console=ttyS0,115200"


def new_uuid() -> str:
    """A UUID for a root file system: its fstab and its boot loader are to name it."""
    return str(uuid.uuid4())


def link_newest_kernel(tree: Path) -> None:
    """Make /vmlinuz and /initrd.img links to the newest kernel, where no package has done so.

    Raises BuildFailed where the tree has no kernel with an initrd.
    """
    kernels = sorted(
        (file for file in (tree / "boot").glob("vmlinuz-*")), key=lambda file: _version(file.name)
    )
    with_initrd = [file for file in kernels if (tree / "boot" / _initrd_of(file.name)).is_file()]
    if not with_initrd:
        raise BuildFailed("there is no kernel with an initrd in the image's /boot")
    newest = with_initrd[-1].name
    for link, name in (("vmlinuz", newest), ("initrd.img", _initrd_of(newest))):
        if not (tree / link).is_symlink():
            (tree / link).symlink_to(f"boot/{name}")


def _initrd_of(kernel: str) -> str:
    return kernel.replace("vmlinuz-", "initrd.img-", 1)


def _version(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]


def write_boot_files(tree: Path, *, root_uuid: str, title: str) -> None:
    """Put GRUB's configuration into the tree.

    It starts /vmlinuz with /initrd.img: Debian's kernel packages keep these links at the newest
    kernel, so an upgrade in the guest needs nobody who writes a new configuration.
    """
    folder = tree / "boot" / "grub"
    folder.mkdir(parents=True, exist_ok=True)
    (tree / _EARLY).write_text(f"search.fs_uuid {root_uuid} root\nset prefix=($root)/boot/grub\n")
    (folder / "grub.cfg").write_text(
        "serial --unit=0 --speed=115200\n"
        "terminal_input console serial\n"
        "terminal_output console serial\n"
        "set timeout=1\n"
        f"menuentry '{title}' {{\n"
        f"    linux /vmlinuz root=UUID={root_uuid} ro {CONSOLES}\n"
        "    initrd /initrd.img\n"
        "}\n"
    )


def grub_argv(tree: Path) -> list[str | Path]:
    """The command that makes core.img, by the tree's own GRUB; to be run confined."""
    return [
        *("chroot", tree, "grub-mkimage"),
        *("--format", "i386-pc"),
        *("--prefix", "/boot/grub"),
        *("--config", f"/{_EARLY}"),
        *("--output", f"/{_CORE}"),
        *_MODULES,
    ]


async def write_disk(
    tree: Path,
    disk: Path,
    *,
    size: int,
    root_uuid: str,
    said: Callable[[str], None],
) -> None:
    """Write the qcow2 `disk` of `size` bytes that holds the tree and boots it.

    It is made by way of a sparse file beside it. Raises NoSpace where the tree does not fit.
    """
    core, boot = (tree / _CORE).read_bytes(), (tree / _GRUB / "boot.img").read_bytes()
    if len(core) > (FIRST_SECTOR - 1) * SECTOR:
        raise BuildFailed(f"GRUB's core image has {len(core)} bytes: it does not fit its gap")
    raw = disk.with_name(f"{disk.name}.raw")
    with raw.open("wb") as file:
        file.truncate(size)
        file.write(first_sector(boot, size=size, signature=os.urandom(4)))
        file.write(core)
    said(f"writing the root file system {root_uuid}")
    await _make_file_system(tree, raw, size=size, root_uuid=root_uuid)
    said("writing the qcow2")
    await qemu_img.convert(
        raw,
        disk,
        from_format=DiskFormat.RAW,
        to_format=DiskFormat.QCOW2,
        progress=lambda _fraction: None,
    )
    raw.unlink()


def first_sector(boot: bytes, *, size: int, signature: bytes) -> bytes:
    """GRUB's boot code and a table of one bootable Linux partition from FIRST_SECTOR to the end."""
    sectors = size // SECTOR - FIRST_SECTOR
    # Cylinders, heads and sectors are those that stand for "see the number of sectors".
    partition = struct.pack(
        "<B3sB3sII", 0x80, b"\xfe\xff\xff", 0x83, b"\xfe\xff\xff", FIRST_SECTOR, sectors
    )
    table = partition.ljust(64, b"\0")
    return boot[:_BOOT_CODE].ljust(_BOOT_CODE, b"\0") + signature + b"\0\0" + table + b"\x55\xaa"


async def _make_file_system(tree: Path, raw: Path, *, size: int, root_uuid: str) -> None:
    finished = await run(file_system_argv(tree, raw, size=size, root_uuid=root_uuid), check=False)
    if finished.returncode == 0:
        return
    words = finished.stderr.decode(errors="replace").strip()
    if "Could not allocate" in words or "No space" in words or "no space" in words:
        raise NoSpace(
            f"{tree}: does not fit on a disk of {size // 2**20} MiB: {words}",
            hint="Ask for a larger --size.",
        )
    raise BuildFailed(f"mke2fs ended with status {finished.returncode}: {words}")


def file_system_argv(tree: Path, raw: Path, *, size: int, root_uuid: str) -> Sequence[str | Path]:
    """The command that writes the tree as ext4 behind FIRST_SECTOR.

    Without what GRUB 2.06 and the e2fsck of older distributions do not know.
    """
    offset = FIRST_SECTOR * SECTOR
    return [
        "mke2fs",
        "-q",
        "-F",
        *("-t", "ext4"),
        *("-O", "^metadata_csum_seed,^orphan_file"),
        *("-E", f"offset={offset},root_owner=0:0,lazy_itable_init=1"),
        *("-U", root_uuid),
        *("-L", "root"),
        *("-d", tree),
        raw,
        f"{(size - offset) // 1024}k",
    ]
