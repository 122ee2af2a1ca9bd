"""What no watch has told: values that somebody waits for are read again now and then.

oxenstored can lose a watch's event. One task reads for all that wait, many keys a write, and wakes
only whose value is another: a look by each of a thousand jobs would cost tens of times as much.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from provisiond.errors import XenstoreUnavailable
from provisiond.xenstore.client import Xenstore

_LOOK_AGAIN_SECONDS = 30.0
# What is due within this part of the time is read together: a task that wakes up seldom.
_TOGETHER = 1 / 15


@dataclass(eq=False, slots=True)
class _Wait:
    values: Mapping[str, bytes | None]
    wake: asyncio.Event
    due: float


class LostEvents:
    """Finds what watches have not told; a task (`look_for`) does it."""

    def __init__(self, xenstore: Xenstore, *, seconds: float = _LOOK_AGAIN_SECONDS) -> None:
        self._xenstore = xenstore
        self._seconds = seconds
        self._waits: OrderedDict[_Wait, None] = OrderedDict()  # in the order of their time

    @contextmanager
    def noticed(self, values: Mapping[str, bytes | None], *, wake: asyncio.Event) -> Iterator[None]:
        """Sets the event where a path has another value than this one (None: no such node).

        At most about `seconds` after the value has changed, as long as xenstored answers.
        """
        wait = _Wait(values, wake, self._next_time())
        self._waits[wait] = None
        try:
            yield
        finally:
            del self._waits[wait]

    async def look_for(self) -> None:
        """Read again all that is waited for, each in its time; until this task is cancelled."""
        while True:
            # Whoever comes while nobody waits is due later than this.
            due = next((wait.due for wait in self._waits), self._next_time())
            await asyncio.sleep(due - asyncio.get_running_loop().time())
            try:
                await self._look()
            except XenstoreUnavailable:
                await self._xenstore.available()

    async def _look(self) -> None:
        soon = asyncio.get_running_loop().time() + self._seconds * _TOGETHER
        waits = []
        for wait in self._waits:
            if wait.due > soon:
                break
            waits.append(wait)
        try:
            values = await self._xenstore.read_all(*(path for one in waits for path in one.values))
        except OSError:  # of one of them: whoever waits for that learns it by a read of its own
            values = []
        found = iter(values)
        due = self._next_time()
        for wait in waits:
            # Of each path, also where one before it has changed.
            changed = [next(found, ...) != value for value in wait.values.values()]
            if any(changed):
                wait.wake.set()
            if wait in self._waits:
                wait.due = due
                self._waits.move_to_end(wait)

    def _next_time(self) -> float:
        return asyncio.get_running_loop().time() + self._seconds
