"""What was measured: figures with their spread, and the targets they are held against."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Better = Literal["low", "high"]


@dataclass(frozen=True, slots=True)
class Spread:
    """How many values there were, and where they lie; all of them in one unit."""

    count: int
    median: float
    quartiles: tuple[float, float]
    p99: float
    worst: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        """Of at least one value; p99 is the value that at most 1 of 100 exceed."""
        ordered = sorted(values)
        if not ordered:
            raise ValueError("nothing was measured")
        low, middle, high = (
            statistics.quantiles(ordered, n=4, method="inclusive")
            if len(ordered) > 1
            else ordered * 3
        )
        return cls(len(ordered), middle, (low, high), percentile(ordered, 99), ordered[-1])


def percentile(ordered: Sequence[float], percent: int) -> float:
    """The smallest value that at most 100 - percent of 100 exceed (nearest rank)."""
    rank = -(-len(ordered) * percent // 100)  # rounded up
    return ordered[max(0, rank - 1)]


@dataclass(frozen=True, slots=True)
class Target:
    """What a figure should come to: at most this where low is better, else at least."""

    value: float
    better: Better = "low"

    def is_reached_by(self, figure: float) -> bool:
        """At the very value it is reached."""
        return figure <= self.value if self.better == "low" else figure >= self.value


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: a figure, what it is in, and what it was to reach if anything."""

    group: str
    what: str
    figure: float
    unit: str
    spread: Spread | None = None
    target: Target | None = None
    note: str = ""

    @property
    def reached(self) -> bool | None:
        """None where nothing was to be reached."""
        return None if self.target is None else self.target.is_reached_by(self.figure)

    def as_json(self) -> dict[str, Any]:
        """Everything, and whether the target was reached."""
        return {**asdict(self), "reached": self.reached}


def median_row(
    group: str,
    what: str,
    values: Iterable[float],
    unit: str,
    *,
    target: Target | None = None,
    note: str = "",
) -> Row:
    """The median of the values, with their spread."""
    spread = Spread.of(values)
    return Row(group, what, spread.median, unit, spread, target, note)


def p99_row(group: str, what: str, values: Iterable[float], unit: str, *, target: Target) -> Row:
    """The p99 of the values, with their spread."""
    spread = Spread.of(values)
    return Row(group, what, spread.p99, unit, spread, target)


# ---------------------------------------------------------------- the table
_HEAD = ("", "figure", "unit", "quartiles", "p99", "n", "target", "")


def table(rows: Sequence[Row]) -> str:
    """All rows by group, targets and results side by side."""
    lines: list[tuple[str, ...]] = [_HEAD]
    group = ""
    for row in rows:
        if row.group != group:
            group = row.group
            lines.append((f"-- {group}",))
        lines.append(_cells(row))
    widths = [max(len(line[n]) for line in lines if n < len(line)) for n in range(len(_HEAD))]
    widths[0] = max(len(line[0]) for line in lines if len(line) > 1)
    return "\n".join(_line(cells, widths) for cells in lines)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    if len(cells) == 1:
        return cells[0]
    first = cells[0].ljust(widths[0])
    middle = [cell.rjust(width) for cell, width in zip(cells[1:-1], widths[1:-1], strict=True)]
    return "  ".join([first, *middle, cells[-1]]).rstrip()


def _cells(row: Row) -> tuple[str, ...]:
    spread = row.spread
    verdict = {None: "", True: "reached", False: "NOT reached"}[row.reached]
    note = f"{verdict}; {row.note}" if verdict and row.note else verdict or row.note
    return (
        row.what,
        number(row.figure),
        row.unit,
        "" if spread is None else " – ".join(map(number, spread.quartiles)),
        "" if spread is None else number(spread.p99),
        "" if spread is None else str(spread.count),
        "" if row.target is None else _bound(row.target),
        note,
    )


def _bound(target: Target) -> str:
    return f"{'≤' if target.better == 'low' else '≥'} {number(target.value)}"


def number(value: float) -> str:
    """Three digits that count, and never an exponent."""
    if value == 0:
        return "0"
    for limit, digits in ((100.0, 0), (10.0, 1), (1.0, 2)):
        if abs(value) >= limit:
            return f"{value:.{digits}f}"
    return f"{value:.3f}"
