"""`make bench`: what provisiond costs, how it grows, and how it stands against its peers.

Everything is measured in one run on one machine; a target that is missed is printed as missed and
is no failure. Best on a machine that does nothing else.
"""

import argparse
import asyncio
import io
import json
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Protocol

from tests.bench import config_iso, in_guest, many, one_job, peers, start
from tests.bench.crowd import ON_DISK
from tests.bench.figures import Row, table
from tests.bench.machine import ProcessorTime, describe
from tests.lab.initramfs import PROJECT

BUILD = PROJECT / "build"


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
    machine = describe(state=ON_DISK)
    print("\n".join(f"{name}: {value}" for name, value in machine.items()), flush=True)
    rows: list[Row] = []
    wanted.json.parent.mkdir(parents=True, exist_ok=True)
    for name in wanted.only or GROUPS:
        print(f"\nmeasuring: {name}", flush=True)
        before = ProcessorTime.now()
        asyncio.run(_collect(GROUPS[name], rows, quick=wanted.quick))
        stolen = ProcessorTime.now().percent_stolen_since(before)
        machine[f"stolen while {name}"] = f"{stolen:.0f} % of its time, by the host under it"
        print(f"stolen meanwhile: {machine[f'stolen while {name}']}", flush=True)
    print(f"\n{table(rows)}")
    print(verdict(rows))
    found = {"machine": machine, "quick": wanted.quick, "rows": [row.as_json() for row in rows]}
    wanted.json.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    from tests.bench.plot import draw  # noqa: PLC0415 - a second's import, after all was measured

    draw(rows, machine, wanted.plot)
    print(f"written: {wanted.json}, {wanted.plot}")


async def _collect(measure: Measure, rows: list[Row], *, quick: bool) -> None:
    """Consoles and logs that are shown at the end of a guest are of use only after a failure."""
    noise = io.StringIO()
    try:
        with redirect_stdout(noise):
            async for row in measure(quick=quick):
                rows.append(row)
                print(table([row]).splitlines()[-1], file=sys.__stdout__, flush=True)
    except BaseException:
        print(noise.getvalue())
        raise


def verdict(rows: list[Row]) -> str:
    """How many of the targets were reached."""
    held = [row.reached for row in rows if row.reached is not None]
    return f"{sum(held)} of {len(held)} targets reached"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=GROUPS, metavar="NAME", help=", ".join(GROUPS))
    parser.add_argument("--quick", action="store_true", help="the smallest sizes: does it run?")
    parser.add_argument("--json", type=Path, metavar="FILE", default=BUILD / "bench.json")
    parser.add_argument("--plot", type=Path, metavar="FILE", default=BUILD / "bench.png")
    return parser


if __name__ == "__main__":
    main()
