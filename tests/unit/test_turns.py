"""Who is attached at once, and who in turn."""

import asyncio
from pathlib import Path

import pytest

from provisiond.errors import AttachGivenUp
from provisiond.virt.libvirt.turns import Turns

DISKS = [Path("/run/one.iso"), Path("/run/two.iso"), Path("/run/three.iso")]


class Attaches:
    """Attaches that last until `go_on`; `most` is how many there were at once."""

    def __init__(self) -> None:
        self.turns = Turns()
        self.now: list[Path] = []
        self.most = 0
        self.go_on = asyncio.Event()

    async def attach(self, source: Path, *, error: Exception | None = None) -> None:
        async with self.turns.wait(source):
            self.now.append(source)
            self.most = max(self.most, len(self.now))
            try:
                await self.go_on.wait()
                await asyncio.sleep(0)
            finally:
                self.now.remove(source)
            if error is not None:
                raise error

    async def give_up(self, *sources: Path) -> None:
        """All at once, and libxl gives them up."""
        self.go_on.set()
        tries = (self.attach(source, error=AttachGivenUp("too busy")) for source in sources)
        ends = await asyncio.gather(*tries, return_exceptions=True)
        assert [type(end) for end in ends] == [AttachGivenUp] * len(sources)
        self.go_on.clear()
        self.most = 0

    async def attach_all(self, *sources: Path) -> None:
        """All at once; they succeed, and nobody waits for ever."""
        async with asyncio.timeout(10), asyncio.TaskGroup() as group:
            for source in sources:
                group.create_task(self.attach(source))
            for _turn in range(10):
                await asyncio.sleep(0)
            self.go_on.set()


async def test_first_attaches_are_made_at_once() -> None:
    attaches = Attaches()
    await attaches.attach_all(*DISKS)
    assert attaches.most == len(DISKS)


async def test_those_that_were_given_up_come_one_by_one() -> None:
    attaches = Attaches()
    await attaches.give_up(*DISKS)
    await attaches.attach_all(*DISKS)
    assert attaches.most == 1


async def test_given_up_again_and_the_next_one_has_its_turn() -> None:
    attaches = Attaches()
    await attaches.give_up(*DISKS)
    await attaches.give_up(*DISKS)
    await attaches.attach_all(*DISKS)
    assert attaches.most == 1


async def test_a_first_attach_does_not_wait_for_one_in_its_turn() -> None:
    attaches = Attaches()
    await attaches.give_up(DISKS[0])
    await attaches.attach_all(*DISKS)
    assert attaches.most == len(DISKS)


async def test_once_attached_it_is_attached_at_once_the_next_time() -> None:
    attaches = Attaches()
    await attaches.give_up(*DISKS)
    await attaches.attach_all(*DISKS)
    attaches.go_on.clear()
    await attaches.attach_all(*DISKS)
    assert attaches.most == len(DISKS)


async def test_what_is_forgotten_has_no_turn() -> None:
    attaches = Attaches()
    await attaches.give_up(*DISKS)
    for source in DISKS:
        attaches.turns.forget(source)
    await attaches.attach_all(*DISKS)
    assert attaches.most == len(DISKS)


async def test_who_is_cancelled_in_the_queue_leaves_its_turn_to_the_next() -> None:
    attaches = Attaches()
    await attaches.give_up(*DISKS)
    first, second, third = (asyncio.create_task(attaches.attach(source)) for source in DISKS)
    for _turn in range(10):
        await asyncio.sleep(0)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    assert attaches.now == DISKS[:1]
    attaches.go_on.set()
    async with asyncio.timeout(10):
        await asyncio.gather(first, third)
    assert attaches.most == 1
