"""The hypervisor over libvirt: find domains, attach and detach the config ISO, always live only.

libvirt has one importer: this package.
"""

import asyncio
from pathlib import Path

from provisiond.errors import DiskStillAttached, DomainNotFound, DomainNotRunning
from provisiond.virt.libvirt.connection import Connection
from provisiond.virt.libvirt.disks import attach, detach
from provisiond.virt.libvirt.domains import (
    Domain,
    DomainDetails,
    details,
    find,
    list_details,
    read_live_of,
    sources_in_use,
)
from provisiond.virt.libvirt.lifecycle import define, remove, start
from provisiond.virt.vbd import await_connected, back_ends_of, free_loop, loops_of
from provisiond.virt.xml import DomainXml
from provisiond.xenstore.client import Xenstore

__all__ = ["Domain", "DomainDetails", "Hypervisor"]

# An event only wakes the wait for a detach early; the live XML is what counts.
_DETACH_POLL_SECONDS = 0.25
_REMOVAL_POLL_SECONDS = 0.05


class Hypervisor:
    """The domains of one host and their disks; every answer is what libvirt says at that time."""

    def __init__(self, uri: str, *, threads: int, xenstore: Xenstore | None = None) -> None:
        """`xenstore` is needed where the domains are Xen's."""
        self.uri = uri
        self._connection = Connection(uri, threads=threads)
        self._xenstore = xenstore

    # ------------------------------------------------------------ connection
    @property
    def connected(self) -> bool:
        """Whether the connection is open; whoever calls opens it again."""
        return self._connection.is_open

    async def connect(self) -> None:
        """Open the connection now; raises HypervisorUnavailable."""
        await self._connection.open()

    async def close(self) -> None:
        """Close the connection; domains go on running."""
        await self._connection.close()

    # ------------------------------------------------------------ reading
    async def domains(self) -> list[DomainDetails]:
        """All domains of the host, by name."""
        return sorted(await self._connection.call(list_details), key=lambda domain: domain.name)

    async def details(self, name_or_uuid: str) -> DomainDetails:
        """The domain with this name or UUID, and what its XML says; raises DomainNotFound."""
        return await self._connection.call(details, name_or_uuid)

    async def find(self, name_or_uuid: str) -> Domain:
        """The domain with this name or UUID; raises DomainNotFound."""
        return await self._connection.call(find, name_or_uuid)

    async def live_xml(self, uuid: str) -> DomainXml:
        """The live XML of a running domain; raises DomainNotFound or DomainNotRunning."""
        return await self._connection.call(read_live_of, uuid)

    async def has_disk(self, uuid: str, source: Path) -> bool:
        """Whether `source` is attached; a domain that is off or gone has no disk attached."""
        try:
            return (await self.live_xml(uuid)).disk_of(source) is not None
        except (DomainNotFound, DomainNotRunning):
            return False

    async def sources_in_use(self) -> dict[Path, str]:
        """Every file that a domain of the host names for its disks, and the domain's name.

        Live disks and those of the next start; of a running QEMU domain, what they stand on too.
        """
        return await self._connection.call(sources_in_use)

    # ------------------------------------------------------------ domains made and removed
    @property
    def is_xen(self) -> bool:
        """Whether the domains are Xen's; QEMU's otherwise."""
        return self._xenstore is not None

    async def define(self, xml: str) -> None:
        """Define a domain, unless one of its UUID exists; raises DomainExists, TemplateUnusable."""
        await self._connection.call(define, xml)

    async def start(self, uuid: str) -> None:
        """Start the domain, unless it runs; raises DomainNotFound, HypervisorFailed."""
        await self._connection.call_apart(start, uuid)

    async def destroy_and_undefine(self, uuid: str) -> None:
        """End the domain without asking its guest, and forget it; returns once it is gone."""
        while await self._connection.call_apart(remove, uuid):  # noqa: ASYNC110 - libvirt's fact
            await asyncio.sleep(_REMOVAL_POLL_SECONDS)

    async def is_gone(self, uuid: str) -> bool:
        """Whether no domain has this UUID."""
        try:
            await self.find(uuid)
        except DomainNotFound:
            return True
        return False

    # ------------------------------------------------------------ attach, detach
    async def attach(self, uuid: str, *, iso: Path, target: str | None) -> str:
        """Attach `iso` read-only, at `target` or at the best that is free; return the real target.

        Attached already: returns its target. Raises NoFreeTarget, HypervisorFailed.
        """
        return await self._connection.call_apart(attach, uuid, iso, target)

    async def is_connected(self, uuid: str, iso: Path) -> bool:
        """Wait until the guest's driver has the disk; False where the disk is gone instead.

        Xen's attach returns before that. A QEMU guest's disk is a part of its machine at once.
        """
        live = await self.live_xml(uuid)
        disk = live.disk_of(iso)
        if disk is None or live.domid is None:
            return False
        if self._xenstore is None:
            return True
        return await await_connected(self._xenstore, domid=live.domid, target=disk.target)

    async def detach(self, uuid: str, *, iso: Path) -> str | None:
        """Detach `iso` and wait until nothing has it: not the live XML, no back end.

        Returns at once where that is so. A loop device that was left over `iso` is freed, and
        returned. The caller's time limit ends the wait. Raises DiskStillAttached where libvirt
        refuses.
        """
        hint = self._connection.hint
        await self._connection.call_apart(detach, uuid, iso)
        while await self.has_disk(uuid, iso) or await self._back_ends(iso):
            try:
                async with asyncio.timeout(_DETACH_POLL_SECONDS):
                    await hint.wait()
            except TimeoutError:
                pass  # no event came: it is read again all the same
            hint = self._connection.hint
        return self._free_loops(iso)

    async def prove_absence(self, uuid: str, *, iso: Path) -> None:
        """Look once more, after the file was unlinked; DiskStillAttached says where it still is."""
        if await self.has_disk(uuid, iso):
            raise DiskStillAttached(f"{iso.name} was attached again: it stands in the live XML")
        holders = [*await self._back_ends(iso), *self._loops(iso)]
        if holders:
            raise DiskStillAttached(f"{iso.name} is still held by {', '.join(holders)}")

    async def _back_ends(self, iso: Path) -> list[str]:
        return [] if self._xenstore is None else await back_ends_of(self._xenstore, iso)

    def _loops(self, iso: Path) -> list[str]:
        return [] if self._xenstore is None else list(loops_of(iso))

    def _free_loops(self, iso: Path) -> str | None:
        names = self._loops(iso)
        for name in names:
            try:
                free_loop(name)
            except OSError as error:
                raise DiskStillAttached(f"{name} still has {iso.name}: {error.strerror}") from error
        return ", ".join(names) or None
