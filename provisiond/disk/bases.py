"""The golden bases: images that are never changed, with a manifest each.

The manifests are the truth of which bases exist; that a file is still what its manifest says is
looked at before each use.
"""

import logging
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from provisiond.disk import base_import
from provisiond.disk.base_import import Source, refuse_order
from provisiond.disk.chain import DiskChain, DiskImage
from provisiond.disk.fingerprint import Fingerprint, hash_file, take_fingerprint
from provisiond.disk.folder import (
    is_immutable,
    make_mutable,
    prepare_folder,
    refuse_writers,
    remove,
)
from provisiond.disk.header import read_header, read_overlays
from provisiond.disk.manifest import BaseOrder, Manifest, difference, read_manifest
from provisiond.errors import (
    BaseChanged,
    BaseExists,
    BaseInUse,
    BaseNotFound,
    ChainTooDeep,
    ImageNotFound,
    ImageRefused,
)
from provisiond.plan import BasePlan
from provisiond.threads import Threads

Progress = Callable[[str, float], None]
"""Is told what is being done, and how much of it is, from 0 to 1."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BaseState:
    """A base as it is now. `changed` says how it differs from its manifest at a first look, None
    where it does not; `overlays` are the disks and bases that stand on it directly."""

    manifest: Manifest
    path: Path
    changed: str | None
    immutable: bool
    overlays: tuple[str, ...]


class Bases:
    """The bases in `folder`, and what stands on them there and in the folder `disks`.

    Both paths are real ones, which headers are compared with. `reserve` bytes are always left free;
    no chain has more than `max_chain` images.
    """

    def __init__(
        self,
        folder: Path,
        *,
        disks: Path,
        reserve: int,
        max_chain: int,
        private: Sequence[Path] = (),
    ) -> None:
        """What lies below a folder of `private` is never imported: it may be a secret."""
        self._folder = folder
        self._disks = disks
        self._reserve = reserve
        self._max_chain = max_chain
        self._private = private
        self.threads = Threads(size=4, name="bases")
        self._held: Counter[str] = Counter()
        self._leaving: set[str] = set()
        self._seen: dict[Path, tuple[Fingerprint, DiskImage]] = {}

    def prepare(self) -> None:
        """Make the folder where it is missing."""
        prepare_folder(self._folder)

    def close(self) -> None:
        """Wait for the calls that run."""
        self.threads.close()

    # ------------------------------------------------------------ look
    async def find(self, name: str) -> Manifest:
        """The manifest of a base. Raises BaseNotFound."""
        return await self.threads.call(self._read, name)

    async def list(self) -> Sequence[BaseState]:
        """All bases, by name. One whose manifest cannot be read is logged and left out."""
        return await self.threads.call(self._list)

    async def look_at(self, name: str) -> BaseState:
        """One base as it is now. Raises BaseNotFound, BaseChanged where its manifest is none."""
        return await self.threads.call(self._look_at, name)

    def path_of(self, manifest: Manifest) -> Path:
        """The file of a base."""
        return self._folder / manifest.file_name

    def name_of(self, path: Path) -> str | None:
        """The name of the base whose file has this path; None where it is none of ours."""
        return path.stem if path.parent == self._folder else None

    async def verify_hash(self, name: str, progress: Progress) -> None:
        """Read a base whole and compare it with its manifest. Raises as `hold` does."""
        async with self.hold(name) as chain:
            manifest = await self.find(name)
            digest = await hash_file(
                chain.top.path,
                threads=self.threads,
                progress=lambda fraction: progress("hashing", fraction),
            )
        if digest != manifest.sha256:
            raise BaseChanged(f"{name}: holds other data than at its import: its hash differs")

    @asynccontextmanager
    async def hold(self, name: str) -> AsyncIterator[DiskChain]:
        """A base that stays where it is for the block, and all that it stands on.

        Of each were verified size, time, mode and header, and that nobody has it open for writing.
        Raises BaseNotFound, BaseChanged which says what differs, BaseInUse while it is being
        removed, ImageBusy, ChainTooDeep.
        """
        if name in self._leaving:
            raise BaseInUse(
                f"{name}: is being removed", hint="Choose another: provisionctl base list."
            )
        self._held[name] += 1
        try:
            yield await self.threads.call(self._verify_unwritten, name)
        finally:
            self._held[name] -= 1
            if not self._held[name]:
                del self._held[name]

    # ------------------------------------------------------------ make
    async def admit_import(self, order: BaseOrder) -> None:
        """Refuse what cannot be imported, without writing anything.

        Raises BaseExists, BaseNotFound and BaseChanged of the parent, ChainTooDeep, ImageNotFound,
        ImageRefused, ImageBusy.
        """
        async with self._holding_parent(order) as parent:
            await self.threads.call(self._admit, order, parent)

    async def write_image(self, order: BaseOrder, progress: Progress) -> None:
        """Copy the source to the plan's part, check and hash it. May be asked for twice.

        Raises as `admit_import` does, and NoSpace.
        """
        if await self.threads.call(base_import.is_written, order):
            return
        async with self._holding_parent(order) as parent, AsyncExitStack() as stack:
            source = await self.threads.call(
                stack.enter_context, base_import.open_source(order.source)
            )
            await self.threads.call(self._refuse, order, source, parent)
            await base_import.write_image(
                order,
                source,
                parent=None if parent is None else parent.top,
                reserve=self._reserve,
                threads=self.threads,
                progress=progress,
            )

    async def register(self, order: BaseOrder) -> Manifest:
        """The written image becomes a base: its name, mode 0444, its manifest, the immutable flag.

        May be asked for twice. Raises BaseExists.
        """
        return await self.threads.call(base_import.register, order)

    async def is_registered(self, plan: BasePlan) -> bool:
        """Whether the import with this plan has become a base."""
        return await self.threads.call(base_import.is_registered, plan)

    async def take_back(self, plan: BasePlan) -> None:
        """Remove what the import with this plan wrote; may be asked for twice.

        Raises BaseInUse where it has become a base and something stands on it.
        """
        name = plan.manifest.stem
        if await self.threads.call(base_import.is_registered, plan):
            await self._leave(name, in_use={})
        await self.threads.call(base_import.take_back, plan)

    async def remove(self, name: str, *, in_use: Mapping[Path, str]) -> None:
        """Remove a base; `in_use` are the files that domains have, with the domains' names.

        Raises BaseNotFound, or BaseInUse while anything stands on it or works with it.
        """
        await self._leave(name, in_use=in_use)

    # ------------------------------------------------------------ in a thread
    def _read(self, name: str) -> Manifest:
        return read_manifest(self._folder / f"{name}.json")

    def _manifests(self) -> Sequence[Manifest]:
        manifests = []
        for path in sorted(self._folder.glob("[!.]*.json"), key=lambda path: path.stem):
            try:
                manifests.append(read_manifest(path))
            except BaseNotFound:
                pass  # removed meanwhile
            except BaseChanged as error:
                log.warning("%s", error)
        return manifests

    def _list(self) -> Sequence[BaseState]:
        overlays = read_overlays(self._folder, self._disks)
        return [self._state_of(manifest, overlays) for manifest in self._manifests()]

    def _look_at(self, name: str) -> BaseState:
        return self._state_of(self._read(name), read_overlays(self._folder, self._disks))

    def _state_of(
        self, manifest: Manifest, overlays: Mapping[Path | None, Sequence[Path]]
    ) -> BaseState:
        path = self.path_of(manifest)
        return BaseState(
            manifest=manifest,
            path=path,
            changed=self._change(manifest),
            immutable=is_immutable(path),
            overlays=tuple(file.stem for file in overlays[path] if file.name[0] != "."),
        )

    def _change(self, manifest: Manifest) -> str | None:
        try:
            self._verify(manifest.name)
        except (BaseChanged, BaseNotFound) as error:
            return error.message
        except ChainTooDeep:
            return None  # as it was imported: max_chain is another now
        return None

    def _verify_unwritten(self, name: str) -> DiskChain:
        chain = self._verify(name)
        for image in chain.images:
            refuse_writers(image.path)
        return chain

    def _verify(self, name: str) -> DiskChain:
        images: list[DiskImage] = []
        link: str | None = name
        while link is not None:
            if len(images) == self._max_chain:
                raise ChainTooDeep(f"{name}: stands on more than {self._max_chain} images")
            manifest = self._read(link)
            images.append(self._verify_link(manifest))
            link = manifest.parent
        return DiskChain(tuple(images))

    def _verify_link(self, manifest: Manifest) -> DiskImage:
        path = self.path_of(manifest)
        try:
            why = difference(manifest, path)
            fingerprint = take_fingerprint(path)
        except OSError as error:
            raise BaseChanged(f"{manifest.name}: {path} is gone: {error.strerror}") from error
        if why is not None:
            raise BaseChanged(f"{manifest.name}: {path} {why}")
        image = self._read_header(manifest, path, fingerprint)
        if image.virtual_size != manifest.virtual_size:
            raise BaseChanged(
                f"{manifest.name}: its header says {image.virtual_size} bytes, "
                f"its manifest {manifest.virtual_size}"
            )
        backing = None if image.backing is None else self.name_of(image.backing)
        if backing != manifest.parent or (image.backing is None) is not (backing is None):
            raise BaseChanged(f"{manifest.name}: its header says that it stands on {image.backing}")
        return image

    def _read_header(self, manifest: Manifest, path: Path, fingerprint: Fingerprint) -> DiskImage:
        """The base's header; it is read again where the file may have changed since."""
        known = self._seen.get(path)
        if known is not None and known[0] == fingerprint:
            return known[1]
        try:
            image = read_header(path, disk_format=manifest.format)
        except (ImageRefused, ImageNotFound) as error:
            raise BaseChanged(f"{manifest.name}: {error.message}") from error
        self._seen[path] = (fingerprint, image)
        return image

    # ------------------------------------------------------------ remove
    async def _leave(self, name: str, *, in_use: Mapping[Path, str]) -> None:
        if self._held[name] or name in self._leaving:
            raise BaseInUse(
                f"{name}: a job works with it",
                hint="Ask again when it has ended: provisionctl jobs lists those at work.",
            )
        self._leaving.add(name)
        try:
            await self.threads.call(self._remove, name, in_use)
        finally:
            self._leaving.discard(name)

    def _remove(self, name: str, in_use: Mapping[Path, str]) -> None:
        path = self.path_of(self._read(name))
        if path in in_use:
            raise BaseInUse(
                f"{name}: the domain {in_use[path]} has it",
                hint="Destroy that domain, or take the disk from it.",
            )
        overlays = read_overlays(self._folder, self._disks)
        if above := overlays[path]:
            names = ", ".join(file.name for file in above[:5])
            raise BaseInUse(f"{name}: {len(above)} images stand on it ({names})")
        if unknown := overlays[None]:
            raise BaseInUse(
                f"{name}: what {unknown[0]} stands on cannot be read",
                hint="Move that file away if it is none of provisiond's.",
            )
        if path.exists():
            make_mutable(path)
        remove(path)
        remove(self._folder / f"{name}.json")
        self._seen.pop(path, None)

    # ------------------------------------------------------------ import
    @asynccontextmanager
    async def _holding_parent(self, order: BaseOrder) -> AsyncIterator[DiskChain | None]:
        holding = nullcontext() if order.parent is None else self.hold(order.parent)
        async with holding as parent:
            yield parent

    def _admit(self, order: BaseOrder, parent: DiskChain | None) -> None:
        with base_import.open_source(order.source) as source:
            self._refuse(order, source, parent)

    def _refuse(self, order: BaseOrder, source: Source, parent: DiskChain | None) -> None:
        if order.plan.manifest.exists() or order.plan.image.path.exists():
            raise BaseExists(f"{order.name}: a base has this name already")
        real = Path(os.path.realpath(source.path))
        if any(real.is_relative_to(folder) for folder in self._private):
            raise ImageRefused(f"{order.source}: is provisiond's own, and no image")
        refuse_order(order, source, parent=parent, max_chain=self._max_chain)
