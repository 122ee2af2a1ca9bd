"""The store of results: what was built of an ISO, found again by the ISO's hash and the recipe.

A result is a folder of its own, named by its key; it appears whole. Nothing in it is ever changed.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from provisiond import __version__
from provisiond.disk.folder import explained, sync
from provisiond.images.agent_files import read_agent
from provisiond.images.download import hash_of
from provisiond.images.recipe import IsoRecipe
from provisiond.process import run

_OF_ROOT = Path("/var/cache/provisiond/results")
_IMAGE, _ABOUT, _PART = "image.qcow2", "about.json", ".part"


def default_store() -> Path:
    """Where results are kept if nobody says otherwise."""
    if os.geteuid() == 0:
        return _OF_ROOT
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "provisiond" / "results"


def key_of(recipe: IsoRecipe, *, iso_sha256: str, answers: str) -> str:
    """The key of what an ISO becomes: whatever would make another image makes another key."""
    # Not where the ISO comes from, nor how much of the host the installation had.
    how = {"iso", "sha256", "answers", "memory_mib", "vcpus", "minutes", "libvirt_uri", "network"}
    made_of = {
        "iso": iso_sha256,
        "answers": answers,
        "recipe": recipe.model_dump(mode="json", exclude=how),
        "agent": read_agent().sha256,
        "version": __version__,
    }
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


class Results:
    """The store at `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def load(self, key: str, image: Path) -> str | None:
        """Copy the result to `image`; its SHA-256, or None where there is none that is whole.

        One that is damaged is removed: the image is then built again.
        """
        folder = self._path / key
        try:
            wanted = json.loads((folder / _ABOUT).read_bytes())["sha256"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        await _copy(folder / _IMAGE, image)
        if hash_of(image) != wanted:
            image.unlink()
            shutil.rmtree(folder)
            return None
        return str(wanted)

    async def keep(self, key: str, image: Path) -> None:
        """Keep a copy of the image as the result for this key; one that is there stays."""
        folder, part = self._path / key, self._path / f".{key}{_PART}"
        if folder.exists():
            return
        with explained(self._path), self._begun(part) as is_ours:
            if not is_ours:
                return  # somebody else is at this very result
            await _copy(image, part / _IMAGE)
            (part / _ABOUT).write_text(json.dumps({"sha256": hash_of(part / _IMAGE)}))
            for path in (part / _IMAGE, part / _ABOUT, part):
                sync(path)
            try:
                part.rename(folder)
            except OSError:
                shutil.rmtree(part)
                if not folder.exists():
                    raise
            sync(self._path)

    @contextmanager
    def _begun(self, part: Path) -> Iterator[bool]:
        """Make `part` an empty folder, locked for the block; False where another has it.

        What killed ones have left in the store goes: their locks went with them.
        """
        self._path.mkdir(parents=True, exist_ok=True)
        with ExitStack() as held:
            with _opened(self._path) as store:
                fcntl.flock(store, fcntl.LOCK_EX)  # no longer than this takes
                for left in self._path.glob(f".*{_PART}"):
                    with _opened(left) as descriptor:
                        if _takes_lock(descriptor):
                            shutil.rmtree(left)
                is_ours = not part.exists()
                if is_ours:
                    part.mkdir(mode=0o700)
                    fcntl.flock(held.enter_context(_opened(part)), fcntl.LOCK_EX)
            yield is_ours


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _takes_lock(descriptor: int) -> bool:
    """Whether this process has got the lock now, which nobody else had."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


async def _copy(source: Path, target: Path) -> None:
    """A copy that shares the blocks where the file system can, and has holes where it cannot."""
    await run(["cp", "--reflink=auto", "--sparse=always", "--", source, target])
