"""How often a guest is heard: one that speaks without end waits for its turn, and nobody else."""

import asyncio


class Pace:
    """`burst` turns at once, and from then on `per_second`.

    What a guest says meanwhile stays with it, or in the kernel's and QEMU's bounded buffers.
    """

    def __init__(self, *, burst: int, per_second: float) -> None:
        self._burst = burst
        self._per_second = per_second
        self._left = float(burst)
        self._counted_at = asyncio.get_running_loop().time()

    @property
    def has_room(self) -> bool:
        """Whether the guest has taken less than half of what it may take at once."""
        self._count()
        return self._left > self._burst / 2

    async def turn(self) -> None:
        """Wait until it is the guest's turn. Whoever is cancelled meanwhile has taken none."""
        self._count()
        if self._left < 1:
            await asyncio.sleep((1 - self._left) / self._per_second)
            self._count()
        self._left -= 1

    def charge(self, turns: int) -> None:
        """What was heard in one turn was as long as so many more."""
        self._left -= turns

    def _count(self) -> None:
        now = asyncio.get_running_loop().time()
        self._left = min(self._burst, self._left + (now - self._counted_at) * self._per_second)
        self._counted_at = now
