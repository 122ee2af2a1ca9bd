"""The files of any other file system, by libguestfs: XFS, Btrfs, LVM, a root spread over several.

A small guest of libguestfs' own reads the image, so that nothing of this host parses it. It takes
some 20 s to boot, as it is never run under KVM: a dom0 has none, and with a KVM that does not work
it would hang. LIBGUESTFS_BACKEND_SETTINGS in the environment says otherwise.
"""

import asyncio
import os
import re
import tempfile
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path, PurePosixPath

from provisiond.api.requests import DiskFormat
from provisiond.disk.chain import QEMU_NAMES
from provisiond.disk.folder import explained
from provisiond.disk.inspection import inspect
from provisiond.errors import ImageRefused, ToolFailed
from provisiond.images.file_tree import ROOT, Entry, Kind, is_root
from provisiond.images.image_disk import own_mounts_argv
from provisiond.process import MIB, require_tool, running

_SETTINGS = "LIBGUESTFS_BACKEND_SETTINGS"
_ROOTS = ("ext2", "ext3", "ext4", "xfs", "btrfs")
_KINDS = {0o04: Kind.FOLDER, 0o10: Kind.FILE, 0o12: Kind.LINK}
_LABEL = "security.selinux"


@asynccontextmanager
async def guestfs_root(
    image: Path, *, disk_format: DiskFormat, writable: bool
) -> "AsyncIterator[GuestfsFiles]":
    """The root in the image with all that its fstab mounts, for the block.

    `writable` is for a file of the caller's own. Raises ImageRefused for more than one root, none,
    or one that is damaged; ToolMissing, ToolFailed.
    """
    require_tool("guestfish", package="guestfish")
    inspect(image, disk_format=disk_format)
    # Line by line: it would keep what it says until it has said much.
    argv = [*own_mounts_argv(), *environment(), *("stdbuf", "--output=L"), "guestfish"]
    async with running(argv, talked_to=True) as session:
        tree = GuestfsFiles(session)
        await tree.ask(
            "add-drive",
            image.absolute(),
            f"format:{QEMU_NAMES[disk_format]}",
            f"readonly:{'false' if writable else 'true'}",
        )
        await tree.ask("run")
        await tree.mount(writable=writable)
        yield tree
        if writable:
            await tree.ask("shutdown")  # tells of what could not be written


def environment() -> Sequence[str]:
    """What comes before a command of libguestfs'."""
    settings = os.environ.get(_SETTINGS, "force_tcg")
    return ["env", "LIBGUESTFS_BACKEND=direct", f"{_SETTINGS}={settings}"]


