"""Proof of life for systemd: WATCHDOG=1 while the event loop and every worker go on.

systemd ends a daemon that does not say it for WatchdogSec, and starts it again: its jobs are
resumed. The event loop is stuck where nothing here runs; a worker, which is a pool of threads,
where a call goes in and does not come out.

libvirt's threads are no such worker. Their calls wait for libvirtd, and a new daemon would wait for
the same libvirtd, without the secrets that were in the old one's memory. When libvirtd goes on or
is restarted, they are free again. So where calls hold all of them, the status and the journal say
it, and nobody is ended.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from provisiond import systemd
from provisiond.errors import StateUnusable, StateUnwritable
from provisiond.story import Tools
from provisiond.threads import Threads

log = logging.getLogger(__name__)

_STATUS_SECONDS = 10.0
_USUAL_WATCHDOG = 60.0  # systemd/provisiond.service; for the status where systemd wants no proof


@dataclass(frozen=True, slots=True)
class Worker:
    """A pool of threads that must never hang.

    `answer` returns once a new call has come through it; `longest_call` is for how many seconds the
    longest of its calls has run, where a call that takes long is one that hangs.
    """

    name: str
    answer: Callable[[], Awaitable[object]]
    longest_call: Callable[[], float] = lambda: 0.0


def workers_of(tools: Tools) -> Sequence[Worker]:
    """All but libvirt's. A call for an image may take long: a whole one is synced to its disk."""
    isos = tools.iso_threads
    return (
        Worker("state file", tools.store.answer),
        Worker("config ISOs", isos.answer, isos.longest_call),
        Worker("golden bases", tools.bases.threads.answer),
        Worker("disks", tools.disks.threads.answer),
        Worker("passwords, templates and loop devices", lambda: asyncio.to_thread(lambda: None)),
    )


class Watchdog:
    """Asks the workers, and tells systemd.

    One that has not answered for half of WatchdogSec is stuck, and systemd hears no more of us.
    """

    def __init__(
        self, workers: Sequence[Worker], libvirt: Threads, *, unfinished: Callable[[], int]
    ) -> None:
        """`unfinished` is how many jobs are, for the status."""
        self._workers = workers
        self._libvirt = libvirt
        self._unfinished = unfinished
        self._wanted = systemd.watchdog_seconds()
        self._patience = (self._wanted or _USUAL_WATCHDOG) / 2
        self._round = min(_STATUS_SECONDS, self._patience / 2)
        self._answered = {worker.name: time.monotonic() for worker in workers}
        self._told: set[str] = set()

    async def watch(self) -> None:
        """Tell systemd twice and more in each of its intervals, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for worker in self._workers:
                tasks.create_task(self._ask(worker), name=f"watch {worker.name}")
            while True:
                self._tell()
                await asyncio.sleep(self._round)

    async def _ask(self, worker: Worker) -> None:
        while True:
            # A full disk, or a file that somebody has damaged, is an answer: the thread goes on.
            with contextlib.suppress(StateUnwritable, StateUnusable):
                await worker.answer()
            self._answered[worker.name] = time.monotonic()
            await asyncio.sleep(self._round)

    def _tell(self) -> None:
        stuck = [worker.name for worker in self._workers if self._is_stuck(worker)]
        for worker in self._workers:
            self._log_once(
                worker.name,
                now=worker.name in stuck,
                error=f"{worker.name}: no answer for {self._patience:g} s; unless one comes soon,"
                " systemd starts provisiond again",
            )
        waits = self._libvirt.all_held() > self._patience
        self._log_once(
            "libvirt",
            now=waits,
            error="libvirt: calls that hang hold every thread; look whether libvirtd hangs",
        )
        status = f"STATUS={self._unfinished()} unfinished jobs"
        if waits:
            status += "; libvirt does not answer"
        if stuck:
            status += f"; stuck: {', '.join(stuck)}"
        alive = [] if self._wanted is None or stuck else ["WATCHDOG=1"]
        systemd.notify(status, *alive)

    def _is_stuck(self, worker: Worker) -> bool:
        silent = time.monotonic() - self._answered[worker.name]
        return max(silent, worker.longest_call()) > self._patience

    def _log_once(self, name: str, *, now: bool, error: str) -> None:
        if now and name not in self._told:
            self._told.add(name)
            log.error("%s", error)
        elif not now and name in self._told:
            self._told.remove(name)
            log.info("%s: answers again", name)
