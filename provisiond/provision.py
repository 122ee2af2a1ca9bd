"""The story: one job, step by step, and undo.

    ACCEPTED → DISKS_CREATED → DOMAIN_STARTED → ISO_WRITTEN → ISO_ATTACHED
        ─the guest's verdict→ GUEST_CONFIGURED → ISO_DETACHED → SUCCEEDED
    failure, cancel or deadline → UNDOING → FAILED

Every step may be asked for twice: after a crash the story is run again from the stored state. Each
fact is stored before the next step starts. Once the guest has won (GUEST_CONFIGURED) nothing
reverts; removing the ISO is then tried until it is gone, as it is when undoing.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from provisiond.api.messages import GuestConfig, JobState
from provisiond.errors import (
    Cancelled,
    DeadlinePassed,
    DomainNotRunning,
    GuestFailed,
    GuestRestarted,
    HypervisorFailed,
    HypervisorUnavailable,
    Interrupted,
    ProvisionError,
    StateUnwritable,
    XenstoreUnavailable,
)
from provisiond.guest.verdict import Done, Failed, Verdict
from provisiond.iso.image import build_image, destroy_iso, write_iso
from provisiond.iso.tree import Identity, build_tree
from provisiond.job import Failure, Job, Proof, advance
from provisiond.plan import plan_job
from provisiond.ports import GuestSignal
from provisiond.store import Fact, Store
from provisiond.threads import Threads
from provisiond.virt.libvirt import Hypervisor

log = logging.getLogger(__name__)

_R = TypeVar("_R")

# What libvirt says of a Xen domain for some seconds while it starts it anew.
_OF_A_REBOOT = (DomainNotRunning, HypervisorFailed)


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a phase may take, in seconds (settings.py explains each)."""

    ready: float
    attach: float
    detach: float


@dataclass(frozen=True, slots=True)
class Tools:
    """What every story works with: `slots` bounds the jobs at work, `observe` sees the facts."""

    store: Store
    hypervisor: Hypervisor
    iso_threads: Threads
    runtime_dir: Path
    limits: Limits
    slots: asyncio.Semaphore
    open_signal: Callable[[Job], GuestSignal]
    observe: Callable[[Job, Job], None]


