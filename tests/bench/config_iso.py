"""3. The config ISO: in this process by pycdlib, and by two programs that shell scripts call."""

import itertools
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from time import perf_counter

from provisiond.api.guest_config import GuestConfig
from provisiond.iso.image import build_image, write_iso
from provisiond.iso.tree import VOLUME_LABEL, Identity, build_tree
from provisiond.plan import Plan
from tests.bench.crowd import body_of
from tests.bench.figures import Row, Spread, Target, median_row
from tests.lab.fixtures import TMPFS

GROUP = "3 config ISO"
MS = 1000.0
NONCE = "0123456789abcdef0123456789abcdef"


def a_tree() -> dict[str, bytes]:
    """The files of an ordinary guest's config ISO."""
    config = GuestConfig.model_validate(body_of(1)["config"])
    identity = Identity(NONCE, "6ec0bd7f-11c0-43da-975e-2a8ad9ebae0b", 1)
    return build_tree(config, identity, first_mac="52:54:00:00:00:01")


def genisoimage(files: Path, iso: Path) -> list[str | Path]:
    """How the old script makes it."""
    return ["genisoimage", "-quiet", *_flags(), "-output", iso, files]


def xorriso(files: Path, iso: Path) -> list[str | Path]:
    """The same by its successor, which speaks the same words."""
    return ["xorriso", "-as", "genisoimage", "-quiet", *_flags(), "-output", iso, files]


def _flags() -> list[str]:
    return ["-joliet", "-rock", "-volid", VOLUME_LABEL]


async def measure(*, quick: bool) -> AsyncIterator[Row]:
    """All ways in turns, from the files to the ISO on tmpfs.

    In another order each time: what runs behind a program finds the caches cold.
    """
    with tempfile.TemporaryDirectory(prefix="iso-", dir=TMPFS) as name:
        times = _in_turns(Path(name), rounds=10 if quick else 200)
    medians = {way: Spread.of(values).median for way, values in times.items()}
    for way, values in times.items():
        yield median_row(GROUP, way, values, "ms")
    ours = medians["in this process"]
    for way in ("genisoimage", "xorriso"):
        ratio = medians[way] / ours
        yield Row(GROUP, f"{way} over ours", ratio, "×", target=Target(5.0, "high"))


def _in_turns(folder: Path, *, rounds: int) -> Mapping[str, list[float]]:
    tree = a_tree()
    plan = Plan(NONCE, folder / "ours.iso", folder / "ours.iso.part")
    ways: Mapping[str, Callable[[], None]] = {
        "in this process": lambda: write_iso(plan, build_image(tree)),
        "in this process, not written": lambda: _build(tree),
        "genisoimage": lambda: _by_program(genisoimage, tree, folder),
        "xorriso": lambda: _by_program(xorriso, tree, folder),
    }
    times: dict[str, list[float]] = {way: [] for way in ways}
    orders = itertools.cycle(itertools.permutations(ways.items()))
    for order in itertools.islice(orders, rounds):
        for way, make in order:
            for made in folder.glob("*.iso"):  # of the round before; a job finds none in its place
                made.unlink()
            started = perf_counter()
            make()
            times[way].append(MS * (perf_counter() - started))
    return times


def _build(tree: Mapping[str, bytes]) -> None:
    build_image(tree)


def _by_program(
    argv: Callable[[Path, Path], list[str | Path]], tree: Mapping[str, bytes], folder: Path
) -> None:
    """A program reads files, so the files are written first: as a script has to do it."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        for file, content in tree.items():
            Path(name, file).write_bytes(content)
        subprocess.run(argv(Path(name), folder / "theirs.iso"), check=True, capture_output=True)
