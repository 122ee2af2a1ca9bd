"""A file system is filled to the last block at one call, and has room again once that has shown.

The daemon goes on all the time: it refuses, fails the job, or says what it tries again.
"""

import asyncio
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence

from tests.faults.breakpoint import Point
from tests.faults.campaign import Row, row_of, until
from tests.faults.scenario import Scenario
from tests.faults.volumes import FOLDERS, Place

TAKES_ROOM = ("create", "exec", "ftruncate", "link", "mkdir", "rename", "write")
# What the daemon logs of what it does not give up.
TRIED_AGAIN = ("cannot store that it is", " yet: ")


def full_points_of(calls: Sequence[str], place: Place) -> Iterator[Point]:
    """Before each call that may take room there; of the writes to one file in a row, the first and
    the last."""
    seen: Counter[str] = Counter()
    for call, group in itertools.groupby(calls):
        first = seen[call] + 1
        seen[call] += len(list(group))
        if call.split()[0] in TAKES_ROOM and _is_in(place, call):
            yield Point(call, first, "before")
            if seen[call] > first:
                yield Point(call, seen[call], "before")


def _is_in(place: Place, call: str) -> bool:
    by_a_program = place == "images" and call.startswith("exec qemu-img")
    return by_a_program or any(folder in call for folder in FOLDERS[place])


async def fill_at(scenario: Scenario, point: Point, *, place: Place) -> Row:
    """No room from that call on until the request has its answer, or is tried again."""
    host = scenario.host
    said_before = len(host.daemon.said())

    def is_tried_again() -> bool:
        return any(words in host.daemon.said()[said_before:] for words in TRIED_AGAIN)

    async def fill() -> bool:
        async with until(scenario, point, hold=True) as acting:
            reached = host.breakpoint.is_reached
            if reached:
                with host.without_room(place):
                    await asyncio.to_thread(host.breakpoint.let_go)
                    while not acting.done() and not is_tried_again():
                        await asyncio.wait([acting], timeout=0.05)
            await acting
        if "Traceback" in host.daemon.said()[said_before:]:
            raise AssertionError("provisiond did not foresee it: its log has a traceback")
        return reached

    return await row_of(scenario, f"{place} full", point, fill)
