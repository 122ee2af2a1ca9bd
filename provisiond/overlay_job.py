"""An overlay over a golden base, for a domain that somebody else defines.

ACCEPTED → DISKS_CREATED → SUCCEEDED
failure, cancel or deadline: what was made is removed, FAILED
"""

import asyncio

from provisiond.api.replies import JobState
from provisiond.api.requests import CreateOverlayRequest
from provisiond.job import Job
from provisiond.plan import plan_disk
from provisiond.story import Story, Tools


class CreatingOverlay(Story):
    """The story of one overlay."""

    def __init__(self, job: Job, tools: Tools) -> None:
        super().__init__(job, tools)
        self._request = CreateOverlayRequest(**job.request)
        self._plan = plan_disk(
            job.id,
            name=self._request.name,
            disk_format=self._request.format,
            image_dir=tools.image_dir,
        )

    def _slots(self) -> asyncio.Semaphore:
        return self._tools.disk_slots

    async def _go_forward(self) -> None:
        request = self._request
        if not self.job.has_reached(JobState.DISKS_CREATED):
            await self._tools.disks.create_overlay(
                self._plan, base=request.base, disk_format=request.format, size=request.size
            )
            await self._save(
                JobState.DISKS_CREATED,
                f"overlay {self._plan.path.name} made over the base {request.base}",
                disk=str(self._plan.path),
            )
        await self._tools.disks.settle(self._plan)
        await self._save(JobState.SUCCEEDED, f"{self._plan.path} is ready")

    async def _undo(self) -> str:
        await self._tools.disks.take_back(self._plan, made=self.job.disk is not None)
        return "undone"
