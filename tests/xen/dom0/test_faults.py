"""What breaks in mid-job on a real host: the guest reboots, libvirtd and provisiond are restarted.

xenstored is left alone: on a live host it cannot be started again.
"""

import asyncio

from tests.daemon.program import STORY
from tests.lab.domain import Guest
from tests.xen.dom0 import host
from tests.xen.dom0.guests import Guests, assert_nothing_is_left, shell, states, wanted
from tests.xen.dom0.service import Service

LATE = 20  # seconds from a guest's boot to its script: time enough for a fault in mid-job


async def attached(service: Service, guest: Guest) -> str:
    """A job that has come as far as it can without the guest's script."""
    job = await service.submit(wanted(guest))
    await service.wait_for(job["id"], "ISO_ATTACHED")
    return str(job["id"])


async def test_a_guest_that_reboots_in_mid_job_is_provisioned_under_its_new_domid(
    impatient: Service, guests: Guests
) -> None:
    guest = guests.start("reboot1", delay=LATE)
    before = guests.look(guest)
    job_id = await attached(impatient, guest)
    async with shell(guest) as console:
        await console.order("reboot -f")
    job = await impatient.wait_for(job_id, "SUCCEEDED")
    after = guests.look(guest)
    assert after > before
    assert states(job) == STORY
    notes = [event["detail"] for event in job["history"]]
    assert f"the guest was restarted, as domain {after}" in notes
    assert "config ISO attached again as xvdp: the guest was started anew" in notes
    assert_nothing_is_left(job)


async def test_libvirtd_is_restarted_in_mid_job(impatient: Service, guests: Guests) -> None:
    guest = guests.start("libvirtd1", delay=LATE)
    job_id = await attached(impatient, guest)
    host.run("systemctl", "restart", "libvirtd")
    job = await impatient.wait_for(job_id, "SUCCEEDED")
    assert states(job) == STORY
    assert_nothing_is_left(job)


async def test_provisiond_is_killed_in_mid_job(impatient: Service, guests: Guests) -> None:
    guest = guests.start("killed1", delay=LATE)
    job_id = await attached(impatient, guest)
    before = host.run("systemctl", "show", "--property=MainPID", "provisiond")
    impatient.kill()
    await impatient.answered()
    assert host.run("systemctl", "show", "--property=MainPID", "provisiond") != before
    job = await impatient.wait_for(job_id, "SUCCEEDED")
    assert states(job) == STORY
    assert_nothing_is_left(job)


async def test_provisiond_hangs_in_mid_job_and_its_watchdog_starts_it_again(
    impatient: Service, guests: Guests
) -> None:
    guest = guests.start("stuck1", delay=LATE)
    job_id = await attached(impatient, guest)
    host.run("systemctl", "kill", "--signal=STOP", "--kill-whom=main", "provisiond")
    await impatient.answered()
    assert "provisiond.service: Watchdog timeout" in impatient.said()
    job = await impatient.wait_for(job_id, "SUCCEEDED")
    assert states(job) == STORY
    assert_nothing_is_left(job)


async def test_provisiond_is_killed_while_the_disk_is_being_attached(
    service: Service, guests: Guests
) -> None:
    guest = guests.start("killed2")
    job = await service.submit(wanted(guest))
    await service.wait_for(job["id"], "ISO_WRITTEN")
    service.kill()
    await service.answered()
    job = await service.wait_for(job["id"], "SUCCEEDED")
    assert states(job) == STORY
    assert_nothing_is_left(job)


async def test_an_attach_that_libxl_gives_up_half_way_leaves_nothing(
    service: Service, guests: Guests
) -> None:
    """libvirt then knows of no disk, but both of its ends are there."""
    guest = guests.start("givenup1")
    with host.no_disk_gets_on():
        job = await service.submit(wanted(guest))
        await service.wait_for(job["id"], "ISO_WRITTEN")
        while f"{job['id']}.iso" not in host.back_ends():  # noqa: ASYNC110 - libxl tells nobody
            await asyncio.sleep(0.1)
        await service.wait_for(job["id"], "UNDOING")
        assert f"{job['id']}.iso" not in host.live_xml(guest)
    job = await service.wait_for(job["id"], "FAILED")
    assert job["failure"]["code"] == "hypervisor_failed"
    assert_nothing_is_left(job)
    assert host.frontend_state(guests.look(guest), "xvdp") is None
