"""The kernels in an image, and which one its guest boots."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from provisiond.errors import ImageRefused
from provisiond.images.file_tree import FileTree, Kind, find, is_folder

_KERNEL = re.compile(r"(?:vmlinuz|vmlinux|bzImage|kernel)-(?P<version>[\w.+~-]+)", re.ASCII)
_INITRDS = ("initrd.img-{}", "initramfs-{}.img", "initrd-{}", "initrd-{}.img", "initramfs-{}")
_LARGEST = 2**30
_DEFAULTS = ("/boot/vmlinuz", "/vmlinuz")  # links, as Debian and SUSE keep them


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel and the initrd of the same version, None where it has none."""

    version: str
    kernel: PurePosixPath
    initrd: PurePosixPath | None


async def find_kernel(tree: FileTree) -> Kernel | None:
    """The kernel that the image's own link names as the default, else the newest; None where there
    is none."""
    for path in ("/boot", "/"):  # a boot partition has them at its top
        folder = await find(tree, path)
        if folder is None or not await is_folder(tree, folder):
            continue
        kernels = parse_kernels(folder, await tree.names(folder))
        if kernels:
            return await _default(tree, kernels) or kernels[-1]
    return None


async def _default(tree: FileTree, kernels: list[Kernel]) -> Kernel | None:
    for path in _DEFAULTS:
        try:
            chosen = await find(tree, path)
        except ImageRefused:  # a ring of links
            continue
        for kernel in kernels:
            if kernel.kernel == chosen:
                return kernel
    return None


def parse_kernels(folder: PurePosixPath, untrusted_names: Iterable[str]) -> list[Kernel]:
    """The kernels among the names, the newest last; a rescue kernel is none to boot from."""
    names = set(untrusted_names)
    found = []
    for name in names:
        match = _KERNEL.fullmatch(name)
        if match is None or "rescue" in name or name.endswith(".old"):
            continue
        version = match["version"]
        initrds = [folder / one.format(version) for one in _INITRDS if one.format(version) in names]
        found.append(Kernel(version, folder / name, initrds[0] if initrds else None))
    return sorted(found, key=lambda one: _key(one.version))


def _key(version: str) -> list[tuple[int, int, str]]:
    """Numbers as numbers: 6.1.10 is newer than 6.1.9. A part that is no number comes before them,
    as rc is before what it is a candidate of."""
    parts = re.findall(r"\d+|[a-z]+", version.lower())
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in parts]


async def file_of(tree: FileTree, path: PurePosixPath) -> PurePosixPath:
    """The file that `path` leads to. Raises ImageRefused where it leads to none, and for a file of
    a size that no kernel or initrd has: it may be all holes, and fill this host's disk."""
    file = await find(tree, str(path))
    entry = None if file is None else await tree.look(file)
    if file is None or entry is None or entry.kind is not Kind.FILE:
        raise ImageRefused(f"{path} in the image is no file")
    if entry.size > _LARGEST:
        raise ImageRefused(f"{path} in the image has {entry.size} bytes: {_LARGEST} may be")
    return file
