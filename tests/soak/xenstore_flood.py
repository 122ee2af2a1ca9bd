"""Guests that flood a real xenstored, and neighbours that write their verdict there.

The guests are in processes of their own, each with its own connection.
"""

import asyncio
import itertools
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import ClassVar

from provisiond.guest.xenstore import XenstoreSignal
from provisiond.xenstore.client import Health
from provisiond.xenstore.domains import Domains
from provisiond.xenstore.lost_events import LostEvents
from tests.contract.guest_ends import NONCE
from tests.soak.neighbours import NEIGHBOURS, FloodedScene, Gate, speak
from tests.xenstore.connect import Counted, connected, looked_for
from tests.xenstore.daemon import XenDomain, Xenstored
from tests.xenstore.test_domains import followed
from tests.xenstore.wire import Connection

Flood = Callable[[Connection, int], None]
FOLDER = "data/provisiond"
VERDICT, LOG = f"{FOLDER}/verdict", f"{FOLDER}/log"


# ---------------------------------------------------------------- what hostile guests do
def write_verdicts(guest: Connection, turn: int) -> None:
    """The watched key, again and again: words of another job."""
    guest.write(VERDICT, b"%032x done %d" % (turn, turn))


def write_much(guest: Connection, turn: int) -> None:
    """As much as a node may have."""
    guest.write(LOG, (f"{NONCE} log {turn} ".encode() + b"x" * 4096)[:2000])


def make_many(guest: Connection, turn: int) -> None:
    """Many keys, deep ones too, beside those that are watched; some go again."""
    guest.write(f"{FOLDER}/{turn % 300}/deep/er", b"x")
    if turn % 3 == 0:
        guest.rm(f"{FOLDER}/{(turn + 150) % 300}")


def remove_all(guest: Connection, _turn: int) -> None:
    """Everything that is watched goes, and an own folder comes."""
    guest.rm(FOLDER)
    guest.write(VERDICT, b"mine")


def change_permissions(guest: Connection, _turn: int) -> None:
    """The folder is closed to everybody and opened again."""
    domid = guest.permissions("data")[0][1:]
    guest.set_permissions("data", [f"n{domid}"])
    guest.set_permissions("data", [f"b{domid}"])


FLOODS: Sequence[Flood] = (
    write_verdicts,
    write_much,
    make_many,
    remove_all,
    change_permissions,
)


class XenstoreFlood(FloodedScene[XenstoreSignal]):
    """Each flood `times` over, and neighbours."""

    name: ClassVar[str] = "xenstore"

    def __init__(self, store: Xenstored, *, times: int) -> None:
        floods = list(itertools.chain.from_iterable([FLOODS] * times))
        super().__init__(floods=len(floods))
        count = len(floods) + NEIGHBOURS
        domains = store.introduce_all({5 + n: str(uuid.uuid4()) for n in range(count)})
        self.hostile = domains[: len(floods)]
        self._good = domains[len(floods) :]
        self._in_a_process(
            _speak, [domain.socket for domain in self._good], self._asked, self._gate
        )
        for number, (domain, flood) in enumerate(zip(self.hostile, floods, strict=True)):
            self._in_a_process(_flood, domain.socket, flood, self._gate, number)

    @asynccontextmanager
    async def heard(
        self, xenstore: Counted, domains: Domains, lost_events: LostEvents
    ) -> AsyncIterator[None]:
        """Every hostile guest has a job."""
        self.xenstore, self.domains, self.lost_events = xenstore, domains, lost_events
        signals = [self._signal(domain, NONCE) for domain in self.hostile]
        tasks: list[asyncio.Task[object]] = []
        try:
            await self._start_processes()
            for signal in signals:
                await signal.listen()
            tasks = [asyncio.create_task(signal.verdict()) for signal in signals]
            yield
            assert not any(task.done() for task in tasks), "a hostile guest's job has ended"
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for signal in signals:
                await signal.close()
            self._end_processes()

    @property
    def done(self) -> int:
        """What the hostile guests have done, in turns."""
        return sum(list[int](self._gate.counts))

    def taken(self) -> str:
        reads = sum(self.reads)
        return f"{self.done} writes of {len(self.hostile)} floods, looked at {reads} times"

    @property
    def reads(self) -> list[int]:
        """How often each hostile guest's verdict was read."""
        return [self.xenstore.reads[f"{domain.home}/{VERDICT}"] for domain in self.hostile]

    def _signal_of(self, neighbour: int, nonce: str) -> XenstoreSignal:
        return self._signal(self._good[neighbour], nonce)

    async def _forget(self, signal: XenstoreSignal) -> None:
        await signal.end()

    def _signal(self, domain: XenDomain, nonce: str) -> XenstoreSignal:
        return XenstoreSignal(
            nonce=nonce,
            uuid=domain.uuid,
            xenstore=self.xenstore,
            domains=self.domains,
            lost_events=self.lost_events,
            reboot_seconds=60,
        )


@asynccontextmanager
async def xenstore_flood(store: Xenstored, *, times: int = 2) -> AsyncIterator[XenstoreFlood]:
    """The scene, at work; at the end no process is left."""
    scene = XenstoreFlood(store, times=times)
    async with (
        connected(store.socket, health=Health()) as xenstore,
        followed(xenstore) as domains,
        looked_for(xenstore) as lost_events,
        scene.heard(xenstore, domains, lost_events),
    ):
        yield scene


# ---------------------------------------------------------------- in other processes
def _speak(sockets: Sequence[Path], orders: Pipe, gate: Gate) -> None:
    """The neighbours: each writes its verdict when it is asked to."""
    guests = [Connection(path) for path in sockets]
    speak([partial(_write_verdict, guest) for guest in guests], orders, gate)


def _write_verdict(guest: Connection, said: str) -> None:
    guest.write(VERDICT, said.encode())


def _flood(path: Path, act: Flood, gate: Gate, number: int) -> None:
    """A guest that does the same again and again, as fast as xenstored answers it."""
    with Connection(path) as guest:
        gate.ready.wait()
        for turn in itertools.count():
            gate.on.wait()
            with suppress(FileNotFoundError, PermissionError, BlockingIOError, FileExistsError):
                act(guest, turn)
            gate.counts[number] += 1
