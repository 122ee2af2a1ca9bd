"""No core dump of this process: secrets are in its memory."""

import ctypes
import os
import resource

_PR_SET_DUMPABLE = 4  # linux/prctl.h; the standard library has no prctl


def forbid_core_dumps() -> None:
    """However this process dies, nothing of its memory is written.

    The limit alone does not do it: the kernel hands a dump to the program that core_pattern names
    whatever the limit is (core(5)). A process that is not dumpable is also closed to every other
    without CAP_SYS_PTRACE, of the same user too: its memory, its environment, its open files.
    Programs that it starts inherit the limit alone.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    library = ctypes.CDLL(None, use_errno=True)
    if library.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_DUMPABLE): {os.strerror(number)}")
