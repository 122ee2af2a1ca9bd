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
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from provisiond.api.guest_config import GuestConfig
from provisiond.api.replies import JobState
from provisiond.api.requests import Create
from provisiond.errors import (
    DomainNotRunning,
    GuestFailed,
    GuestRestarted,
    HypervisorFailed,
    Interrupted,
    ProvisionError,
)
from provisiond.guest.verdict import Done, Failed, Verdict
from provisiond.iso.image import build_image, destroy_iso, write_iso
from provisiond.iso.tree import Identity, build_tree
from provisiond.job import Failure, Job, Proof
from provisiond.new_guest import NewGuest
from provisiond.plan import Plan, plan_job
from provisiond.story import LOOK_INTO_THE_GUEST, Story, Tools, pauses

# What libvirt says of a Xen domain for some seconds while it starts it anew.
_OF_A_REBOOT = (DomainNotRunning, HypervisorFailed)
# For a look at the domain when the job's time is over; libvirtd may hang.
_LOOK_SECONDS = 5.0
_OF_A_RUNNING_GUEST = (
    (JobState.DISKS_CREATED, "the domain has its own disks"),
    (JobState.DOMAIN_STARTED, "the domain was running already"),
)
_RESUME_IT = (
    "The domain is paused, as QEMU does it where the host has no room for a disk of the guest: "
    "make room, resume it (virsh resume), and ask again."
)


