"""A story: one job, step by step, and its way back. What every kind of job has in common.

Every step may be asked for twice: after a crash the story is run again from the stored state. Each
fact is stored before the next step starts.
"""

import asyncio
import contextlib
import itertools
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from provisiond.api.replies import JobState
from provisiond.clock import boot_time
from provisiond.disk.bases import Bases
from provisiond.disk.disks import Disks
from provisiond.errors import (
    AttachGivenUp,
    Cancelled,
    DeadlinePassed,
    HypervisorUnavailable,
    ProvisionError,
    StateUnusable,
    StateUnwritable,
    XenstoreUnavailable,
)
from provisiond.job import TRANSITIONS, Failure, Job, advance
from provisiond.ports import GuestSignal
from provisiond.store import Fact, Store
from provisiond.threads import Threads
from provisiond.virt.libvirt import Hypervisor

log = logging.getLogger(__name__)

_R = TypeVar("_R")

LOOK_INTO_THE_GUEST = "Look at the guest's console: is it up, and does it see the disk?"

# What a job says once of a call that it makes again and again.
_TRIED_AGAIN: dict[type[ProvisionError], str] = {
    HypervisorUnavailable: "waits for libvirt",
    XenstoreUnavailable: "waits for xenstore",
    AttachGivenUp: "attaches again",
}


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a phase may take, in seconds (settings.py explains each)."""

    ready: float
    attach: float
    detach: float


@dataclass(frozen=True, slots=True)
class Tools:
    """What every story works with; `observe` sees the facts, `open_signal` is given the job and
    the socket of its guest's channel where its admission has seen that.

    `slots` bounds the jobs that wait for guests, `disk_slots` those that make a small file, and
    `image_slots` those that read or write a whole image.
    """

    store: Store
    hypervisor: Hypervisor
    bases: Bases
    disks: Disks
    iso_threads: Threads
    runtime_dir: Path
    image_dir: Path
    template_dir: Path
    limits: Limits
    slots: asyncio.Semaphore
    disk_slots: asyncio.Semaphore
    image_slots: asyncio.Semaphore
    by_tapdisk: bool
    open_signal: Callable[[Job, Path | None], GuestSignal]
    observe: Callable[[Job, Job], None]


class Story(ABC):
    """The story of one job: `_go_forward`, and what a failure takes back."""

    def __init__(self, job: Job, tools: Tools) -> None:
        self.job = job
        self.progress: tuple[str, float] | None = None
        self._tools = tools
        self._cancelled = job.cancel_requested
        self._until_deadline: asyncio.Timeout | None = None
        # Why the call that is made patiently has no answer yet.
        self._unavailable: HypervisorUnavailable | XenstoreUnavailable | AttachGivenUp | None = None

    async def run(self) -> None:
        """Bring the job to its end. Cancelling this task leaves it as stored, to be resumed."""
        failure = self.job.failure
        if self.job.may_fail and self.job.state is not JobState.UNDOING:
            failure = await self._try_to_go_forward()
        await self._end(failure)

    def cancel(self) -> None:
        """Make the story turn back, wherever it waits; without effect once nothing may fail."""
        self._cancelled = True
        limit = self._until_deadline
        if limit is not None and not limit.expired():  # else it is on its way back already
            limit.reschedule(asyncio.get_running_loop().time())

    async def give_up(self, error: ProvisionError) -> None:
        """Undo after an error that the story did not foresee; may be asked for again."""
        if not self.job.state.ended:
            await self._end(self.job.failure or Failure.of(error))

    async def close(self) -> None:  # noqa: B027 - most stories hold nothing
        """Let go of what the story holds; after `run` and `give_up`."""

    # ------------------------------------------------------------ the way
    @abstractmethod
    async def _go_forward(self) -> None:
        """Every step from the stored state to where nothing may fail any more."""

    async def _undo(self) -> str:
        """Take back what was made, never more; asked for again until it does not raise.

        Returns what to say of it.
        """
        return "undone"

    async def _finish(self) -> None:  # noqa: B027 - only where something cannot fail any more
        """What has to follow once nothing may fail any more, up to SUCCEEDED."""

    def _slots(self) -> asyncio.Semaphore:
        """What bounds the jobs of this kind that are at work at once."""
        return self._tools.slots

    async def _try_to_go_forward(self) -> Failure | None:
        """Go forward as far as a failure counts; the failure that stopped it."""
        try:
            left = self.job.seconds_left(wall=time.time(), boot=boot_time())
            async with asyncio.timeout(left) as self._until_deadline:
                if self._cancelled:
                    self.cancel()
                async with self._slots():
                    await self._go_forward()
        except TimeoutError:
            return Failure.of(await self._why_stopped())
        except ProvisionError as error:
            return Failure.of(error)
        finally:
            self._until_deadline = None
            self._unavailable = None
            self.progress = None
        return None

    async def _end(self, failure: Failure | None) -> None:
        if failure is not None and self.job.may_fail:
            await self._turn_back(failure)
        if not self.job.state.ended:
            await self._finish()

    async def _turn_back(self, failure: Failure) -> None:
        """Everything back to how it was, and FAILED."""
        if JobState.UNDOING in TRANSITIONS[self.job.kind][self.job.state]:
            await self._insist(JobState.UNDOING, f"undoing: {failure.message}", failure=failure)
        done = await self._until_done("cannot be undone yet", self._undo)
        said = f"{done}: " if self.job.state is JobState.UNDOING else ""
        await self._insist(JobState.FAILED, f"{said}{failure.message}", failure=failure)

    async def _why_stopped(self) -> ProvisionError:
        if self._cancelled:
            return Cancelled(f"{self.job.subject}: cancelled in {self.job.state}")
        allowed = self.job.deadline_at - self.job.created_at
        what = f"still {self.job.state} after {allowed:.0f} s"
        return self._too_late(what, hint=await self._late_hint())

    async def _late_hint(self) -> str | None:
        """What to do where the job's time ends in this state; None: what an operator always may."""
        return None

    def _too_late(self, what: str, *, hint: str | None) -> DeadlinePassed:
        """The deadline's error; it speaks of libvirt or xenstore where the job waited for one."""
        if self._unavailable is None:
            return DeadlinePassed(f"{self.job.subject}: {what}", hint=hint)
        return DeadlinePassed(
            f"{self.job.subject}: {what}: {self._unavailable}", hint=self._unavailable.hint
        )

    def _show(self, doing: str, fraction: float) -> None:
        """Let it be seen how far long work has come, from 0 to 1."""
        self.progress = (doing, fraction)

    # ------------------------------------------------------------ facts
    async def _save(self, to: JobState, detail: str, **facts: object) -> None:
        """Store a fact; where that fails, the job stays what it was."""
        await self._save_all((to, detail), **facts)

    async def _save_all(self, *steps: tuple[JobState, str], **facts: object) -> None:
        """Store steps between which nothing is done, all or none; `facts` come with the last."""
        way = [self.job]
        for number, (to, _detail) in enumerate(steps, 1):
            with_it = facts if number == len(steps) else {}
            way.append(advance(way[-1], to, at=time.time(), **with_it))
        self.job = way[-1]
        try:
            await self._tools.store.save(self.job, [Fact(to, detail) for to, detail in steps])
        except (StateUnwritable, StateUnusable):
            self.job = way[0]
            raise
        for before, after in itertools.pairwise(way):
            self._tools.observe(before, after)
        for _to, detail in steps:
            self._log(detail)

    async def _insist(self, to: JobState, detail: str, **facts: object) -> None:
        """Store a fact that nothing can take back, however long the state file is unwritable."""
        for pause in pauses():
            try:
                await self._save(to, detail, **facts)
            except StateUnwritable as error:
                self._log(f"cannot store that it is {to}: {error}", level=logging.ERROR)
                await asyncio.sleep(pause)
            else:
                return

    async def _note(self, detail: str) -> None:
        """Add a line to the job's history; the log has it even where it cannot be stored."""
        self._log(detail, level=logging.WARNING)
        with contextlib.suppress(StateUnwritable):
            note = Fact(self.job.state, detail, at=time.time())
            await self._tools.store.save(self.job, [note])

    def _log(self, detail: str, *, level: int = logging.INFO) -> None:
        log.log(level, "%s: %s", self.job.subject, detail, extra=journal_fields(self.job))

    # ------------------------------------------------------------ waiting
    async def _until_done(self, not_yet: str, step: Callable[[], Awaitable[_R]]) -> _R:
        """Take a step that has to be taken in the end, again and again; note each new reason."""
        last_reason = None
        for pause in pauses():
            try:
                return await step()
            except ProvisionError as error:
                if str(error) != last_reason:
                    last_reason = str(error)
                    await self._note(f"{not_yet}: {error}")
                await asyncio.sleep(pause)
        raise AssertionError("pauses() never ends")

    async def _patiently(
        self,
        call: Callable[..., Awaitable[_R]],
        *args: object,
        passing: tuple[type[ProvisionError], ...] = (),
        **kwargs: object,
    ) -> _R:
        """Make a call that may find libvirtd or xenstored gone, again until it is back.

        The same for an attach that libxl gives up, and for the errors that are `passing`. The
        deadline ends it.
        """
        reason: ProvisionError | None = None  # of this call: another may be made at the same time
        for pause in pauses():
            try:
                result = await call(*args, **kwargs)
            except (HypervisorUnavailable, XenstoreUnavailable, AttachGivenUp) as error:
                is_news = self._unavailable is None
                reason = self._unavailable = error
                if is_news:
                    await self._note(f"{_TRIED_AGAIN[type(error)]}: {error}")
            except passing:
                pass
            else:
                if self._unavailable is reason:
                    self._unavailable = None
                return result
            await asyncio.sleep(pause)
        raise AssertionError("pauses() never ends")

    @contextlib.asynccontextmanager
    async def _phase(
        self, doing: str, seconds: float, *, hint: str | None = None
    ) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError:
            what = f"{doing} took over {seconds:g} s"
            raise self._too_late(what, hint=hint) from None

    def _driver_phase(self) -> AbstractAsyncContextManager[None]:
        """The phase in which the guest's driver connects to a disk that is attached."""
        doing = "connecting the guest's disk driver"
        return self._phase(doing, self._tools.limits.attach, hint=LOOK_INTO_THE_GUEST)


def pauses() -> Iterator[float]:
    """How long to wait between tries, in seconds: 0.5, 1, 2, 4 … 30, 30, for ever."""
    pause = 0.5
    while True:
        yield pause
        pause = min(2 * pause, 30.0)


def journal_fields(job: Job) -> dict[str, str]:
    """What a line about the job carries in the journal."""
    fields = {"JOB_ID": job.id, "JOB_KIND": job.kind.value}
    return fields if job.domain_uuid is None else {**fields, "DOMAIN": job.subject}
