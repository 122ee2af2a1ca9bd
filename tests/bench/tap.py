"""A tap in a guest's virtio channel: when each word came out of the guest, by the host's clock.

QEMU's socket is moved aside, and the tap stands in its place: whoever connects here is connected to
the guest, and nobody else ever is. Or the tap itself hears the guest and writes the words to a file
for a program that looks there.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from tests.bench.clock import now


class Tap:
    """`words` are the guest's lines, each with the time at which it had come, in ns; `connected`
    are the times at which somebody began to listen."""

    def __init__(self, path: Path) -> None:
        self.words: list[tuple[int, bytes]] = []
        self.connected: list[int] = []
        self._qemu = path.with_name(f"{path.name}.qemu")

    async def hand_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Both ways until one end closes."""
        self.connected.append(now())
        from_guest, to_guest = await asyncio.open_unix_connection(self._qemu)
        try:
            async with asyncio.TaskGroup() as tasks:
                back = tasks.create_task(_pump(reader, to_guest))
                await self._read_guest(from_guest, writer)
                back.cancel()
        except* ConnectionError:
            pass
        finally:
            writer.close()
            to_guest.close()

    async def _read_guest(self, guest: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async for line in guest:
            self.words.append((now(), line))
            if writer.is_closing():
                return
            writer.write(line)

    async def record(self, file: Path) -> None:
        """Until cancelled: every word goes to the end of the file, for `grep`."""
        guest, to_guest = await asyncio.open_unix_connection(self._qemu)
        try:
            with file.open("ab", buffering=0) as kept:
                async for line in guest:
                    self.words.append((now(), line))
                    kept.write(line)
        finally:
            to_guest.close()

    def first(self, part: bytes, *, after: int) -> int:
        """When the first word with this part came, after that time."""
        return next(at for at, word in self.words if at >= after and part in word)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
    writer.close()  # whoever listened has gone: the guest's next write waits for somebody


@asynccontextmanager
async def tapped(path: Path) -> AsyncIterator[Tap]:
    """A tap in the channel whose socket is at `path`, which must not be connected yet."""
    tap = Tap(path)
    path.rename(path.with_name(f"{path.name}.qemu"))
    server = await asyncio.start_unix_server(tap.hand_on, path)
    path.chmod(0o666)
    try:
        yield tap
    finally:
        server.close()
