"""kill -9 of the daemon at one call, and its next start."""

from tests.faults.breakpoint import Point
from tests.faults.campaign import Row, give_up, row_of, until
from tests.faults.scenario import Scenario


async def kill_at(scenario: Scenario, point: Point) -> Row:
    """End the daemon there, start it again, wait for what it makes of it, and look."""

    async def kill() -> bool:
        async with until(scenario, point, hold=False) as acting:
            reached = scenario.host.breakpoint.is_reached
            await give_up(acting, unless=not reached)
        await scenario.host.daemon.kill()
        await scenario.host.daemon.start()
        return reached

    return await row_of(scenario, "kill", point, kill)
