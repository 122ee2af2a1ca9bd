"""The one clock that all processes of a measurement read; CPU and memory of a process."""

import os
import re
import time
from pathlib import Path

CLOCK = time.CLOCK_REALTIME
"""The wall's: the times in a job's history are by it. Nobody sets it while something is measured;
NTP may bend it by 0.05 %."""
TICK = 1 / os.sysconf("SC_CLK_TCK")


def now() -> int:
    """In ns."""
    return time.clock_gettime_ns(CLOCK)


def cpu_seconds(pid: int) -> float:
    """What a process and its threads have used, by the scheduler's own count (schedstat, ns)."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def memory_mib(pid: int, *, field: str = "VmHWM") -> float:
    """The most memory that a process had resident at any time (VmRSS: now)."""
    status = Path(f"/proc/{pid}/status").read_text()
    (size,) = re.findall(rf"^{field}:\s+(\d+) kB$", status, re.MULTILINE)
    return int(size) / 1024
