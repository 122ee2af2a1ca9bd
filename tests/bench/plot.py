"""The figures as one picture: targets and results side by side, and how the cost of jobs grows."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tests.bench.figures import Row, number

REACHED, MISSED = "#2a7f62", "#b8442f"
_BURST = re.compile(r"([\d,]+) at once: (.+)")


def draw(rows: Sequence[Row], machine: Mapping[str, str], path: Path) -> None:
    """Write a PNG; the machine that the figures come from stands below them."""
    mpl.use("Agg")
    aimed = [row for row in rows if row.target is not None]
    bursts = _bursts(rows)
    height = 2.0 + 0.32 * len(aimed) + (3.2 if bursts else 0.0)
    figure = Figure(figsize=(11, height), layout="constrained")
    if bursts:
        upper, lower = figure.subplots(2, 1, height_ratios=(0.32 * len(aimed) + 1.2, 3.2))
        _draw_growth(lower, bursts)
    else:
        upper = figure.subplots()
    _draw_targets(upper, aimed)
    below = ", ".join(f"{name} {value}" for name, value in machine.items())
    figure.supxlabel(below, fontsize=6, wrap=True)
    figure.savefig(path, dpi=150)


def _draw_targets(axes: Axes, rows: Sequence[Row]) -> None:
    """Each figure as a part of its target, so that all units share one axis."""
    for place, row in enumerate(reversed(rows)):
        assert row.target is not None
        part = max(row.figure / row.target.value, 1e-3)
        axes.barh(place, part, color=REACHED if row.reached else MISSED)
        sign = "≤" if row.target.better == "low" else "≥"
        said = f" {number(row.figure)} {row.unit} ({sign} {number(row.target.value)})"
        axes.text(part, place, said, va="center", fontsize=7)
    names = [f"{row.group.split()[0]}. {row.what}" for row in reversed(rows)]
    axes.set_yticks(range(len(rows)), names, fontsize=7)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.margins(x=0.25)
    axes.set_title("figure over target: left of 1 is better for ≤, right of 1 for ≥", fontsize=9)


def _bursts(rows: Sequence[Row]) -> dict[str, dict[int, float]]:
    """By figure: what it was with how many jobs at once."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        if (burst := _BURST.fullmatch(row.what)) is not None:
            named = f"{burst[2]}, {row.unit}"
            found.setdefault(named, {})[int(burst[1].replace(",", ""))] = row.figure
    return found


def _draw_growth(axes: Axes, bursts: Mapping[str, Mapping[int, float]]) -> None:
    for name, values in bursts.items():
        axes.plot(list(values), list(values.values()), marker="o", label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("jobs at once", fontsize=8)
    axes.legend(fontsize=7)
    axes.grid(visible=True, linewidth=0.3)
