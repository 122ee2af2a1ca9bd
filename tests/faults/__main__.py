"""`make faults`: provisiond is stopped at every call by which it changes the world, and looked at.

Each row is one fault: provisiond is killed, the host's power is cut, or a file system is filled to
the last block. Exit status 1 where a row is WRONG: a job that lies, or anything left behind.
"""

import argparse
import asyncio
import signal
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

from tests.faults import guests, images
from tests.faults.breakpoint import Point, points_of
from tests.faults.campaign import Row, record, scene
from tests.faults.disk_full import fill_at, full_points_of
from tests.faults.hypervisor import GuestHost, beside, embedded
from tests.faults.kill import kill_at
from tests.faults.power_cut import cut_power_at, power_points_of
from tests.faults.scenario import Scenario
from tests.faults.volumes import FOLDERS

LOG_TAIL = 6000
LIMIT = 8  # so that all of it takes about an hour on a quiet machine
STORED = "fdatasync state/provisiond.sqlite-wal"


@dataclass(frozen=True, slots=True)
class Fault:
    """What can happen at a point of a scenario."""

    points: Callable[[Sequence[str]], Iterable[Point]]
    at: Callable[[Scenario, Point], Awaitable[Row]]
    on_volumes: bool = True


FAULTS = {
    "kill": Fault(points_of, kill_at, on_volumes=False),
    "power-cut": Fault(power_points_of, cut_power_at),
    **{
        f"{place}-full": Fault(partial(full_points_of, place=place), partial(fill_at, place=place))
        for place in FOLDERS
    },
}
SCENARIOS = {kind.name: kind for kind in (*images.SCENARIOS, *guests.SCENARIOS)}


def main() -> int:
    """0 where every row is right."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--only", choices=SCENARIOS, action="append", help="this scenario")
    parser.add_argument("--fault", choices=FAULTS, action="append", help="this fault")
    parser.add_argument(
        "--limit",
        type=int,
        default=LIMIT,
        help="of each scenario and fault, every stored fact and so many other points (%(default)s)",
    )
    parser.add_argument("--all", action="store_true", help="every point")
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
    choice = partial(choose, limit=None if wanted.all else wanted.limit, match=wanted.match)
    rows: list[Row] = []
    try:
        for fault in wanted.fault or FAULTS:
            if wanted.libvirtd and fault == "power-cut":
                continue  # that libvirtd has no disk: all of its own is on tmpfs
            for name in wanted.only or SCENARIOS:
                asyncio.run(_campaign(SCENARIOS[name], FAULTS[fault], hypervisor, choice, rows))
    finally:  # what was found is told whatever happens
        print_table(rows)
    wrong = sum(bool(row.problems) for row in rows)
    missed = sum(not row.reached for row in rows)
    limits = sum(bool(row.limits) for row in rows)
    print(
        f"{len(rows)} faults in {time.monotonic() - started:.0f} s: {wrong} WRONG, "
        f"{limits} with something that libvirt itself left, {missed} never reached"
    )
    return int(wrong > 0)


async def _campaign(
    kind: type[Scenario],
    fault: Fault,
    hypervisor: Callable[[], AbstractContextManager[GuestHost]],
    choice: Callable[[Sequence[Point]], list[Point]],
    rows: list[Row],
) -> None:
    """Do it at every point that is chosen, and add a row for each."""
    done = 0
    points: list[Point] | None = None
    while points is None or done < len(points):
        async with scene(kind, hypervisor, on_volumes=fault.on_volumes) as scenario:
            if points is None:
                points = choice(list(fault.points(await record(scenario))))
            for point in points[done:]:
                row = await fault.at(scenario, point)
                rows.append(row)
                done += 1
                print(f"{kind.name} {done}/{len(points)}: {line_of(row)}", flush=True)
                if row.problems:
                    print(scenario.host.daemon.said()[-LOG_TAIL:], flush=True)
                if row.problems or row.limits:
                    break  # the next one begins with a world that is whole


def choose(points: Sequence[Point], *, limit: int | None = None, match: str = "") -> list[Point]:
    """Of the points that have `match` in them those at a stored fact, and `limit` of the others,
    spread over all of them."""
    points = [point for point in points if match in str(point)]
    others = [point for point in points if STORED not in point.call]
    if limit is None or limit >= len(others):
        return points
    chosen = {others[number * len(others) // limit] for number in range(limit)}
    return [point for point in points if STORED in point.call or point in chosen]


def line_of(row: Row) -> str:
    """One row, for whoever waits."""
    said = "; ".join(row.problems) or "; ".join(row.limits) or "ok"
    unreached = "" if row.reached else " (not reached)"
    return f"{row.fault} {row.point}{unreached} → {row.outcome}: {said} [{row.seconds:.1f} s]"


def print_table(rows: Sequence[Row]) -> None:
    """Scenario, side, call, what became of it, and whether that is right."""
    cells = [
        (
            row.scenario,
            row.fault,
            row.point.when,
            row.point.call + (f" ({row.point.count})" if row.point.count > 1 else ""),
            row.outcome if row.reached else f"{row.outcome} (not reached)",
            f"WRONG: {'; '.join(row.problems)}"
            if row.problems
            else f"ok{''.join(f' ({text})' for text in row.limits)}",
        )
        for row in rows
    ]
    head = ("scenario", "fault", "side", "call", "what came of it", "")
    widths = [max(len(line[column]) for line in (head, *cells)) for column in range(5)]
    for line in (head, *cells):
        first = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False))
        print(f"{first}  {line[5]}")
    outcomes = Counter((row.scenario, row.fault, row.outcome) for row in rows)
    for (scenario, fault, outcome), count in sorted(outcomes.items()):
        print(f"{scenario}, {fault}: {count} × {outcome}")


if __name__ == "__main__":
    sys.exit(main())
