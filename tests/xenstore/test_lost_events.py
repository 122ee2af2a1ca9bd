"""Values that change though no watch tells: they are found, and nobody else is woken."""

import asyncio
import contextlib
from collections.abc import Mapping

from provisiond.xenstore.client import Health
from provisiond.xenstore.lost_events import LostEvents
from tests.xenstore.connect import SOON, Counted, connected, looked_for
from tests.xenstore.daemon import Xenstored

OFTEN = 0.2  # seconds


class Waits(contextlib.ExitStack):
    """Somebody who waits for each of these values to change, without any watch."""

    def __init__(self, lost_events: LostEvents, values: Mapping[str, bytes | None]) -> None:
        super().__init__()
        self.wakes = {path: asyncio.Event() for path in values}
        for path, value in values.items():
            self.enter_context(lost_events.noticed({path: value}, wake=self.wakes[path]))

    @property
    def woken(self) -> set[str]:
        return {path for path, wake in self.wakes.items() if wake.is_set()}


async def woken(wake: asyncio.Event) -> None:
    async with asyncio.timeout(SOON):
        await wake.wait()


async def read_again(xenstore: Counted, path: str, *, times: int = 1) -> None:
    """Until it has been read so often more, and whoever reads it has had the answer."""
    goal = xenstore.reads[path] + times + 1
    async with asyncio.timeout(SOON):
        for _ in iter(lambda: xenstore.reads[path] >= goal, True):
            await asyncio.sleep(0.01)


async def write_all(xenstore: Counted, count: int) -> dict[str, bytes | None]:
    paths = [f"/k/{number}" for number in range(count)]
    await asyncio.gather(*(xenstore.write(path, b"") for path in paths))
    return dict.fromkeys(paths, b"")


async def test_who_waits_for_a_value_is_woken_by_its_change_and_by_no_other(
    xenstore: Counted,
) -> None:
    async with looked_for(xenstore, seconds=OFTEN) as lost_events:
        values = {"/k/none": None} | await write_all(xenstore, 120)
        with Waits(lost_events, values) as waits:
            await read_again(xenstore, "/k/119", times=2)
            assert waits.woken == set()
            await xenstore.write("/k/7", b"done")
            await woken(waits.wakes["/k/7"])
            await xenstore.write("/k/none", b"")
            await woken(waits.wakes["/k/none"])
            await read_again(xenstore, "/k/119")
            assert waits.woken == {"/k/7", "/k/none"}


async def test_who_waits_for_many_values_is_woken_by_any(xenstore: Counted) -> None:
    values = await write_all(xenstore, 3)
    async with looked_for(xenstore, seconds=OFTEN) as lost_events:
        for path in values:
            wake, other = asyncio.Event(), asyncio.Event()
            with (
                lost_events.noticed(values, wake=wake),
                lost_events.noticed({"/k": b""}, wake=other),
            ):
                await xenstore.write(path, b"new")
                await woken(wake)
                await read_again(xenstore, "/k")
                assert not other.is_set()
            await xenstore.write(path, b"")


async def test_a_key_that_is_gone_is_a_change(xenstore: Counted) -> None:
    values = await write_all(xenstore, 3)
    async with looked_for(xenstore, seconds=OFTEN) as lost_events:
        with Waits(lost_events, values) as waits:
            await xenstore.rm("/k/1")
            await woken(waits.wakes["/k/1"])
            await read_again(xenstore, "/k/2")
            assert waits.woken == {"/k/1"}


async def test_nothing_is_read_for_who_waits_no_more(xenstore: Counted) -> None:
    values = await write_all(xenstore, 2)
    async with looked_for(xenstore, seconds=OFTEN) as lost_events:
        with lost_events.noticed({"/k/0": b""}, wake=asyncio.Event()):
            with lost_events.noticed({"/k/1": b""}, wake=asyncio.Event()):
                await read_again(xenstore, "/k/1")
            before = xenstore.reads["/k/1"]
            await read_again(xenstore, "/k/0", times=2)
            assert xenstore.reads["/k/1"] == before
        assert not lost_events._waits
    assert set(values) <= set(xenstore.reads)


async def test_thousands_that_wait_let_other_calls_pass(xenstore: Counted) -> None:
    async with looked_for(xenstore, seconds=OFTEN) as lost_events:
        values: dict[str, bytes | None] = dict.fromkeys([f"/k/{n}" for n in range(5000)], None)
        await xenstore.write("/k/4999", b"the last of them has changed")
        with Waits(lost_events, values) as waits:
            async with asyncio.timeout(SOON):
                for _ in iter(lambda: xenstore.reads["/k/0"] > 0, True):
                    await asyncio.sleep(0)
            await xenstore.children("/")
            assert waits.woken == set()  # they are still being read
            await woken(waits.wakes["/k/4999"])
            assert waits.woken == {"/k/4999"}


async def test_a_xenstored_that_is_started_anew_while_they_are_read_has_none_of_them(
    xenstored: Xenstored,
) -> None:
    async with (
        connected(xenstored.socket, health=Health()) as xenstore,
        looked_for(xenstore, seconds=OFTEN) as lost_events,
    ):
        values = await write_all(xenstore, 1000)
        xenstored.stop()
        with Waits(lost_events, values) as waits:
            async with asyncio.timeout(SOON):
                for _ in iter(lambda: xenstore.reads["/k/999"] > 0, True):
                    await asyncio.sleep(0.01)
            xenstored.kill()
            assert waits.woken == set()
            xenstored.start()
            for wake in waits.wakes.values():
                await woken(wake)


async def test_what_cannot_be_read_wakes_who_waits_for_it_and_ends_no_look(
    xenstore: Counted,
) -> None:
    async with looked_for(xenstore, seconds=OFTEN) as lost_events:
        no_value = asyncio.Event()
        with lost_events.noticed({"@releaseDomain": None}, wake=no_value):  # EINVAL
            await woken(no_value)
        with Waits(lost_events, {"/k/1": None}) as waits:
            await xenstore.write("/k/1", b"")
            await woken(waits.wakes["/k/1"])
