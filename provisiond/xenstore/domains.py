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

# A watch can be lost (oxenstored), so everything is read again now and then.
_LOOK_AGAIN_SECONDS = 30.0
_HOMES = "/local/domain"


class Domains:
    """The domains as xenstore has them; a task (`follow`) keeps this up to date."""

    def __init__(self, xenstore: Xenstore) -> None:
        self._xenstore = xenstore
        self._known = asyncio.Event()
        self._uuids: dict[int, str] = {}  # by domid, in the order in which they came
        self._domids: dict[str, int] = {}  # the newest of each UUID
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
        async with contextlib.AsyncExitStack() as watches:
            wake = asyncio.Event()
            for special in ("@introduceDomain", "@releaseDomain"):
                await watches.enter_async_context(self._xenstore.watch(special, wake=wake))
            while True:
                wake.clear()
                try:
                    await self._look()
                except XenstoreUnavailable:
                    self._take({})  # a xenstored that was started anew has other domains
                    self._known.clear()
                    await self._xenstore.available()
                    continue
                await _wait(wake, seconds=_LOOK_AGAIN_SECONDS)

    async def _look(self) -> None:
        before = self._domids
        names = await self._xenstore.children_if_any(_HOMES)
        domids = {int(name) for name in names if name.isdigit()}
        found = {
            domid: uuid
            for domid, uuid in self._uuids.items()
            # One that somebody follows is read again: others may keep a dead domain's home alive.
            if domid in domids and uuid not in self._followers
        }
        for domid in sorted(domids - set(found)):
            uuid = await self._read_uuid(domid)
            if uuid is not None:
                found[domid] = uuid
        self._take(found)
        self._known.set()
        for uuid, wakes in self._followers.items():
            if before.get(uuid) != self._domids.get(uuid):
                for wake in wakes:
                    wake.set()

    async def _read_uuid(self, domid: int) -> str | None:
        try:
            vm = await self._xenstore.read(f"{_HOMES}/{domid}/vm")
        except FileNotFoundError:
            return None  # dom0, or a domain that is only just being made or removed
        folder, _, uuid = vm.decode("ascii", errors="replace").rpartition("/")
        return uuid if folder == "/vm" else None

    def _take(self, found: dict[int, str]) -> None:
        self._uuids = found
        self._domids = {uuid: domid for domid, uuid in found.items()}


async def _wait(wake: asyncio.Event, *, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await wake.wait()
