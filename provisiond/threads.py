"""Blocking calls in threads, never abandoned unless they change nothing.

A cancelled coroutine must not leave its blocking call running behind it: an attach that ends after
the undo has looked would leave an orphan. So a call in a pool is waited for even when its caller is
cancelled. `call_in_background` is for a call that changes nothing and may never return.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Threads:
    """A pool of `size` threads for the blocking calls of one adapter, named for the debugger."""

    def __init__(self, *, size: int, name: str) -> None:
        self._size = size
        self._pool = ThreadPoolExecutor(max_workers=size, thread_name_prefix=name)
        self._since: dict[int, float] = {}  # of each thread at work: since when on its call

    async def call(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run `function` in a thread; on cancellation wait for its end, then be cancelled."""
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._pool, self._run, partial(function, *args, **kwargs))
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            while not future.done():
                try:
                    await asyncio.wait([future])
                except asyncio.CancelledError:
                    pass  # cancelled again; the first time is raised below
            if not future.cancelled():
                future.exception()  # seen: the cancellation outweighs it
            raise

    async def answer(self) -> None:
        """Return once a call that does nothing has come through."""
        await self.call(lambda: None)

    def longest_call(self) -> float:
        """For how many seconds the longest of the calls at work has run; 0.0 where none is."""
        now = time.monotonic()
        return now - min(self._since.copy().values(), default=now)

    def all_held(self) -> float:
        """For how many seconds no thread has been free for another call; 0.0 where one is."""
        since = self._since.copy()
        return time.monotonic() - max(since.values()) if len(since) == self._size else 0.0

    def _run(self, function: Callable[[], R]) -> R:
        """In a thread of the pool."""
        thread = threading.get_ident()
        self._since[thread] = time.monotonic()
        try:
            return function()
        finally:
            del self._since[thread]

    def close(self) -> None:
        """Wait for the calls that run and end the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)


async def call_until_told(function: Callable[[threading.Event], R]) -> R:
    """Run `function` in a thread of its own. On cancellation it is told so by the event, which it
    looks at as often as it likes, and waited for."""
    threads, ended = Threads(size=1, name="told"), threading.Event()
    call = asyncio.ensure_future(threads.call(function, ended))
    try:
        return await asyncio.shield(call)
    except asyncio.CancelledError:
        ended.set()
        await asyncio.wait([call])
        raise
    finally:
        threads.close()


def call_in_background(
    function: Callable[P, R], *args: P.args, **kwargs: P.kwargs
) -> asyncio.Future[R]:
    """Run `function` in a thread of its own that nobody has to wait for, not even this process."""
    future: Future[R] = Future()

    def run() -> None:
        try:
            result = function(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - it is raised where the future is awaited
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=run, name="background", daemon=True).start()
    return asyncio.wrap_future(future)
