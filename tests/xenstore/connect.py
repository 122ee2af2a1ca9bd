"""provisiond's own client, connected; impatient, so that a test sees what it does about a loss."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from provisiond.xenstore.client import Health, Xenstore
from provisiond.xenstore.lost_events import LostEvents

SOON = 20.0  # seconds; far more than any of this takes
QUICK = Health(ping_every=0.2, silent_for=0.6, retry_first=0.02, retry_last=0.1)


class Counted(Xenstore):
    """A client that counts what it reads, by path."""

    def __init__(self, address: Path, *, health: Health | None = None) -> None:
        super().__init__(address, health=health)
        self.reads: Counter[str] = Counter()

    async def read(self, path: str) -> bytes:
        self.reads[path] += 1
        return await super().read(path)

    async def read_all(self, *paths: str) -> list[bytes | None]:
        self.reads.update(paths)
        return await super().read_all(*paths)


@asynccontextmanager
async def connected(address: Path, *, health: Health = QUICK) -> AsyncIterator[Counted]:
    xenstore = Counted(address, health=health)
    task = asyncio.create_task(xenstore.stay_connected())
    try:
        async with asyncio.timeout(SOON):
            await xenstore.available()
        yield xenstore
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@asynccontextmanager
async def looked_for(xenstore: Xenstore, *, seconds: float = 30.0) -> AsyncIterator[LostEvents]:
    """What finds lost events, at work."""
    lost_events = LostEvents(xenstore, seconds=seconds)
    task = asyncio.create_task(lost_events.look_for())
    try:
        yield lost_events
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
