"""A guest that is asked for at whatever moment of its boot: attached means that it has the disk."""

import asyncio
import random

import pytest

from tests.daemon.program import STORY
from tests.xen.dom0 import host
from tests.xen.dom0.guests import Guests, assert_nothing_is_left, states, wanted
from tests.xen.dom0.service import Service

LONGEST_BOOT = 8.0  # seconds until the script runs


@pytest.mark.parametrize("moment", range(10))
async def test_attached_means_that_the_guests_driver_is_connected(
    impatient: Service, guests: Guests, moment: int
) -> None:
    """The ISO comes two seconds after the request, whether the guest can take it by then or not."""
    guest = guests.start(f"boot{moment}")
    number = guests.look(guest)
    await asyncio.sleep(random.uniform(0, LONGEST_BOOT))  # noqa: S311 - the moment is what varies
    job = await impatient.submit(wanted(guest))
    job = await impatient.wait_for(job["id"], "ISO_ATTACHED")
    seen = host.frontend_state(number, job["target"])
    job = await impatient.job(job["id"])
    # It is detached once the guest has said done, never before.
    assert seen == host.CONNECTED or "GUEST_CONFIGURED" in states(job), (seen, job)
    job = await impatient.wait_for(job["id"], "SUCCEEDED")
    assert states(job) == STORY
    assert_nothing_is_left(job)
