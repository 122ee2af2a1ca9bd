"""Guests that flood their virtio channels as no QEMU could, and neighbours that speak on theirs.

The other ends of the channels are in processes of their own; what hears them is here, as it is in
the daemon. A neighbour's word carries the time at which it was written.
"""

import asyncio
import itertools
import multiprocessing
import os
import socket
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from time import monotonic, monotonic_ns
from typing import Any, ClassVar

from provisiond.guest.channel import ChannelSignal
from provisiond.guest.verdict import Failed
from tests.contract.guest_ends import NONCE, ChannelGuest
from tests.soak.latency import Scene

SPAWN = multiprocessing.get_context("spawn")
NEIGHBOURS = 10
PAUSE = 0.05  # seconds between two words of a neighbour
CHUNK = 1 << 16
# What a guest may write: what `yes`, `cat /dev/urandom` and `cat /dev/zero` write, words of its own
# job, and lines that are too long to be words.
FLOODS = {
    "yes": b"y\n" * (CHUNK // 2),
    "random": os.urandom(CHUNK),
    "zeros": bytes(CHUNK),
    "words": f"{NONCE} log flood\n".encode() * (CHUNK // 48),
    "long lines": (b"x" * 3000 + b"\n") * (CHUNK // 3001),
}


class Gate:
    """What the hostile guests' processes and this one have in common."""

    def __init__(self, floods: int) -> None:
        self.on = SPAWN.Event()
        self.counts: Any = SPAWN.Array("Q", floods)
        """What each flood has come to: bytes, or turns."""
        self.ready = SPAWN.Barrier(floods + 2)  # the neighbours' process, and this one

    def turn(self, *, on: bool) -> None:
        """Let the floods begin, or have them stop."""
        if on:
            self.on.set()
        else:
            self.on.clear()


class ChannelFlood(Scene):
    """Each flood `times` over, and neighbours."""

    name: ClassVar[str] = "virtio channels"

    def __init__(self, folder: Path, *, times: int) -> None:
        self._folder = folder
        self._asking, theirs = SPAWN.Pipe()
        floods = list(itertools.chain.from_iterable([FLOODS.values()] * times))
        self._gate = Gate(len(floods))
        folders = [folder / f"n{number}" for number in range(NEIGHBOURS)]
        for one in folders:
            one.mkdir()
        self._sockets = [folder / f"f{number}" for number in range(len(floods))]
        speaking = (folders, theirs, self._gate)
        self._processes = [SPAWN.Process(target=_speak, args=speaking, daemon=True)]
        for number, (path, said) in enumerate(zip(self._sockets, floods, strict=True)):
            args = (path, said, self._gate, number)
            self._processes.append(SPAWN.Process(target=_flood, args=args, daemon=True))
        self._heard: list[ChannelSignal] = []
        self._hearing: list[asyncio.Task[object]] = []

    async def start(self) -> None:
        for process in self._processes:
            process.start()
        await asyncio.to_thread(self._gate.ready.wait)
        for path in self._sockets:
            signal = ChannelSignal(nonce=NONCE, find_socket=_at(path))
            self._heard.append(signal)
            self._hearing.append(asyncio.create_task(signal.verdict()))

    async def stop(self) -> None:
        for task in self._hearing:
            task.cancel()
        await asyncio.gather(*self._hearing, return_exceptions=True)
        for signal in self._heard:
            await signal.close()
        for process in self._processes:
            process.kill()
            process.join()

    async def flood(self, *, on: bool) -> None:
        self._gate.turn(on=on)

    @property
    def sent(self) -> list[int]:
        """The bytes that were taken of each flood."""
        return list(self._gate.counts)

    def taken(self) -> str:
        return f"{sum(self.sent) / 2**20:.0f} MiB taken of {len(self._sockets)} floods"

    async def neighbours(self, seconds: float) -> list[float]:
        end = monotonic() + seconds
        waits = await asyncio.gather(*(self._work(n, end) for n in range(NEIGHBOURS)))
        return list(itertools.chain.from_iterable(waits))

    async def _work(self, number: int, end: float) -> list[float]:
        waits = []
        while monotonic() < end:
            nonce = uuid.uuid4().hex
            signal = ChannelSignal(nonce=nonce, find_socket=_at(self._neighbour(number)))
            await signal.listen()
            self._asking.send((number, nonce))
            waits.append(waited(await signal.verdict()))
            await signal.close()
            await asyncio.sleep(PAUSE)
        return waits

    def _neighbour(self, number: int) -> Path:
        return self._folder / f"n{number}" / "org.provisiond.0"


@asynccontextmanager
async def channel_flood(folder: Path, *, times: int = 2) -> AsyncIterator[ChannelFlood]:
    """The scene, at work; at the end no process is left."""
    scene = ChannelFlood(folder, times=times)
    try:
        await scene.start()
        yield scene
    finally:
        await scene.stop()


def word(nonce: str) -> str:
    """A neighbour's verdict, which carries the time."""
    return f"{nonce} failed soak {monotonic_ns()}"


def waited(verdict: object) -> float:
    """How long ago, in seconds, this verdict was written."""
    assert isinstance(verdict, Failed), verdict
    return (monotonic_ns() - int(verdict.message)) / 1e9


def _at(path: Path) -> Callable[[], Awaitable[Path]]:
    async def find() -> Path:
        return path

    return find


# ---------------------------------------------------------------- in other processes
def _speak(folders: Iterable[Path], orders: Connection, gate: Gate) -> None:
    """The neighbours: each says its word when it is asked to."""
    guests = [ChannelGuest(folder) for folder in folders]
    gate.ready.wait()
    with suppress(EOFError):
        while True:
            number, nonce = orders.recv()
            guests[number].say(word(nonce))


def _flood(path: Path, said: bytes, gate: Gate, number: int) -> None:
    """A guest that says the same as fast as it is taken."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        gate.ready.wait()
        while True:
            client, _ = listener.accept()
            with client, suppress(OSError):
                while gate.on.wait():
                    gate.counts[number] += client.send(said)
