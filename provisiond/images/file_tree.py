"""The files in an image: what can be done with them, whatever the file system is, and their paths.

A path here is one in the image. A link in the image is followed in the image, from its root, and
never on this host: paths are resolved by ourselves, one name at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Protocol

from provisiond.errors import ImageRefused

ROOT = PurePosixPath("/")
INITS = ("/sbin/init", "/usr/lib/systemd/systemd", "/lib/systemd/systemd")
RELEASES = ("/etc/os-release", "/usr/lib/os-release")
_MOST_LINKS = 40  # as the kernel's own limit, path_resolution(7)
_LONGEST_PATH = 4096


class Kind(StrEnum):
    """What a name stands for."""

    FOLDER = "folder"
    FILE = "file"
    LINK = "link"
    OTHER = "device, socket or pipe"


@dataclass(frozen=True, slots=True)
class Entry:
    """What is known of a name: `mode` are the permission bits, `size` is in bytes."""

    kind: Kind
    mode: int
    owner: int
    group: int
    size: int


class FileTree(Protocol):
    """The files of an image. Paths are absolute, and no folder on the way is a link.

    Whatever it tells was written by others. What is made is root's, and has the SELinux label of
    its folder, if that has one, as the kernel would have it.
    """

    async def look(self, path: PurePosixPath) -> Entry | None:
        """What is at a path; None where there is nothing."""
        ...

    async def names(self, folder: PurePosixPath) -> list[str]:
        """The names in a folder, without `.` and `..`."""
        ...

    async def read(self, file: PurePosixPath, *, limit: int) -> bytes:
        """A file's content; ImageRefused where it is longer than `limit` bytes."""
        ...

    async def read_link(self, link: PurePosixPath) -> str:
        """Where a symbolic link leads to."""
        ...

    async def dump(self, file: PurePosixPath, target: Path) -> None:
        """Write the content of a file of any size to `target`, a file of this host."""
        ...

    async def make_folder(self, folder: PurePosixPath, *, mode: int) -> None:
        """Make a folder that is not there."""
        ...

    async def write(self, file: PurePosixPath, content: bytes, *, mode: int) -> None:
        """Make a file, in the place of a file or link that has its name."""
        ...

    async def make_link(self, link: PurePosixPath, target: str) -> None:
        """Make a symbolic link, in the place of a file or link that has its name."""
        ...

    async def remove(self, path: PurePosixPath) -> None:
        """Remove a file, a link, or a folder with all that is in it."""
        ...


async def find(tree: FileTree, path: str) -> PurePosixPath | None:
    """Where `path` leads to in the image, all links followed; None where that is not there.

    Raises ImageRefused for links in a ring and for what no path can be.
    """
    return await _resolve(tree, path, make=False)


async def find_or_make_folder(tree: FileTree, path: str) -> PurePosixPath:
    """The folder at `path`, made where it is missing, with those above it.

    Raises ImageRefused where something else is there, or a link that leads nowhere.
    """
    folder = await _resolve(tree, path, make=True)
    if folder is None or not await is_folder(tree, folder):
        raise ImageRefused(f"{path} in the image is no folder")
    return folder


async def is_folder(tree: FileTree, path: PurePosixPath) -> bool:
    """Whether a resolved path is a folder."""
    entry = await tree.look(path)
    return entry is not None and entry.kind is Kind.FOLDER


async def read_text(tree: FileTree, path: str) -> str | None:
    """The text at `path`, links followed; None where there is no file. What is no UTF-8 in it is
    replaced: it is to be shown, and never written back."""
    content = await read_content(tree, path)
    return None if content is None else content.decode(errors="replace")


async def read_content(tree: FileTree, path: str, *, limit: int = 65536) -> bytes | None:
    """The bytes at `path`, links followed; None where there is no file."""
    file = await find(tree, path)
    entry = None if file is None else await tree.look(file)
    if file is None or entry is None or entry.kind is not Kind.FILE:
        return None
    return await tree.read(file, limit=limit)


async def is_root(tree: FileTree) -> bool:
    """Whether a guest boots from it: it names its distribution or users, and has an init."""
    for path in (*RELEASES, "/etc/passwd"):
        if await find(tree, path) is not None:
            return await first_of(tree, INITS) is not None
    return False


async def first_of(tree: FileTree, paths: Sequence[str]) -> PurePosixPath | None:
    """Where the first of the paths leads to that is there."""
    for path in paths:
        if (found := await find(tree, path)) is not None:
            return found
    return None


async def _resolve(tree: FileTree, path: str, *, make: bool) -> PurePosixPath | None:
    """`make`: the names of `path` itself that are missing become folders, a link's never."""
    left = _names(path)[::-1]
    ours = len(left)  # so many of the names that are left, from the end, are of `path` itself
    real, links = ROOT, 0
    while left:
        ours = min(ours, len(left))
        name = left.pop()
        if name == "..":
            real = real.parent
            continue
        entry = await tree.look(real / name)
        if entry is None and make and len(left) < ours:
            await tree.make_folder(real / name, mode=0o755)
        elif entry is None:
            return None
        elif entry.kind is Kind.LINK:
            links += 1
            if links > _MOST_LINKS:
                raise ImageRefused(f"{path} in the image: the links on the way have no end")
            target = await tree.read_link(real / name)
            ours = min(ours, len(left))
            left += _names(target)[::-1]
            real = ROOT if target.startswith("/") else real
            continue
        elif left and entry.kind is not Kind.FOLDER:
            return None
        real /= name
    return real


def _names(untrusted_path: str) -> list[str]:
    if len(untrusted_path) > _LONGEST_PATH or "\0" in untrusted_path:
        raise ImageRefused(f"{untrusted_path[:100]!r}… in the image is no path")
    return [name for name in untrusted_path.split("/") if name not in ("", ".")]
