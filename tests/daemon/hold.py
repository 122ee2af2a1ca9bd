"""Holds the threads of a process, as a hung disk would: `python hold.py loop|workers PID`.

ptrace(2) stops each thread by itself, which SIGSTOP cannot. `held` on stdout tells that all are.
They are held until the process ends or this one does.
"""

import asyncio
import ctypes
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

_SEIZE, _INTERRUPT = 0x4206, 0x4207  # sys/ptrace.h
_WALL = 0x40000000  # linux/wait.h: threads as well as children

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


@asynccontextmanager
async def holding(which: str, pid: int, *prefix: str | Path) -> AsyncIterator[None]:
    """While this lasts, these threads do not run; `prefix` comes before the command, and `pid` is
    as it numbers processes."""
    holder = await asyncio.create_subprocess_exec(
        *(*prefix, sys.executable, __file__, which, str(pid)), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        assert await holder.stdout.readline() == b"held\n"
        yield
    finally:
        if holder.returncode is None:  # it ends by itself where the process does
            holder.kill()
        await holder.wait()


def main() -> None:
    """The first thread of provisiond runs its event loop; all others are workers."""
    which, pid = sys.argv[1], int(sys.argv[2])
    threads = {int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()}
    for thread in {pid} if which == "loop" else threads - {pid}:
        _order(_SEIZE, thread)
        _order(_INTERRUPT, thread)
        os.waitpid(thread, _WALL)
    print("held", flush=True)
    while True:  # the end of each is told to us first
        try:
            os.waitpid(-1, _WALL)
        except ChildProcessError:
            return


def _order(request: int, thread: int) -> None:
    if _libc.ptrace(request, thread, None, None) != 0:
        raise OSError(ctypes.get_errno(), f"ptrace of thread {thread}")


if __name__ == "__main__":
    main()
