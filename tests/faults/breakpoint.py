"""The calls by which provisiond changes the world, and the library that stops it at one of them."""

import itertools
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.lab.library import library

SOURCE = Path(__file__).with_name("breakpoint.c")


@dataclass(frozen=True, slots=True)
class Point:
    """Just before or just after the `count`th call of this name (breakpoint.c says what it is)."""

    call: str
    count: int
    when: Literal["before", "after"]

    def __str__(self) -> str:
        return f"{self.when} {self.call}" + (f" ({self.count})" if self.count > 1 else "")


class Breakpoint:
    """The library, and the folder by which it is told; outlives every daemon that it ends."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._library = library(SOURCE)
        self._wanted = folder / "wanted"
        self._calls = folder / "calls"
        self._reached = folder / "reached"
        self._go = folder / "go"
        os.mkfifo(self._go)
        self.no_kvm = folder / "no-kvm"
        self.no_kvm.touch()
        self._runs = itertools.count(1)

    @property
    def environment(self) -> Mapping[str, str]:
        """What a daemon is started with."""
        return {"LD_PRELOAD": str(self._library), "BREAKPOINT": str(self._wanted.parent)}

    def arm(self, point: Point | None, *, hold: bool = False) -> None:
        """From now on calls are recorded, and the point ends the daemon or holds the call."""
        for path in (self._calls, self._reached):
            path.unlink(missing_ok=True)
        where = "before 0 -" if point is None else f"{point.when} {point.count} {point.call}"
        part = self._wanted.with_suffix(".part")
        part.write_text(f"{next(self._runs)} {'hold' if hold else 'end'} {where}\n")
        part.rename(self._wanted)

    @property
    def is_reached(self) -> bool:
        """The point has come since `arm`: the daemon was ended, or the call is held."""
        return self._reached.exists()

    def let_go(self) -> None:
        """The call that is held is made; blocks until it has come to the FIFO."""
        with self._go.open("wb"):
            pass

    def disarm(self) -> Sequence[str]:
        """The calls since `arm`, in their order; from now on none is recorded."""
        self._wanted.unlink(missing_ok=True)
        return self._calls.read_text().splitlines() if self._calls.exists() else []


def points_of(calls: Sequence[str]) -> Iterator[Point]:
    """Both sides of every call; of several in a row on libvirt's own files, both sides of the first
    and after the last. What is only written says nothing before its sync: that has no points."""
    seen: Counter[str] = Counter()
    kept = (call for call in calls if not call.startswith("write "))
    for among_libvirts, group in itertools.groupby(kept, _is_libvirts):
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
