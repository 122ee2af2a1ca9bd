"""The power of the whole host fails at one call: what was not synced is lost, no guest runs."""

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence

from tests.faults.breakpoint import Point
from tests.faults.campaign import SECONDS, Row, give_up, row_of, until
from tests.faults.scenario import Scenario
from tests.faults.volumes import FOLDERS


def power_points_of(calls: Sequence[str]) -> Iterator[Point]:
    """Before each sync and each program, and after all: between them nothing reaches a disk."""
    seen: Counter[str] = Counter()
    for call in calls:
        seen[call] += 1
        if call.split()[0] in ("fsync", "fdatasync", "exec") and not _is_on_no_disk(call):
            yield Point(call, seen[call], "before")
    if calls:
        yield Point(calls[-1], seen[calls[-1]], "after")


def _is_on_no_disk(call: str) -> bool:
    """A sync on tmpfs, or of libvirt's own files, which are none of these disks."""
    return any(folder in call for folder in (*FOLDERS["run"], " ~"))


async def cut_power_at(scenario: Scenario, point: Point) -> Row:
    """While the call is held the disks get their last write; then the host starts again."""

    async def cut_power() -> bool:
        async with until(scenario, point, hold=True) as acting:
            reached = scenario.host.breakpoint.is_reached
            if not reached:
                await acting
            await scenario.host.lose_power()
            await give_up(acting, unless=False)
        await scenario.host.daemon.start()
        return reached

    if scenario.host.rebooted:
        async with asyncio.timeout(SECONDS):
            await scenario.after_reboot()
    return await row_of(scenario, "power cut", point, cut_power)
