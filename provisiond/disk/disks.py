"""The disks that provisiond makes for guests: overlays over golden bases, and blank data disks."""

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from provisiond.api.requests import DiskFormat
from provisiond.disk import folder
from provisiond.disk.bases import Bases
from provisiond.disk.chain import DiskChain, DiskImage
from provisiond.disk.header import read_header, read_overlays
from provisiond.disk.new_image import (
    admit_overlay,
    read_overlay,
    write_blank,
    write_overlay,
)
from provisiond.errors import (
    DiskExists,
    DiskInUse,
    DiskNotFound,
    ImageNotFound,
    ImageRefused,
)
from provisiond.plan import FilePlan
from provisiond.threads import Threads

_FORMATS = {f".{disk_format}": disk_format for disk_format in DiskFormat}
_NEW_FILE = 2**20  # bytes; the most that an empty image takes

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk in the folder; `base` is the name of the base it stands on, or a path that is none."""

    name: str
    image: DiskImage
    base: str | None


def refuse_held(name: str, path: Path, *, in_use: Mapping[Path, str]) -> None:
    """Raises DiskInUse where a domain has the disk; `in_use` as `Disks.remove` takes it."""
    if path in in_use:
        raise DiskInUse(f"{name}: the domain {in_use[path]} has it")


class Disks:
    """The disks in `folder`, a real path: one a name, whatever its format.

    `reserve` bytes are always left free; no chain has more than `max_chain` images.
    """

    def __init__(self, bases: Bases, folder: Path, *, reserve: int, max_chain: int) -> None:
        self._bases = bases
        self._folder = folder
        self._reserve = reserve
        self._max_chain = max_chain
        self.threads = Threads(size=8, name="disks")
        self._placing = threading.Lock()

    def prepare(self) -> None:
        """Make the folder where it is missing."""
        folder.prepare_folder(self._folder)

    def close(self) -> None:
        """Wait for the calls that run."""
        self.threads.close()

    # ------------------------------------------------------------ look
    async def list(self) -> Sequence[Disk]:
        """All disks, by name. A file that cannot be read as what its name says is logged and left
        out."""
        return await self.threads.call(self._list)

    async def find(self, name: str) -> Disk:
        """The disk of this name. Raises DiskNotFound, or ImageRefused where it is no image."""
        return await self.threads.call(self._find, name)

    def is_ours(self, path: Path) -> bool:
        """Whether `path` is that of a disk in the folder, there or not."""
        return path.parent == self._folder and path.suffix in _FORMATS

    async def read_chain(self, name: str) -> DiskChain:
        """The disk of this name and what it stands on, verified where that is a base.

        Raises as `find` and `Bases.hold` do, and ImageRefused where it stands on something else.
        """
        disk = await self.find(name)
        if disk.image.backing is None:
            return DiskChain((disk.image,))
        base = self._bases.name_of(disk.image.backing)
        if base is None:
            raise ImageRefused(f"{name}: stands on {disk.image.backing}, which is no base")
        async with self._bases.hold(base) as chain:
            return DiskChain((disk.image, *chain.images))

    # ------------------------------------------------------------ make
    async def admit_overlay(
        self, *, name: str, base: str, disk_format: DiskFormat, size: int | None, by_tapdisk: bool
    ) -> None:
        """Refuse what cannot be made, without writing anything. `size` None is the base's.

        `by_tapdisk`: tapdisk will open it; else QEMU, which must never open a VHD overlay. Raises
        DiskExists, BaseNotFound, BaseChanged, ImageBusy, SizeTooSmall, ChainTooDeep,
        VhdNeedsTapdisk, NoSpace, ImageRefused.
        """
        await self.threads.call(self._admit_new, name)
        async with self._bases.hold(base) as chain:
            admit_overlay(
                name,
                base=chain,
                disk_format=disk_format,
                size=chain.top.virtual_size if size is None else size,
                max_chain=self._max_chain,
                by_tapdisk=by_tapdisk,
            )

    async def create_overlay(
        self, plan: FilePlan, *, base: str, disk_format: DiskFormat, size: int | None
    ) -> DiskChain:
        """Make an overlay over `base` and read it back with all that it stands on.

        May be asked for twice until `settle`, for which `plan.part` is left. It was admitted
        before; raises as `admit_overlay` does, and ToolFailed.
        """
        async with self._bases.hold(base) as chain:
            size = chain.top.virtual_size if size is None else size
            if await self.threads.call(folder.is_placed, plan):
                return await read_overlay(
                    plan.path,
                    base=chain,
                    disk_format=disk_format,
                    size=size,
                    max_chain=self._max_chain,
                    threads=self.threads,
                )
            await self.threads.call(self._require_room)
            overlay = await write_overlay(
                plan,
                base=chain,
                disk_format=disk_format,
                size=size,
                max_chain=self._max_chain,
                threads=self.threads,
            )
            await self.threads.call(self._place, plan)
            return overlay

    async def admit_blank(self, *, name: str) -> None:
        """Refuse a blank disk that cannot be made: DiskExists, NoSpace."""
        await self.threads.call(self._admit_new, name)

    async def create_blank(
        self, plan: FilePlan, *, disk_format: DiskFormat, size: int
    ) -> DiskImage:
        """Make a disk of `size` bytes of zeros, which takes room as it is written to.

        May be asked for twice until `settle`, for which `plan.part` is left. Raises DiskExists,
        NoSpace, ToolFailed.
        """
        if not await self.threads.call(folder.is_placed, plan):
            await self.threads.call(self._require_room)
            await write_blank(plan, disk_format=disk_format, size=size, threads=self.threads)
            await self.threads.call(self._place, plan)
        image = await self.threads.call(read_header, plan.path, disk_format=disk_format)
        if (image.virtual_size, image.backing) != (size, None):
            raise ImageRefused(f"{plan.path}: reads as {image}, not as a blank disk of {size}")
        return image

    async def settle(self, plan: FilePlan) -> None:
        """The job has stored that it made the disk."""
        await self.threads.call(folder.settle, plan)

    async def take_back(self, plan: FilePlan, *, made: bool) -> None:
        """Remove what the job wrote: the disk too where it has stored that it made it (`made`), or
        was about to."""
        await self.threads.call(folder.take_back, plan, made=made)

    async def remove(self, name: str, *, in_use: Mapping[Path, str]) -> None:
        """Remove a disk, whole or damaged; `in_use` are the files that domains have, by real paths,
        with the domains' names.

        Raises DiskNotFound, DiskInUse where a domain has it or a disk stands on it, or ImageBusy
        where any program writes to it.
        """
        await self.threads.call(self._remove, name, in_use)

    # ------------------------------------------------------------ in a thread
    def _files(self) -> Sequence[tuple[Path, DiskFormat]]:
        """The files that are called as disks are, with the format that their names say."""
        return [
            (path, _FORMATS[path.suffix])
            for path in sorted(self._folder.glob("[!.]*"), key=lambda path: path.stem)
            if path.suffix in _FORMATS
        ]

    def _list(self) -> Sequence[Disk]:
        disks = []
        for path, disk_format in self._files():
            try:
                disks.append(self._read(path, disk_format))
            except ImageNotFound:
                pass  # removed meanwhile
            except ImageRefused as error:
                log.warning("%s", error)
        return disks

    def _read(self, path: Path, disk_format: DiskFormat) -> Disk:
        image = read_header(path, disk_format=disk_format)
        base = None
        if image.backing is not None:
            base = self._bases.name_of(image.backing) or str(image.backing)
        return Disk(path.stem, image, base)

    def _find(self, name: str) -> Disk:
        return self._read(*self._file(name))

    def _file(self, name: str) -> tuple[Path, DiskFormat]:
        for path, disk_format in self._files():
            if path.stem == name:
                return path, disk_format
        raise DiskNotFound(f"{name}: no disk has this name")

    def _admit_new(self, name: str) -> None:
        if taken := [path for path, _ in self._files() if path.stem == name]:
            raise DiskExists(f"{name}: {taken[0]} exists already")
        self._require_room()

    def _place(self, plan: FilePlan) -> None:
        """Its name, unless a disk has that: of two that are made at once, in two formats, too."""
        with self._placing:
            for path, _ in self._files():
                if path.stem == plan.path.stem and path != plan.path:
                    raise DiskExists(f"{plan.path.stem}: {path} exists already")
            folder.place(plan)

    def _require_room(self) -> None:
        folder.require_room(self._folder, _NEW_FILE, reserve=self._reserve)

    def _remove(self, name: str, in_use: Mapping[Path, str]) -> None:
        path, _ = self._file(name)
        refuse_held(name, path, in_use=in_use)
        folder.refuse_writers(path)
        if above := read_overlays(self._folder)[path]:
            raise DiskInUse(f"{name}: {above[0]} stands on it", hint="Remove that disk first.")
        folder.remove(path)
