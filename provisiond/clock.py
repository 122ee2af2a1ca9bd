"""The host's two clocks: the wall's, which somebody or NTP may set, and the one since the boot.

Whatever is shown is the wall's time. How long something takes is never measured by it.
"""

import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_DAY = 86400.0
_SET = 3600.0  # seconds by which a clock must have moved against the other to count as set


@dataclass(frozen=True, slots=True)
class BootTime:
    """A moment since the boot that has this id; seconds of it alone can be compared."""

    boot_id: str
    seconds: float


def boot_time() -> BootTime:
    """This moment; the time in which the host was suspended counts."""
    return BootTime(_boot_id(), time.clock_gettime(time.CLOCK_BOOTTIME))


@cache
def _boot_id() -> str:
    return _BOOT_ID.read_text().strip()


class WallClock:
    """Tells whether the date can be relied on, which the removal of what is old hangs on.

    It can once it has gone on for a day without being set: by then somebody would have seen that it
    is wrong. Pure: whoever asks passes both times, in seconds.
    """

    def __init__(self, *, wall: float, boot: float) -> None:
        self._ahead = wall - boot
        self._reliable_from = boot + _DAY

    def is_reliable(self, *, wall: float, boot: float) -> bool:
        """Whether it can be relied on now; ask now and then, so that a change is noticed."""
        ahead = wall - boot
        if abs(ahead - self._ahead) > _SET:
            self._reliable_from = boot + _DAY
        self._ahead = ahead
        return boot >= self._reliable_from
