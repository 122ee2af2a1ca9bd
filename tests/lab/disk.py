"""The tiny guest on a disk: the same root as the initramfs guest's, as a golden image of ext4.

Nothing is mounted and nobody has to be root: mke2fs makes the file system, debugfs fills it. The
same entries give the same bytes. An initramfs of its own (disk-init) finds the disk and starts the
init that is there.
"""

import hashlib
import os
import stat
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.lab.initramfs import (
    GUEST_INIT,
    Entry,
    GuestFiles,
    busybox_entries,
    file_entry,
    in_order,
    initramfs_bytes,
    keep_initramfs,
    module_entries,
    system_entries,
)
from tests.lab.packages import cache_directory, fetch_kernel

DISK_INIT = Path(__file__).with_name("disk-init")
# What reads a root disk, whichever hypervisor it comes from; ext4 asks for its checksums by name.
BOOT_MODULES = (
    "virtio_pci",
    "virtio_blk",
    "virtio_scsi",
    "sd_mod",
    "xen_blkfront",
    "crc32c_generic",
    "ext4",
)
SIZE_MIB = 48  # a sixth of it is used
UUID = "8f0c6e52-6d0f-4a53-9c43-0c9a7d1f2b60"
# A second after the epoch: the file system's own times and those of every file.
ENVIRONMENT = {"E2FSPROGS_FAKE_TIME": "1", "LC_ALL": "C"}


@dataclass(frozen=True, slots=True)
class DiskGuestFiles:
    """What a domain with a root disk is made of: `boot` from the host, `image` to copy or overlay.

    `image` is raw, without a partition table, and must never be written.
    """

    boot: GuestFiles
    image: Path


def disk_guest_files() -> DiskGuestFiles:
    """Kernel, initramfs and root of the tiny guest on a disk; made once, kept in the cache."""
    tree = fetch_kernel()
    (kernel,) = tree.glob("boot/vmlinuz-*")
    boot = (
        *busybox_entries(),
        *module_entries(tree, BOOT_MODULES),
        file_entry("init", DISK_INIT, 0o755),
        *(Entry(name, stat.S_IFDIR | 0o755) for name in ("dev", "proc", "sys", "root")),
    )
    root = (*system_entries(tree), file_entry("sbin/init", GUEST_INIT, 0o755))
    return DiskGuestFiles(
        boot=GuestFiles(kernel=kernel, initramfs=keep_initramfs(boot)), image=_keep_image(root)
    )


def _keep_image(entries: Sequence[Entry]) -> Path:
    """The image in the cache, under the name of what it is made of."""
    tool = _run("mke2fs", "-V").stderr
    made_of = repr((_mke2fs_argv(Path("image")), tool)).encode() + initramfs_bytes(entries)
    path = cache_directory() / f"root-{hashlib.sha256(made_of).hexdigest()[:16]}.ext4"
    if not path.exists():
        with tempfile.TemporaryDirectory(prefix=".root-", dir=cache_directory()) as folder:
            part = Path(folder, "image")
            make_image(part, entries)
            part.rename(path)
    return path


def make_image(image: Path, entries: Iterable[Entry]) -> None:
    """Writes a file system with these entries; raises RuntimeError where a tool complains."""
    _run(*_mke2fs_argv(image))
    with tempfile.TemporaryDirectory() as folder:
        commands = Path(folder, "commands")
        lines = list(_commands(in_order(entries), Path(folder)))
        commands.write_text("".join(f"{line}\n" for line in lines))
        said = _run("debugfs", "-w", "-f", commands, image).stderr
    # debugfs always ends with 0, and names its version before it says what it could not do.
    if complaints := [line for line in said.splitlines() if not line.startswith("debugfs 1.")]:
        raise RuntimeError(f"debugfs could not fill {image}:\n" + "\n".join(complaints))


def _mke2fs_argv(image: Path) -> list[str | Path]:
    return [
        "mke2fs",
        "-q",
        *("-t", "ext4"),
        *("-b", "4096"),
        *("-J", "size=4"),
        *("-U", UUID),
        *("-E", f"hash_seed={UUID},root_owner=0:0"),
        image,
        f"{SIZE_MIB}M",
    ]


def _commands(entries: Iterable[Entry], folder: Path) -> Iterator[str]:
    """debugfs' commands; `folder` is given the content of the files."""
    for number, entry in enumerate(entries):
        if stat.S_ISLNK(entry.mode):
            yield f"symlink /{entry.path} {entry.data.decode()}"
            continue
        if stat.S_ISDIR(entry.mode):
            yield f"mkdir /{entry.path}"
        else:
            content = folder / str(number)
            content.write_bytes(entry.data)
            yield f"write {content} /{entry.path}"
        yield f"set_inode_field /{entry.path} mode 0{entry.mode:o}"
        yield f"set_inode_field /{entry.path} uid {entry.owner}"
        yield f"set_inode_field /{entry.path} gid {entry.owner}"


def _run(*argv: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs a tool; what it said is told where it fails."""
    ended = subprocess.run(
        argv,
        env={**os.environ, **ENVIRONMENT},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode != 0:
        raise RuntimeError(f"{argv[0]} ended with {ended.returncode}:\n{ended.stderr}")
    return ended
