"""`make faults`: provisiond is killed at every call by which it changes the world; what came of it.

Each row is one cut. Exit status 1 where a row is WRONG: a job that lies, or anything left behind.
"""

import argparse
import asyncio
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from tests.faults import guests, images
from tests.faults.campaign import Row, cut_at, record, scene
from tests.faults.cut import Point
from tests.faults.hypervisor import GuestHost, beside, embedded
from tests.faults.scenario import Scenario

LOG_TAIL = 6000
SCENARIOS = {kind.name: kind for kind in (*images.SCENARIOS, *guests.SCENARIOS)}


def main() -> int:
    """0 where every row is right."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--only", choices=SCENARIOS, action="append", help="this scenario")
    parser.add_argument("--limit", type=int, help="of each scenario, this many points evenly")
    parser.add_argument("--match", default="", help="only the points that have this in them")
    parser.add_argument(
        "--libvirtd",
        action="store_true",
        help="a libvirtd beside provisiond, which lives on, in place of libvirt's driver inside it",
    )
    wanted = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # no daemon and no guest is left then
    hypervisor = beside if wanted.libvirtd else embedded
    started = time.monotonic()
    rows = []
    for name in wanted.only or SCENARIOS:
        kind = SCENARIOS[name]
        rows += asyncio.run(_campaign(kind, hypervisor, limit=wanted.limit, match=wanted.match))
    print_table(rows)
    wrong = sum(bool(row.problems) for row in rows)
    missed = sum(not row.reached for row in rows)
    limits = sum(bool(row.limits) for row in rows)
    print(
        f"{len(rows)} cuts in {time.monotonic() - started:.0f} s: {wrong} WRONG, "
        f"{limits} with something that libvirt itself left, {missed} never reached"
    )
    return int(wrong > 0)


async def _campaign(
    kind: type[Scenario],
    hypervisor: Callable[[], AbstractContextManager[GuestHost]],
    *,
    limit: int | None,
    match: str,
) -> list[Row]:
    rows: list[Row] = []
    points: list[Point] | None = None
    while points is None or len(rows) < len(points):
        async with scene(kind, hypervisor) as scenario:
            if points is None:
                points = choose([p for p in await record(scenario) if match in str(p)], limit)
            for point in points[len(rows) :]:
                row = await cut_at(scenario, point)
                rows.append(row)
                print(f"{kind.name} {len(rows)}/{len(points)}: {line_of(row)}", flush=True)
                if row.problems:
                    print(scenario.host.daemon.said()[-LOG_TAIL:], flush=True)
                if row.problems or row.limits:
                    break  # the next one begins with a world that is whole
    return rows


def choose(points: Sequence[Point], limit: int | None) -> list[Point]:
    """`limit` of the points, spread over all of them."""
    if limit is None or limit >= len(points):
        return list(points)
    return [points[number * len(points) // limit] for number in range(limit)]


def line_of(row: Row) -> str:
    """One row, for whoever waits."""
    said = "; ".join(row.problems) or "; ".join(row.limits) or "ok"
    unreached = "" if row.reached else " (not reached)"
    return f"{row.point}{unreached} → {row.outcome}: {said} [{row.seconds:.1f} s]"


def print_table(rows: Sequence[Row]) -> None:
    """Scenario, side, call, what became of it, and whether that is right."""
    cells = [
        (
            row.scenario,
            row.point.when,
            row.point.call + (f" ({row.point.count})" if row.point.count > 1 else ""),
            row.outcome if row.reached else f"{row.outcome} (not reached)",
            f"WRONG: {'; '.join(row.problems)}"
            if row.problems
            else f"ok{''.join(f' ({text})' for text in row.limits)}",
        )
        for row in rows
    ]
    head = ("scenario", "side", "call", "what came of it", "")
    widths = [max(len(line[column]) for line in (head, *cells)) for column in range(4)]
    for line in (head, *cells):
        first = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False))
        print(f"{first}  {line[4]}")
    outcomes = Counter((row.scenario, row.outcome) for row in rows)
    for (scenario, outcome), count in sorted(outcomes.items()):
        print(f"{scenario}: {count} × {outcome}")


if __name__ == "__main__":
    sys.exit(main())
