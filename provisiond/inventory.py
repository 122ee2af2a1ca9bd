"""What the host has: domains with their addresses and disks, golden bases, the disks made here.

And the removal of bases and disks that nobody has.
"""

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from provisiond.disk.bases import BaseState
from provisiond.disk.disks import Disk
from provisiond.errors import BaseNotFound, DiskInUse, DomainBusy, XenstoreUnavailable
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
    """Reads; and removes bases and disks, each in one step that a crash cannot halve."""

    def __init__(self, tools: Tools, xenstore: Xenstore | None) -> None:
        """`xenstore` is where Xen's guests tell their addresses; None on another hypervisor."""
        self._tools = tools
        self._xenstore = xenstore
        self._at_once = asyncio.Semaphore(_DOMAINS_AT_ONCE)

    # ------------------------------------------------------------ domains
    async def domains(self) -> Sequence[DomainState]:
        """All domains of the host, by name.

        A guest's agent is asked only where no other source knows an address.
        """
        found = await self._tools.hypervisor.domains()
        return await asyncio.gather(*(self._look_at(domain, ask_all=False) for domain in found))

    async def domain(self, name_or_uuid: str) -> DomainState:
        """One domain, with the addresses that every source tells; raises DomainNotFound."""
        domain = await self._tools.hypervisor.details(name_or_uuid)
        return await self._look_at(domain, ask_all=True)

    async def _look_at(self, domain: DomainDetails, *, ask_all: bool) -> DomainState:
        async with self._at_once:
            addresses = await self._addresses(domain, ask_all=ask_all)
        names = {
            disk.target: disk.source.stem
            for disk in domain.disks
            if disk.source is not None and self._tools.disks.is_ours(disk.source)
        }
        return DomainState(domain, addresses, names)

    async def _addresses(self, domain: DomainDetails, *, ask_all: bool) -> tuple[GuestAddress, ...]:
        found = await self._from_our_jobs(domain)
        if domain.domid is not None:
            found += await self._from_xenstore(domain.domid)
            found += await self._from_libvirt(domain, "lease")
            if ask_all or not found:
                found += await self._from_libvirt(domain, "agent")
        return gather_addresses(found)

    async def _from_our_jobs(self, domain: DomainDetails) -> list[GuestAddress]:
        """What the last job that configured the guest gave it."""
        jobs = await self._tools.store.of_domain(domain.uuid)
        configured = (job for job in jobs if job.guest_has_won and "config" in job.request)
        return [
            address
            for job in itertools.islice(configured, 1)
            for address in request_addresses(job.request)
        ]

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
        """One base; raises BaseNotFound."""
        for state in await self.bases():
            if state.manifest.name == name:
                return state
        raise BaseNotFound(f"{name}: no base has this name")

    async def remove_base(self, name: str) -> None:
        """Remove a base that nothing stands on; raises BaseNotFound, BaseInUse, DomainBusy."""
        await self._refuse_busy(f"base {name}", name)
        in_use = await self._tools.hypervisor.sources_in_use()
        await self._tools.bases.remove(name, in_use=in_use)

    # ------------------------------------------------------------ disks
    async def disks(self) -> Sequence[DiskState]:
        """All disks that provisiond made, by name."""
        in_use = await self._tools.hypervisor.sources_in_use()
        found = await self._tools.disks.list()
        return [DiskState(disk, in_use.get(disk.image.path)) for disk in found]

    async def remove_disk(self, name: str) -> None:
        """Remove a disk that no domain has; raises DiskNotFound, DiskInUse, DomainBusy."""
        await self._refuse_busy(f"disk {name}", name)
        path = (await self._tools.disks.find(name)).image.path
        if (busy := await self._tools.store.unfinished_with_disk(name, path)) is not None:
            raise DiskInUse(f"{name}: job {busy.id} has it ({busy.state})")
        in_use = await self._tools.hypervisor.sources_in_use()
        await self._tools.disks.remove(name, in_use=in_use)

    async def _refuse_busy(self, works_on: str, name: str) -> None:
        busy = await self._tools.store.unfinished_on(works_on, None)
        if busy is not None:
            raise DomainBusy(f"{name}: job {busy.id} is at work on it ({busy.state})")
