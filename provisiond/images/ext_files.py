"""The files of an ext2, ext3 or ext4 file system, by debugfs and e2fsck: no mount, no privilege.

debugfs' exit status says nothing: what it tells on stderr is a failure, and whoever writes reads
back. Files are named by their inodes, and names of our own alone go into a command: debugfs cannot
be told of a name that holds a line end.
"""

import os
import re
import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from provisiond.disk.folder import explained
from provisiond.errors import ImageRefused, ToolFailed
from provisiond.images.file_tree import ROOT, Entry, Kind
from provisiond.images.image_disk import ImageDisk
from provisiond.images.partitions import Partition
from provisiond.process import MIB, require_tool, run

_LIMITS = ["prlimit", "--as=4294967296", "--cpu=300"]
_ROOT_INODE = 2
_LISTING_LIMIT = 16 * MIB  # of what debugfs tells of one folder
_MOST_REMOVED = 1000  # names with one call; a state folder of the script's has about ten
# /inode/mode/owner/group/name/size/ - a name can hold all but a slash, which e2fsck has looked at.
# Owners are told as signed numbers of 32 bits.
_LISTED = re.compile(rb"/(\d+)/([0-7]{6})/(-?\d+)/(-?\d+)/([^/]*)/(\d*)/\n")
_TARGET = re.compile(r'Fast link dest: "(.*)"', re.DOTALL)
_OUR_NAME = re.compile(r"[\w@.+-]+", re.ASCII)
_KINDS = {0o04: Kind.FOLDER, 0o10: Kind.FILE, 0o12: Kind.LINK}
_LABEL = "security.selinux"
_UNCLEAN, _NEEDS_RECOVERY = 0x2, 0x4  # of s_state (errors), of s_feature_incompat


