"""Where provisiond is cut off: the calls that change the world, and the library that ends it."""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.lab.library import library

SOURCE = Path(__file__).with_name("power_cut.c")


@dataclass(frozen=True, slots=True)
class Point:
    """Just before or just after the `count`th call of this name (power_cut.c says what it is)."""

    call: str
    count: int
    when: Literal["before", "after"]

    def __str__(self) -> str:
        return f"{self.when} {self.call}" + (f" ({self.count})" if self.count > 1 else "")


class PowerCut:
    """The library, and the folder by which it is told; outlives every daemon that it ends."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._library = library(SOURCE)
        self._wanted = folder / "wanted"
        self._calls = folder / "calls"
        self._ended = folder / "ended"
        self.no_kvm = folder / "no-kvm"
        self.no_kvm.touch()
        self._runs = itertools.count(1)

    @property
    def environment(self) -> Mapping[str, str]:
        """What a daemon is started with."""
        return {"LD_PRELOAD": str(self._library), "POWER_CUT": str(self._wanted.parent)}

    def arm(self, point: Point | None) -> None:
        """From now on calls are recorded, and the one that is the point ends the daemon."""
        for path in (self._calls, self._ended):
            path.unlink(missing_ok=True)
        where = "before 0 -" if point is None else f"{point.when} {point.count} {point.call}"
        part = self._wanted.with_suffix(".part")
        part.write_text(f"{next(self._runs)} {where}\n")
        part.rename(self._wanted)

    @property
    def has_ended(self) -> bool:
        """The daemon was ended by it since `arm`."""
        return self._ended.exists()

    def disarm(self) -> Sequence[str]:
        """The calls since `arm`, in their order; from now on none is recorded."""
        self._wanted.unlink(missing_ok=True)
        return self._calls.read_text().splitlines() if self._calls.exists() else []


def points_of(calls: Sequence[str]) -> Iterator[Point]:
    """Both sides of every call; of several in a row on libvirt's own files, both sides of the first
    and after the last."""
    seen: Counter[str] = Counter()
    for among_libvirts, group in itertools.groupby(calls, _is_libvirts):
        points = []
        for call in group:
            seen[call] += 1
            points += [Point(call, seen[call], "before"), Point(call, seen[call], "after")]
        if among_libvirts and len(points) > 2:
            points = [*points[:2], points[-1]]
        yield from points


def _is_libvirts(call: str) -> bool:
    verb, *words = call.split()
    return verb != "say" and any(word.startswith("~") for word in words)
