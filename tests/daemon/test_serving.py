"""The server by itself: its connections' ends, which leave garbage, and the date of its replies."""

import asyncio
import email
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

from fastapi import FastAPI

from provisiond.api.callers import LocalRoles, RemoteRoles
from provisiond.api.limits import CallLimits, Traffic
from provisiond.api.serving import Listener, Server, on_tcp, on_unix
from provisiond.api.tls import CertificateFiles, ServerTls
from tests.daemon.certificates import make_authority, make_certificate
from tests.daemon.program import LOOK_SECONDS

SOON = 10.0  # seconds; far more than any of this takes
LIMITS = CallLimits(
    requests_per_second=100, max_requests=10, max_connections=10, request_seconds=SOON
)
REQUEST = b"GET / HTTP/1.1\r\nHost: provisiond\r\nConnection: close\r\n\r\n"


@asynccontextmanager
async def serving(listener: Listener) -> AsyncIterator[Server]:
    server = Server(FastAPI(), [listener], Traffic(LIMITS))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(server.serve())
        yield server
        server.stop()


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, sent: bytes) -> bytes:
    """All that comes back until the server has hung up."""
    writer.write(sent)
    async with asyncio.timeout(SOON):
        answered = await reader.read()
        writer.close()
        return answered


def on_socket(path: Path) -> Listener:
    local = socket.socket(socket.AF_UNIX)
    local.bind(str(path))
    local.listen()
    return on_unix(local, LocalRoles(os.getgid()))


async def test_the_end_of_a_connection_is_counted(daemon_folder: Path) -> None:
    path = daemon_folder / "socket"
    async with serving(on_socket(path)) as server:
        streams = await asyncio.open_unix_connection(path)
        assert (await answer(*streams, REQUEST)).startswith(b"HTTP/1.1 404 ")
    assert server.ended == 1


async def test_the_date_of_the_replies_goes_on(daemon_folder: Path) -> None:
    path = daemon_folder / "socket"

    async def date() -> datetime:
        streams = await asyncio.open_unix_connection(path)
        head = email.message_from_bytes((await answer(*streams, REQUEST)).partition(b"\r\n")[2])
        return parsedate_to_datetime(head["date"])

    async with serving(on_socket(path)), asyncio.timeout(SOON):
        before = datetime.now(UTC).replace(microsecond=0)
        first = await date()
        assert first >= before
        while await date() == first:  # noqa: ASYNC110 - the clock is no event's
            await asyncio.sleep(LOOK_SECONDS)
        assert await date() > first


async def test_a_handshake_that_fails_is_counted(daemon_folder: Path) -> None:
    authority = make_authority(daemon_folder)
    own = make_certificate(daemon_folder, "host", by=authority, ip="127.0.0.1")
    files = CertificateFiles(own.certificate, own.key, client_ca=authority.certificate)
    remote = socket.create_server(("127.0.0.1", 0))
    async with serving(on_tcp(remote, RemoteRoles(), ServerTls(files))) as server:
        streams = await asyncio.open_connection(*remote.getsockname())
        await answer(*streams, REQUEST)
    assert server.ended == 1
