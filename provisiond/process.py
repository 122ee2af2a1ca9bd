"""Other programs: started here alone, never through a shell, never left behind.

`run` and `output_of` are the daemon's; a command that its user's terminal goes to is handed it by
`hand_over`, and takes this process's place by `become`. `run_as_init` is a namespace's first.
"""

import asyncio
import ctypes
import logging
import os
import re
import shlex
import shutil
import signal
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from provisiond.errors import ToolFailed, ToolMissing

MIB = 1024 * 1024
# An ignored signal stays ignored in the program that takes our place; it expects neither.
_IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)
# A program cannot open it as /proc/PID/fd/N of ours: this process is closed to others.
_OWN_DESCRIPTOR = re.compile(r"/proc/self/fd/([0-9]+)")
_PR_SET_PDEATHSIG = 1  # prctl(2)
STDERR_TAIL = 2000  # characters of a failed tool's own words that go into the error

log = logging.getLogger(__name__)


def require_tool(name: str, *, package: str) -> Path:
    """Where the program is. Raises ToolMissing with Debian's package that has it."""
    if found := shutil.which(name):
        return Path(found)
    raise ToolMissing(f"{name} is not installed", hint=f"On Debian: apt install {package}")


@dataclass(frozen=True, slots=True)
class Finished:
    """How a program ended; a negative `returncode` is the signal that ended it."""

    returncode: int
    stdout: bytes
    stderr: bytes


async def run(
    argv: Sequence[str | Path],
    *,
    stdin: bytes | None = None,
    limit_output: int = MIB,
    check: bool = True,
    hear: Callable[[str], None] | None = None,
    with_stderr: bool = False,
) -> Finished:
    """Runs a program to its end and returns what it said.

    `hear` is called with each line of stdout as it comes (one that is written over with a carriage
    return is a line too); nothing of stdout is then kept, and it may be of any length. With
    `with_stderr`, what it says on stderr comes on stdout.

    When the caller's task is cancelled or its time is over, the program and all that it started are
    killed. More than `limit_output` bytes on stdout or stderr, an absent program, and with `check`
    an exit status other than 0, are ToolFailed. `stdin` may be secret: it is never logged. An open
    file of ours that a word names as /proc/self/fd/N is open in the program under the same name.
    """
    given = PIPE if stdin is not None else DEVNULL
    async with _started(argv, stdin=given, stderr=STDOUT if with_stderr else PIPE) as process:
        async with asyncio.TaskGroup() as tasks:
            stdout = tasks.create_task(
                _read(process, process.stdout, limit_output)
                if hear is None
                else _pass_on(process.stdout, hear)
            )
            stderr = (
                None
                if with_stderr
                else tasks.create_task(_read(process, process.stderr, limit_output))
            )
            tasks.create_task(_feed(process.stdin, stdin))
        told = b"" if stderr is None else stderr.result()
        finished = Finished(await process.wait(), stdout.result(), told)
    if max(len(finished.stdout), len(finished.stderr)) > limit_output:
        raise ToolFailed(f"{argv[0]} said more than {limit_output} bytes and was killed")
    if check and finished.returncode != 0:
        tail = finished.stderr.decode(errors="replace").strip()[-STDERR_TAIL:]
        raise ToolFailed(f"{argv[0]} ended with status {finished.returncode}: {tail}")
    return finished


@asynccontextmanager
async def running(argv: Sequence[str | Path], *, talked_to: bool = False) -> AsyncIterator[Process]:
    """A running program, its stdout and stderr in one stream; it is killed when the block is left,
    and by the kernel when this process ends in any other way.

    `talked_to`: its stdin is a pipe. Open files of ours are handed to it as `run` does. An absent
    program is ToolFailed.
    """
    stdin = PIPE if talked_to else DEVNULL
    async with _started(argv, stdin=stdin, stderr=STDOUT, before=_end_with(os.getpid())) as process:
        yield process


def _end_with(parent: int) -> Callable[[], None]:
    """What a new process does so that the kernel kills it when our thread that made it ends."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def end_with_parent() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it had ended before
            os._exit(1)

    return end_with_parent


@asynccontextmanager
async def output_of(argv: Sequence[str | Path]) -> AsyncIterator[asyncio.StreamReader]:
    """A running program's stdout and stderr in one stream; it is killed when the block is left."""
    async with _started(argv, stdin=DEVNULL, stderr=STDOUT) as process:
        yield _open(process.stdout)


async def hand_over(argv: Sequence[str | Path]) -> int:
    """Lets a program have this process's stdin, stdout and stderr to its end; its exit status.

    It stays in this process group, so Ctrl-C on the terminal reaches it. An absent program is
    ToolFailed.
    """
    words = _logged(argv)
    try:
        process = await asyncio.create_subprocess_exec(*words)
    except OSError as error:
        raise _not_started(words, error) from error
    try:
        return await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await asyncio.shield(process.wait())


