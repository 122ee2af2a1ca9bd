"""The end of a guest: its domain is ended and undefined, then the disk made for it is removed.

ACCEPTED → DOMAIN_REMOVED → SUCCEEDED
libvirt refuses, cancel or deadline: FAILED, unless the domain is gone all the same
"""

from pathlib import Path

from provisiond.api.replies import JobState
from provisiond.errors import DiskInUse, DiskNotFound
from provisiond.job import Failure, Job
from provisiond.story import Story, Tools


class Destroying(Story):
    """The story of a destroy; which disk goes with the domain was read when it was accepted."""

    def __init__(self, job: Job, tools: Tools) -> None:
        super().__init__(job, tools)
        if job.domain_uuid is None:
            raise ValueError(f"job {job.id}: no domain")
        self._uuid = job.domain_uuid

    async def _go_forward(self) -> None:
        await self._patiently(self._tools.hypervisor.destroy_and_undefine, self._uuid)
        await self._save(JobState.DOMAIN_REMOVED, "domain ended and undefined")

    async def _turn_back(self, failure: Failure) -> None:
        """What libvirt has done cannot be taken back: a domain that is gone is gone."""
        hypervisor = self._tools.hypervisor
        if await self._until_done(
            "it is not known whether the domain is gone", lambda: hypervisor.is_gone(self._uuid)
        ):
            detail = f"domain ended and undefined, in spite of: {failure.message}"
            await self._insist(JobState.DOMAIN_REMOVED, detail)
            return
        await super()._turn_back(failure)

    async def _finish(self) -> None:
        await self._until_done("its disk cannot be removed yet", self._remove_disk)

    async def _remove_disk(self) -> None:
        """Remove the disk that was made for it, unless another domain has it by now."""
        if self.job.disk is None:
            await self._insist(JobState.SUCCEEDED, "its disks are none of ours and stay")
            return
        disk = Path(self.job.disk)
        in_use = await self._tools.hypervisor.sources_in_use()
        try:
            await self._tools.disks.remove(disk.stem, in_use=in_use)
        except DiskNotFound:
            await self._insist(JobState.SUCCEEDED, f"{disk.name} is gone")
        except DiskInUse as error:
            await self._insist(JobState.SUCCEEDED, f"its disk stays: {error}")
        else:
            await self._insist(JobState.SUCCEEDED, f"{disk.name} removed")
