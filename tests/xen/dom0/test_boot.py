"""A guest that is asked for at whatever moment of its boot: attached means that it has the disk."""

import asyncio
import random

import pytest

from tests.daemon.program import STORY
from tests.xen.dom0 import host
from tests.xen.dom0.guests import Guests, assert_nothing_is_left, states, wanted
from tests.xen.dom0.service import Service

BOOT = 8.0  # seconds at most until the script runs
PARTS = 10


@pytest.mark.parametrize("part", range(PARTS))
async def test_attached_means_that_the_guests_driver_is_connected(
    impatient: Service, guests: Guests, part: int
) -> None:
    """The ISO comes two seconds after the request, whether the guest can take it by then or not."""
    guest = guests.start(f"boot{part}")
    number = guests.look(guest)
    moment = random.uniform(part, part + 1)  # noqa: S311 - another one each time
    await asyncio.sleep(moment * BOOT / PARTS)
    job = await impatient.submit(wanted(guest))
    job = await impatient.wait_for(job["id"], "ISO_ATTACHED")
    seen = host.frontend_state(number, job["target"])
    job = await impatient.job(job["id"])
    # It is detached once the guest has said done, never before.
    assert seen == host.CONNECTED or "GUEST_CONFIGURED" in states(job), (seen, job)
    job = await impatient.wait_for(job["id"], "SUCCEEDED")
    assert states(job) == STORY
    assert_nothing_is_left(job)
