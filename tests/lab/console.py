"""A root shell in the tiny guest, over its second serial port or its Xen console."""

import asyncio
import shlex
import tty
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

LONGEST_ANSWER = 16 * 1024 * 1024
ATTEMPTS = 2  # at a log-in
ASK_AGAIN = 0.5  # seconds; what is sent before the guest's serial port is open is lost


class Answer(NamedTuple):
    """What a command in the guest ended with; `output` is stdout and stderr together."""

    status: int
    output: str


class Console:
    """One shell; one command at a time. Time limits belong to the caller."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._lock = asyncio.Lock()

    async def run(self, command: str) -> Answer:
        """Runs `command` in a shell of its own, without input; it may be any text."""
        marker = uuid.uuid4().hex
        line = f"sh -c {shlex.quote(command)} </dev/null 2>&1; printf '\\n{marker} %d\\n' $?\n"
        async with self._lock:
            await self._send(line)
            output = await self._reader.readuntil(f"\n{marker} ".encode())
            status = await self._reader.readline()
        text = output[: -len(marker) - 2].decode(errors="replace")
        return Answer(int(status), text)

    async def order(self, command: str) -> None:
        """Has the shell run a command that ends or reboots the guest, and so never answers."""
        async with self._lock:
            await self._send(f"{command}\n")

    async def greet(self) -> None:
        """Waits until the guest's shell answers; what came before is thrown away."""
        marker = uuid.uuid4().hex
        # The shell joins the two words: an echo of the line itself is not taken for the answer.
        line = f"\necho {marker[:16]}''{marker[16:]}\n"
        while True:
            await self._send(line)
            try:
                async with asyncio.timeout(ASK_AGAIN):
                    await self._reader.readuntil(f"{marker}\n".encode())
                break
            except TimeoutError:
                continue
        await self._forget_answers()

    async def _forget_answers(self) -> None:
        """Earlier questions may still be answered: skip to the answer of one asked once."""
        marker = uuid.uuid4().hex
        await self._send(f"echo {marker}\n")
        await self._reader.readuntil(f"{marker}\n".encode())

    async def _send(self, line: str) -> None:
        self._writer.write(line.encode())
        await self._writer.drain()


@asynccontextmanager
async def open_console(shell: Path) -> AsyncIterator[Console]:
    """The shell behind a Unix socket or a terminal (a pty of QEMU's or Xen's), once it answers."""
    opened = _open_socket(shell) if shell.is_socket() else _open_terminal(shell)
    async with opened as console:
        yield console


@asynccontextmanager
async def _open_socket(socket: Path) -> AsyncIterator[Console]:
    reader, writer = await asyncio.open_unix_connection(socket, limit=LONGEST_ANSWER)
    async with _greeted(reader, writer) as console:
        yield console


@asynccontextmanager
async def _open_terminal(terminal: Path) -> AsyncIterator[Console]:
    async with _lines_of(terminal) as (reader, writer), _greeted(reader, writer) as console:
        yield console


@asynccontextmanager
async def logged_in(terminal: Path, *, user: str, password: str) -> AsyncIterator[Console]:
    """The shell of a user who logs in at a terminal where getty waits; PermissionError if refused.

    The user stays logged in when the context ends.
    """
    async with _lines_of(terminal) as (reader, writer):
        await _log_in(reader, writer, user=user, password=password)
        # From here on a program reads the terminal: no echo, no prompts.
        writer.write(b"exec sh -c 'stty raw -echo; exec sh $(tty)'\n")
        async with _greeted(reader, writer) as console:
            yield console


async def _log_in(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, user: str, password: str
) -> None:
    """What was shown while nobody looked is lost: an empty line makes it ask again.

    Several of them may have gone before the first answer, and spoil an attempt: so there are two.
    """
    shown, answer, refused = b"", "", 0
    while not shown.endswith((b"# ", b"$ ")):
        try:
            async with asyncio.timeout(ASK_AGAIN):
                shown += await reader.readexactly(1)
        except TimeoutError:
            if not shown:
                writer.write(b"\n")
            continue
        if shown.endswith(b"login: "):
            answer = password
            writer.write(f"{user}\n".encode())
            shown = b"-"
        elif shown.endswith(b"Password: "):
            writer.write(f"{answer}\n".encode())
            shown = b"-"
        elif shown.endswith(b"Login incorrect") and answer:
            refused += 1
            if refused == ATTEMPTS:
                raise PermissionError(f"{user} cannot log in")


@asynccontextmanager
async def _lines_of(
    terminal: Path,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=LONGEST_ANSWER)
    with terminal.open("rb", buffering=0) as output, terminal.open("wb", buffering=0) as line:
        tty.setraw(output.fileno())
        incoming, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), output
        )
        outgoing, protocol = await loop.connect_write_pipe(
            lambda: asyncio.StreamReaderProtocol(asyncio.StreamReader()), line
        )
        try:
            yield reader, asyncio.StreamWriter(outgoing, protocol, None, loop)
        finally:
            outgoing.close()
            incoming.close()


@asynccontextmanager
async def _greeted(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> AsyncIterator[Console]:
    try:
        console = Console(reader, writer)
        await console.greet()
        yield console
    finally:
        writer.close()
        await writer.wait_closed()
