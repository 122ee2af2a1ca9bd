"""The guest's script put into an image that is not booted.

    a copy of the image → the script, its README and start-up file in the copy → read back, checked
    → the copy takes the image's name

The image is either as it was or wholly baked, whenever this ends and by whatever. A second bake
writes the same again.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from provisiond.api.requests import DiskFormat
from provisiond.disk import image_file, qemu_img
from provisiond.disk.folder import is_immutable
from provisiond.disk.inspection import inspect
from provisiond.disk.manifest import read_manifest
from provisiond.errors import BaseChanged, BaseNotFound, ImageRefused, ProvisionError
from provisiond.images.agent_files import Agent, InitSystem, read_agent
from provisiond.images.file_tree import (
    Entry,
    FileTree,
    Kind,
    find,
    find_or_make_folder,
    is_folder,
)
from provisiond.images.image_lock import lock_for_replacing
from provisiond.images.root_system import System, recognise
from provisiond.images.root_tree import opened_root
from provisiond.images.start_up import NewFile, Wanted, plan_start_up
from provisiond.images.working_copy import working_copy

SCRIPT = "/usr/sbin/provision-guest"
README = "/usr/share/doc/provision-guest/README.md"
STATE = "/var/lib/provision-guest"


@dataclass(frozen=True, slots=True)
class Baked:
    """What is in the image now. `files` are paths in it, as they were asked for."""

    init: InitSystem
    distribution: str
    networks: tuple[str, ...]
    agent_version: str
    agent_sha256: str
    files: tuple[str, ...]


async def bake(
    image: Path,
    *,
    disk_format: DiskFormat,
    init: InitSystem | None = None,
    said: Callable[[str], None],
) -> Baked:
    """Put the script, its README and its start-up file into `image`, and enable it there.

    `init` is found where it is None; `said` is told each step. Raises ImageRefused, ImageNotFound,
    ImageBusy, NoSpace, StateUnwritable, ToolMissing, ToolFailed: then the image is as it was.
    """
    agent = read_agent()
    # A link to it stays one.
    path = image.resolve() if image.is_symlink() else image.absolute()
    async with _copy_to_bake(path, disk_format=disk_format) as copy:
        said(f"{image}: copied; the copy is looked at")
        async with opened_root(copy, disk_format=disk_format, writable=True, said=said) as tree:
            system = await recognise(tree)
            chosen = _choose(system, init)
            said(f"{image}: {system.name}, started by {chosen}")
            wanted = await _plan(tree, agent, chosen)
            await _put(tree, wanted)
        said(f"{image}: {len(wanted)} files and links are in the copy; it is read back")
        await _read_back(copy, wanted, disk_format=disk_format)
    said(f"{image}: baked with provision-guest {agent.version}")
    return Baked(
        init=chosen,
        distribution=system.name,
        networks=system.networks,
        agent_version=agent.version,
        agent_sha256=agent.sha256,
        files=tuple(one.path for one in wanted),
    )


# ---------------------------------------------------------------- the image, and its copy
@asynccontextmanager
async def _copy_to_bake(path: Path, *, disk_format: DiskFormat) -> AsyncIterator[Path]:
    """The copy for the block. Nobody can have the image meanwhile; errors speak of the image."""
    with image_file.opened(path) as descriptor:
        _refuse_bases(path)
        lock_for_replacing(descriptor, path)
        inspect(path, disk_format=disk_format)
        async with working_copy(path, descriptor) as copy:
            try:
                yield copy
            except ProvisionError as error:
                error.message = error.message.replace(str(copy), str(path))
                error.args = (error.message,)
                raise


def _refuse_bases(path: Path) -> None:
    """A golden base is never changed, and a file with two names would be two files afterwards."""
    hint = "Bake a copy of it, and import that as a new base."
    try:
        is_base = read_manifest(path.with_suffix(".json")).name == path.stem
    except BaseNotFound:
        is_base = False
    except BaseChanged:  # some other JSON file
        is_base = False
    if is_base:
        raise ImageRefused(f"{path}: is a registered golden base", hint=hint)
    if is_immutable(path):
        raise ImageRefused(f"{path}: is immutable (chattr +i), as golden bases are", hint=hint)
    if path.stat().st_nlink > 1:
        raise ImageRefused(
            f"{path}: has another name (a hard link), which would go on as it is",
            hint="Bake a copy of it: cp --sparse=always.",
        )


def _choose(system: System, init: InitSystem | None) -> InitSystem:
    chosen = init or system.init
    if chosen is None:
        raise ImageRefused(
            "it is not seen what starts programs at the boot of this image",
            hint=f"Say it: --init, one of {', '.join(InitSystem)}.",
        )
    return chosen


# ---------------------------------------------------------------- what is put in
async def _plan(tree: FileTree, agent: Agent, init: InitSystem) -> Sequence[Wanted]:
    return [
        NewFile(SCRIPT, agent.script, 0o755),
        NewFile(README, agent.readme, 0o644),
        *await plan_start_up(tree, agent, init),
    ]


async def _put(tree: FileTree, wanted: Sequence[Wanted]) -> None:
    # What a guest was given, of which the image was made: its clones would take it for their own.
    state = await _at(tree, STATE)
    if state is not None:
        await tree.remove(state)
    for one in wanted:
        path = await find_or_make_folder(tree, _folder(one)) / PurePosixPath(one.path).name
        if isinstance(one, NewFile):
            await tree.write(path, one.content, mode=one.mode)
        else:
            await tree.make_link(path, one.target)


def _folder(wanted: Wanted) -> str:
    return str(PurePosixPath(wanted.path).parent)


# ---------------------------------------------------------------- read back
async def _read_back(copy: Path, wanted: Sequence[Wanted], *, disk_format: DiskFormat) -> None:
    """Compare what is in the copy with what is wanted, opened anew and checked as at the start."""
    await qemu_img.check(copy, disk_format=disk_format)
    async with opened_root(
        copy, disk_format=disk_format, writable=False, said=lambda _: None
    ) as tree:
        if await _at(tree, STATE) is not None:
            raise ImageRefused(f"{STATE} is in the image though it was removed")
        for one in wanted:
            if (why := await _difference(tree, one)) is not None:
                raise ImageRefused(
                    f"{one.path} was written into a copy of the image and {why}",
                    hint="Is its file system full? The image is as it was.",
                )


async def _at(tree: FileTree, path: str) -> PurePosixPath | None:
    """Where `path` is; a link at its own end is not followed. None where nothing is there."""
    wanted = PurePosixPath(path)
    folder = await find(tree, str(wanted.parent))
    if folder is None or not await is_folder(tree, folder):
        return None
    return folder / wanted.name if await tree.look(folder / wanted.name) else None


async def _difference(tree: FileTree, wanted: Wanted) -> str | None:
    path = await _at(tree, wanted.path)
    entry = None if path is None else await tree.look(path)
    if path is None or entry is None:
        return "is not there"
    if isinstance(wanted, NewFile):
        return await _file_difference(tree, path, entry, wanted)
    if entry.kind is not Kind.LINK or await tree.read_link(path) != wanted.target:
        return "is no link to where it shall lead"
    return None


async def _file_difference(
    tree: FileTree, path: PurePosixPath, entry: Entry, wanted: NewFile
) -> str | None:
    if (entry.kind, entry.mode, entry.owner, entry.group) != (Kind.FILE, wanted.mode, 0, 0):
        return f"is a {entry.kind} of {entry.owner}:{entry.group} with mode {entry.mode:04o}"
    if await tree.read(path, limit=len(wanted.content) + 1) != wanted.content:
        return "reads otherwise"
    return None
