"""A scenario at every point: recorded once, then stopped there by a fault, and looked at.

A fault is a row of the table: `kill.py`, `power_cut.py`, `disk_full.py` each have one.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.daemon.fixtures import fresh_folder
from tests.daemon.program import Daemon
from tests.faults.breakpoint import Breakpoint, Point
from tests.faults.hypervisor import GuestHost, embedded
from tests.faults.scenario import Scenario
from tests.faults.volumes import mounted
from tests.faults.world import LIBVIRTS_OWN, Host, died

AS_A_SERVICE = """\
if [ -e /dev/kvm ]; then
    mount --bind "$1" /dev/kvm && mount -o remount,bind,ro /dev/kvm || exit 1
fi
shift
umask 077
exec "$@"
"""
LONGEST_PROBLEM = 300
SECONDS = 240  # for one scenario once, a guest's boot included


@dataclass(frozen=True, slots=True)
class Row:
    """What a fault at one point led to. `limits` is what libvirt forgot when it died as well."""

    scenario: str
    fault: str
    point: Point
    reached: bool
    outcome: str
    problems: tuple[str, ...]
    limits: tuple[str, ...]
    seconds: float


class Broken(Exception):
    """The scenario does not work even without a cut."""


@asynccontextmanager
async def scene(
    kind: type[Scenario],
    hypervisor: Callable[[], AbstractContextManager[GuestHost]] = embedded,
    *,
    on_volumes: bool = False,
) -> AsyncIterator[Scenario]:
    """The scenario on a host of its own, whose daemon serves; it has worked once, without a fault.

    `on_volumes`: state, images and ISOs are on file systems of their own.
    """
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(fresh_folder())
        folder.chmod(0o755)  # QEMU may run as another user
        volumes = stack.enter_context(mounted(folder)) if on_volumes else None
        library = Breakpoint(folder / "breakpoint")
        guests = stack.enter_context(hypervisor()) if kind.with_guests else None
        settings = {
            "libvirt_uri": "test:///default" if guests is None else guests.uri,
            "requests_per_second": 10_000,  # some look without a pause
        }
        prefix = (*(() if guests is None else guests.prefix), *_prefix(library))
        daemon = Daemon(folder, settings | kind.settings, prefix=prefix)
        scenario = kind(Host(folder, library, daemon, guests, volumes))
        if guests is not None:
            scenario.start_guests(guests)
        try:
            async with asyncio.timeout(SECONDS):
                await daemon.start()
                await scenario.prepare()
                await _undisturbed(scenario)
            yield scenario
        finally:
            await daemon.kill()


def _prefix(library: Breakpoint) -> tuple[str | Path, ...]:
    """What becomes the daemon: the same process, with the library and the umask of the unit.

    A KVM that root may open and that does not work has libvirt ask QEMU for seconds what it can do,
    at every start of a guest: the daemon has one that is on a read-only file system.
    """
    words = (f"{name}={value}" for name, value in library.environment.items())
    return ("unshare", "--mount", "sh", "-c", AS_A_SERVICE, "sh", library.no_kvm, "env", *words)


async def _undisturbed(scenario: Scenario) -> Sequence[str]:
    """The calls of a run without a fault."""
    await scenario.ready()
    scenario.host.breakpoint.arm(None)
    await scenario.act()
    calls = scenario.host.breakpoint.disarm()
    outcome = await scenario.settle()
    if problems := await _problems(scenario):
        raise Broken(f"{scenario.name} without a fault: {outcome}; {'; '.join(problems)}")
    return calls


async def record(scenario: Scenario) -> Sequence[str]:
    """Every call of it, where it is not the first time."""
    async with asyncio.timeout(SECONDS):
        return await _undisturbed(scenario)


async def row_of(
    scenario: Scenario, fault: str, point: Point, disturb: Callable[[], Awaitable[bool]]
) -> Row:
    """What `disturb` leads to, which says whether the point was reached: the end of what was begun,
    and what is wrong in the world then."""
    started = time.monotonic()
    reached, outcome, problems = False, "", []
    limit: asyncio.Timeout | None = None
    try:
        async with asyncio.timeout(SECONDS) as limit:
            await scenario.ready()
            reached = await disturb()
            outcome = await scenario.settle()
            problems = await _problems(scenario)
    except Exception as error:  # noqa: BLE001 - whatever a wrong world makes a check do is a finding
        late = limit is not None and limit.expired()
        said = f"no end within {SECONDS} s" if late else f"{type(error).__name__}: {error}"
        problems = [said[:LONGEST_PROBLEM]]
    return Row(
        scenario.name,
        fault,
        point,
        reached,
        outcome,
        tuple(text for text in problems if not text.startswith(LIBVIRTS_OWN)),
        tuple(text for text in problems if text.startswith(LIBVIRTS_OWN)),
        time.monotonic() - started,
    )


@asynccontextmanager
async def until(
    scenario: Scenario, point: Point, *, hold: bool
) -> AsyncIterator[asyncio.Task[None]]:
    """What is asked for, once the point is reached or it has come to its end without."""
    library = scenario.host.breakpoint
    library.arm(point, hold=hold)
    acting = asyncio.create_task(scenario.act())
    try:
        while not acting.done() and not library.is_reached:
            await asyncio.wait([acting], timeout=0.05)
        yield acting
    finally:
        acting.cancel()
        library.disarm()


async def give_up(acting: asyncio.Task[None], *, unless: bool) -> None:
    """Ask no more: the daemon is gone, or else (`unless`) the error of the request is raised."""
    acting.cancel()
    try:
        await acting
    except asyncio.CancelledError:
        pass
    except Exception as error:
        if unless or not died(error):
            raise


async def _problems(scenario: Scenario) -> list[str]:
    problems = [*await scenario.forgotten(), *await scenario.check()]
    problems += await scenario.host.leftovers()
    problems += [*await scenario.again(), *await scenario.host.leftovers()]
    return list(dict.fromkeys(problems))
