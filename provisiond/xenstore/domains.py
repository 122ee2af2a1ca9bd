"""Which domid a domain has now: a reboot gives it a new one, its UUID stays.

`/local/domain/<domid>/vm` is `/vm/<uuid>`; @introduceDomain and @releaseDomain say when to look.
libxl writes that key before the one fires, and removes it before the last of the other.
"""

import asyncio
import contextlib
from collections.abc import Iterator
from contextlib import contextmanager

from provisiond.errors import XenstoreUnavailable
from provisiond.xenstore.client import Xenstore

# An event can be lost (oxenstored), so the domids are listed again now and then.
_LOOK_AGAIN_SECONDS = 30.0
_HOMES = "/local/domain"


class Domains:
    """The domains as xenstore has them; a task (`follow`) keeps this up to date."""

    def __init__(self, xenstore: Xenstore) -> None:
        self._xenstore = xenstore
        self._known = asyncio.Event()
        self._uuids: dict[int, str] = {}  # by domid, in the order in which they came
        self._domids: dict[str, int] = {}  # the newest domid of each UUID among them
        self._followers: dict[str, set[asyncio.Event]] = {}

    async def domid(self, uuid: str) -> int | None:
        """The domid of this domain, or None where it has none; waits until that is known.

        In the moment of a reboot in which it has two, the newer one.
        """
        await self._known.wait()
        return self._domids.get(uuid)

    def known(self, uuid: str) -> int | None:
        """The same without waiting: None where nothing is known just now."""
        return self._domids.get(uuid)

    @contextmanager
    def following(self, uuid: str, *, wake: asyncio.Event) -> Iterator[None]:
        """Sets the event whenever this domain's domid has changed."""
        self._followers.setdefault(uuid, set()).add(wake)
        try:
            yield
        finally:
            self._followers[uuid].discard(wake)
            if not self._followers[uuid]:
                del self._followers[uuid]

    async def follow(self) -> None:
        """Look whenever a domain comes or goes; until this task is cancelled."""
        async with self._xenstore.watch("@introduceDomain", "@releaseDomain") as wake:
            is_told = True
            while True:
                wake.clear()
                try:
                    await self._look(followed_too=is_told)
                except XenstoreUnavailable:
                    self._keep({})  # a xenstored that was started anew has other domains
                    self._known.clear()
                    await self._xenstore.available()
                    continue
                is_told = await _wait(wake, seconds=_LOOK_AGAIN_SECONDS)

    async def _look(self, *, followed_too: bool) -> None:
        """Read whose the domids are that are not known; and, where an event has told of a change,
        those that somebody follows again: others may keep a dead domain's home alive.

        Without an event that is not needed. A new domid of theirs is not known, and so is read. One
        that has died without an event has lost the keys in which its guest would speak, libxl
        removes all of its home: whoever waits for those finds that out (lost_events.py).
        """
        before = self._domids
        names = await self._xenstore.children_if_any(_HOMES)
        domids = {int(name) for name in names if name.isdigit()}
        found = {
            domid: uuid
            for domid, uuid in self._uuids.items()
            if domid in domids and not (followed_too and uuid in self._followers)
        }
        found |= await self._read_uuids(sorted(domids - set(found)))
        self._keep(found)
        self._known.set()
        for uuid, wakes in self._followers.items():
            if before.get(uuid) != self._domids.get(uuid):
                for wake in wakes:
                    wake.set()

    async def _read_uuids(self, domids: list[int]) -> dict[int, str]:
        """Without dom0, and domains that are only just being made or removed."""
        values = await self._xenstore.read_all(*(f"{_HOMES}/{domid}/vm" for domid in domids))
        uuids = {domid: _parse_vm(vm) for domid, vm in zip(domids, values, strict=True)}
        return {domid: uuid for domid, uuid in uuids.items() if uuid is not None}

    def _keep(self, uuids: dict[int, str]) -> None:
        self._uuids = uuids
        self._domids = {uuid: domid for domid, uuid in uuids.items()}


def _parse_vm(value: bytes | None) -> str | None:
    folder, _, uuid = (value or b"").decode("ascii", errors="replace").rpartition("/")
    return uuid if folder == "/vm" else None


async def _wait(wake: asyncio.Event, *, seconds: float) -> bool:
    """Whether it has been set."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await wake.wait()
    return wake.is_set()
