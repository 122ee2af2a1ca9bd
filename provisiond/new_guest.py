"""The guest that a job makes: its overlay and its domain, and how both are taken away again.

All of it is derived from the job's id, so whatever bears these names was made by this job, and
every step may be asked for twice.
"""

import asyncio
from pathlib import Path

from provisiond.api.requests import Create
from provisiond.disk.chain import DiskChain
from provisiond.job import Job
from provisiond.plan import plan_disk, plan_mac, plan_uuid
from provisiond.story import Tools
from provisiond.virt.template import NewDomain, build_domain, read_template


class NewGuest:
    """What `create` of a request asks for."""

    def __init__(self, job: Job, create: Create, tools: Tools) -> None:
        self._job = job
        self._create = create
        self._tools = tools
        self._uuid = plan_uuid(job.id)
        self._overlay = plan_disk(
            job.id, name=job.subject, disk_format=create.format, image_dir=tools.image_dir
        )

    @property
    def overlay(self) -> Path:
        """The file of its disk."""
        return self._overlay.path

    async def create_overlay(self) -> DiskChain:
        """Make its disk; it stays marked as this job's own until `keep_overlay`."""
        async with self._tools.disk_slots:
            return await self._tools.disks.create_overlay(
                self._overlay,
                base=self._create.base,
                disk_format=self._create.format,
                size=self._create.size,
            )

    async def keep_overlay(self) -> None:
        """The domain that has the overlay is there, and the job has stored that it made both."""
        await self._tools.disks.settle(self._overlay)

    async def define(self) -> None:
        """Define its domain, from the operator's template as it is now."""
        hypervisor, create = self._tools.hypervisor, self._create
        if not await hypervisor.is_gone(self._uuid):
            return
        chain = await self.create_overlay()  # it is there, and is read again
        xml = build_domain(
            await asyncio.to_thread(read_template, self._tools.template_dir, create.template),
            NewDomain(
                name=self._job.subject,
                uuid=self._uuid,
                job_id=self._job.id,
                disk=chain,
                mac=create.mac or plan_mac(self._job.id, is_xen=hypervisor.is_xen),
                memory_mib=create.memory_mib,
                vcpus=create.vcpus,
                network=create.network,
                bridge=create.bridge,
            ),
            is_xen=hypervisor.is_xen,
        )
        await hypervisor.define(xml)

    async def start(self) -> None:
        """Start its domain."""
        await self._tools.hypervisor.start(self._uuid)

    async def remove(self, *, overlay_made: bool) -> None:
        """End and undefine its domain, then remove its disk."""
        await self._tools.hypervisor.destroy_and_undefine(self._uuid)
        await self._tools.disks.take_back(self._overlay, made=overlay_made)
