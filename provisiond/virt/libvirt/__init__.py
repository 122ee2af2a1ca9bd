"""The hypervisor over libvirt: domains found, made and removed, disks attached and detached.

libvirt has one importer: this package. Every change may be asked for twice.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from provisiond.disk.chain import DiskChain
from provisiond.errors import (
    AttachGivenUp,
    DiskStillAttached,
    DomainNotFound,
    DomainNotRunning,
    HypervisorFailed,
)
from provisiond.threads import Threads
from provisiond.virt.disk_xml import DataDisk, needs_device_model
from provisiond.virt.libvirt import disks, domains, lifecycle
from provisiond.virt.libvirt.connection import Connection
from provisiond.virt.libvirt.domains import Domain, DomainDetails
from provisiond.virt.libvirt.turns import Turns
from provisiond.virt.vbd import (
    BackEnds,
    Loops,
    await_connected,
    back_ends_for,
    back_ends_of,
    domid_of,
    free_loop,
    remove,
)
from provisiond.virt.xml import DomainXml
from provisiond.xenstore.client import Xenstore

__all__ = ["Domain", "DomainDetails", "Hypervisor"]

# An event only wakes a wait early; what is read then is what counts.
_LOOK_AGAIN_SECONDS = 0.25
# A guest that boots does not hear that a disk shall go: it is asked again.
_ASK_AGAIN_SECONDS = 5.0


class Hypervisor:
    """The domains of one host and their disks; every answer is what libvirt says at that time."""

    def __init__(self, uri: str, *, threads: int, xenstore: Xenstore | None = None) -> None:
        """`xenstore` is needed where the domains are Xen's."""
        self.uri = uri
        self._connection = Connection(uri, threads=threads)
        self._xenstore = xenstore
        self._served = None if xenstore is None else BackEnds(xenstore)
        self._loop_devices = Loops()
        self._turns = Turns()
        self._agents_asked: set[str] = set()

    # ------------------------------------------------------------ connection
    @property
    def connected(self) -> bool:
        """Whether the connection is open; whoever calls opens it again."""
        return self._connection.is_open

    @property
    def threads(self) -> Threads:
        """Those that wait for libvirt's answers."""
        return self._connection.threads

    async def connect(self) -> None:
        """Open the connection now; raises HypervisorUnavailable."""
        await self._connection.open()

    async def close(self) -> None:
        """Close the connection; domains go on running."""
        await self._connection.close()

    @property
    def is_xen(self) -> bool:
        """Whether the domains are Xen's; QEMU's otherwise."""
        return self._xenstore is not None

    # ------------------------------------------------------------ reading
    async def domains(self) -> list[DomainDetails]:
        """All domains of the host, by name."""
        found = await self._connection.call(domains.list_details)
        return sorted(found, key=lambda domain: domain.name)

    async def find(self, name_or_uuid: str) -> Domain:
        """The domain with this name or UUID; raises DomainNotFound."""
        return await self._connection.call(domains.find, name_or_uuid)

    async def find_running(self, name_or_uuid: str) -> tuple[Domain, DomainXml | None]:
        """The same and its live XML, None while it is off; raises DomainNotFound."""
        return await self._connection.call(domains.find_running, name_or_uuid)

    async def details(self, name_or_uuid: str) -> DomainDetails:
        """The same with its disks, MACs and maker; raises DomainNotFound."""
        return await self._connection.call(domains.details, name_or_uuid)

    async def live_xml(self, uuid: str) -> DomainXml:
        """The live XML of a running domain; raises DomainNotFound or DomainNotRunning."""
        return await self._connection.call(domains.read_live_of, uuid)

    async def has_disk(self, uuid: str, source: Path) -> bool:
        """Whether `source` is attached; a domain that is off or gone has no disk attached."""
        try:
            return (await self.live_xml(uuid)).disk_of(source) is not None
        except (DomainNotFound, DomainNotRunning):
            return False

    async def sources_in_use(self) -> Mapping[Path, str]:
        """Every file and block device of all domains, running or off, by real path; whose it is.

        Of what a disk stands on, only what libvirt knows: images under a QEMU domain that runs.
        """
        return await self._connection.call(domains.sources_in_use)

    async def interface_addresses(
        self, uuid: str, source: Literal["lease", "agent"]
    ) -> dict[str, Any]:
        """What libvirt's interfaceAddresses says, untrusted where the guest's agent says it.

        Empty where there is no such source, or no such domain. An agent may never answer: then the
        caller's time limit ends the wait, and it is not asked again before it does.
        """
        if source == "lease":
            return await self._connection.call(domains.interface_addresses, uuid, source)
        if uuid in self._agents_asked:
            return {}
        self._agents_asked.add(uuid)
        answer = asyncio.ensure_future(
            self._connection.call_in_background(domains.interface_addresses, uuid, source)
        )
        answer.add_done_callback(lambda _answer: self._agents_asked.discard(uuid))
        return await asyncio.shield(answer)

    # ------------------------------------------------------------ whole domains
    async def define(self, xml: str) -> None:
        """Define a domain; one that has its UUID already is left as it is.

        Raises DomainExists where another has the name, TemplateUnusable where libvirt refuses.
        """
        await self._connection.call(lifecycle.define, xml)

    async def start(self, uuid: str) -> None:
        """Start a domain that is off. Raises DomainNotFound, HypervisorFailed."""
        await self._connection.call_apart(lifecycle.start, uuid)

    async def destroy_and_undefine(self, uuid: str) -> None:
        """End a domain at once and forget it; its disks' files are left alone, and held no more.

        Returns when libvirt does not know it and, on Xen, no back end serves it any more. The
        caller's time limit ends the wait. Raises HypervisorFailed.
        """
        try:
            domid = (await self.find(uuid)).domid
        except DomainNotFound:
            return

        async def is_there() -> bool:
            if await self._connection.call_apart(lifecycle.remove, uuid):
                return True
            return bool(domid and self._xenstore and await back_ends_for(self._xenstore, domid))

        await self._while(is_there)

    async def is_gone(self, uuid: str) -> bool:
        """Whether no domain has this UUID."""
        try:
            await self.find(uuid)
        except DomainNotFound:
            return True
        return False

    # ------------------------------------------------------------ the config ISO
    async def attach(self, uuid: str, *, iso: Path, target: str | None) -> str:
        """Attach `iso` read-only, at `target` or at the best that is free; return the real target.

        Attached already: returns its target. Raises NoFreeTarget, AttachGivenUp, HypervisorFailed.
        """
        async with self._turns.wait(iso):
            try:
                return await self._connection.call_apart(disks.attach_iso, uuid, iso, target)
            except HypervisorFailed as error:
                if await self._remove_unknown(uuid, iso, await self._iso_back_ends(uuid, iso)):
                    await self.detach(uuid, iso=iso)
                    raise _given_up(iso, error) from error
                raise

    async def is_connected(self, uuid: str, source: Path) -> bool:
        """Wait until the guest's driver has the disk; False where the disk is gone instead.

        Xen's attach returns before that. A QEMU guest's disk is a part of its machine at once.
        """
        live = await self.live_xml(uuid)
        disk = live.disk_of(source)
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
        self._turns.forget(iso)
        is_known = True

        async def ask() -> None:
            nonlocal is_known
            is_known = True  # also where libvirt refuses
            left = await self._connection.call_apart(disks.detach_iso, uuid, iso)
            is_known = left is disks.Left.THERE
            if left is disks.Left.UNKNOWN:
                await self._remove_unknown(uuid, iso, await self._iso_back_ends(uuid, iso))

        async def is_there() -> bool:
            nonlocal is_known
            is_known = is_known and await self.has_disk(uuid, iso)
            return is_known or bool(await self._iso_back_ends(uuid, iso))

        await self._detach(ask, is_there)
        return await self._free_loops(iso)

    async def prove_absence(self, uuid: str, *, iso: Path) -> None:
        """Look once more, after the file was unlinked; DiskStillAttached says where it still is."""
        if await self.has_disk(uuid, iso):
            raise DiskStillAttached(f"{iso.name} was attached again: it stands in the live XML")
        holders = [*await self._iso_back_ends(uuid, iso), *await self._loops(iso)]
        if holders:
            raise DiskStillAttached(f"{iso.name} is still held by {', '.join(holders)}")

    # ------------------------------------------------------------ data disks
    async def attach_data_disk(
        self, uuid: str, *, chain: DiskChain, serial: str, target: str | None, persistent: bool
    ) -> str:
        """Attach a writable disk, at `target` or at the first that is free; return the real target.

        `persistent`: it is there after the next start as well, and a domain that is off takes it.
        `is_connected` waits for the guest's driver. Attached already: returns its target. Raises
        NoFreeTarget, DomainNotRunning, VhdNeedsTapdisk, AttachGivenUp, HypervisorFailed.
        """
        disk = DataDisk(chain, serial)
        async with self._turns.wait(disk.source):
            try:
                return await self._connection.call_apart(
                    disks.attach_data_disk, uuid, disk, target, persistent=persistent
                )
            except HypervisorFailed as error:
                # One that it may never have leaves as much behind; libvirt/disks.py has said that.
                if needs_device_model(chain):
                    raise
                left = await self._back_ends(disk.source)
                if await self._remove_unknown(uuid, disk.source, left):
                    await self.detach_data_disk(uuid, source=disk.source, persistent=False)
                    raise _given_up(disk.source, error) from error
                raise

    async def detach_data_disk(self, uuid: str, *, source: Path, persistent: bool) -> None:
        """Detach a data disk and wait until nothing has it, as `holders_of` looks for it.

        Returns at once where that is so. A guest that does not answer keeps its disk: the caller's
        time limit ends the wait, and `prove_detached` says what is still so. Raises
        DiskStillAttached where libvirt refuses.
        """
        self._turns.forget(source)
        # What is kept is changed last: it stays as it is where the guest does not let go.
        for kept in (False, True)[: 1 + persistent]:
            ask = partial(self._ask_to_detach, uuid, source, kept=kept)
            is_there = partial(self.holders_of, uuid, source=source, persistent=kept)
            await self._detach(ask, is_there)

    async def _ask_to_detach(self, uuid: str, source: Path, *, kept: bool) -> None:
        await self._connection.call_apart(disks.detach_data_disk, uuid, source, kept=kept)
        if not kept and await self._remove_unknown(uuid, source, await self._back_ends(source)):
            await self._free_loops(source)

    async def prove_detached(self, uuid: str, *, source: Path, persistent: bool) -> None:
        """Raises DiskStillAttached, with every place where the disk still is."""
        if holders := await self.holders_of(uuid, source=source, persistent=persistent):
            raise DiskStillAttached(f"{source.name} is still held: {', '.join(holders)}")

    async def holders_of(self, uuid: str, *, source: Path, persistent: bool) -> list[str]:
        """Where a data disk is: the domain's XML, Xen's back ends, loop devices."""
        place = await self._connection.call(
            disks.find_data_disk, uuid, source, persistent=persistent
        )
        xml = [] if place is None else [place]
        return [*xml, *await self._back_ends(source), *await self._loops(source)]

    async def _remove_unknown(self, uuid: str, source: Path, left: Sequence[str]) -> bool:
        """Take away what libxl has left of an attach that it gave up; False where there is nothing.

        `left` are the back ends that serve the source.

        It does so where its hotplug script takes too long. libvirt knows of no disk then, and both
        of its ends are there.
        """
        if self._xenstore is None:
            return False
        with contextlib.suppress(DomainNotFound):
            domid = (await self.find(uuid)).domid if left else None
            if domid is not None and await self._connection.call(disks.is_unknown, uuid, source):
                own = [back_end for back_end in left if domid_of(back_end) == domid]
                for back_end in own:
                    await remove(self._xenstore, back_end)
                return bool(own)
        return False

    # ------------------------------------------------------------ waiting
    async def _detach(
        self, ask: Callable[[], Awaitable[None]], is_there: Callable[[], Awaitable[object]]
    ) -> None:
        """Ask for a detach, and again now and then while the disk is anywhere."""
        clock = asyncio.get_running_loop().time
        await ask()
        asked = clock()

        async def is_still_there() -> bool:
            nonlocal asked
            if clock() - asked >= _ASK_AGAIN_SECONDS:
                with contextlib.suppress(DiskStillAttached):  # the guest has been told already
                    await ask()
                asked = clock()
            return bool(await is_there())

        await self._while(is_still_there)

    async def _while(self, is_so: Callable[[], Awaitable[bool]]) -> None:
        """Wait until it is so no more; any event of libvirt's makes it look at once."""
        hint = self._connection.hint
        while await is_so():
            with contextlib.suppress(TimeoutError):  # no event came: it is read again all the same
                async with asyncio.timeout(_LOOK_AGAIN_SECONDS):
                    await hint.wait()
            hint = self._connection.hint

    async def _back_ends(self, source: Path) -> list[str]:
        return [] if self._xenstore is None else await back_ends_of(self._xenstore, source)

    async def _iso_back_ends(self, uuid: str, iso: Path) -> list[str]:
        """Those of its own domain: provisiond attaches a config ISO to no other.

        Where somebody else did, `_loops` tells of it if dom0's kernel serves it; otherwise that
        domain is left with a file that was overwritten.
        """
        return [] if self._served is None else await self._served.of(iso, uuid=uuid)

    async def _loops(self, source: Path) -> list[str]:
        return [] if self._xenstore is None else await self._loop_devices.of(source)

    async def _free_loops(self, iso: Path) -> str | None:
        names = await self._loops(iso)
        for name in names:
            try:
                free_loop(name, iso)
            except OSError as error:
                raise DiskStillAttached(f"{name} still has {iso.name}: {error.strerror}") from error
        return ", ".join(names) or None


def _given_up(source: Path, error: HypervisorFailed) -> AttachGivenUp:
    return AttachGivenUp(f"libxl gave up the attach of {source.name} half-way: {error}")
