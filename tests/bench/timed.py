"""libvirt as provisiond calls it, with the time of every call written down.

The calls are the real ones, made by the real adapter; what each took is the floor that a job cannot
get below.
"""

import atexit
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import clock_gettime_ns
from typing import Any, Concatenate, ParamSpec, TypeVar

import libvirt

from provisiond.virt.libvirt import Hypervisor
from provisiond.virt.libvirt.connection import Connection
from provisiond.xenstore.client import Xenstore
from tests.bench.clock import CLOCK

_P = ParamSpec("_P")
_R = TypeVar("_R")

CALLS = "BENCH_CALLS"
"""The variable that names the file which the calls are written to."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of libvirt's: its name, and from when to when, in ns of the machine's clock."""

    name: str
    start: int
    end: int


def read_calls(path: Path) -> list[Call]:
    """In the order in which they ended."""
    return [Call(*json.loads(line)) for line in path.read_text().splitlines()]


class TimedHypervisor(Hypervisor):
    """The real one."""

    def __init__(self, uri: str, *, threads: int, xenstore: Xenstore | None = None) -> None:
        super().__init__(uri, threads=threads, xenstore=xenstore)
        self._connection = _TimedConnection(uri, threads=threads)


class _TimedConnection(Connection):
    def __init__(self, uri: str, *, threads: int) -> None:
        super().__init__(uri, threads=threads)
        self._log = _Log(Path(os.environ[CALLS]))

    async def _call_on(
        self,
        connection: Any,
        function: Callable[Concatenate[Any, _P], _R],
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> _R:
        return await super()._call_on(_Timed(connection, self._log), function, *args, **kwargs)


class _Timed:
    """An object of libvirt's: every call of its methods is timed."""

    def __init__(self, real: Any, log: "_Log") -> None:
        self._real = real
        self._log = log

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._real, name)

        def call(*args: object) -> Any:
            start = clock_gettime_ns(CLOCK)
            try:
                answer = method(*args)
            finally:
                self._log.add(Call(name, start, clock_gettime_ns(CLOCK)))
            return self._wrapped(answer)

        return call

    def _wrapped(self, answer: Any) -> Any:
        if isinstance(answer, libvirt.virDomain):
            return _Timed(answer, self._log)
        if isinstance(answer, list):
            return [self._wrapped(one) for one in answer]
        return answer


class _Log:
    """One line a call, written when the daemon ends: to write is no part of what is measured."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._calls: list[Call] = []
        self.add = self._calls.append
        atexit.register(self._write)

    def _write(self) -> None:
        lines = [json.dumps([call.name, call.start, call.end]) for call in self._calls]
        self._path.write_text("\n".join(lines))
