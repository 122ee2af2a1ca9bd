"""Ended jobs and their history go when they are old or too many."""

import asyncio
import contextlib
import logging
import time

from provisiond.clock import WallClock, boot_time
from provisiond.errors import StateUnusable, StateUnwritable
from provisiond.settings import Settings
from provisiond.store import Store

log = logging.getLogger(__name__)

_PRUNE_SECONDS = 3600.0
# Or so many new jobs, if that is sooner: of those that are kept, one in a hundred.
_PRUNE_JOBS = 100
_DAY = 86400.0


async def prune(store: Store, settings: Settings) -> None:
    """Remove what is too much and, once the date is reliable, what is old.

    Now, every hour, and whenever many jobs have come.
    """
    clock = WallClock(wall=time.time(), boot=boot_time().seconds)
    many = max(_PRUNE_JOBS, settings.keep_jobs // 100)
    while True:
        inserted = store.inserted
        wall, boot = time.time(), boot_time().seconds
        before = 0.0
        if clock.is_reliable(wall=wall, boot=boot):
            before = wall - settings.keep_days * _DAY
        try:
            if removed := await store.prune(before=before, keep=settings.keep_jobs):
                log.info("%d ended jobs are removed with their history", removed)
        except StateUnwritable:
            pass  # it is tried again
        except StateUnusable as error:  # _stop_on_damage ends the daemon, where that is to be
            log.error("the history is not pruned: %s", error)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PRUNE_SECONDS):
                await store.grown_to(inserted + many)