class ExtFiles:
    """The files of the ext file system in a partition of a disk; see FileTree."""

    def __init__(self, disk: ImageDisk, partition: Partition) -> None:
        self._place = f"{disk.raw}?offset={partition.start}"
        self._folders: dict[PurePosixPath, dict[str, tuple[int, Entry]]] = {}

    # ------------------------------------------------------------ read
    async def look(self, path: PurePosixPath) -> Entry | None:
        """What is at a path of which no folder is a link; None where there is nothing."""
        if path == ROOT:
            return Entry(Kind.FOLDER, 0o755, 0, 0, 0)
        found = (await self._list(path.parent)).get(path.name)
        return None if found is None else found[1]

    async def names(self, folder: PurePosixPath) -> list[str]:
        """The names in a folder, without `.` and `..`."""
        return list(await self._list(folder))

    async def read(self, file: PurePosixPath, *, limit: int) -> bytes:
        """A file's content; ImageRefused where it is longer than `limit` bytes."""
        inode, entry = await self._inode(file)
        if entry.kind is not Kind.FILE:
            raise ImageRefused(f"{file} in the image is no file")
        if entry.size > limit:
            raise ImageRefused(f"{file} in the image has {entry.size} bytes: {limit} may be")
        return await self._ask(f"cat <{inode}>", limit=limit)

    async def read_link(self, link: PurePosixPath) -> str:
        """Where a symbolic link leads to."""
        inode, entry = await self._inode(link)
        told = (await self._ask(f"stat <{inode}>")).decode(errors="surrogateescape")
        if found := _TARGET.search(told):
            return found[1]
        # A target that does not fit into the inode is in a block, as a file's content.
        content = await self._ask(f"cat <{inode}>", limit=max(entry.size, 1))
        return content.decode(errors="surrogateescape")

    async def dump(self, file: PurePosixPath, target: Path) -> None:
        """Write the content of a file of any size to `target`, a file of this host."""
        inode, entry = await self._inode(file)
        if entry.kind is not Kind.FILE:
            raise ImageRefused(f"{file} in the image is no file")
        await self._do([f"dump <{inode}> {_quoted(target)}"], writable=False)

    async def label(self, path: PurePosixPath) -> bytes | None:
        """The SELinux label of a path, None where it has none."""
        inode = _ROOT_INODE if path == ROOT else (await self._inode(path))[0]
        told = await self._ask(f"ea_get -V <{inode}> {_LABEL}", complain=False)
        return told or None

    # ------------------------------------------------------------ write
    async def make_folder(self, folder: PurePosixPath, *, mode: int) -> None:
        """Make a folder that is not there."""
        await self._make(folder, [f"mkdir {_own(folder.name)}"], mode=0o040000 | mode)

    async def write(self, file: PurePosixPath, content: bytes, *, mode: int) -> None:
        """Make a file, in the place of a file or link that has its name."""
        await self._make_room(file)
        with tempfile.NamedTemporaryFile(prefix="provisiond-") as source:
            with explained(Path(source.name)):
                source.write(content)
                source.flush()
            command = f"write {_quoted(source.name)} {_own(file.name)}"
            await self._make(file, [command], mode=0o100000 | mode)

    async def make_link(self, link: PurePosixPath, target: str) -> None:
        """Make a symbolic link, in the place of a file or link that has its name."""
        await self._make_room(link)
        await self._make(link, [f"symlink {_own(link.name)} {_quoted(target)}"], mode=None)

    async def remove(self, path: PurePosixPath) -> None:
        """Remove a file, a link, or a folder with all that is in it; ImageRefused where that is
        more than it can be."""
        commands: list[str] = []
        for one, kind in reversed(await self._below(path)):
            command = "rmdir" if kind is Kind.FOLDER else "rm"
            commands += [await self._enter(one), f"{command} {_own(one.name)}"]
        await self._do(commands)
        self._forget(path)

    async def _below(self, path: PurePosixPath) -> list[tuple[PurePosixPath, Kind]]:
        """The path and all that is below it; a folder comes before what is in it."""
        found: list[tuple[PurePosixPath, Kind]] = []
        waiting = [path]
        while waiting:
            one = waiting.pop()
            _, entry = await self._inode(one)
            found.append((one, entry.kind))
            if entry.kind is Kind.FOLDER:
                waiting += [one / name for name in await self.names(one)]
            if len(found) + len(waiting) > _MOST_REMOVED:
                raise ImageRefused(
                    f"{path} in the image holds more than {_MOST_REMOVED} names",
                    hint="Remove it from within the image's guest, then ask again.",
                )
        return found

    # ------------------------------------------------------------ parts of these
    async def _make_room(self, path: PurePosixPath) -> None:
        entry = await self.look(path)
        if entry is not None and entry.kind is Kind.FOLDER:
            raise ImageRefused(f"{path} in the image is a folder")
        if entry is not None:
            await self.remove(path)

    async def _make(
        self, path: PurePosixPath, commands: Sequence[str], *, mode: int | None
    ) -> None:
        """Run the commands in the folder of `path`, whose end they make; owner, mode, label."""
        name, label = path.name, await self.label(path.parent)
        fields = {"uid": "0", "gid": "0"} | ({} if mode is None else {"mode": f"0{mode:o}"})
        settings = [f"set_inode_field {name} {field} {value}" for field, value in fields.items()]
        with tempfile.NamedTemporaryFile(prefix="provisiond-") as source:
            if label is not None:
                source.write(label)
                source.flush()
                settings.append(f"ea_set -f {_quoted(source.name)} {name} {_LABEL}")
            await self._do([await self._enter(path), *commands, *settings])
        self._forget(path)

    async def _enter(self, path: PurePosixPath) -> str:
        inode = _ROOT_INODE if path.parent == ROOT else (await self._inode(path.parent))[0]
        return f"cd <{inode}>"

    def _forget(self, path: PurePosixPath) -> None:
        """What is known of the folder that a path is in, and below the path, is not so any more."""
        for known in [path.parent, *(one for one in self._folders if one.is_relative_to(path))]:
            self._folders.pop(known, None)

    async def _inode(self, path: PurePosixPath) -> tuple[int, Entry]:
        found = (await self._list(path.parent)).get(path.name)
        if found is None:
            raise ImageRefused(f"{path} in the image does not exist")
        return found

    async def _list(self, folder: PurePosixPath) -> dict[str, tuple[int, Entry]]:
        if folder not in self._folders:
            inode = _ROOT_INODE
            if folder != ROOT:
                inode, entry = await self._inode(folder)
                if entry.kind is not Kind.FOLDER:
                    raise ImageRefused(f"{folder} in the image is no folder")
            told = await self._ask(f"ls -p <{inode}>", limit=_LISTING_LIMIT)
            self._folders[folder] = parse_listing(told)
        return self._folders[folder]

    # ------------------------------------------------------------ debugfs
    async def _ask(self, command: str, *, limit: int = MIB, complain: bool = True) -> bytes:
        argv = [*_LIMITS, "debugfs", *("-R", command), self._place]
        finished = await run(argv, limit_output=limit + MIB)
        if complain:
            _refuse_complaints(finished.stderr, command)
        return finished.stdout

    async def _do(self, commands: Sequence[str], *, writable: bool = True) -> None:
        argv = [*_LIMITS, "debugfs", *(["-w"] if writable else []), *("-f", "-"), self._place]
        text = "".join(f"{command}\n" for command in commands)
        finished = await run(argv, stdin=text.encode(errors="surrogateescape"))
        _refuse_complaints(finished.stderr, "; ".join(commands))


