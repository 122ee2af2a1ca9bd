"""Guests that flood their virtio channels as no QEMU could, and neighbours that speak on theirs.

The other ends of the channels are in processes of their own.
"""

import asyncio
import itertools
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import ClassVar

from provisiond.guest.channel import ChannelSignal
from tests.contract.guest_ends import NONCE, ChannelGuest
from tests.soak.neighbours import NEIGHBOURS, FloodedScene, Gate, speak

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


class ChannelFlood(FloodedScene[ChannelSignal]):
    """Each flood `times` over, and neighbours."""

    name: ClassVar[str] = "virtio channels"

    def __init__(self, folder: Path, *, times: int) -> None:
        floods = list(itertools.chain.from_iterable([FLOODS.values()] * times))
        super().__init__(floods=len(floods))
        self._folder = folder
        folders = [folder / f"n{number}" for number in range(NEIGHBOURS)]
        for one in folders:
            one.mkdir()
        self._sockets = [folder / f"f{number}" for number in range(len(floods))]
        self._in_a_process(_speak, folders, self._asked, self._gate)
        for number, (path, said) in enumerate(zip(self._sockets, floods, strict=True)):
            self._in_a_process(_flood, path, said, self._gate, number)
        self._heard: list[ChannelSignal] = []
        self._hearing: list[asyncio.Task[object]] = []

    async def start(self) -> None:
        await self._start_processes()
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
        self._end_processes()

    @property
    def sent(self) -> list[int]:
        """The bytes that were taken of each flood."""
        return list(self._gate.counts)

    def taken(self) -> str:
        return f"{sum(self.sent) / 2**20:.0f} MiB taken of {len(self._sockets)} floods"

    def _signal_of(self, neighbour: int, nonce: str) -> ChannelSignal:
        return ChannelSignal(nonce=nonce, find_socket=_at(self._neighbour(neighbour)))

    async def _forget(self, signal: ChannelSignal) -> None:
        await signal.close()

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


def _at(path: Path) -> Callable[[], Awaitable[Path]]:
    async def find() -> Path:
        return path

    return find


# ---------------------------------------------------------------- in other processes
def _speak(folders: Iterable[Path], orders: Connection, gate: Gate) -> None:
    """The neighbours: each says its word when it is asked to."""
    speak([ChannelGuest(folder).say for folder in folders], orders, gate)


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
