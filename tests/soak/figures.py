"""What a running daemon has, read from outside and from its own metrics, while nothing is asked."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.daemon.program import Daemon

# From the first rest after the warm-up to the last: what each figure may grow by, and why. Pools of
# threads (libvirt's calls, files, names) are filled up to their sizes; and memory is the kernel's
# and malloc's to give back, so what it may grow by has a part for each job.
MOST_GROWTH: Mapping[str, float] = {
    "files": 0,
    "threads": 40,
    "children": 0,
    "tasks": 0,
    "memory": 8.0,
    "state": 1.0,
    "images": 0,
    "isos": 0,
}
MEMORY_OF_A_JOB = 0.002  # MiB
_METRIC = re.compile(r"^(\w+)(?:{[^}]*})? (\S+)$", re.MULTILINE)
_MIB = 2**20


@dataclass(frozen=True, slots=True)
class Figures:
    """What there was at one rest; sizes in MiB, times in seconds."""

    seconds: float
    jobs: int
    files: int
    threads: int
    children: int
    tasks: int
    memory: float
    state: float
    images: int
    isos: int
    cpu: float


async def read_figures(daemon: Daemon, *, seconds: float) -> Figures:
    """The figures of now; one connection and one task of them are those of the question itself."""
    assert daemon.process is not None
    process = Path(f"/proc/{daemon.process.pid}")
    reply = await daemon.get("/metrics")
    metrics: dict[str, float] = {}
    for name, value in _METRIC.findall(reply.text):
        metrics[name] = metrics.get(name, 0.0) + float(value)
    return Figures(
        seconds=seconds,
        jobs=int(metrics.get("provisiond_jobs_ended_total", 0)),
        files=int(metrics["process_open_fds"]),
        threads=len(list((process / "task").iterdir())),
        children=len((process / f"task/{process.name}/children").read_text().split()),
        tasks=int(metrics["provisiond_tasks"]),
        memory=_pss(process),
        state=sum(p.stat().st_size for p in daemon.state_file.parent.glob("*.sqlite*")) / _MIB,
        images=sum(1 for p in daemon.image_dir.rglob("*") if p.is_file()),
        isos=len(list(daemon.iso_folder.iterdir())),
        cpu=metrics["process_cpu_seconds_total"],
    )


def _pss(process: Path) -> float:
    """Memory in MiB: what it has of its own and its part of what is shared."""
    (size,) = re.findall(r"^Pss:\s+(\d+) kB$", (process / "smaps_rollup").read_text(), re.MULTILINE)
    return int(size) / 1024


def growth(figures: Sequence[Figures]) -> dict[str, float]:
    """By how much each figure has grown, by a straight line through all of them."""
    return {name: _rise([getattr(one, name) for one in figures]) for name in MOST_GROWTH}


def problems(figures: Sequence[Figures]) -> list[str]:
    """Each figure that has grown by more than it may."""
    jobs = figures[-1].jobs - figures[0].jobs
    most = dict(MOST_GROWTH)
    most["memory"] += jobs * MEMORY_OF_A_JOB
    return [
        f"{name} has grown by {grown:.1f}, more than {most[name]:.1f}"
        for name, grown in growth(figures).items()
        if grown > most[name] + 0.5 * (most[name] == 0)
    ]


def _rise(values: Sequence[float]) -> float:
    """From the first to the last on the line of least squares."""
    count = len(values)
    if count < 2:
        return 0.0
    middle, mean = (count - 1) / 2, sum(values) / count
    below = sum((n - middle) ** 2 for n in range(count))
    slope = sum((n - middle) * (value - mean) for n, value in enumerate(values)) / below
    return slope * (count - 1)


def print_figures(figures: Sequence[Figures], *, warm: int) -> None:
    """By time; a line where the warm-up ends."""
    names = ("jobs", *MOST_GROWTH)
    print("".join(f"{name:>10}" for name in ("seconds", *names)))
    for number, one in enumerate(figures):
        if number == warm:
            print("-" * 10 * (len(names) + 1) + " warm")
        cells = [getattr(one, name) for name in names]
        shown = (f"{cell:>10.1f}" if isinstance(cell, float) else f"{cell:>10}" for cell in cells)
        print(f"{one.seconds:>10.0f}" + "".join(shown))
    grown = growth(figures[warm:])
    print(f"{'growth':>20}" + "".join(f"{grown[name]:>10.1f}" for name in MOST_GROWTH))
