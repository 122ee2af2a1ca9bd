"""How an image from outside becomes a golden base: two steps, each of which may be asked for twice.

    write_image   the source, looked at and checked → a copy of ours, checked, hashed, not named yet
    register      its name, mode 0444, its manifest, the immutable flag

Between the two the copy and the draft of its manifest lie beside each other under the job's names.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from provisiond.api.image_manifest import ImageManifest
from provisiond.api.requests import DiskFormat
from provisiond.disk import folder, qemu_img
from provisiond.disk.chain import DiskChain, DiskImage
from provisiond.disk.fingerprint import Fingerprint, hash_file, take_fingerprint
from provisiond.disk.folder import explained, is_placed, place, settle
from provisiond.disk.header import read_header
from provisiond.disk.image_file import opened
from provisiond.disk.inspection import inspect
from provisiond.disk.manifest import BaseOrder, Manifest, read_image_manifest, read_manifest
from provisiond.disk.new_image import write_copy
from provisiond.errors import (
    BaseChanged,
    BaseExists,
    BaseNotFound,
    ChainTooDeep,
    DiskExists,
    ImageBusy,
    ImageRefused,
    ProvisionError,
    ToolFailed,
)
from provisiond.plan import BasePlan, FilePlan
from provisiond.threads import Threads

_STANDS_ALONE = (DiskFormat.RAW, DiskFormat.VHD)
# Beyond the data: the tables of the copy and the manifest.
_OVERHEAD = 2**20


@dataclass(frozen=True, slots=True)
class Source:
    """An image that is held open: the path by which every program comes to just this file, and what
    it was when it was opened."""

    path: Path
    before: Fingerprint


def refuse_order(
    order: BaseOrder, source: Source, *, parent: DiskChain | None, max_chain: int
) -> None:
    """Refuse what cannot be imported, without writing anything; blocks.

    Raises ChainTooDeep, ImageRefused, ImageBusy, and ImageNotFound of the manifest.
    """
    if parent is not None:
        if order.format in _STANDS_ALONE:
            raise ImageRefused(
                f"{order.name}: a base that is {order.format} has no parent",
                hint="Import it as qcow2, or without a parent from an image that stands alone.",
            )
        # An overlay over it is what a base is for.
        if parent.depth + 2 > max_chain:
            raise ChainTooDeep(
                f"{order.name}: its overlays would be the top of {parent.depth + 2} images, "
                f"and {max_chain} may be"
            )
    try:
        inspect(
            source.path,
            disk_format=order.source_format,
            parent=None if parent is None else parent.top,
        )
    except OSError as error:  # of /proc and the like
        raise ImageRefused(f"{source.path}: cannot be read: {error.strerror}") from error
    folder.refuse_writers(source.path)
    if order.manifest is not None:
        read_image_manifest(order.manifest)


@contextmanager
def open_source(asked: Path) -> Iterator[Source]:
    """The image at `asked` for the block; blocks.

    Whoever owns a folder above it may put another in its place at any moment. So its name is that
    of its descriptor: what is looked at is what is read. Raises ImageNotFound, ImageRefused; errors
    of the block speak of `asked`.
    """
    with opened(asked) as descriptor:
        held = Path(f"/proc/self/fd/{descriptor}")  # as process.py hands it to other programs
        try:
            yield Source(held, take_fingerprint(held))
        except ProvisionError as error:
            error.message = error.message.replace(str(held), str(asked))
            error.args = (error.message,)
            raise


# ---------------------------------------------------------------- the copy
async def write_image(
    order: BaseOrder,
    source: Source,
    *,
    parent: DiskImage | None,
    reserve: int,
    threads: Threads,
    progress: Callable[[str, float], None],
) -> None:
    """Copy the source, which `refuse_order` has let pass; then write the draft of the manifest.

    Raises NoSpace, ImageRefused where its tables are damaged, ImageBusy where it changes meanwhile.
    """
    part = order.plan.image.part
    progress("checking", 0.0)
    await qemu_img.check(source.path, disk_format=order.source_format)
    made_of = await _read_made_of(order, source, threads, progress)
    size = await _read_size(order, source.path)
    wanted = await qemu_img.measure(
        source.path, disk_format=order.source_format, to_format=order.format
    )
    await threads.call(folder.remove, part)  # half a copy, of before a stop, takes room
    await threads.call(folder.require_room, part.parent, wanted + _OVERHEAD, reserve=reserve)
    checked = await write_copy(
        order.plan.image,
        source=source.path,
        source_format=order.source_format,
        disk_format=order.format,
        parent=parent,
        threads=threads,
        progress=lambda fraction: progress("converting", fraction),
    )
    await threads.call(_require_unchanged, source)
    await threads.call(_read_back, order, size, parent)
    await threads.call(folder.sync, part)
    digest = await hash_file(
        part, threads=threads, progress=lambda fraction: progress("hashing", fraction)
    )
    manifest = _manifest(order, size=size, sha256=digest, checked=checked, made_of=made_of)
    await threads.call(_write_draft, order.plan, manifest)


async def _read_made_of(
    order: BaseOrder, source: Source, threads: Threads, progress: Callable[[str, float], None]
) -> ImageManifest | None:
    """What the image's maker wrote of it; refused where it is of another image."""
    if order.manifest is None:
        return None
    made_of = await threads.call(read_image_manifest, order.manifest)
    digest = await hash_file(
        source.path, threads=threads, progress=lambda fraction: progress("checking", fraction)
    )
    if digest != made_of.sha256:
        raise ImageRefused(
            f"{order.manifest}: is of another image: the SHA-256 of {order.source} is {digest}",
            hint="Write it anew with provisionctl image describe, or remove it.",
        )
    return made_of


