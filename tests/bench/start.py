"""7. How soon it serves, with nothing and with many jobs to go on with; what it takes to wait."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from time import perf_counter

from tests.bench.clock import cpu_seconds, memory_mib
from tests.bench.crowd import Crowd, crowd
from tests.bench.figures import Row, Target, median_row
from tests.daemon.fixtures import fresh_folder
from tests.daemon.notified import Notified
from tests.daemon.program import Daemon
from tests.lab.initramfs import PROJECT

GROUP = "7 start and idle"
NO_WATCHDOG = "0"


async def measure(*, quick: bool) -> AsyncIterator[Row]:
    """Rows as they come."""
    _compile()
    empty = await _empty(rounds=3 if quick else 15)
    yield median_row(GROUP, "start to READY, no job", empty, "s", target=Target(0.7))
    count = 30 if quick else 1000
    async with crowd(count, think=None) as site:
        await site.submit(range(count))
        await _all_wait(site, count)
        seconds = 5.0 if quick else 60.0
        # What 1,000 requests have left behind is looked through twice in the next 20 s
        # (garbage.py): that is no waiting.
        await asyncio.sleep(30.0)
        yield await _idle(site, count, seconds=seconds)
        resumed = [await _restart(site) for _ in range(2 if quick else 5)]
        what = f"start to READY, {count:,} unfinished jobs"
        yield median_row(GROUP, what, resumed, "s", target=Target(3.0))


def _compile() -> None:
    """Byte code for the modules, as an installation writes it: here no start might have written it
    yet, or may."""
    argv = [sys.executable, "-m", "compileall", "-q", str(PROJECT / "provisiond")]
    subprocess.run(argv, check=True)


async def _empty(*, rounds: int) -> list[float]:
    """The real program over libvirt's test driver."""
    times = []
    with fresh_folder() as folder:
        daemon = Daemon(folder, {"libvirt_uri": "test:///default", "log_level": "info"})
        for _ in range(rounds):
            times.append(await _ready(daemon))
            await daemon.stop()
    return times


async def _ready(daemon: Daemon) -> float:
    """Seconds from the start of the process to its READY=1."""
    environment = dict(daemon.environment)
    (daemon.folder / "notify").unlink(missing_ok=True)
    systemd = Notified(daemon, watchdog=NO_WATCHDOG)
    daemon.environment = environment | dict(daemon.environment)
    try:
        started = perf_counter()
        await daemon.spawn()
        await systemd.wait_for("READY=1")
        return perf_counter() - started
    finally:
        systemd.close()
        daemon.environment = environment


async def _restart(site: Crowd) -> float:
    await site.daemon.stop()
    return await _ready(site.daemon)


async def _all_wait(site: Crowd, count: int) -> None:
    """Until every job has its ISO attached."""
    async with site.daemon.events("/v1/events", after=0) as events:
        attached = 0
        async for event in events:
            attached += event["state"] == "ISO_ATTACHED"
            if attached == count:
                return


async def _idle(site: Crowd, count: int, *, seconds: float) -> Row:
    used = cpu_seconds(site.pid)
    await asyncio.sleep(seconds)  # what is measured is the passing of time
    percent = 100 * (cpu_seconds(site.pid) - used) / seconds
    memory = f"{memory_mib(site.pid, field='VmRSS'):.0f} MiB resident, over {seconds:g} s"
    what = f"CPU of one processor, {count:,} jobs wait"
    return Row(GROUP, what, percent, "%", target=Target(0.2), note=memory)
