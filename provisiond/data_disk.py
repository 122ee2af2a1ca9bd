"""Data disks hot-added to a domain, and taken away from it.

attach: ACCEPTED → DISKS_CREATED → DISK_ATTACHED → SUCCEEDED
    failure, cancel or deadline: detached, what was made is removed, FAILED
detach: ACCEPTED → DISK_DETACHED → SUCCEEDED
    failure, cancel or deadline: FAILED, unless nothing has the disk any more all the same
"""

import re
import time
from pathlib import Path

from provisiond.api.replies import JobState
from provisiond.api.requests import AttachDiskRequest, DetachDiskRequest, DiskFormat
from provisiond.disk.disks import refuse_held
from provisiond.errors import (
    DeadlinePassed,
    DiskInUse,
    DiskNotFound,
    DiskStillAttached,
    HypervisorFailed,
)
from provisiond.job import Failure, Job, Proof
from provisiond.plan import FilePlan, plan_disk
from provisiond.story import Story, Tools

_SERIAL_LENGTH = 20  # of a virtio disk's serial number (virtio 1.2, 5.2.6), in bytes
_PART_OF_NAME = 50  # characters of a domain's name in its disks' names

_LOOK_AT_ITS_USERS = "Look into the guest: is it up, and does it use the disk? Then ask again."


class AttachingDisk(Story):
    """A data disk for a domain: a new one, or one that exists."""

    def __init__(self, job: Job, tools: Tools) -> None:
        super().__init__(job, tools)
        self._uuid = _domain_of(job)
        self._request = AttachDiskRequest(**job.request)
        # A disk that exists is never made, and never removed.
        self._new = None if self._request.disk is not None else self._plan_new()

    def _plan_new(self) -> FilePlan:
        return plan_disk(
            self.job.id,
            name=name_of_new(self._request, self.job.subject, job_id=self.job.id),
            disk_format=format_of_new(self._request, is_xen=self._tools.hypervisor.is_xen),
            image_dir=self._tools.image_dir,
        )

    async def _go_forward(self) -> None:
        if not self.job.has_reached(JobState.DISKS_CREATED):
            await self._provide()
        if self._new is not None:
            await self._tools.disks.settle(self._new)
        if not self.job.has_reached(JobState.DISK_ATTACHED):
            await self._attach()
        await self._await_driver()
        await self._save(JobState.SUCCEEDED, f"{self._path.name} is there as {self.job.target}")

    async def _provide(self) -> None:
        """Make the disk, or find the one that exists: it is this job's from here on."""
        if self._new is None:
            path, detail = await self._claim(self._request.disk or ""), "found"
        else:
            path, detail = self._new.path, "made"
            async with self._tools.disk_slots:
                await self._tools.disks.create_blank(
                    self._new,
                    disk_format=DiskFormat(path.suffix[1:]),
                    size=self._request.size or 0,
                )
        await self._save(JobState.DISKS_CREATED, f"{path.name} {detail}", disk=str(path))

    async def _claim(self, name: str) -> Path:
        """The file of a disk that exists, which no other job has since this one was accepted.

        An earlier one may have attached it: that domain has it by now.
        """
        path = (await self._tools.disks.find(name)).image.path
        in_use = await self._patiently(self._tools.hypervisor.sources_in_use)
        refuse_held(name, path, in_use=in_use)
        return path

    async def _attach(self) -> None:
        chain = await self._tools.disks.read_chain(self._path.stem)
        async with self._phase("attaching the disk", self._tools.limits.attach):
            target = await self._patiently(
                self._tools.hypervisor.attach_data_disk,
                self._uuid,
                chain=chain,
                serial=self.job.id[:_SERIAL_LENGTH],
                target=self._request.target,
                persistent=self._request.persistent,
            )
        detail = f"{self._path.name} attached as {target}"
        await self._save(JobState.DISK_ATTACHED, detail, target=target)

    async def _await_driver(self) -> None:
        """Wait for the guest's driver; a domain that is off takes the disk with its next start."""
        domain = await self._patiently(self._tools.hypervisor.find, self._uuid)
        if domain.domid is None and self._request.persistent:
            return
        async with self._driver_phase():
            connected = await self._patiently(
                self._tools.hypervisor.is_connected, self._uuid, self._path
            )
        if not connected:
            raise HypervisorFailed(
                f"{self.job.subject}: {self.job.target} went before the guest's driver had it"
            )

    async def _undo(self) -> str:
        """A guest may keep its disk for ever. That is said, and the disk is kept: no job waits for
        a guest's good will, and `disk detach` can be asked for later."""
        made = self.job.disk is not None
        if made and not await self._is_detached():
            return f"not undone, {self._path.name} stays attached"
        if self._new is not None:
            await self._tools.disks.take_back(self._new, made=made)
        return "undone"

    async def _is_detached(self) -> bool:
        """Whether nothing has the disk any more, within the time for a detach."""
        hypervisor, persistent = self._tools.hypervisor, self._request.persistent
        try:
            async with self._phase("detaching the disk", self._tools.limits.detach):
                await hypervisor.detach_data_disk(
                    self._uuid, source=self._path, persistent=persistent
                )
        except (DeadlinePassed, DiskStillAttached):
            pass  # what is so is looked at
        return not await hypervisor.holders_of(self._uuid, source=self._path, persistent=persistent)

    @property
    def _path(self) -> Path:
        return _disk_of(self.job)


