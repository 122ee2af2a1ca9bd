"""xenstore from asyncio: read, write, list, permissions, transactions, watches.

Two connections, one for the calls and one for the watches, so that a flood of events delays no
call; over xenbus one device does both. A task (`stay_connected`) opens them, notices when xenstored
hangs or dies, connects again and sets every watch again. Setting a watch makes it fire, so whoever
waits reads again, and nothing that happened in between is lost.

What xenstored refuses is an OSError with its errno: FileNotFoundError, PermissionError, and so on.
"""

import asyncio
import contextlib
import errno
import itertools
import logging
import os
import random
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from provisiond.errors import XenstoreUnavailable
from provisiond.xenstore import wire
from provisiond.xenstore.link import Link, is_device, open_link
from provisiond.xenstore.wire import Event

log = logging.getLogger(__name__)

_R = TypeVar("_R")

# libxenstore looks in the same order; where nothing is, the first is the one to tell of.
_PLACES = (
    Path("/run/xenstored/socket"),
    Path("/var/run/xenstored/socket"),
    Path("/dev/xen/xenbus"),
    Path("/proc/xen/xenbus"),
)

# Reads that go out together: others' calls, and the event loop's other work, come in between.
_READ_AT_ONCE = 50

# The pause after a conflict: a guest that writes without end may cause one after the other.
_CONFLICT_SECONDS = 0.001
_LONGEST_CONFLICT_SECONDS = 0.1


def find_xenstore(environment: Mapping[str, str] = os.environ) -> Path:
    """Where xenstored is reached: XENSTORED_PATH, its sockets, xenbus."""
    if "XENSTORED_PATH" in environment:
        return Path(environment["XENSTORED_PATH"])
    return next((place for place in _PLACES if place.exists()), _PLACES[0])


@dataclass(frozen=True, slots=True)
class Health:
    """When a connection counts as lost, and how fast it is tried again; in seconds."""

    ping_every: float = 5.0
    silent_for: float = 10.0
    retry_first: float = 0.1
    retry_last: float = 5.0


@dataclass(frozen=True, slots=True)
class _Links:
    calls: Link
    watches: Link


@dataclass(frozen=True, slots=True)
class _Watch:
    path: str
    wake: asyncio.Event


class Calls(ABC):
    """What can be asked of xenstore, of itself or inside of a transaction."""

    @abstractmethod
    def _ask(self, op: int, payload: bytes) -> asyncio.Future[bytes]:
        """The reply's payload; what is asked before anybody waits goes out together, in order."""

    async def read(self, path: str) -> bytes:
        """The value; FileNotFoundError where there is no such node."""
        return await self._ask(wire.READ, wire.path_payload(path))

    async def read_all(self, *paths: str) -> list[bytes | None]:
        """Their values, read in this order; None where there is no such node."""
        found: list[bytes | None] = []
        for start in range(0, len(paths), _READ_AT_ONCE):
            some = paths[start : start + _READ_AT_ONCE]
            asked = [self._ask(wire.READ, wire.path_payload(path)) for path in some]
            # The last is answered last: whoever waits for it is woken once, and not for each.
            with contextlib.suppress(OSError, XenstoreUnavailable):
                await asked[-1]
            for reply in asked:
                try:
                    found.append(await reply)
                except FileNotFoundError:
                    found.append(None)
        return found

    async def write(self, path: str, value: bytes) -> None:
        """Set the value, and make the node and its parents where they are missing."""
        await self._ask(wire.WRITE, wire.path_payload(path) + value)

    async def mkdir(self, path: str) -> None:
        """Make an empty node where there is none; one that is there keeps its value."""
        await self._ask(wire.MKDIR, wire.path_payload(path))

    async def make_all(self, paths: Iterable[str], *permissions: str) -> None:
        """Make those that are missing, and replace the permissions of all, asked for at once."""
        asked = []
        for path in paths:
            asked.append(self._ask(wire.MKDIR, wire.path_payload(path)))
            asked.append(self._ask(wire.SET_PERMS, wire.permissions_payload(path, permissions)))
        for reply in asked:
            await reply

    async def rm(self, *paths: str) -> None:
        """Remove these nodes and all below them; returns where they are gone already."""
        for reply in [self._ask(wire.RM, wire.path_payload(path)) for path in paths]:
            with contextlib.suppress(FileNotFoundError):  # its parent is missing as well
                await reply

    async def children(self, path: str) -> list[str]:
        """Their names, all of one moment; FileNotFoundError where there is no such node."""
        try:
            return wire.parse_strings(await self._ask(wire.DIRECTORY, wire.path_payload(path)))
        except OSError as error:
            if error.errno != errno.E2BIG:  # C xenstored: more than one reply can hold
                raise
        return await self._children_in_parts(path)

    async def children_if_any(self, path: str) -> list[str]:
        """Their names; none where there is no such node either."""
        with contextlib.suppress(FileNotFoundError):
            return await self.children(path)
        return []

    async def permissions(self, path: str) -> tuple[str, ...]:
        """The owner, with everybody's default, first: ("n0", "b5")."""
        return tuple(wire.parse_strings(await self._ask(wire.GET_PERMS, wire.path_payload(path))))

    async def set_permissions(self, path: str, *permissions: str) -> None:
        """Replace the permissions, owner included; FileNotFoundError."""
        await self._ask(wire.SET_PERMS, wire.permissions_payload(path, permissions))

    async def _children_in_parts(self, path: str) -> list[str]:
        """From the start again whenever the list has changed between two parts."""
        names: list[str] = []
        offset, generation = 0, ""
        while True:
            payload = wire.path_payload(path) + b"%d\0" % offset
            part = wire.parse_directory_part(await self._ask(wire.DIRECTORY_PART, payload))
            if offset > 0 and part.generation != generation:
                names, offset = [], 0
                continue
            names += part.names
            offset, generation = offset + part.size, part.generation
            if part.is_last:
                return names


