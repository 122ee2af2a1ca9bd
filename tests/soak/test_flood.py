"""What `make soak` does about floods, small: how much of a flood is heard has a bound by design.

The bounds are of counts in the time that has passed, so a slow machine keeps them more easily.
"""

from pathlib import Path
from time import monotonic

from tests.soak.channel_flood import channel_flood
from tests.soak.neighbours import NEIGHBOURS
from tests.soak.xenstore_flood import xenstore_flood
from tests.xenstore.daemon import Xenstored

MIB = 2**20
SECONDS = 3


async def test_channels_that_flood_are_heard_at_their_pace(tmp_path: Path) -> None:
    async with channel_flood(tmp_path, times=1) as scene:
        began = monotonic()
        await scene.flood(on=True)
        waits = await scene.neighbours(SECONDS)
        await scene.flood(on=False)
        most = 18 * MIB + MIB * (monotonic() - began)
        assert all(0 < sent < most for sent in scene.sent), scene.sent
        assert len(waits) >= NEIGHBOURS  # they were heard meanwhile


async def test_xenstore_guests_that_flood_are_looked_at_at_their_pace(xenstored: Xenstored) -> None:
    async with xenstore_flood(xenstored, times=1) as scene:
        began = monotonic()
        await scene.flood(on=True)
        waits = await scene.neighbours(SECONDS)
        await scene.flood(on=False)
        most = 55 + 5 * (monotonic() - began)
        assert all(0 < reads < most for reads in scene.reads), scene.reads
        assert len(waits) >= NEIGHBOURS


async def test_jobs_leave_no_watch_and_no_follower_behind(xenstored: Xenstored) -> None:
    async with xenstore_flood(xenstored, times=1) as scene:
        at_rest = len(scene.xenstore._watches), len(scene.domains._followers)
        assert len(await scene.neighbours(1)) >= NEIGHBOURS
        assert (len(scene.xenstore._watches), len(scene.domains._followers)) == at_rest
