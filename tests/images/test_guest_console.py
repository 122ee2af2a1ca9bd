"""The console of a guest that wants no good: a program of the test's own at the other end."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from provisiond.errors import ToolFailed
from provisiond.images.guest_console import GuestConsole, opened

pytestmark = pytest.mark.timeout(60)

Guest = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def console_of(guest: Guest, folder: Path) -> AsyncIterator[GuestConsole]:
    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await guest(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_unix_server(act, folder / "console")
    async with server, opened(folder / "console") as console:
        yield console


async def test_a_guest_that_talks_without_end_holds_up_nobody(tmp_path: Path) -> None:
    async def guest(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _number in range(256):
            writer.write(b"no question at all\n" * 3450)
            await writer.drain()

    async with console_of(guest, tmp_path) as console:
        with pytest.raises(ToolFailed, match="console has closed"):
            await console.log_in("root", "secret")


async def test_the_last_answer_counts_and_none_is_taken_for_a_number(tmp_path: Path) -> None:
    async def guest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = await reader.readline()
        found = re.search(rb"'<''([0-9a-f]{16})'", line)
        assert found is not None
        mark = found[1]
        writer.write(b"<%s\nhello\n>%s nonsense>%s 7\n" % (mark, mark, mark))
        await writer.drain()
        await reader.read()

    async with console_of(guest, tmp_path) as console:
        answer = await console.run("true")
    assert answer.status == 7
    assert answer.output.startswith("hello")
