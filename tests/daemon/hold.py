"""Holds the threads of a process, as a hung disk would: `python hold.py loop|workers PID`.

ptrace(2) stops each thread by itself, which SIGSTOP cannot. `held` on stdout tells that all are.
They are held until the process ends or this one does.
"""

import ctypes
import os
import sys
from pathlib import Path

_SEIZE, _INTERRUPT = 0x4206, 0x4207  # sys/ptrace.h
_WALL = 0x40000000  # linux/wait.h: threads as well as children

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


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