class Xenstore(Calls):
    """The calls fail with XenstoreUnavailable while there is no connection, and when it breaks.

    A call that broke may have been done or not: make only calls that may be made twice.
    """

    def __init__(self, address: Path, *, health: Health | None = None) -> None:
        self.address = address
        self._health = health or Health()
        self._links: _Links | None = None
        self._available = asyncio.Event()
        self._watches: dict[str, _Watch] = {}
        self._tokens = itertools.count(1)
        self._why_not = f"{address}: not connected yet"

    # ------------------------------------------------------------ connection
    @property
    def connected(self) -> bool:
        """Whether xenstored answers."""
        return self._available.is_set()

    async def available(self) -> None:
        """Wait until there is a connection and every watch is set."""
        await self._available.wait()

    async def stay_connected(self) -> None:
        """Connect, and connect again whenever xenstored was lost; until this task is cancelled."""
        pause = self._health.retry_first
        reported = ""
        while True:
            try:
                async with self._connected() as links:
                    log.info("connected to xenstore at %s", self.address)
                    pause, reported = self._health.retry_first, ""
                    await self._until_lost(links)
            except OSError as error:
                self._why_not = f"{self.address}: {error}"
            if self._why_not != reported:
                reported = self._why_not
                log.warning("xenstore at %s; provisiond tries again by itself", reported)
            await asyncio.sleep(random.SystemRandom().uniform(0.5, 1.0) * pause)
            pause = min(2 * pause, self._health.retry_last)

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[_Links]:
        """Two links over which xenstored answers, with every watch set; raises OSError."""
        calls, watches = self._new_link(), self._new_link()
        links = _Links(calls, watches)
        try:
            try:
                async with asyncio.timeout(self._health.silent_for):
                    links = await self._connect(links)
            except TimeoutError:
                raise TimeoutError("xenstored does not answer") from None
            except XenstoreUnavailable as error:  # lost again already
                raise ConnectionError(error.message) from error
            yield links
        finally:
            for link in (calls, watches):
                link.break_off("the connection is closed")
            self._disconnect("the connection is closed")  # however it was lost

    async def _connect(self, links: _Links) -> _Links:
        await open_link(self.address, links.calls)
        await links.calls.ping()  # accepted: C xenstored lets one or two wait for that and no more
        if is_device(self.address):
            links = _Links(links.calls, links.calls)
        else:
            await open_link(self.address, links.watches)
            await links.watches.ping()
        # No await before the requests: a watch is set here, or by whoever registers it from now on.
        self._links = links
        setting = [self._set_watch(links.watches, token) for token in self._watches]
        await asyncio.gather(*setting, return_exceptions=True)
        await asyncio.gather(links.calls.ping(), links.watches.ping())  # raises: lost meanwhile
        self._available.set()
        return links

    def _new_link(self) -> Link:
        return Link(on_event=self._fire, on_lost=self._disconnect)

    async def _until_lost(self, links: _Links) -> None:
        """Ping now and then; returns once a link is lost, or silent and therefore given up."""
        both = {links.calls, links.watches}  # xenbus: one that is both
        while not any(link.lost.done() for link in both):
            await asyncio.wait(
                {link.lost for link in both},
                timeout=self._health.ping_every,
                return_when=asyncio.FIRST_COMPLETED,
            )
            for link in both:
                if link.is_silent(seconds=self._health.silent_for):
                    link.break_off("xenstored does not answer")
                link.ping()

    def _disconnect(self, reason: str) -> None:
        if self._links is not None:
            self._why_not = f"{self.address}: {reason}"
        self._links = None
        self._available.clear()

    # ------------------------------------------------------------ calls
    def _ask(self, op: int, payload: bytes) -> asyncio.Future[bytes]:
        return self._calls.request(op, payload)

    @property
    def _calls(self) -> Link:
        if self._links is None:
            raise XenstoreUnavailable(self._why_not)
        return self._links.calls

    # ------------------------------------------------------------ transactions
    async def in_transaction(self, work: Callable[["Transaction"], Awaitable[_R]]) -> _R:
        """Do `work` as a whole, or not at all where it raises.

        It is done again, ever more slowly, whenever somebody else has changed what it saw; the
        caller's time limit ends that.
        """
        pause = 0.0
        while True:
            with contextlib.suppress(BlockingIOError):  # EAGAIN
                async with self.transaction() as transaction:
                    return await work(transaction)
            await asyncio.sleep(pause)
            pause = min(2 * pause + _CONFLICT_SECONDS, _LONGEST_CONFLICT_SECONDS)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator["Transaction"]:
        """One transaction, committed at the end of the block and taken back where that raises.

        Raises BlockingIOError (EAGAIN) where somebody else has changed what was seen or done here.
        """
        link = self._calls
        starting = link.request(wire.TRANSACTION_START, b"\0")
        try:
            number = wire.parse_number(await asyncio.shield(starting))
        except asyncio.CancelledError:
            starting.add_done_callback(lambda reply: _take_back_unused(link, reply))
            raise
        try:
            yield Transaction(link, number)
        except BaseException:
            link.request(wire.TRANSACTION_END, b"F\0", transaction=number)
            raise
        await asyncio.shield(link.request(wire.TRANSACTION_END, b"T\0", transaction=number))

    # ------------------------------------------------------------ watches
    @asynccontextmanager
    async def watch(
        self, *paths: str, wake: asyncio.Event | None = None
    ) -> AsyncIterator[asyncio.Event]:
        """Sets the event (a new one, or `wake`) when something at or below a path changes.

        It is set at once, may be set for nothing, and is set once for many changes: clear it, read,
        then wait. The watches outlive the loss of xenstored. Also for @introduceDomain and
        @releaseDomain.
        """
        wake = wake or asyncio.Event()
        watches = {f"provisiond-{next(self._tokens)}": path for path in paths}
        ends = [(token, wire.watch_payload(path, token)) for token, path in watches.items()]
        self._watches |= {token: _Watch(path, wake) for token, path in watches.items()}
        try:
            if self._links is not None:
                link = self._links.watches
                for reply in [self._set_watch(link, token) for token in watches]:
                    with contextlib.suppress(XenstoreUnavailable):  # set when it is back
                        await reply
            yield wake
        finally:
            for token, end in ends:
                del self._watches[token]
                if self._links is not None:
                    self._links.watches.request(wire.UNWATCH, end)

    def _set_watch(self, link: Link, token: str) -> asyncio.Future[bytes]:
        return link.request(wire.WATCH, wire.watch_payload(self._watches[token].path, token))

    def _fire(self, event: Event) -> None:
        watch = self._watches.get(event.token)
        if watch is not None:
            watch.wake.set()


class Transaction(Calls):
    """The same calls inside of a transaction; others see all of it at once, or nothing."""

    def __init__(self, link: Link, number: int) -> None:
        self._link = link
        self._number = number

    def _ask(self, op: int, payload: bytes) -> asyncio.Future[bytes]:
        return self._link.request(op, payload, transaction=self._number)


def _take_back_unused(link: Link, started: asyncio.Future[bytes]) -> None:
    """End a transaction that began after whoever wanted it had gone."""
    if not started.cancelled() and started.exception() is None:
        number = wire.parse_number(started.result())
        link.request(wire.TRANSACTION_END, b"F\0", transaction=number)