def parse_listing(untrusted: bytes) -> dict[str, tuple[int, Entry]]:
    """The names in what debugfs' `ls -p` says, each with its inode."""
    found = {}
    for inode, mode, owner, group, name, size in _LISTED.findall(untrusted):
        if name in (b".", b"..") or inode == b"0":
            continue
        number = int(mode, 8)
        kind = _KINDS.get(number >> 12, Kind.OTHER)
        entry = Entry(kind, number & 0o7777, int(owner) % 2**32, int(group) % 2**32, int(size or 0))
        found[name.decode(errors="surrogateescape")] = int(inode), entry
    return found


def _refuse_complaints(untrusted_stderr: bytes, command: str) -> None:
    """It names its version before it says what it could not do."""
    lines = untrusted_stderr.decode(errors="replace").splitlines()
    if complaints := [line for line in lines if line and not line.startswith("debugfs 1.")]:
        raise ToolFailed(f"debugfs, asked to {command}: {' '.join(complaints)[:2000]}")


def _own(name: str) -> str:
    """A name that debugfs can be told of."""
    if not _OUR_NAME.fullmatch(name) or name.startswith("-"):
        raise ImageRefused(
            f"{name!r} in the image is a name that debugfs cannot be told of",
            hint="Remove that file from within the image's guest, then ask again.",
        )
    return name


def _quoted(text: str | Path) -> str:
    """A word as debugfs' parser takes it: in double quotes, one in it twice."""
    word = str(text)
    if "\n" in word:
        raise ToolFailed(f"{word!r}: debugfs cannot be told of a path with a line end")
    return '"' + word.replace('"', '""') + '"'


# ---------------------------------------------------------------- is it whole?
async def check_ext(disk: ImageDisk, partition: Partition) -> None:
    """Refuse a file system that was not unmounted, or has errors, by e2fsck; nothing is written.

    Raises ImageRefused with what e2fsck says.
    """
    require_tool("debugfs", package="e2fsprogs")
    superblock = os.pread(disk.descriptor, 1024, partition.start + 1024)
    if len(superblock) < 1024:
        raise ImageRefused("the file system ends in its superblock")
    (state,) = struct.unpack_from("<H", superblock, 58)
    (features,) = struct.unpack_from("<I", superblock, 96)
    if features & _NEEDS_RECOVERY:
        raise ImageRefused(
            "the file system's journal was not written back: its guest was not shut down",
            hint="Boot the image once and shut it down, then ask again.",
        )
    if state & _UNCLEAN:
        raise ImageRefused("the file system says of itself that it has errors", hint=_MEND)
    place = f"{disk.raw}?offset={partition.start}"
    finished = await run([*_LIMITS, *("e2fsck", "-f", "-n"), place], check=False)
    if finished.returncode != 0:
        told = finished.stdout.decode(errors="replace").splitlines()
        words = [line for line in told if line and not line.startswith("Pass ")]
        raise ImageRefused(
            f"the file system has errors: {' '.join(words)[:1000]}"
            f" (e2fsck ended with {finished.returncode})",
            hint=_MEND,
        )


_MEND = "Mend it in a copy: e2fsck -f on its file system; then look at what was lost."
