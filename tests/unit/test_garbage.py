"""When garbage is looked for: once at the start, where something has happened, and else seldom."""

import asyncio
import gc
import weakref
from collections.abc import Iterator

import pytest

from provisiond.garbage import collect_often

SOON = 10.0  # seconds; far more than any of this takes
ROUND = 0.001


class Cycle:
    """An object that only a look for garbage can end."""

    def __init__(self) -> None:
        self.itself = self


class Happenings:
    """What has happened so far, and how often that was asked."""

    def __init__(self) -> None:
        self.count = 0
        self.asked = 0
        self._more = asyncio.Event()

    def __call__(self) -> int:
        self.asked += 1
        self._more.set()
        return self.count

    async def rounds(self, number: int) -> None:
        """Wait for so many more rounds."""
        last = self.asked + number
        async with asyncio.timeout(SOON):
            while self.asked < last:
                self._more.clear()
                await self._more.wait()


@pytest.fixture(autouse=True)
def no_look_of_pythons_own() -> Iterator[None]:
    threshold = gc.get_threshold()
    gc.set_threshold(0)
    yield
    gc.set_threshold(*threshold)
    gc.unfreeze()


async def test_a_cycle_goes_once_something_has_happened_and_not_before() -> None:
    happened = Happenings()
    async with asyncio.TaskGroup() as tasks:
        collecting = tasks.create_task(collect_often(happened, seconds=ROUND))
        await happened.rounds(2)
        cycle = weakref.ref(Cycle())
        await happened.rounds(5)
        assert cycle() is not None
        happened.count += 1
        await happened.rounds(2)
        assert cycle() is None
        collecting.cancel()


async def test_what_becomes_garbage_a_round_after_it_happened_goes_as_well() -> None:
    happened = Happenings()
    async with asyncio.TaskGroup() as tasks:
        collecting = tasks.create_task(collect_often(happened, seconds=ROUND))
        await happened.rounds(2)
        happened.count += 1
        await happened.rounds(1)
        cycle = weakref.ref(Cycle())
        await happened.rounds(2)
        assert cycle() is None
        collecting.cancel()


async def test_a_cycle_goes_at_last_though_nothing_was_counted() -> None:
    happened = Happenings()
    async with asyncio.TaskGroup() as tasks:
        collecting = tasks.create_task(collect_often(happened, seconds=ROUND))
        await happened.rounds(1)
        cycle = weakref.ref(Cycle())
        await happened.rounds(61)
        assert cycle() is None
        collecting.cancel()


async def test_python_looks_by_itself_again_once_it_has_begun() -> None:
    gc.disable()
    happened = Happenings()
    async with asyncio.TaskGroup() as tasks:
        collecting = tasks.create_task(collect_often(happened, seconds=ROUND))
        await happened.rounds(1)
        assert gc.isenabled()
        assert gc.get_freeze_count() > 0
        collecting.cancel()