class Provisioning:
    """The story of one job. `config` (with its secret) is None when the job is resumed."""

    def __init__(self, job: Job, config: GuestConfig | None, tools: Tools) -> None:
        self.job = job
        self._config = config
        self._tools = tools
        self._plan = plan_job(job.id, runtime_dir=tools.runtime_dir)
        self._signal = tools.open_signal(job)
        self._cancelled = job.cancel_requested
        self._until_deadline: asyncio.Timeout | None = None
        # Why the call that is made patiently has no answer yet.
        self._unavailable: HypervisorUnavailable | XenstoreUnavailable | None = None
        # What was done in an earlier try of the ISO's end still counts in the proof.
        self._detached_at: float | None = None
        self._overwritten = False

    async def run(self) -> None:
        """Bring the job to its end. Cancelling this task leaves it as stored, to be resumed."""
        failure = self.job.failure
        if not self.job.guest_has_won and self.job.state is not JobState.UNDOING:
            failure = await self._try_to_configure()
        await self._end(failure)

    def cancel(self) -> None:
        """Make the story turn back, wherever it waits; without effect once the guest has won."""
        self._cancelled = True
        limit = self._until_deadline
        if limit is not None and not limit.expired():  # else it is on its way back already
            limit.reschedule(asyncio.get_running_loop().time())

    async def give_up(self, error: ProvisionError) -> None:
        """Undo after an error that the story did not foresee; may be asked for again."""
        if not self.job.state.ended:
            await self._end(self.job.failure or Failure.of(error))

    async def close(self) -> None:
        """Let go of the guest's word and of the secret; after `run` and `give_up`."""
        self._config = None
        await self._signal.close()

    # ------------------------------------------------------------ forward
    async def _try_to_configure(self) -> Failure | None:
        """Go forward until the guest has won; the failure that stopped it otherwise."""
        try:
            async with asyncio.timeout(self.job.deadline_at - time.time()) as self._until_deadline:
                if self._cancelled:
                    self.cancel()
                async with self._tools.slots:
                    await self._configure()
        except TimeoutError:
            return Failure.of(self._why_stopped())
        except ProvisionError as error:
            return Failure.of(error)
        finally:
            self._until_deadline = None
            self._unavailable = None
        return None

    async def _configure(self) -> None:
        if not self.job.has_reached(JobState.DISKS_CREATED):
            await self._save(JobState.DISKS_CREATED, "the domain has its own disks")
        if not self.job.has_reached(JobState.DOMAIN_STARTED):
            await self._save(JobState.DOMAIN_STARTED, "the domain was running already")
        if not self.job.has_reached(JobState.ISO_WRITTEN):
            await self._write_iso()
        if not self.job.has_reached(JobState.ISO_ATTACHED):
            await self._attach_iso()
        else:
            await self._attach_iso_again(rebooting=False)
        await self._await_verdict()

    async def _write_iso(self) -> None:
        if not self._plan.iso.exists():
            if self._config is None:
                raise Interrupted(
                    f"{self.job.domain}: provisiond was stopped before the config ISO was written"
                )
            live = await self._patiently(self._tools.hypervisor.live_xml, self.job.domain_uuid)
            identity = Identity(self._plan.nonce, self.job.domain_uuid, self.job.generation)
            first_mac = next(iter(live.macs), None)
            tree = build_tree(self._config, identity, first_mac=first_mac)
            image = await self._tools.iso_threads.call(build_image, tree)
            await self._tools.iso_threads.call(write_iso, self._plan, image)
        self._config = None  # from here on the secret is on the ISO alone
        await self._save(JobState.ISO_WRITTEN, "config ISO written and read back")

    async def _attach_iso(self) -> None:
        self._require_iso()
        await self._patiently(self._signal.listen)
        sign = await self._await_readiness()
        target = await self._attach()
        await self._save(
            JobState.ISO_ATTACHED,
            f"config ISO attached as {target} ({sign})",
            target=target,
            attached_at=time.time(),
        )

    def _require_iso(self) -> None:
        if not self._plan.iso.exists():
            raise Interrupted(f"{self.job.domain}: the config ISO was lost with the host's memory")

    async def _attach_iso_again(self, *, rebooting: bool) -> None:
        """After a stop of ours, or a reboot of the guest's: on Xen that takes the disk away."""
        await self._patiently(self._signal.listen)
        if not await self._is_connected(rebooting=rebooting):
            self._require_iso()
            target = await self._attach(rebooting=rebooting)
            await self._note(f"config ISO attached again as {target}: the guest was started anew")

    async def _attach(self, *, rebooting: bool = False) -> str:
        """Attach, and wait until the guest's driver has the disk; again where a reboot took it.

        For a moment of the reboot libvirt shows the old domain and its disk, and then none.
        """
        for pause in pauses():
            async with self._phase("attaching the config ISO", self._tools.limits.attach):
                target = await self._patiently(
                    self._tools.hypervisor.attach,
                    self.job.domain_uuid,
                    iso=self._plan.iso,
                    target=self.job.request.get("target"),
                    passing=_OF_A_REBOOT if rebooting else (),
                )
            if await self._is_connected(rebooting=rebooting):
                return target
            rebooting = True
            await asyncio.sleep(pause)
        raise AssertionError("pauses() never ends")

    async def _is_connected(self, *, rebooting: bool) -> bool:
        async with self._phase("connecting the guest's disk driver", self._tools.limits.attach):
            return await self._patiently(
                self._tools.hypervisor.is_connected,
                self.job.domain_uuid,
                self._plan.iso,
                passing=_OF_A_REBOOT if rebooting else (),
            )

    async def _await_readiness(self) -> str:
        """The guest's sign that it can take the ISO, or that it gave none."""
        try:
            async with asyncio.timeout(self._tools.limits.ready):
                return await self._signal.ready()
        except TimeoutError:
            return f"no sign of readiness within {self._tools.limits.ready:g} s"

    async def _await_verdict(self) -> None:
        verdict = await self._hear_verdict()
        if isinstance(verdict, Failed):
            raise GuestFailed(
                f"{self.job.domain}: the guest's step {verdict.step} failed: {verdict.message}",
                step=verdict.step,
            )
        await self._save(JobState.GUEST_CONFIGURED, "guest reported done")

    async def _hear_verdict(self) -> Verdict:
        while True:
            try:
                return await self._signal.verdict()
            except GuestRestarted as error:
                await self._note(str(error))
                await self._attach_iso_again(rebooting=True)

    def _why_stopped(self) -> ProvisionError:
        if self._cancelled:
            return Cancelled(f"{self.job.domain}: cancelled in {self.job.state}")
        allowed = self.job.deadline_at - self.job.created_at
        return self._too_late(f"still {self.job.state} after {allowed:.0f} s")

    def _too_late(self, what: str) -> DeadlinePassed:
        """The deadline's error; it speaks of libvirt or xenstore where the job waited for one."""
        if self._unavailable is None:
            return DeadlinePassed(f"{self.job.domain}: {what}")
        return DeadlinePassed(
            f"{self.job.domain}: {what}: {self._unavailable}", hint=self._unavailable.hint
        )

    # ------------------------------------------------------------ back
    async def _end(self, failure: Failure | None) -> None:
        if failure is not None and not self.job.guest_has_won:
            await self._undo(failure)
        if self.job.guest_has_won:
            await self._until_done("the config ISO cannot be removed yet", self._remove_iso)

    async def _undo(self, failure: Failure) -> None:
        """Take everything back, unless the guest says it was done before we could."""
        if self.job.state is not JobState.UNDOING:
            log_lines = self._signal.log()
            await self._insist(
                JobState.UNDOING,
                f"undoing: {failure.message}",
                failure=failure,
                guest_log=log_lines,
            )
        if failure.code != GuestFailed.code:
            won = await self._until_done("the guest's last word is not known yet", self._ask_guest)
            if won:
                detail = "guest had reported done before the undo"
                await self._insist(JobState.GUEST_CONFIGURED, detail, failure=None)
                return
        await self._until_done("the config ISO cannot be removed yet", self._remove_iso)

    async def _ask_guest(self) -> bool:
        """End the guest's say; True where its `done` stood before. It cannot without the ISO."""
        attached = await self._tools.hypervisor.has_disk(self.job.domain_uuid, self._plan.iso)
        return attached and await self._signal.cancel() == Done()

    async def _remove_iso(self) -> None:
        """Detach and destroy the ISO and prove it."""
        hypervisor, uuid = self._tools.hypervisor, self.job.domain_uuid
        async with self._phase("detaching the config ISO", self._tools.limits.detach):
            left = await hypervisor.detach(uuid, iso=self._plan.iso)
        if left:
            await self._note(f"detached, and {left} let go of the config ISO only when told")
        if self._detached_at is None:
            self._detached_at = self.job.detached_at or time.time()
        if self.job.state is JobState.GUEST_CONFIGURED:
            await self._insist(
                JobState.ISO_DETACHED,
                "config ISO detached (guest reported done)",
                detached_at=self._detached_at,
            )
        if await self._tools.iso_threads.call(destroy_iso, self._plan):
            self._overwritten = True
        await hypervisor.prove_absence(uuid, iso=self._plan.iso)
        proof = Proof(
            disk_absent_from_live_xml=True,
            back_end_absent=True,
            iso_overwritten_and_unlinked=self._overwritten,
            iso_file_absent=not self._plan.iso.exists(),
            at=time.time(),
        )
        await self._signal.end()
        if self.job.guest_has_won:
            await self._insist(JobState.SUCCEEDED, "config ISO destroyed", proof=proof)
        else:
            reason = self.job.failure.message if self.job.failure else "undone"
            await self._insist(
                JobState.FAILED,
                f"undone, the config ISO is gone: {reason}",
                proof=proof,
                detached_at=self._detached_at if self.job.attached_at is not None else None,
            )

    # ------------------------------------------------------------ facts
    async def _save(self, to: JobState, detail: str, **facts: object) -> None:
        """Store a fact; where that fails, the job stays what it was."""
        before = self.job
        self.job = advance(before, to, at=time.time(), **facts)
        try:
            await self._tools.store.save(self.job, [Fact(to, detail)])
        except StateUnwritable:
            self.job = before
            raise
        self._tools.observe(before, self.job)
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
        fields = {"JOB_ID": self.job.id, "DOMAIN": self.job.domain}
        log.log(level, "%s: %s", self.job.domain, detail, extra=fields)

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

        The same for the errors that are `passing`. The deadline ends it.
        """
        for pause in pauses():
            try:
                result = await call(*args, **kwargs)
            except (HypervisorUnavailable, XenstoreUnavailable) as error:
                if self._unavailable is None:
                    what = "xenstore" if isinstance(error, XenstoreUnavailable) else "libvirt"
                    await self._note(f"waits for {what}: {error}")
                self._unavailable = error
            except passing:
                pass
            else:
                self._unavailable = None
                return result
            await asyncio.sleep(pause)
        raise AssertionError("pauses() never ends")

    @contextlib.asynccontextmanager
    async def _phase(self, doing: str, seconds: float) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError:
            raise self._too_late(f"{doing} took over {seconds:g} s") from None


def pauses() -> Iterator[float]:
    """How long to wait between tries, in seconds: 0.5, 1, 2, 4 … 30, 30, for ever."""
    pause = 0.5
    while True:
        yield pause
        pause = min(2 * pause, 30.0)
