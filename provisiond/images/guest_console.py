"""A guest's serial console, used as a person would: the log-in, then commands in the shell.

All that comes from it is the guest's word. What the user types is never shown: neither is the
password, should the guest echo it.
"""

import asyncio
import re
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from provisiond.errors import ToolFailed

_WAITING = 2**24  # bytes of output that wait to be read: a guest's whole boot, many times over
_MOST = 2**20  # bytes of them that are searched
# A getty that was disturbed by the kernel's messages, or that gave up a log-in, asks again.
_NUDGE_SECONDS = 15.0
# Searched for again with every piece that comes, so each takes a time that grows as the text does.
_LOGIN = re.compile(rb"login: ")
_PASSWORD = re.compile(rb"[Pp]assword: ")
_REFUSED = re.compile(rb"[Ll]ogin incorrect")
_PROMPT = re.compile(rb"[#$%>](?: |\x1b\[[0-9;?]*[a-z])*$")
# Colours, titles and what a line editor says to a terminal (ECMA-48).
_ESCAPES = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-~])")


class LoginRefused(Exception):
    """The guest does not take user and password."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command in the guest ended with; `output` is stdout and stderr together."""

    status: int
    output: str


class GuestConsole:
    """One terminal. Time limits belong to the caller."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._heard = b""

    async def log_in(self, user: str, password: str) -> None:
        """Answers the questions for user and password; returns once a shell answers.

        Waits for the first question as long as it takes; raises LoginRefused.
        """
        while True:
            while not await self._soon(_LOGIN):
                await self._type("")
            await self._type(user)
            if await self._soon(_PASSWORD):
                break  # else it was no question, or the getty has started anew
        await self._type(password)
        await self._greet()

    async def run(self, command: str) -> Answer:
        """Runs one line of shell; what it says is bounded by what a console may keep."""
        mark = secrets.token_hex(8)
        begin, end = f"<{mark}", f">{mark}"
        # The marks are joined by the shell: an echo of the line is not taken for the answer.
        line = f"echo '<''{mark}'; ({command}) </dev/null 2>&1; echo '>''{mark}' $?"
        await self._type(line)
        said = await self._hear(re.compile(rb"%s [0-9]{1,3}\r?\n" % end.encode()))
        output = _plain(said).rpartition(begin)[2].rpartition(end)[0]
        return Answer(int(said.split()[-1]), output.strip("\n"))

    async def _greet(self) -> None:
        """The shell's first answer, or that there is none. What is typed before it reads is lost,
        and a prompt may look like anything."""
        mark = secrets.token_hex(8)
        await self._until_answered(_PROMPT)
        while True:
            await self._type(f"stty -echo; PS1= PS2=; echo '<''{mark}'")
            if await self._until_answered(re.compile(rb"<%s\r?\n" % mark.encode())):
                return

    async def _until_answered(self, wanted: re.Pattern[bytes]) -> bool:
        heard = await self._soon(re.compile(wanted.pattern + b"|" + _REFUSED.pattern))
        if heard and _REFUSED.search(heard):
            raise LoginRefused("the guest says: Login incorrect")
        return heard is not None

    async def _soon(self, wanted: re.Pattern[bytes]) -> bytes | None:
        """What `_hear` does; None where it is not heard soon."""
        try:
            async with asyncio.timeout(_NUDGE_SECONDS):
                return await self._hear(wanted)
        except TimeoutError:
            return None

    async def _hear(self, wanted: re.Pattern[bytes]) -> bytes:
        """All up to where `wanted` is heard last; that is forgotten then. ToolFailed at the end.

        What the kernel has said behind a question changes nothing.
        """
        while not (found := list(wanted.finditer(self._heard))):
            chunk = await self._reader.read(65536)
            if not chunk:
                raise ToolFailed("the guest's console has closed: its QEMU has ended")
            self._heard = (self._heard + chunk)[-_MOST:]
        end = found[-1].end()
        said, self._heard = self._heard[:end], self._heard[end:]
        return said

    async def _type(self, line: str) -> None:
        self._writer.write(line.encode() + b"\n")
        await self._writer.drain()


def _plain(untrusted: bytes) -> str:
    """Text without escape sequences and carriage returns."""
    return _ESCAPES.sub(b"", untrusted).replace(b"\r", b"").decode(errors="replace")


def last_lines(untrusted: bytes, count: int) -> list[str]:
    """The last lines of a console that hold anything, each in plain text."""
    lines = [line.rstrip() for line in _plain(untrusted).splitlines()]
    return [line for line in lines if line][-count:]


@asynccontextmanager
async def opened(socket: Path) -> AsyncIterator[GuestConsole]:
    """The console at `socket`. From now on all is kept, so it has to be opened early."""
    try:
        reader, writer = await asyncio.open_unix_connection(socket, limit=_WAITING)
    except OSError as error:
        raise ToolFailed(f"{socket}: the console is not there: {error.strerror}") from error
    try:
        yield GuestConsole(reader, writer)
    finally:
        writer.close()
