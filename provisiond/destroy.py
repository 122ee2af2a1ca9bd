"""The end of a guest: its domain is ended and undefined, then the disks made for it are removed.

ACCEPTED → DOMAIN_REMOVED → SUCCEEDED
libvirt refuses, cancel or deadline: FAILED, unless the domain is gone all the same
"""

from provisiond.api.replies import JobState
from provisiond.data_disk import remove_disk
from provisiond.job import Failure, Job
from provisiond.story import Story, Tools


class Destroying(Story):
    """The story of a destroy; which disks go with the domain was read when it was accepted."""

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
        # Whoever cancels wants nothing removed that is there.
        removes = () if self._cancelled else self.job.removes
        said = [await self._remove(name) for name in removes]
        detail = "; ".join(said) or "its disks stay"
        await self._insist(JobState.SUCCEEDED, detail)

    async def _remove(self, name: str) -> str:
        return await self._until_done(
            f"disk {name} cannot be removed yet", lambda: remove_disk(name, self._tools)
        )
