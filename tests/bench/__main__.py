"""`make bench`: what provisiond costs, how it grows, and how it stands against its peers.

Everything is measured in one run on one machine; a target that is missed is printed as missed and
is no failure. Best on a machine that does nothing else.
"""

import argparse
import asyncio
import json
import signal
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Protocol

from tests.bench import config_iso, in_guest, many, one_job, peers, start
from tests.bench.crowd import ON_DISK
from tests.bench.figures import Row, table
from tests.bench.machine import describe
from tests.bench.peer_tools import install_peers


class Measure(Protocol):
    """One group of figures."""

    def __call__(self, *, quick: bool) -> AsyncIterator[Row]: ...


GROUPS: Mapping[str, Measure] = {
    "job": one_job.measure,
    "iso": config_iso.measure,
    "many": many.measure,
    "peers": peers.measure,
    "guest": in_guest.measure,
    "start": start.measure,
}


def main() -> None:
    """Measure, print, and write what was asked for."""
    wanted = _parser().parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # no daemon and no guest is left then
    install_peers()
    machine = describe(state=ON_DISK)
    print("\n".join(f"{name}: {value}" for name, value in machine.items()), flush=True)
    rows: list[Row] = []
    for name in wanted.only or GROUPS:
        print(f"\nmeasuring: {name}", flush=True)
        asyncio.run(_collect(GROUPS[name], rows, quick=wanted.quick))
    print(f"\n{table(rows)}")
    print(verdict(rows))
    if wanted.json:
        found = {"machine": machine, "quick": wanted.quick, "rows": [r.as_json() for r in rows]}
        wanted.json.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    if wanted.plot:
        from tests.bench.plot import draw  # noqa: PLC0415 - a second's import, of no use elsewhere

        draw(rows, machine, wanted.plot)


async def _collect(measure: Measure, rows: list[Row], *, quick: bool) -> None:
    async for row in measure(quick=quick):
        rows.append(row)
        print(table([row]).splitlines()[-1], flush=True)


def verdict(rows: list[Row]) -> str:
    """How many of the targets were reached."""
    held = [row.reached for row in rows if row.reached is not None]
    return f"{sum(held)} of {len(held)} targets reached"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=GROUPS, metavar="NAME", help=", ".join(GROUPS))
    parser.add_argument("--quick", action="store_true", help="the smallest sizes: does it run?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them there (PNG)")
    return parser


if __name__ == "__main__":
    main()
