"""What the host has: domains with their addresses and disks, golden bases, the disks made here.

And the removal of bases and disks that nobody has.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from provisiond.admission import Admission, Subject, refuse_claimed
from provisiond.disk.bases import BaseState
from provisiond.disk.disks import Disk
from provisiond.errors import XenstoreUnavailable
from provisiond.guest.addresses import (
    GuestAddress,
    gather_addresses,
    libvirt_addresses,
    read_xenstore_addresses,
    request_addresses,
)
from provisiond.story import Tools
from provisiond.virt.libvirt import DomainDetails
from provisiond.xenstore.client import Xenstore

# A source that does not answer is not waited for: a guest's agent may hang.
_SOURCE_SECONDS = 3.0
_DOMAINS_AT_ONCE = 4  # libvirtd serves five calls of one connection at once


@dataclass(frozen=True, slots=True)
class DomainState:
    """A domain, its addresses (best source first), and what its disks made here are called, by
    target."""

    domain: DomainDetails
    addresses: tuple[GuestAddress, ...]
    names: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class DiskState:
    """A disk of ours, and the domain that has it."""

    disk: Disk
    domain: str | None


class Inventory:
    """Reads; and removes bases and disks. A removal that a crash ends is asked for again."""

    def __init__(self, tools: Tools, xenstore: Xenstore | None) -> None:
        """`xenstore` is where Xen's guests tell their addresses; None on another hypervisor."""
        self._tools = tools
        self._xenstore = xenstore
        self._admission = Admission(tools)
        self._at_once = asyncio.Semaphore(_DOMAINS_AT_ONCE)

    # ------------------------------------------------------------ domains
    async def domains(self) -> Sequence[DomainState]:
        """All domains of the host, by name. No guest's agent is asked: that takes its time."""
        found = await self._tools.hypervisor.domains()
        async with asyncio.TaskGroup() as tasks:
            looking = [tasks.create_task(self._look_at(domain)) for domain in found]
        return [task.result() for task in looking]

    async def domain(self, name_or_uuid: str) -> DomainState:
        """One domain, with the addresses that every source tells; raises DomainNotFound."""
        domain = await self._tools.hypervisor.details(name_or_uuid)
        from_agent = [] if domain.domid is None else await self._from_libvirt(domain, "agent")
        return await self._look_at(domain, from_agent)

    async def _look_at(
        self, domain: DomainDetails, from_agent: Sequence[GuestAddress] = ()
    ) -> DomainState:
        async with self._at_once:
            found = await self._from_our_jobs(domain)
            if domain.domid is not None:
                found += await self._from_xenstore(domain.domid)
                found += await self._from_libvirt(domain, "lease")
        names = {
            disk.target: disk.source.stem
            for disk in domain.disks
            if disk.source is not None and self._tools.disks.is_ours(disk.source)
        }
        return DomainState(domain, gather_addresses(found, from_agent), names)

    async def _from_our_jobs(self, domain: DomainDetails) -> list[GuestAddress]:
        """What the last job that configured the guest gave it."""
        job = await self._tools.store.last_configured(domain.uuid)
        return [] if job is None else request_addresses(job.request)

    async def _from_xenstore(self, domid: int) -> list[GuestAddress]:
        if self._xenstore is None:
            return []
        try:
            async with asyncio.timeout(_SOURCE_SECONDS):
                return await read_xenstore_addresses(self._xenstore, domid=domid)
        except (TimeoutError, XenstoreUnavailable):
            return []

    async def _from_libvirt(
        self, domain: DomainDetails, source: Literal["lease", "agent"]
    ) -> list[GuestAddress]:
        try:
            async with asyncio.timeout(_SOURCE_SECONDS):
                untrusted = await self._tools.hypervisor.interface_addresses(domain.uuid, source)
        except TimeoutError:
            return []
        return libvirt_addresses(untrusted, source=source)

    # ------------------------------------------------------------ bases
    async def bases(self) -> Sequence[BaseState]:
        """All golden bases, by name."""
        return await self._tools.bases.list()

    async def base(self, name: str) -> BaseState:
        """One base; raises BaseNotFound, or BaseChanged where its manifest cannot be read."""
        return await self._tools.bases.look_at(name)

    async def remove_base(self, name: str) -> None:
        """Remove a base that nothing stands on; raises BaseNotFound, BaseInUse, Busy."""
        await self._admission.refuse_busy(Subject(name, f"base {name}"))
        in_use = await self._tools.hypervisor.sources_in_use()
        await self._tools.bases.remove(name, in_use=in_use)

    # ------------------------------------------------------------ disks
    async def disks(self) -> Sequence[DiskState]:
        """All disks that provisiond made, by name."""
        in_use = await self._tools.hypervisor.sources_in_use()
        found = await self._tools.disks.list()
        return [DiskState(disk, in_use.get(disk.image.path)) for disk in found]

    async def remove_disk(self, name: str) -> None:
        """Remove a disk that no domain has; raises DiskNotFound, DiskInUse, ImageBusy."""
        await refuse_claimed(self._tools.store, name)
        in_use = await self._tools.hypervisor.sources_in_use()
        await self._tools.disks.remove(name, in_use=in_use)
