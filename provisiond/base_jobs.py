"""Golden bases imported, and read again whole.

import:  ACCEPTED → IMAGE_WRITTEN → SUCCEEDED
verify:  ACCEPTED → SUCCEEDED
failure, cancel or deadline: nothing of an import is left, FAILED
"""

import asyncio
from pathlib import Path

from provisiond.api.replies import JobState
from provisiond.api.requests import ImportBaseRequest, VerifyBaseRequest
from provisiond.disk.manifest import BaseOrder
from provisiond.job import Failure, Job
from provisiond.plan import plan_base
from provisiond.story import Story, Tools


class ImportingBase(Story):
    """An image of this host becomes a base."""

    def __init__(self, job: Job, tools: Tools) -> None:
        super().__init__(job, tools)
        request = ImportBaseRequest(**job.request)
        self._order = order_of(request, job_id=job.id, image_dir=tools.image_dir)

    def _slots(self) -> asyncio.Semaphore:
        return self._tools.image_slots

    async def _go_forward(self) -> None:
        bases, order = self._tools.bases, self._order
        if not self.job.has_reached(JobState.IMAGE_WRITTEN):
            await bases.write_image(order, self._show)
            detail = f"{order.source} copied as {order.format}, checked and hashed"
            await self._save(JobState.IMAGE_WRITTEN, detail)
        manifest = await bases.register(order)
        detail = f"registered: {manifest.virtual_size} bytes, SHA-256 {manifest.sha256}"
        await self._save(JobState.SUCCEEDED, detail, disk=str(order.plan.image.path))

    async def _turn_back(self, failure: Failure) -> None:
        """A base that is registered stays one: disks may stand on it already."""
        if self.job.state is not JobState.UNDOING and await self._until_done(
            "it is not known whether the base is registered",
            lambda: self._tools.bases.is_registered(self._order.plan),
        ):
            detail = f"registered, in spite of: {failure.message}"
            await self._insist(JobState.SUCCEEDED, detail, disk=str(self._order.plan.image.path))
            return
        await super()._turn_back(failure)

    async def _undo(self) -> str:
        await self._tools.bases.take_back(self._order.plan)
        return "undone"


class VerifyingBase(Story):
    """A base is read whole and compared with its manifest."""

    def __init__(self, job: Job, tools: Tools) -> None:
        super().__init__(job, tools)
        self._request = VerifyBaseRequest(**job.request)

    def _slots(self) -> asyncio.Semaphore:
        return self._tools.image_slots

    async def _go_forward(self) -> None:
        await self._tools.bases.verify_hash(self._request.base, self._show)
        await self._save(JobState.SUCCEEDED, "unchanged: its hash is the one of its manifest")


def order_of(request: ImportBaseRequest, *, job_id: str, image_dir: Path) -> BaseOrder:
    """What the job has to import, and where it makes it."""
    return BaseOrder(
        job_id=job_id,
        name=request.name,
        source=request.source,
        source_format=request.source_format,
        format=request.format,
        parent=request.parent,
        manifest=request.manifest,
        plan=plan_base(job_id, name=request.name, disk_format=request.format, image_dir=image_dir),
    )