class Provisioning(Story):
    """The story of one guest. `config` (with its secret) is None when the job is resumed.

    `channel` is the socket of the guest's channel where that is known.
    """

    def __init__(
        self, job: Job, config: GuestConfig | None, tools: Tools, *, channel: Path | None
    ) -> None:
        super().__init__(job, tools)
        if job.domain_uuid is None:
            raise ValueError(f"job {job.id}: no domain")
        self._uuid = job.domain_uuid
        self._config = config
        self._plan = plan_job(job.id, runtime_dir=tools.runtime_dir)
        create = job.request.get("create")
        self._new = None if create is None else NewGuest(job, Create(**create), tools)
        self._signal = tools.open_signal(job, channel)
        # What was done in an earlier try of the ISO's end still counts in the proof.
        self._detached_at: float | None = None
        self._overwritten = False
        self._proof: Proof | None = None

    async def close(self) -> None:
        """Let go of the guest's word and of the secret."""
        self._config = None
        await self._signal.close()

    # ------------------------------------------------------------ forward
    async def _go_forward(self) -> None:
        self._require_config()
        if self._new is not None:
            await self._make_guest(self._new)
        if not self.job.has_reached(JobState.ISO_ATTACHED):
            await self._attach_iso(await self._write_iso_and_listen())
        else:
            await self._attach_iso_again(rebooting=False)
        await self._await_verdict()

    def _require_config(self) -> None:
        """After a stop there is none: no domain is made for a guest that cannot be configured."""
        written = self._plan.iso.exists() or self.job.has_reached(JobState.ISO_WRITTEN)
        if self._config is None and not written:
            raise self._interrupted()

    def _interrupted(self) -> Interrupted:
        what = "provisiond was stopped before the config ISO was written"
        return Interrupted(f"{self.job.subject}: {what}")

    async def _make_guest(self, new: NewGuest) -> None:
        if not self.job.has_reached(JobState.DISKS_CREATED):
            await new.create_overlay()
            overlay, base = new.overlay, self.job.request["create"]["base"]
            detail = f"overlay {overlay.name} made over the base {base}"
            await self._save(JobState.DISKS_CREATED, detail, disk=str(overlay))
        if not self.job.has_reached(JobState.DOMAIN_STARTED):
            await self._patiently(new.define)
            await self._patiently(new.start)
            await self._save(JobState.DOMAIN_STARTED, "domain defined and started")
        await new.keep_overlay()

    async def _write_iso_and_listen(self) -> str:
        """Both at once, as neither needs the other; the guest's sign that it can take the ISO."""
        listening = asyncio.create_task(self._await_readiness())
        try:
            await asyncio.sleep(0)  # it begins
            if not self.job.has_reached(JobState.ISO_WRITTEN):
                await self._write_iso()
            self._require_iso()
            return await listening
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)

    async def _write_iso(self) -> None:
        if not self._plan.iso.exists():
            if self._config is None:
                raise self._interrupted()
            live = await self._patiently(self._tools.hypervisor.live_xml, self._uuid)
            identity = Identity(self._plan.nonce, self._uuid, self.job.generation)
            first_mac = next(iter(live.macs), None)
            tree = build_tree(self._config, identity, first_mac=first_mac)
            await self._tools.iso_threads.call(_build_and_write, self._plan, tree)
        self._config = None  # from here on the secret is on the ISO alone
        # Nothing is done for a guest that runs already before its ISO: all that is stored at once.
        facts = (*_OF_A_RUNNING_GUEST, (JobState.ISO_WRITTEN, "config ISO written and read back"))
        await self._save_all(*(fact for fact in facts if not self.job.has_reached(fact[0])))

    async def _attach_iso(self, sign: str) -> None:
        target = await self._attach()
        await self._save(
            JobState.ISO_ATTACHED,
            f"config ISO attached as {target} ({sign})",
            target=target,
            attached_at=time.time(),
        )

    def _require_iso(self) -> None:
        if not self._plan.iso.exists():
            raise Interrupted(f"{self.job.subject}: the config ISO was lost with the host's memory")

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
                    self._uuid,
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
        async with self._driver_phase():
            return await self._patiently(
                self._tools.hypervisor.is_connected,
                self._uuid,
                self._plan.iso,
                passing=_OF_A_REBOOT if rebooting else (),
            )

    async def _await_readiness(self) -> str:
        """Listen, from then on; the guest's sign that it can take the ISO, or that it gave none."""
        await self._patiently(self._signal.listen)
        try:
            async with asyncio.timeout(self._tools.limits.ready):
                return await self._signal.ready()
        except TimeoutError:
            return f"no sign of readiness within {self._tools.limits.ready:g} s"

    async def _late_hint(self) -> str | None:
        if self.job.state not in (JobState.ISO_WRITTEN, JobState.ISO_ATTACHED):
            return None
        with contextlib.suppress(ProvisionError, TimeoutError):
            async with asyncio.timeout(_LOOK_SECONDS):
                if (await self._tools.hypervisor.find(self._uuid)).is_paused:
                    return _RESUME_IT
        return LOOK_INTO_THE_GUEST

    async def _await_verdict(self) -> None:
        verdict = await self._hear_verdict()
        if isinstance(verdict, Failed):
            raise GuestFailed(
                f"{self.job.subject}: the guest's step {verdict.step} failed: {verdict.message}",
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

    # ------------------------------------------------------------ back
    async def _turn_back(self, failure: Failure) -> None:
        """Take everything back, unless the guest says it was done before we could."""
        if self.job.state is not JobState.UNDOING:
            await self._insist(
                JobState.UNDOING,
                f"undoing: {failure.message}",
                failure=failure,
                guest_log=self._signal.log(),
            )
        if failure.code != GuestFailed.code:
            won = await self._until_done("the guest's last word is not known yet", self._ask_guest)
            if won:
                detail = "guest had reported done before the undo"
                await self._insist(JobState.GUEST_CONFIGURED, detail, failure=None)
                return
        await self._finish()

    async def _finish(self) -> None:
        await self._until_done("the config ISO cannot be removed yet", self._remove_iso)
        if self._new is not None and not self.job.guest_has_won:
            new, made = self._new, self.job.disk is not None
            await self._until_done(
                "what was made cannot be removed yet", partial(new.remove, overlay_made=made)
            )
        await self._signal.end()
        await self._conclude()

    async def _ask_guest(self) -> bool:
        """End the guest's say; True where its `done` stood before. It cannot without the ISO.

        While xenstored is away nobody can tell; the domain may be destroyed meanwhile.
        """
        if not await self._tools.hypervisor.has_disk(self._uuid, self._plan.iso):
            return False
        async with self._phase("to hear the guest's last word", self._tools.limits.detach):
            return await self._signal.cancel() == Done()

    async def _remove_iso(self) -> None:
        """Detach and destroy the ISO and prove it."""
        hypervisor, uuid = self._tools.hypervisor, self._uuid
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
        self._proof = Proof(
            disk_absent_from_live_xml=True,
            back_end_absent=True,
            iso_overwritten_and_unlinked=self._overwritten,
            iso_file_absent=not self._plan.iso.exists(),
            at=time.time(),
        )

    async def _conclude(self) -> None:
        if self.job.guest_has_won:
            await self._insist(JobState.SUCCEEDED, "config ISO destroyed", proof=self._proof)
            return
        reason = self.job.failure.message if self.job.failure else "undone"
        gone = "the config ISO is gone" if self._new is None else "nothing of the guest is left"
        await self._insist(
            JobState.FAILED,
            f"undone, {gone}: {reason}",
            proof=self._proof,
            detached_at=self._detached_at if self.job.attached_at is not None else None,
        )


def _build_and_write(plan: Plan, tree: Mapping[str, bytes]) -> None:
    write_iso(plan, build_image(tree))