class GuestfsFiles:
    """The files of a root that libguestfs has mounted; see FileTree. It follows no link outwards:
    to its programs the image's root is their own."""

    def __init__(self, session: asyncio.subprocess.Process) -> None:
        self._session = session
        self._mark = uuid.uuid4().hex

    async def mount(self, *, writable: bool) -> None:
        """Find the one root, check it and mount all that belongs to it."""
        roots = (await self._text("inspect-os")).split()
        # It calls no root what has no fstab; where it finds none, a look at each tells.
        roots = roots or [device for device in await self._devices() if await self._is_root(device)]
        if len(roots) != 1:
            count = "no root file system" if not roots else f"{len(roots)} root file systems"
            raise ImageRefused(
                f"libguestfs finds {count} in the disk", hint="Make an image of one system."
            )
        await self._check(roots[0])
        told = await self._try("inspect-get-mountpoints", roots[0])
        lines = told.decode(errors="replace").splitlines()
        found = (line.partition(": ")[::2] for line in lines)
        points = {point: device for point, device in found if point[:1] == device[:1] == "/"}
        for point, device in sorted({"/": roots[0], **points}.items()):
            await self.ask("mount" if writable else "mount-ro", device, point)

    async def mount_here(self, point: str) -> Path:
        """Serve the files at the empty folder `point` of the session's own mount namespace, and say
        how that is reached from here. Nothing else can be asked after that."""
        await self.ask("mount-local", point, "readonly:true")
        if self._session.stdin is not None:
            self._session.stdin.write(b"mount-local-run\n")
        return Path(f"/proc/{self._session.pid}/root{point}")

    async def _devices(self) -> list[str]:
        """Those with a file system that a Linux root can be on."""
        told = re.findall(r"^(\S+): (\w+)$", await self._text("list-filesystems"), re.MULTILINE)
        return [device for device, kind in told if kind in _ROOTS]

    async def _is_root(self, device: str) -> bool:
        await self._try("mount-ro", device, "/")
        if not (await self._text("mounts")).strip():
            return False
        found = await is_root(self)
        await self.ask("umount-all")
        return found

    async def _check(self, device: str) -> None:
        kind = (await self._text("vfs-type", device)).strip()
        if kind == "xfs":
            status = (await self._text("xfs-repair", device, "nomodify:true")).strip()
        elif kind in ("ext2", "ext3", "ext4"):
            status = (await self._text("fsck", kind, device)).strip()
        else:
            return  # Btrfs looks at its checksums as it reads
        if status != "0":
            raise ImageRefused(
                f"the {kind} file system in the image has errors, or was not unmounted",
                hint="Boot the image once and shut it down, or mend it in a copy.",
            )

    # ------------------------------------------------------------ read
    async def look(self, path: PurePosixPath) -> Entry | None:
        """What is at a path of which no folder is a link; None where there is nothing."""
        if path == ROOT:
            return Entry(Kind.FOLDER, 0o755, 0, 0, 0)
        answer = (await self._try("lstatns", path)).decode(errors="replace")
        told = dict(re.findall(r"^st_(\w+): (\d+)$", answer, re.MULTILINE))
        if not told:
            return None
        mode = int(told["mode"])
        return Entry(
            _KINDS.get(mode >> 12, Kind.OTHER),
            mode & 0o7777,
            int(told["uid"]),
            int(told["gid"]),
            int(told["size"]),
        )

    async def names(self, folder: PurePosixPath) -> list[str]:
        """The names in a folder, without `.` and `..`."""
        with tempfile.NamedTemporaryFile(prefix="provisiond-") as file:
            await self.ask("ls0", folder, file.name)
            told = Path(file.name).read_bytes()
        return [name.decode(errors="surrogateescape") for name in told.split(b"\0") if name]

    async def read(self, file: PurePosixPath, *, limit: int) -> bytes:
        """A file's content; ImageRefused where it is longer than `limit` bytes."""
        entry = await self.look(file)
        if entry is None or entry.kind is not Kind.FILE:
            raise ImageRefused(f"{file} in the image is no file")
        if entry.size > limit:
            raise ImageRefused(f"{file} in the image has {entry.size} bytes: {limit} may be")
        with tempfile.NamedTemporaryFile(prefix="provisiond-") as target:
            await self.ask("download", file, target.name)
            return Path(target.name).read_bytes()

    async def read_link(self, link: PurePosixPath) -> str:
        """Where a symbolic link leads to."""
        return (await self._text("readlink", link)).removesuffix("\n")

    async def dump(self, file: PurePosixPath, target: Path) -> None:
        """Write the content of a file of any size to `target`, a file of this host."""
        await self.ask("download", file, target)

    async def label(self, path: PurePosixPath) -> str | None:
        """The SELinux label of a path, None where it has none."""
        told = await self._try("lgetxattr", path, _LABEL)
        label = told.decode(errors="replace").strip("\0\n")
        return label if re.fullmatch(r"\w+:\w+:\w+(:[\w:.,-]+)?", label) else None

    # ------------------------------------------------------------ write
    async def make_folder(self, folder: PurePosixPath, *, mode: int) -> None:
        """Make a folder that is not there."""
        await self.ask("mkdir", folder)
        await self._settle(folder, mode=mode)

    async def write(self, file: PurePosixPath, content: bytes, *, mode: int) -> None:
        """Make a file, in the place of a file or link that has its name."""
        await self._make_room(file)
        with tempfile.NamedTemporaryFile(prefix="provisiond-") as source:
            with explained(Path(source.name)):
                source.write(content)
                source.flush()
            await self.ask("upload", source.name, file)
        await self._settle(file, mode=mode)

    async def make_link(self, link: PurePosixPath, target: str) -> None:
        """Make a symbolic link, in the place of a file or link that has its name."""
        await self._make_room(link)
        await self.ask("ln-s", target, link)
        await self._settle(link, mode=None)

    async def remove(self, path: PurePosixPath) -> None:
        """Remove a file, a link, or a folder with all that is in it."""
        await self.ask("rm-rf", path)

    # ------------------------------------------------------------ parts of these
    async def _make_room(self, path: PurePosixPath) -> None:
        entry = await self.look(path)
        if entry is not None and entry.kind is Kind.FOLDER:
            raise ImageRefused(f"{path} in the image is a folder")
        if entry is not None:
            await self.remove(path)

    async def _settle(self, path: PurePosixPath, *, mode: int | None) -> None:
        """Owner, mode and the label that the kernel would have given."""
        await self.ask("lchown", "0", "0", path)
        if mode is not None:
            await self.ask("chmod", f"0{mode:o}", path)
        if (label := await self.label(path.parent)) is not None:
            await self.ask("lsetxattr", _LABEL, label, str(len(label.encode())), path)

    async def _text(self, *words: str | Path | PurePosixPath) -> str:
        return (await self.ask(*words)).decode(errors="surrogateescape")

    async def ask(self, *words: str | Path | PurePosixPath) -> bytes:
        """What one of guestfish's commands says. Where it fails the session ends: ToolFailed."""
        stdin, stdout = self._session.stdin, self._session.stdout
        if stdin is None or stdout is None:
            raise RuntimeError("the streams were not asked for as pipes")
        command, *arguments = (str(word) for word in words)
        line = " ".join([command, *(_quoted(word) for word in arguments)])
        stdin.write(f"{line}\necho {self._mark}\n".encode(errors="surrogateescape"))
        said, end = b"", f"{self._mark}\n".encode()
        while not said.endswith(end):
            piece = await stdout.read(65536)
            said += piece
            if not piece or len(said) > 4 * MIB:
                told = said.decode(errors="replace").strip()[-1000:]
                raise ToolFailed(
                    f"guestfish {command} failed: {told}",
                    hint="libguestfs-test-tool says whether libguestfs works here.",
                )
        return said.removesuffix(end)

    async def _try(self, command: str, *words: str | Path | PurePosixPath) -> bytes:
        """What a command says that may fail: then it says why, and the session goes on."""
        return await self.ask(f"-{command}", *words)


def _quoted(word: str) -> str:
    """A word as guestfish's parser takes it: whatever is no plain character as its octal number."""
    return '"' + "".join(one if _is_plain(one) else _octal(one) for one in word) + '"'


def _is_plain(character: str) -> bool:
    return (character.isascii() and character.isalnum()) or character in "/._-:=+@"


def _octal(character: str) -> str:
    return "".join(f"\\{byte:03o}" for byte in character.encode(errors="surrogateescape"))
