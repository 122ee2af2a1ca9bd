"""The real `provisionctl` as a process of its own: in a pipe, and on a terminal."""

import asyncio
import fcntl
import os
import re
import struct
import sys
import termios
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

PROVISIONCTL = Path(sys.executable).with_name("provisionctl")
PASSWORD = "correct horse battery"  # no output ever holds it: every test looks
TYPED = f"{PASSWORD}\n".encode()
SECONDS = 180  # a guest boots slowly on a busy machine without KVM
Word = str | Path
# What the shell does when somebody has typed these words and presses the tab key.
PRESS_TAB = """
eval "$(provisionctl --show-completion bash)"
COMP_WORDS=(provisionctl "$@" '') COMP_CWORD=$(($# + 1))
_provisionctl_completion provisionctl
printf '%s\\n' "${COMPREPLY[@]}"
"""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended, and what it said."""

    status: int
    out: str
    err: str


@dataclass(frozen=True, slots=True)
class Command:
    """`provisionctl --socket SOCKET`; of this process's environment it knows nothing."""

    socket: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    prefix: tuple[Word, ...] = ()

    async def run(self, *words: Word, stdin: bytes = b"", stdout: int | None = None) -> Ended:
        """The command from its start to its end, without any terminal."""
        process = await self.start(*words, stdout=stdout)
        async with asyncio.timeout(SECONDS):
            return await end(process, stdin)

    async def start(self, *words: Word, stdout: int | None = None) -> asyncio.subprocess.Process:
        """The same, to be waited for with `end`; `stdout` is a pipe if not given."""
        return await asyncio.create_subprocess_exec(
            *self._argv(words),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE if stdout is None else stdout,
            stderr=asyncio.subprocess.PIPE,
            env=self._environment(),
        )

    @asynccontextmanager
    async def on_terminal(self, *words: Word) -> AsyncIterator["Terminal"]:
        """The command as a person runs it: a terminal of its own, which Ctrl-C goes through."""
        ours, its = os.openpty()
        try:
            fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("4H", 40, 120, 0, 0))
            process = await asyncio.create_subprocess_exec(
                "setsid",
                "--ctty",
                *self._argv(words),
                stdin=its,
                stdout=its,
                stderr=its,
                env=self._environment(),
            )
        finally:
            os.close(its)
        terminal = Terminal(process, ours)
        try:
            async with asyncio.timeout(SECONDS):
                yield terminal
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
            terminal.close()

    async def press_tab(self, *words: Word) -> list[str]:
        """What bash proposes as the next word after `provisionctl` and these."""
        bash = await asyncio.create_subprocess_exec(
            *("bash", "-c", PRESS_TAB, "bash", *words),
            stdout=asyncio.subprocess.PIPE,
            env={
                **self._environment(),
                "PATH": f"{PROVISIONCTL.parent}:{os.environ['PATH']}",
                "PROVISIOND_SOCKET": str(self.socket),
            },
        )
        proposed, _ = await bash.communicate()
        assert bash.returncode == 0
        return proposed.decode().split()

    def _argv(self, words: tuple[Word, ...]) -> tuple[Word, ...]:
        # Tests that run in the background of a shell would pass on that both are ignored.
        default = ("env", "--default-signal=INT,QUIT")
        return (*default, *self.prefix, PROVISIONCTL, "--socket", self.socket, *words)

    def _environment(self) -> dict[str, str]:
        usual = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "TERM": "xterm"}
        return usual | dict(self.environment)


async def end(process: asyncio.subprocess.Process, stdin: bytes = b"") -> Ended:
    """Give it its input and wait for it."""
    out, err = await process.communicate(stdin)
    said = Ended(await process.wait(), (out or b"").decode(), err.decode())
    assert PASSWORD not in said.out + said.err
    assert "Traceback" not in said.err, said.err
    return said


def facts(plain: str) -> list[str]:
    """The states in lines of the form TIME SUBJECT STATE DETAIL, as a pipe gets them."""
    return re.findall(r"^\d{4}-\d\d-\d\dT\S+Z \S+ ([A-Z_]+) .+$", plain, re.MULTILINE)


def rows(plain: str) -> list[dict[str, str]]:
    """A table, as a pipe gets it."""
    head, *lines = (line.split("\t") for line in plain.splitlines())
    return [dict(zip(head, line, strict=True)) for line in lines]


class Terminal:
    """The other side of the terminal that a command runs on."""

    def __init__(self, process: asyncio.subprocess.Process, descriptor: int) -> None:
        self._process = process
        self._descriptor = descriptor
        self._came = asyncio.Event()
        self._hung_up = False
        self.shown = b""
        asyncio.get_running_loop().add_reader(descriptor, self._read)

    @property
    def pid(self) -> int:
        """The command's."""
        return self._process.pid

    def type(self, text: bytes) -> None:
        """Press the keys."""
        os.write(self._descriptor, text)

    async def until(self, text: str) -> None:
        """Wait until it is shown."""
        while text.encode() not in self.shown:
            assert not self._hung_up, self.shown.decode()
            self._came.clear()
            await self._came.wait()

    async def ended(self) -> Ended:
        """Wait for the end; `out` is all that was shown."""
        while not self._hung_up:
            self._came.clear()
            await self._came.wait()
        said = Ended(await self._process.wait(), self.shown.decode(), "")
        assert PASSWORD not in said.out
        assert "Traceback" not in said.out, said.out
        return said

    async def interrupted(self) -> Ended:
        """Press Ctrl-C and wait for the end, and again every ten seconds.

        Python hears one that comes in the instant before it waits for input only with the next.
        """
        ending = asyncio.create_task(self.ended())
        try:
            while not ending.done():
                self.type(b"\x03")
                await asyncio.wait([ending], timeout=10)
        finally:
            ending.cancel()
        return await ending

    def close(self) -> None:
        """Hang up."""
        asyncio.get_running_loop().remove_reader(self._descriptor)
        os.close(self._descriptor)

    def _read(self) -> None:
        try:
            self.shown += os.read(self._descriptor, 65536)
        except OSError:  # EIO: the last process has closed its side
            self._hung_up = True
            asyncio.get_running_loop().remove_reader(self._descriptor)
        self._came.set()


@contextmanager
def without_reader() -> Iterator[int]:
    """The writing end of a pipe whose reader has left, as `| head -1` leaves."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        yield writer
    finally:
        os.close(writer)
