"""4. Many jobs at once on one host: a simulated hypervisor, a real xenstored, real SQLite on disk.

First each number of jobs as fast as it goes, for the throughput and how the cost grows; then 1,000
at work at any time while new ones come at a steady pace, for what a job waits for us. Our own time
is all of a job's time but what the simulated host and its guest took.
"""

from collections.abc import AsyncIterator
from time import time

from tests.bench.clock import cpu_seconds, memory_mib
from tests.bench.crowd import Facts, crowd
from tests.bench.figures import Row, Target, median_row, p99_row

GROUP = "4 many at once (simulated hypervisor, real xenstored)"
PACE = 150.0  # jobs a second, the pace that is to be sustained
MS = 1000.0
PHASES = ("accepted → ISO written", "→ attached", "done → heard", "→ detached", "→ succeeded")


async def measure(*, quick: bool) -> AsyncIterator[Row]:
    """Rows as they come."""
    cost: dict[int, float] = {}
    for count in (1, 10, 50) if quick else (1, 10, 100, 1000, 5000):
        async for row in _burst(count, cost):
            yield row
    counts = sorted(count for count in cost if count >= 10)
    grown = cost[counts[-1]] / cost[counts[0]]
    what = f"CPU of a job, {counts[-1]:,} at once over {counts[0]:,}"
    yield Row(GROUP, what, grown, "×", target=Target(1.5), note="1 is linear growth")
    async for row in _steady(*((30, 30.0) if quick else (1000, PACE))):
        yield row


async def _burst(count: int, cost: dict[int, float]) -> AsyncIterator[Row]:
    """All of them as fast as it goes; the guests answer at once."""
    async with crowd(count, think=0.0) as site:
        began, used = time(), cpu_seconds(site.pid)
        await site.submit(range(count))
        await site.all_ended()
        used = cpu_seconds(site.pid) - used
        memory = memory_mib(site.pid)
        await site.end()
        facts = site.facts()
    cost[count] = used / count
    seconds = max(one.states["SUCCEEDED"] for one in facts) - began
    waits = [MS * (one.states["SUCCEEDED"] - one.states["ACCEPTED"]) for one in facts]
    name = f"{count:,} at once"
    lasting = count >= 1000
    rate = Target(PACE, "high") if lasting else None
    yield Row(GROUP, f"{name}: jobs per second", count / seconds, "1/s", target=rate)
    yield median_row(GROUP, f"{name}: a whole job", waits, "ms", note="host and guest included")
    yield Row(GROUP, f"{name}: CPU of a job", MS * used / count, "ms")
    limit = Target(150.0) if count == 1000 else None
    yield Row(GROUP, f"{name}: most memory", memory, "MiB", target=limit)


async def _steady(count: int, pace: float) -> AsyncIterator[Row]:
    """`count` of them at work at any time; twice as many in all."""
    async with crowd(2 * count, think=count / pace) as site:
        await site.submit_at_pace(range(2 * count), per_second=pace)
        await site.all_ended()
        memory = memory_mib(site.pid)
        await site.end()
        facts = site.facts()
    name = f"{count:,} at work, {pace:g}/s come"
    phases = [_phases(one) for one in facts]
    for number, phase in enumerate(PHASES):
        times = [phase_times[number] for phase_times in phases]
        yield median_row(GROUP, f"{name}: {phase}, ours", times, "ms")
    own = [sum(one) for one in phases]
    yield median_row(GROUP, f"{name}: ours in all", own, "ms")
    yield p99_row(GROUP, f"{name}: ours in all, p99", own, "ms", target=Target(250.0))
    span = max(one.states["SUCCEEDED"] for one in facts) - min(
        one.states["ACCEPTED"] for one in facts
    )
    lasting = 2 * count / (span - count / pace)  # the last guest's own time is no work
    yield Row(GROUP, f"{name}: jobs per second", lasting, "1/s")
    yield Row(GROUP, f"{name}: most memory", memory, "MiB", target=Target(150.0))


def _phases(one: Facts) -> tuple[float, ...]:
    """Our own time of each phase in ms: without the host's calls and the guest's thinking."""
    states, host = one.states, one.host
    return tuple(
        MS * seconds
        for seconds in (
            states["ISO_WRITTEN"] - states["ACCEPTED"],
            states["ISO_ATTACHED"] - states["ISO_WRITTEN"] - host["attach"],
            max(0.0, states["GUEST_CONFIGURED"] - host["done"]),
            states["ISO_DETACHED"] - states["GUEST_CONFIGURED"] - host["detach"],
            states["SUCCEEDED"] - states["ISO_DETACHED"],
        )
    )
