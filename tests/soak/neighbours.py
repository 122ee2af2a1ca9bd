"""Guests that flood, and the neighbours whose words are timed: what both kinds of flood share.

The guests are in processes of their own; what hears them is here, as it is in the daemon. A
neighbour's word carries the time at which it was written.
"""

import asyncio
import itertools
import multiprocessing
import uuid
from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from time import monotonic, monotonic_ns
from typing import Any, Generic, TypeVar

from provisiond.guest.channel import ChannelSignal
from provisiond.guest.verdict import Failed
from provisiond.guest.xenstore import XenstoreSignal
from tests.soak.latency import Scene

_Signal = TypeVar("_Signal", ChannelSignal, XenstoreSignal)

SPAWN = multiprocessing.get_context("spawn")
NEIGHBOURS = 10
PAUSE = 0.05  # seconds between two words of a neighbour


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


class FloodedScene(Scene, Generic[_Signal]):
    """Processes that flood, and one whose neighbours each say a word when they are asked to."""

    def __init__(self, *, floods: int) -> None:
        self._gate = Gate(floods)
        self._asking, self._asked = SPAWN.Pipe()
        self._processes: list[Any] = []

    @abstractmethod
    def _signal_of(self, neighbour: int, nonce: str) -> _Signal:
        """What hears this neighbour's word."""

    @abstractmethod
    async def _forget(self, signal: _Signal) -> None:
        """Its word was heard."""

    def _in_a_process(self, target: Callable[..., None], *args: object) -> None:
        self._processes.append(SPAWN.Process(target=target, args=args, daemon=True))

    async def _start_processes(self) -> None:
        for process in self._processes:
            process.start()
        await asyncio.to_thread(self._gate.ready.wait)

    def _end_processes(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()

    async def flood(self, *, on: bool) -> None:
        self._gate.turn(on=on)

    async def neighbours(self, seconds: float) -> list[float]:
        end = monotonic() + seconds
        waits = await asyncio.gather(*(self._work(n, end) for n in range(NEIGHBOURS)))
        return list(itertools.chain.from_iterable(waits))

    async def _work(self, number: int, end: float) -> list[float]:
        waits = []
        while monotonic() < end:
            nonce = uuid.uuid4().hex
            signal = self._signal_of(number, nonce)
            await signal.listen()
            self._asking.send((number, nonce))
            waits.append(waited(await signal.verdict()))
            await self._forget(signal)
            await asyncio.sleep(PAUSE)
        return waits


def speak(says: Sequence[Callable[[str], object]], orders: Connection, gate: Gate) -> None:
    """The neighbours' process: each says its word when it is asked to."""
    gate.ready.wait()
    with suppress(EOFError):
        while True:
            number, nonce = orders.recv()
            says[number](word(nonce))


def word(nonce: str) -> str:
    """A neighbour's verdict, which carries the time."""
    return f"{nonce} failed soak {monotonic_ns()}"


def waited(verdict: object) -> float:
    """How long ago, in seconds, this verdict was written."""
    assert isinstance(verdict, Failed), verdict
    return (monotonic_ns() - int(verdict.message)) / 1e9