class DetachingDisk(Story):
    """A data disk taken away, with the proof that nothing has it any more."""

    def __init__(self, job: Job, tools: Tools) -> None:
        super().__init__(job, tools)
        self._uuid = _domain_of(job)
        self._path = _disk_of(job)
        self._request = DetachDiskRequest(**job.request)
        # A disk that is removed cannot come back with the next start.
        self._persistent = self._request.persistent or self._request.remove

    async def _go_forward(self) -> None:
        limit = self._tools.limits.detach
        try:
            async with self._phase("detaching the disk", limit, hint=_LOOK_AT_ITS_USERS):
                await self._patiently(
                    self._tools.hypervisor.detach_data_disk,
                    self._uuid,
                    source=self._path,
                    persistent=self._persistent,
                    passing=(DiskStillAttached,),
                )
        except DeadlinePassed as error:
            await self._prove()  # which says where the disk still is
            raise error from None
        await self._prove()
        detail = f"{self._path.name} detached: nothing has it any more"
        await self._save(JobState.DISK_DETACHED, detail, proof=_proof())

    async def _late_hint(self) -> str | None:
        return _LOOK_AT_ITS_USERS

    async def _prove(self) -> None:
        await self._tools.hypervisor.prove_detached(
            self._uuid, source=self._path, persistent=self._persistent
        )

    async def _turn_back(self, failure: Failure) -> None:
        """A disk that is detached stays so: it is not attached again."""
        holders = await self._until_done(
            "it is not known whether the disk is attached",
            lambda: self._tools.hypervisor.holders_of(
                self._uuid, source=self._path, persistent=self._persistent
            ),
        )
        if holders:
            await super()._turn_back(failure)
            return
        detail = f"{self._path.name} detached, in spite of: {failure.message}"
        await self._insist(JobState.DISK_DETACHED, detail, proof=_proof())

    async def _finish(self) -> None:
        # Whoever cancels wants nothing removed that is there.
        if self._cancelled or not self._request.remove:
            await self._insist(JobState.SUCCEEDED, f"data kept in {self._path.name}")
            return
        await self._until_done("the disk cannot be removed yet", self._remove)

    async def _remove(self) -> None:
        said = await remove_disk(self._path.stem, self._tools)
        await self._insist(JobState.SUCCEEDED, said)


async def remove_disk(name: str, tools: Tools) -> str:
    """Remove a disk for good, unless another domain has it by now; returns what became of it.

    Raises ImageBusy while a program writes to it, such as a back end that is just ending.
    """
    try:
        await tools.disks.remove(name, in_use=await tools.hypervisor.sources_in_use())
    except DiskNotFound:
        return f"disk {name} is gone"
    except DiskInUse as error:
        return f"disk {name} stays: {error}"
    return f"disk {name} removed"


# ---------------------------------------------------------------- what a request leaves out
def format_of_new(request: AttachDiskRequest, *, is_xen: bool) -> DiskFormat:
    """The format of a new data disk: on Xen one that the kernel serves, without a QEMU."""
    return request.format or (DiskFormat.RAW if is_xen else DiskFormat.QCOW2)


def name_of_new(request: AttachDiskRequest, domain: str, *, job_id: str) -> str:
    """The name of a new data disk."""
    if request.name is not None:
        return request.name
    plain = re.sub(r"[^A-Za-z0-9._-]", "-", domain).lstrip("._-")[:_PART_OF_NAME]
    return f"{plain or 'disk'}-{job_id[:8]}"


# ---------------------------------------------------------------- what a job has stored
def _domain_of(job: Job) -> str:
    if job.domain_uuid is None:
        raise ValueError(f"job {job.id}: no domain")
    return job.domain_uuid


def _disk_of(job: Job) -> Path:
    if job.disk is None:
        raise ValueError(f"job {job.id}: no disk")
    return Path(job.disk)


def _proof() -> Proof:
    return Proof(
        disk_absent_from_live_xml=True,
        back_end_absent=True,
        iso_overwritten_and_unlinked=None,
        iso_file_absent=None,
        at=time.time(),
    )