async def _read_size(order: BaseOrder, source: Path) -> int:
    """The source's virtual size: QEMU, which copies it, and its own header must agree."""
    seen = await qemu_img.read_image(source, disk_format=order.source_format)
    said = await asyncio.to_thread(read_header, source, disk_format=order.source_format)
    if seen.virtual_size != said.virtual_size:
        raise ImageRefused(
            f"{source}: has {said.virtual_size} bytes, of which QEMU sees {seen.virtual_size}",
            hint="Convert it to raw with the tools of where it comes from.",
        )
    return seen.virtual_size


def _require_unchanged(source: Source) -> None:
    if take_fingerprint(source.path) != source.before:
        raise ImageBusy(f"{source.path}: was changed while it was read")


def _read_back(order: BaseOrder, size: int, parent: DiskImage | None) -> None:
    part = order.plan.image.part
    if order.format is DiskFormat.RAW:
        inspect(part, disk_format=DiskFormat.RAW)  # what it holds may look like another format
    image = read_header(part, disk_format=order.format)
    wanted = None if parent is None else parent.path
    if (image.virtual_size, image.backing) != (size, wanted):
        raise ToolFailed(
            f"{order.name}: the copy has {image.virtual_size} bytes and stands on {image.backing}, "
            f"instead of {size} and {wanted}"
        )


def _manifest(
    order: BaseOrder, *, size: int, sha256: str, checked: bool, made_of: ImageManifest | None
) -> Manifest:
    status = order.plan.image.part.stat()
    return Manifest(
        name=order.name,
        format=order.format,
        virtual_size=size,
        file_size=status.st_size,
        mtime_ns=status.st_mtime_ns,
        sha256=sha256,
        parent=order.parent,
        source=str(order.source),
        source_format=order.source_format,
        checked=checked,
        job_id=order.job_id,
        imported_at=datetime.fromtimestamp(time.time(), UTC),
        made_of=made_of,
    )


def is_written(order: BaseOrder) -> bool:
    """Whether `write_image` has come to its end before."""
    plan = order.plan
    if is_registered(plan):
        return True
    try:
        manifest, status = read_manifest(_draft(plan).part), plan.image.part.stat()
    except (BaseNotFound, BaseChanged, FileNotFoundError):
        return False
    return (status.st_size, status.st_mtime_ns) == (manifest.file_size, manifest.mtime_ns)


def _draft(plan: BasePlan) -> FilePlan:
    """The manifest as a file of the job's own, which gets its name at the registration."""
    return FilePlan(plan.manifest, plan.image.part.with_suffix(".json"))


def _write_draft(plan: BasePlan, manifest: Manifest) -> None:
    draft = _draft(plan).part
    folder.write_whole(draft, manifest.to_json(), part=_unfinished(draft))


def _unfinished(draft: Path) -> Path:
    return draft.with_name(f"{draft.name}.part")


# ---------------------------------------------------------------- the base
def register(order: BaseOrder) -> Manifest:
    """Make the copy a base. Raises BaseExists; blocks."""
    plan, draft = order.plan, _draft(order.plan)
    if not is_registered(plan):
        if plan.manifest.exists():
            raise BaseExists(f"{order.name}: a base has this name already")
        with explained(plan.image.part):
            plan.image.part.chmod(0o444)
        try:
            place(plan.image)
            place(draft)
        except DiskExists as error:
            raise BaseExists(f"{order.name}: {error.message}") from error
    # The manifest says whose it is from now on. An immutable file keeps all its names: the second
    # one goes first.
    settle(plan.image)
    settle(draft)
    folder.make_immutable(plan.image.path)
    return read_manifest(plan.manifest)


def is_registered(plan: BasePlan) -> bool:
    """Whether the base's manifest is there, and of the job that has this plan."""
    try:
        manifest = read_manifest(plan.manifest)
    except (BaseNotFound, BaseChanged):
        return False
    return plan.image.part.name == f".{manifest.job_id}.part"


def take_back(plan: BasePlan) -> None:
    """Remove what the job wrote and what has not become a base; blocks."""
    if is_placed(plan.image):
        folder.make_mutable(plan.image.path)
    folder.take_back(plan.image, made=False)
    draft = _draft(plan)
    folder.take_back(draft, made=False)
    with explained(plan.manifest):
        _unfinished(draft.part).unlink(missing_ok=True)
