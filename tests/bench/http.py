"""HTTP to a daemon with next to no work here: what is measured shares its processors with us."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.daemon.program import Json


class Keeper:
    """One connection that is kept open; one request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def ask(self, method: str, path: str, body: Json | None = None) -> tuple[int, bytes]:
        """Status and body of the reply, which must have a length."""
        content = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: provisiond\r\nContent-Length: {len(content)}\r\n"
        if body is not None:
            head += "Content-Type: application/json\r\n"
        self._writer.write(f"{head}\r\n".encode() + content)
        answer = await self._reader.readuntil(b"\r\n\r\n")
        status, *headers = answer.decode().split("\r\n")
        fields = dict(line.lower().split(": ", 1) for line in headers if ": " in line)
        return int(status.split()[1]), await self._reader.readexactly(int(fields["content-length"]))

    async def submit(self, body: Json) -> str:
        """The id of the new job."""
        status, answer = await self.ask("POST", "/v1/jobs", body)
        assert status == 202, answer
        return str(json.loads(answer)["id"])

    async def end_of(self, job_id: str) -> str:
        """The state in which the job ends, by its events; the last use of the connection."""
        self._writer.write(
            f"GET /v1/jobs/{job_id}/events HTTP/1.1\r\nHost: provisiond\r\n\r\n".encode()
        )
        status = await self._reader.readline()
        assert status.startswith(b"HTTP/1.1 200 "), status
        async for line in self._reader:
            if line.rstrip() in (b"event: SUCCEEDED", b"event: FAILED"):
                return line.decode().split()[1]
        raise EOFError(f"the daemon has closed the connection before job {job_id} ended")


@asynccontextmanager
async def kept(socket: Path) -> AsyncIterator[Keeper]:
    """A connection to a daemon."""
    reader, writer = await asyncio.open_unix_connection(socket, limit=2**20)
    try:
        yield Keeper(reader, writer)
    finally:
        writer.close()
        await writer.wait_closed()
