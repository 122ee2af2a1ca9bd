"""Who has it already: what is asked for may be some other job's, or a domain's."""

from pathlib import Path

from provisiond.errors import DiskInUse, DomainBusy
from provisiond.store import Store


async def refuse_busy(
    store: Store, works_on: str, *, name: str, domain_uuid: str | None = None
) -> None:
    """Raises DomainBusy where a job is at work on it: under this key, or on this domain."""
    busy = await store.unfinished_on(works_on, domain_uuid)
    if busy is not None:
        raise DomainBusy(f"{name}: job {busy.id} is at work on it ({busy.state})")


async def refuse_claimed(
    store: Store, disk: str, path: Path, *, but_for: str | None = None
) -> None:
    """Raises DiskInUse where a job has to do with the disk; of several the first has it.

    The job `but_for` may have it itself.
    """
    first = await store.unfinished_with_disk(disk, path)
    if first is not None and first.id != but_for:
        raise DiskInUse(f"{disk}: job {first.id} has it ({first.state})")
