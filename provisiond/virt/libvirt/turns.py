"""Whose attach libxl has given up is attached again one after the other."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from provisiond.errors import AttachGivenUp


class Turns:
    """The attaches of one host that libxl may give up.

    Its hotplug scripts have one lock, and each has 40 s. On a busy host those of several attaches
    at once may all come to their ends in vain, and would again.
    """

    def __init__(self) -> None:
        self._given_up: set[Path] = set()
        self._turn = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def wait(self, source: Path) -> AsyncIterator[None]:
        """Around one attach of `source`: at once, and after an AttachGivenUp in its turn."""
        async with self._turn if source in self._given_up else contextlib.nullcontext():
            self.forget(source)
            try:
                yield
            except AttachGivenUp:
                self._given_up.add(source)
                raise

    def forget(self, source: Path) -> None:
        """It is not attached again, or as if for the first time."""
        self._given_up.discard(source)
