"""Kernel, initrd and root taken out of an image, without booting or mounting it.

The root becomes what its name says: NAME.tar, .tar.gz, .tar.zst: an archive with owners, links,
devices and extended attributes; NAME.cpio.gz: a root in memory, for a kernel that is given it as
its initrd; any other name: a folder, to be served by NFS.
"""

import asyncio
import gzip
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from provisiond.api.requests import DiskFormat
from provisiond.disk.folder import explained
from provisiond.errors import ImageRefused, NoSpace, ToolFailed
from provisiond.images import image_disk, new_output, root_copy
from provisiond.images.cpio import write_cpio
from provisiond.images.ext_files import ExtFiles
from provisiond.images.file_tree import FileTree
from provisiond.images.kernels import Kernel, file_of, find_kernel
from provisiond.images.partitions import FileSystem, read_partitions
from provisiond.images.root_copy import Copied
from provisiond.images.root_mount import mounted_root
from provisiond.images.root_tree import opened_root
from provisiond.process import require_tool, run
from provisiond.threads import call_until_told

_COMPRESSIONS = {".tar": None, ".tar.gz": "gzip", ".tgz": "gzip", ".tar.zst": "zstd"}
_ARCHIVE_FOR_A_KERNEL = ".cpio.gz"


@dataclass(frozen=True, slots=True)
class Extracted:
    """What was taken out: the kernel's version and its path in the image, None where it was not
    asked for. `left_out` are names in the root that the target has no place for."""

    version: str | None
    kernel: str | None
    initrd: str | None
    left_out: tuple[str, ...]


async def extract(
    image: Path,
    *,
    disk_format: DiskFormat,
    kernel: Path | None = None,
    initrd: Path | None = None,
    rootfs: Path | None = None,
    force: bool = False,
    said: Callable[[str], None],
) -> Extracted:
    """Make those of the targets that are not None; each appears whole or not at all.

    Of several kernels it is the image's default, else the newest. A target that is there is
    replaced with `force` alone, a folder by a folder alone. Raises DiskExists, ImageRefused (also
    for a kernel that is not there), ImageNotFound, ImageBusy, NoSpace, StateUnwritable,
    ToolMissing, ToolFailed.
    """
    for target in (kernel, initrd):
        if target is not None:
            new_output.refuse_existing(target, is_folder=False, force=force)
    if rootfs is not None:
        new_output.refuse_existing(rootfs, is_folder=becomes_folder(rootfs), force=force)
    found = None
    if kernel is not None or initrd is not None:
        async with _with_kernel(image, disk_format=disk_format, said=said) as (tree, found):
            if kernel is not None:
                await _dump(tree, found.kernel, kernel, force=force)
                said(f"{kernel}: {found.kernel} of the image")
            if initrd is not None:
                if found.initrd is None:
                    raise ImageRefused(f"{image}: the kernel {found.version} has no initrd")
                await _dump(tree, found.initrd, initrd, force=force)
                said(f"{initrd}: {found.initrd} of the image")
    copied = Copied()
    if rootfs is not None:
        async with mounted_root(image, disk_format=disk_format, said=said) as folder:
            copied = await _write_root(folder, rootfs, force=force)
        _tell(rootfs, copied, said)
    return Extracted(
        version=None if found is None else found.version,
        kernel=None if found is None or kernel is None else str(found.kernel),
        initrd=None if found is None or initrd is None else str(found.initrd),
        left_out=tuple(copied.left_out),
    )


# ---------------------------------------------------------------- kernel and initrd
@asynccontextmanager
async def _with_kernel(
    image: Path, *, disk_format: DiskFormat, said: Callable[[str], None]
) -> AsyncIterator[tuple[FileTree, Kernel]]:
    """The files among which the kernel is, and which it is: the root's, or a boot partition's."""
    async with opened_root(image, disk_format=disk_format, writable=False, said=said) as tree:
        if (found := await find_kernel(tree)) is not None:
            yield tree, found
            return
    async with image_disk.opened(image, disk_format=disk_format) as disk:
        for partition in read_partitions(disk.descriptor, size=disk.size):
            if partition.file_system is FileSystem.EXT:
                files = ExtFiles(disk, partition)
                if (found := await find_kernel(files)) is not None:
                    yield files, found
                    return
    raise ImageRefused(
        f"{image}: has no kernel in /boot",
        hint="A guest of it may be booted with a kernel of its host's.",
    )


