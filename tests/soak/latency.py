"""What guests' neighbours wait, with and without a flood: measured in turns of one run."""

import statistics
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import monotonic, process_time
from typing import ClassVar

# p99 under a flood may be so many times that of the quiet, or so many seconds more.
MOST_RATIO = 2.0
NOISE_SECONDS = 0.010
ROUNDS = 4


class Scene(ABC):
    """Guests that may flood, and neighbours that do not."""

    name: ClassVar[str]

    @abstractmethod
    async def flood(self, *, on: bool) -> None:
        """Let the hostile guests begin, or have them stop."""

    @abstractmethod
    async def neighbours(self, seconds: float) -> list[float]:
        """Let the others work for so long; what each of their words or requests waited, in s."""

    def cpu(self) -> float:
        """The processor time, in seconds, of whoever hears the guests."""
        return process_time()

    def taken(self) -> str:
        """How much of the flood was heard."""
        return ""


@dataclass
class Waits:
    """What was waited in the rounds of one sort, in seconds."""

    all: list[float] = field(default_factory=list)
    passed: float = 0.0
    cpu: float = 0.0

    @property
    def median(self) -> float:
        return statistics.median(self.all)

    @property
    def p99(self) -> float:
        return sorted(self.all)[len(self.all) * 99 // 100]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One scene: quiet and flooded rounds of one run."""

    scene: str
    quiet: Waits
    flooded: Waits
    taken: str

    @property
    def ratio(self) -> float:
        return self.flooded.p99 / self.quiet.p99

    @property
    def suffers(self) -> bool:
        """Whether the neighbours wait for the flood."""
        return self.ratio > MOST_RATIO and self.flooded.p99 - self.quiet.p99 > NOISE_SECONDS


async def compare(scene: Scene, *, seconds: float) -> Comparison:
    """Quiet and flooded rounds in turns, each so long: what else the machine does hits both."""
    quiet, flooded = Waits(), Waits()
    for _ in range(ROUNDS):
        for waits in (quiet, flooded):
            await scene.flood(on=waits is flooded)
            started, cpu = monotonic(), scene.cpu()
            waits.all += await scene.neighbours(seconds)
            waits.passed += monotonic() - started
            waits.cpu += scene.cpu() - cpu
    await scene.flood(on=False)
    return Comparison(scene.name, quiet, flooded, scene.taken())


def print_comparisons(comparisons: Sequence[Comparison]) -> None:
    """Times in ms; the processor time is that of whoever hears the guests, of one processor."""
    head = f"{'':<40}{'n':>7}{'median':>9}{'p99':>9}{'worst':>9}{'cpu':>7}"
    print(head)
    for one in comparisons:
        for name, waits in (("quiet", one.quiet), ("flooded", one.flooded)):
            times = "".join(f"{1000 * x:>9.2f}" for x in (waits.median, waits.p99, max(waits.all)))
            cpu = f"{waits.cpu / waits.passed:>7.0%}"
            print(f"{one.scene + ', ' + name:<40}{len(waits.all):>7}{times}{cpu}")
        said = "SUFFERS" if one.suffers else "ok"
        print(f"{'':<40}p99 flooded / quiet: {one.ratio:.2f} {said}; {one.taken}")
