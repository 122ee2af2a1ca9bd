"""When Python looks for garbage: cycles of objects that nothing names any more."""

import asyncio
import gc
from collections.abc import Callable

_COLLECT_SECONDS = 10.0
_ANYWAY = 60  # rounds: what nobody has counted is found as well, in ten minutes


async def collect_often(
    happened: Callable[[], object], *, seconds: float = _COLLECT_SECONDS
) -> None:
    """Have connections that were cut off collected soon, and nothing while nothing happens.

    asyncio's TLS connections are cycles of few objects, with a buffer of 256 KiB each; Python looks
    for such among old objects only when they have become a quarter more. All that is there at the
    start stays for good: not counted among them, it need not be looked at either. Until here
    nothing was collected (__main__.py).

    `happened` is equal to what it was as long as nothing has left garbage. A look takes some ms,
    and more the more jobs there are; those that only wait leave none. What has ended just before a
    look may become garbage just after it, so there are two looks.
    """
    gc.collect()
    gc.freeze()
    gc.enable()
    before = last = happened()
    without_look = 0
    while True:
        await asyncio.sleep(seconds)
        now = happened()
        without_look += 1
        if now != before or without_look == _ANYWAY:
            gc.collect()
            without_look = 0
        before, last = last, now
