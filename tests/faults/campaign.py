"""A scenario at every point: recorded once, then cut there, started again and looked at."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass

from tests.daemon.fixtures import fresh_folder
from tests.daemon.program import Daemon
from tests.faults.cut import Point, PowerCut, points_of
from tests.faults.hypervisor import GuestHost, embedded
from tests.faults.scenario import Scenario
from tests.faults.world import LIMIT, Host, died

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
    """What a cut at one point has led to. `limits` is what libvirt forgot when it died as well."""

    scenario: str
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
) -> AsyncIterator[Scenario]:
    """The scenario on a host of its own, whose daemon serves; it has worked once, uncut."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(fresh_folder())
        folder.chmod(0o755)  # QEMU may run as another user
        cut = PowerCut(folder / "cut")
        guests = stack.enter_context(hypervisor()) if kind.with_guests else None
        settings = {"libvirt_uri": "test:///default" if guests is None else guests.uri}
        prefix = (*(() if guests is None else guests.prefix), *_prefix(cut))
        daemon = Daemon(folder, settings | kind.settings, prefix=prefix)
        scenario = kind(Host(folder, cut, daemon, guests))
        if guests is not None:
            scenario.start_guests(guests)
        try:
            async with asyncio.timeout(SECONDS):
                await daemon.start()
                await scenario.prepare()
                await _uncut(scenario)
            yield scenario
        finally:
            await daemon.kill()


def _prefix(cut: PowerCut) -> tuple[str, ...]:
    """What becomes the daemon: the same process, with the library and the umask of the unit.

    A KVM that root may open and that does not work has libvirt ask QEMU for seconds what it can do,
    at every start of a guest: the daemon has one that is on a read-only file system.
    """
    words = (f"{name}={value}" for name, value in cut.environment.items())
    return ("unshare", "--mount", "sh", "-c", AS_A_SERVICE, "sh", str(cut.no_kvm), "env", *words)


async def _uncut(scenario: Scenario) -> Sequence[str]:
    """The calls of a run without a cut."""
    await scenario.ready()
    scenario.host.cut.arm(None)
    await scenario.act()
    calls = scenario.host.cut.disarm()
    outcome = await scenario.settle()
    if problems := await _problems(scenario):
        raise Broken(f"{scenario.name} without a cut: {outcome}; {'; '.join(problems)}")
    return calls


async def record(scenario: Scenario) -> Sequence[Point]:
    """Every point of it, where it is not the first time."""
    async with asyncio.timeout(SECONDS):
        return list(points_of(await _uncut(scenario)))


async def cut_at(scenario: Scenario, point: Point) -> Row:
    """End the daemon there, start it again, wait for what it makes of it, and look."""
    started = time.monotonic()
    reached, outcome, problems = False, "", []
    limit: asyncio.Timeout | None = None
    try:
        async with asyncio.timeout(SECONDS) as limit:
            await scenario.ready()
            reached = await _until_cut(scenario, point)
            await _start_again(scenario)
            outcome = await scenario.settle()
            problems = await _problems(scenario)
    except Exception as error:  # noqa: BLE001 - whatever a wrong world makes a check do is a finding
        late = limit is not None and limit.expired()
        said = f"no end within {SECONDS} s" if late else f"{type(error).__name__}: {error}"
        problems = [said[:LONGEST_PROBLEM]]
    return Row(
        scenario.name,
        point,
        reached,
        outcome,
        tuple(text for text in problems if not text.startswith(LIMIT)),
        tuple(text for text in problems if text.startswith(LIMIT)),
        time.monotonic() - started,
    )


async def _until_cut(scenario: Scenario, point: Point) -> bool:
    """Whether the daemon was ended on its way; else it came to the end."""
    cut = scenario.host.cut
    cut.arm(point)
    acting = asyncio.create_task(scenario.act())
    try:
        while not acting.done() and not cut.has_ended:
            await asyncio.wait([acting], timeout=0.05)
        acting.cancel()
        try:
            await acting
        except asyncio.CancelledError:
            pass
        except Exception as error:
            if not cut.has_ended or not died(error):
                raise
        return cut.has_ended
    finally:
        acting.cancel()
        cut.disarm()


async def _start_again(scenario: Scenario) -> None:
    await scenario.host.daemon.kill()
    await scenario.host.daemon.start()


async def _problems(scenario: Scenario) -> list[str]:
    problems = [*await scenario.check(), *await scenario.host.leftovers()]
    problems += [*await scenario.again(), *await scenario.host.leftovers()]
    return list(dict.fromkeys(problems))
