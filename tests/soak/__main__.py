"""`make soak`: does anything grow while provisiond works, and does a flood slow anybody?

Exit status 1 where a figure grows by more than it may after the warm-up, or where neighbours of
guests that flood wait more than twice as long, and by more than 10 ms (p99, in the same run).
"""

import argparse
import asyncio
import signal
import sys
import tempfile
from pathlib import Path

from tests.lab.fixtures import TMPFS
from tests.soak.channel_flood import channel_flood
from tests.soak.daemon_flood import daemon_flood
from tests.soak.figures import Figures, print_figures, problems
from tests.soak.latency import Comparison, compare, print_comparisons
from tests.soak.leaks import site, soak
from tests.soak.xenstore_flood import xenstore_flood
from tests.xenstore.daemon import Xenstored

ROUNDS = 15
FLOOD_SECONDS = 5.0  # of each round


def main() -> int:
    """0 where nothing grows and nobody suffers."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("what", nargs="?", choices=("leaks", "flood"), help="only this")
    parser.add_argument("--seconds", type=float, default=300, help="of work in all (leaks)")
    parser.add_argument("--floods", type=int, default=4, help="guests of each sort that flood")
    wanted = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # no daemon and no guest is left then
    wrong: list[str] = []
    if wanted.what != "flood":
        wrong += asyncio.run(_leaks(wanted.seconds))
    if wanted.what != "leaks":
        wrong += asyncio.run(_flood(wanted.floods))
    print("\n".join(wrong) or "nothing grows, and nobody suffers")
    return int(bool(wrong))


async def _leaks(seconds: float) -> list[str]:
    figures: list[Figures] = []
    async with site(with_guests=True) as made:
        async for now in soak(made, rounds=ROUNDS, seconds=seconds / ROUNDS):
            figures.append(now)
            print(f"{now.seconds:.0f} s: {now}", flush=True)
        done = ", ".join(f"{count} {name}" for name, count in sorted(made.done.items()))
    warm = ROUNDS // 3
    print_figures(figures, warm=warm)
    print(f"done: {done}")
    return problems(figures[warm:])


async def _flood(times: int) -> list[str]:
    compared: list[Comparison] = []
    with tempfile.TemporaryDirectory(prefix="fl-", dir=TMPFS) as folder:
        async with channel_flood(Path(folder), times=times) as channels:
            compared.append(await compare(channels, seconds=FLOOD_SECONDS))
    with Xenstored() as store:
        async with xenstore_flood(store, times=times) as guests:
            compared.append(await compare(guests, seconds=FLOOD_SECONDS))
    async with daemon_flood() as api:
        compared.append(await compare(api, seconds=FLOOD_SECONDS))
    print_comparisons(compared)
    return [f"{one.scene}: the neighbours suffer" for one in compared if one.suffers]


if __name__ == "__main__":
    sys.exit(main())