def become(argv: Sequence[str | Path]) -> NoReturn:
    """Replaces this process by a program: the terminal, the PID and the exit status are its own.

    Where it cannot be started this process goes on, with ToolFailed. What is still to be written
    has to be flushed before.
    """
    words = _logged(argv)
    for number in _IGNORED_BY_PYTHON:
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(words[0], words)  # noqa: S606 - a list, no shell
    except OSError as error:
        for number in _IGNORED_BY_PYTHON:
            signal.signal(number, signal.SIG_IGN)
        raise _not_started(words, error) from error


class _Ended(Exception):
    """The program that an init runs is no more."""


def run_as_init(
    argv: Sequence[str | Path], *, environment: Mapping[str, str], attend: Callable[[], None]
) -> None:
    """Runs a program as the first process of a PID namespace, until it ends or `attend` returns.

    `attend` blocks meanwhile, in this thread. What loses its parent becomes a child of the first
    process, which reaps it. At the end nothing else is left in the namespace.
    """
    if os.getpid() != 1:
        raise RuntimeError("this is no init: it would end every process of the host")
    words = _logged(argv)
    try:
        program = os.posix_spawnp(words[0], words, environment, setsigdef=_IGNORED_BY_PYTHON)
    except OSError as error:
        raise _not_started(words, error) from error

    def reap(_number: int, _frame: object) -> None:
        with suppress(ChildProcessError):
            while (pid := os.waitpid(-1, os.WNOHANG)[0]) != 0:
                if pid == program:
                    raise _Ended

    try:
        signal.signal(signal.SIGCHLD, reap)
        signal.raise_signal(signal.SIGCHLD)  # it may have ended already
        attend()
    except _Ended:
        pass
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        with suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
        with suppress(ChildProcessError):
            while True:
                os.wait()


def _logged(argv: Sequence[str | Path]) -> list[str]:
    words = [str(word) for word in argv]
    log.debug("%s", shlex.join(words))
    return words


def _not_started(words: list[str], error: OSError) -> ToolFailed:
    return ToolFailed(f"{words[0]} cannot be started: {error.strerror}")


@asynccontextmanager
async def _started(
    argv: Sequence[str | Path],
    *,
    stdin: int,
    stderr: int,
    before: Callable[[], None] | None = None,
) -> AsyncIterator[Process]:
    """The program in a session of its own; when the block is left nothing of it goes on."""
    words = _logged(argv)
    handed = [int(number) for word in words for number in _OWN_DESCRIPTOR.findall(word)]
    starting = asyncio.create_task(
        asyncio.create_subprocess_exec(
            *words,
            stdin=stdin,
            stdout=PIPE,
            stderr=stderr,
            start_new_session=True,
            pass_fds=handed,
            preexec_fn=before,
        )
    )
    try:
        process = await asyncio.shield(starting)
    except OSError as error:
        raise _not_started(words, error) from error
    except asyncio.CancelledError:
        # A start that is cancelled half-way would leave behind what the program has started.
        with suppress(OSError):
            await _end(await starting)
        raise
    try:
        yield process
    finally:
        await _end(process)


async def _end(process: Process) -> None:
    """Kills what is left of the group, lets go of the pipes and waits for the group's leader."""
    _kill_group(process)
    # A stranger may hold the other end of a pipe as long as it likes: that is not waited for.
    transport: asyncio.SubprocessTransport = process._transport  # type: ignore[attr-defined]  # noqa: SLF001
    for number in (0, 1, 2):
        pipe = transport.get_pipe_transport(number)
        if pipe is None or pipe.is_closing():
            continue
        if isinstance(pipe, asyncio.WriteTransport):
            pipe.abort()  # close() would first write what the program has not read
        else:
            pipe.close()
    await asyncio.shield(process.wait())


def _kill_group(process: Process) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # the whole group has ended


async def _read(process: Process, stream: asyncio.StreamReader | None, limit: int) -> bytes:
    """All of the stream; a program that says more than `limit` bytes is killed."""
    output = bytearray()
    while chunk := await _open(stream).read(65536):
        output += chunk
        if len(output) > limit:
            _kill_group(process)
            break
    return bytes(output)


async def _pass_on(stream: asyncio.StreamReader | None, hear: Callable[[str], None]) -> bytes:
    """Hands each line to `hear` until the stream ends; of a line, its last 4 KiB. Keeps nothing."""
    rest = b""
    while chunk := await _open(stream).read(65536):
        *lines, rest = re.split(rb"[\r\n]", rest + chunk)
        for line in lines:
            hear(line[-4096:].decode(errors="replace"))
        rest = rest[-4096:]
    if rest:
        hear(rest.decode(errors="replace"))
    return b""


async def _feed(stream: asyncio.StreamWriter | None, data: bytes | None) -> None:
    if stream is None or data is None:
        return
    try:
        stream.write(data)
        await stream.drain()
        stream.close()
        await stream.wait_closed()
    except (BrokenPipeError, ConnectionResetError):
        pass  # the program did not want to read all of it; its exit status tells


def _open(stream: asyncio.StreamReader | None) -> asyncio.StreamReader:
    if stream is None:
        raise RuntimeError("the stream was not asked for as a pipe")
    return stream
