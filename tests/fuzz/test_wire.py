"""Bytes that are hardly HTTP, on the socket of a daemon that serves: it answers or hangs up."""

import asyncio
import random

from tests.daemon.program import Daemon

INPUTS = 300
CONNECTIONS = 20
SOON = 30  # seconds; far more than an answer takes
BODY = b'{"kind": "destroy", "request_id": "a", "domain": "absent"}'
HONEST = (
    b"GET /v1/jobs?limit=5 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    b"GET /v1/jobs/01/events HTTP/1.1\r\nHost: x\r\nLast-Event-ID: 1\r\nConnection: close\r\n\r\n",
    b"DELETE /v1/disks/web1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(BODY), BODY),
    b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY),
)
PIECES = (
    *(b"\0", b"\xff" * 9, b"\r", b"\n", b"\r\n\r\n", b" " * 99, b":", b"%00", b"%ff", b"\x1b[2J"),
    *(
        b"Content-Length: 5\r\n",
        b"Content-Length: -1\r\n",
        b"Content-Length: 9" + b"9" * 30 + b"\r\n",
    ),
    *(b"Transfer-Encoding: chunked\r\n", b"Expect: 100-continue\r\n", b"Upgrade: h2c\r\n"),
    *(b"Host: y\r\n", b"x" * 20_000, b"../" * 50, b"http://other/", b"\xc3\xa9", b"{" * 3000),
)


def spoiled(chance: random.Random) -> bytes:
    """An honest request after some cuts, doublings and insertions."""
    made = bytearray(chance.choice(HONEST))
    for _ in range(chance.randint(1, 4)):
        at = chance.randint(0, len(made))
        match chance.randrange(4):
            case 0:
                made[at:at] = chance.choice(PIECES)
            case 1:
                del made[at : at + chance.randint(1, 20)]
            case 2:
                made[at:at] = made[at : at + chance.randint(1, 60)]
            case _:
                made[at : at + 1] = chance.randbytes(1)
    return bytes(made)


async def answer(daemon: Daemon, sent: bytes) -> bytes:
    """All that comes back, the connection's own end included."""
    reader, writer = await asyncio.open_unix_connection(daemon.socket)
    try:
        writer.write(sent)
        writer.write_eof()
        return await reader.read()
    except (ConnectionError, BrokenPipeError):
        return b""
    finally:
        writer.close()


async def test_bytes_that_are_hardly_http_are_answered_or_hung_up_on(idle_daemon: Daemon) -> None:
    idle_daemon.settings |= {"requests_per_second": 1e6, "request_seconds": 1}
    await idle_daemon.start()
    chance = random.Random(1)  # noqa: S311 - the same requests every time
    free = asyncio.Semaphore(CONNECTIONS)

    async def ask(sent: bytes) -> None:
        async with free, asyncio.timeout(SOON):
            got = await answer(idle_daemon, sent)
        status = got.split(b" ", 2)[1] if got else b""
        assert status[:1] in (b"", b"1", b"2", b"4"), (sent, got)
        assert len(status) in (0, 3), (sent, got)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(INPUTS):
            tasks.create_task(ask(spoiled(chance)))
    assert (await idle_daemon.get("/healthz")).json()["ok"] is True
    assert (await idle_daemon.get("/v1/jobs")).json() == {"jobs": []}
    said = idle_daemon.said()
    assert "Traceback" not in said, said
