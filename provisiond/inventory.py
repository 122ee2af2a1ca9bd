"""The images that provisiond keeps, golden bases and disks, and the removal of what nobody has."""

from collections.abc import Sequence
from dataclasses import dataclass

from provisiond.disk.bases import BaseState
from provisiond.disk.disks import Disk
from provisiond.errors import BaseNotFound, DomainBusy
from provisiond.story import Tools


@dataclass(frozen=True, slots=True)
class DiskState:
    """A disk of ours, and the domain that has it."""

    disk: Disk
    domain: str | None


class Inventory:
    """Reads; and removes bases and disks, each in one step that a crash cannot halve."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools

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

    async def disks(self) -> Sequence[DiskState]:
        """All disks that provisiond made, by name."""
        in_use = await self._tools.hypervisor.sources_in_use()
        found = await self._tools.disks.list()
        return [DiskState(disk, in_use.get(disk.image.path)) for disk in found]

    async def remove_disk(self, name: str) -> None:
        """Remove a disk that no domain has; raises DiskNotFound, DiskInUse, DomainBusy."""
        await self._refuse_busy(f"disk {name}", name)
        in_use = await self._tools.hypervisor.sources_in_use()
        await self._tools.disks.remove(name, in_use=in_use)

    async def _refuse_busy(self, works_on: str, name: str) -> None:
        busy = await self._tools.store.unfinished_on(works_on, None)
        if busy is not None:
            raise DomainBusy(f"{name}: job {busy.id} is at work on it ({busy.state})")