async def _dump(tree: FileTree, path: PurePosixPath, target: Path, *, force: bool) -> None:
    part = new_output.begin(target, is_folder=False, force=force)
    try:
        await tree.dump(await file_of(tree, path), part)
        part.chmod(0o644)
        new_output.place(target, force=force)
    finally:
        new_output.discard(part)


# ---------------------------------------------------------------- the root
async def _write_root(folder: Path, target: Path, *, force: bool) -> Copied:
    part = new_output.begin(target, is_folder=becomes_folder(target), force=force)
    try:
        compression = compression_of(target)
        if compression is not None:
            copied = await _write_tar(folder, part, compression)
        elif target.name.endswith(_ARCHIVE_FOR_A_KERNEL):
            copied = await _in_a_thread(_write_archive, folder, part)
        else:
            copied = await _in_a_thread(root_copy.copy_tree, folder, part)
        await asyncio.to_thread(new_output.place, target, force=force)
    finally:
        await asyncio.to_thread(new_output.discard, part)
    return copied


def becomes_folder(target: Path) -> bool:
    """Whether the root becomes a folder at this name, and no archive."""
    return not target.name.endswith((*_COMPRESSIONS, _ARCHIVE_FOR_A_KERNEL))


def compression_of(target: Path) -> str | None:
    """How a tar archive of that name is compressed, "" for not at all; None for what is no tar."""
    for suffix, compression in _COMPRESSIONS.items():
        if target.name.endswith(suffix):
            return compression or ""
    return None


async def _write_tar(folder: Path, part: Path, compression: str) -> Copied:
    if compression == "zstd":
        require_tool("zstd", package="zstd")
    argv: list[str | Path] = [
        *("tar", "--create"),
        *("--file", part),
        *("--directory", folder),
        *([f"--{compression}"] if compression else []),
        "--format=posix",
        "--numeric-owner",
        *("--xattrs", "--xattrs-include=*", "--acls"),
        "--sparse",
        "--sort=name",
        "--one-file-system",
        "--exclude=./lost+found",
        ".",
    ]
    try:
        await run(argv)
    except ToolFailed as error:
        # The second is how tar tells of a disk that took a part of a block.
        if "No space left on device" in error.message or "Wrote only" in error.message:
            raise NoSpace(f"{part.parent}: became full meanwhile") from error
        raise
    return Copied()


def _write_archive(folder: Path, part: Path, ended: threading.Event) -> Copied:
    with gzip.open(part, "xb", compresslevel=6) as archive:
        return write_cpio(folder, cast(BinaryIO, archive), ended)


async def _in_a_thread(
    work: Callable[[Path, Path, threading.Event], Copied], folder: Path, part: Path
) -> Copied:
    def run_it(ended: threading.Event) -> Copied:
        with explained(part):
            return work(folder, part, ended)

    return await call_until_told(run_it)


def _tell(target: Path, copied: Copied, said: Callable[[str], None]) -> None:
    if copied.left_out:
        names = ", ".join(f"/{name}" for name in copied.left_out[:5])
        said(f"{target}: {len(copied.left_out)} devices and sockets are left out ({names})")
    if copied.attributes:
        said(f"{target}: has no place for {', '.join(sorted(copied.attributes))}")
    said(f"{target}: the root file system")
    if copied.privileged:
        said(
            f"{target}: what is setuid, setgid or has capabilities in it ({copied.privileged}"
            " programs) works for this host's users too: keep it below a folder that root alone"
            " may enter"
        )
