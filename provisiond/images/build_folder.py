"""The folder of one build: its recipe, the record of the phases that ended, the image, the logs.

    recipe.json    what is built
    phases.json    which phases ended, when, in how many seconds, with what result
    key            what from-iso builds here: all that makes another image makes another key
    image.qcow2    the builder's image, from the end of `build`
    logs/PHASE.log every line that the phase's tools said, each run below the one before
    work/          a builder's own; removed by the next run, whatever ended the last one
    lock           held by whoever is at work, and by every program that it started

Files appear whole. Whoever has the folder open has its lock.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from provisiond.api.message import Message
from provisiond.disk.folder import explained, sync, write_whole
from provisiond.errors import BuildBusy, BuildFailed, RecipeRefused, StateUnwritable
from provisiond.images import loop_devices
from provisiond.images.mount_points import mounts_below
from provisiond.images.phases import ORDER, Phase, after
from provisiond.images.recipe import Recipe, parse_name, parse_recipe
from provisiond.images.steps import Result

_OF_ROOT = Path("/var/cache/provisiond/builds")


class EndedPhase(Message):
    """A phase that ended well; `result` is what it found or made, by name."""

    ended_at: datetime
    seconds: float
    result: Result


_RECORD = TypeAdapter(dict[Phase, EndedPhase])


def default_folder(name: str) -> Path:
    """Where the build `name` is if nobody says otherwise. Raises RecipeRefused."""
    parse_name(name)
    if os.geteuid() == 0:
        return _OF_ROOT / name
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "provisiond" / "builds" / name


class BuildFolder:
    """A build's folder, while this process has its lock."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self.image = path / "image.qcow2"
        self.work = path / "work"
        self.logs = path / "logs"
        self._lock = lock
        self._recipe = path / "recipe.json"
        self._phases = path / "phases.json"
        self._key = path / "key"

    @property
    def lock_word(self) -> str:
        """The lock, as a word of a command line that hands it to the program (process.run)."""
        return f"/proc/self/fd/{self._lock}"

    # ------------------------------------------------------------ recipe
    def recipe(self) -> Recipe | None:
        """What is built here; None where nothing is yet."""
        try:
            return parse_recipe(self._recipe.read_bytes())
        except FileNotFoundError:
            return None

    def keep_recipe(self, recipe: Recipe) -> None:
        """Store the recipe; where it is another one than before, no phase has ended."""
        if self.recipe() == recipe:
            return
        self._phases.unlink(missing_ok=True)
        self.write(self._recipe, recipe.model_dump_json(indent=2))

    def keep_key(self, key: str) -> None:
        """Store the key; where it is another one than before, no phase has ended."""
        if self._key.exists() and self._key.read_bytes().strip() == key.encode():
            return
        self.begin(Phase.INIT)
        self.write(self._key, key)

    def forget_key(self) -> None:
        """From now on nobody knows what the phases were done with but the recipe."""
        self._key.unlink(missing_ok=True)

    # ------------------------------------------------------------ phases
    def ended(self) -> dict[Phase, EndedPhase]:
        """The phases that ended, in their order."""
        try:
            return parse_phases(self._phases.read_bytes())
        except FileNotFoundError:
            return {}

    def begin(self, phase: Phase) -> None:
        """From now on neither `phase` nor any after it has ended, whatever happens."""
        gone = {phase, *after(phase)}
        kept = {one: record for one, record in self.ended().items() if one not in gone}
        self._write_phases(kept)

    def end(self, phase: Phase, *, seconds: float, result: Result) -> None:
        """`phase` has ended well."""
        record = EndedPhase(ended_at=datetime.now(UTC), seconds=round(seconds, 3), result=result)
        self._write_phases(self.ended() | {phase: record})

    def _write_phases(self, ended: dict[Phase, EndedPhase]) -> None:
        found = {phase: record.model_dump(mode="json") for phase, record in ended.items()}
        self.write(self._phases, json.dumps(found, indent=2))

    # ------------------------------------------------------------ files
    def write(self, path: Path, text: str) -> None:
        """Put a text at `path`, whole."""
        write_whole(path, f"{text}\n".encode(), part=path.with_name(f".{path.name}.part"))

    def place_image(self, part: Path) -> None:
        """Make the whole file `part`, which is in this folder, the image."""
        sync(part)
        part.replace(self.image)
        sync(self.path)

    def log(self, phase: Phase) -> Path:
        """The log of the phase."""
        return self.logs / f"{phase}.log"

    def clear_work(self) -> None:
        """Make `work` an empty folder that nobody else may enter.

        Loop devices over files in it are detached. Raises BuildFailed where something is mounted in
        it: nothing is removed then. Raises StateUnwritable where the file system refuses.
        """
        if mounted := mounts_below(self.work, Path("/proc/self/mountinfo").read_text()):
            raise BuildFailed(
                f"{mounted[0]} is mounted in the folder of this build",
                hint=f"Look who needs it, then: umount {mounted[0]}",
            )
        with explained(self.work):
            if self.work.exists():
                loop_devices.detach_below(self.work.resolve())
                shutil.rmtree(self.work)
            self.work.mkdir(mode=0o700)


@contextmanager
def opened(path: Path) -> Iterator[BuildFolder]:
    """The folder, made where it is missing. Raises BuildBusy while another build is at work there.

    Programs that the build started count as well: after a kill it is free when they have ended.
    """
    try:
        (path / "logs").mkdir(parents=True, exist_ok=True)
        lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StateUnwritable(
            f"{path}: {error.strerror}", hint="Choose another folder with --folder."
        ) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BuildBusy(f"{path}: a build is at work in it") from None
        yield BuildFolder(path, lock)
    finally:
        os.close(lock)


def parse_phases(untrusted_text: bytes) -> dict[Phase, EndedPhase]:
    """The record of the phases that ended, in their order. Raises BuildFailed where it is none."""
    try:
        found = _RECORD.validate_json(untrusted_text)
    except ValidationError as error:
        raise BuildFailed(
            "phases.json in the build's folder is no record of phases",
            hint="Remove it: the phases are then done again.",
        ) from error
    return {phase: found[phase] for phase in ORDER if phase in found}


def required_recipe(folder: BuildFolder) -> Recipe:
    """What is built in the folder. Raises RecipeRefused where nothing is yet."""
    if (recipe := folder.recipe()) is None:
        raise RecipeRefused(f"{folder.path}: nothing is built here yet", hint="Say --from BUILDER.")
    return recipe
