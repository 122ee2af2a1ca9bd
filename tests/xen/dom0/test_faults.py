"""What breaks in mid-job on a real host: the guest reboots, libvirtd and provisiond are restarted.

xenstored is left alone: on a live host it cannot be started again.
"""

import asyncio

from tests.daemon.program import STORY
from tests.lab.domain import Guest
from tests.xen.dom0 import host
from tests.xen.dom0.guests import Guests, assert_nothing_is_left, let_go, shell, states, wanted
from tests.xen.dom0.service import Service, as_shipped

LOOKS = 10  # at a disk that is being attached, while another one's time has come as well


async def attached(service: Service, guest: Guest) -> str:
    """A job that has come as far as it can while the guest is held."""
    job = await service.submit(wanted(guest))
    await service.wait_for(job["id"], "ISO_ATTACHED")
    return str(job["id"])


async def test_a_guest_that_reboots_in_mid_job_is_provisioned_under_its_new_domid(
    impatient: Service, guests: Guests
) -> None:
    guest = guests.start("reboot1", held=True)
    before = guests.look(guest)
    job_id = await attached(impatient, guest)
    async with shell(guest) as console:
        await console.order("reboot -f")
    await impatient.noted(job_id, "config ISO attached again")
    after = guests.look(guest)
    assert after > before
    await let_go(guest)
    job = await impatient.wait_for(job_id, "SUCCEEDED")
    assert states(job) == STORY
    notes = [event["detail"] for event in job["history"]]
    assert f"the guest was restarted, as domain {after}" in notes
    assert "config ISO attached again as xvdp: the guest was started anew" in notes
    assert_nothing_is_left(job)


async def test_libvirtd_is_restarted_in_mid_job(impatient: Service, guests: Guests) -> None:
    guest = guests.start("libvirtd1", held=True)
    job_id = await attached(impatient, guest)
    host.run("systemctl", "restart", "libvirtd")
    await let_go(guest)
    job = await impatient.wait_for(job_id, "SUCCEEDED")
    assert states(job) == STORY
    assert_nothing_is_left(job)


async def test_provisiond_is_killed_in_mid_job(impatient: Service, guests: Guests) -> None:
    guest = guests.start("killed1", held=True)
    job_id = await attached(impatient, guest)
    before = host.run("systemctl", "show", "--property=MainPID", "provisiond")
    impatient.kill()
    await impatient.answered()
    assert host.run("systemctl", "show", "--property=MainPID", "provisiond") != before
    await let_go(guest)
    job = await impatient.wait_for(job_id, "SUCCEEDED")
    assert states(job) == STORY
    assert_nothing_is_left(job)


async def test_provisiond_hangs_in_mid_job_and_its_watchdog_starts_it_again(
    impatient: Service, guests: Guests
) -> None:
    with as_shipped():
        await impatient.answered()
        guest = guests.start("stuck1", held=True)
        job_id = await attached(impatient, guest)
        host.run("systemctl", "kill", "--signal=STOP", "--kill-whom=main", "provisiond")
        await impatient.answered()
        assert "provisiond.service: Watchdog timeout (limit 1min)" in impatient.said()
        await let_go(guest)
        job = await impatient.wait_for(job_id, "SUCCEEDED")
        assert states(job) == STORY
        assert_nothing_is_left(job)
    await impatient.answered()


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


async def test_attaches_that_libxl_gives_up_half_way_are_made_again_one_by_one(
    impatient: Service, guests: Guests
) -> None:
    two = [guests.start("givenup1"), guests.start("givenup2")]
    with host.no_disk_gets_on():
        jobs = [
            await impatient.submit(wanted(guest, address=10 + number))
            for number, guest in enumerate(two)
        ]
        for job in jobs:
            await impatient.noted(job["id"], "attaches again: libxl gave up the attach")
        names = [f"{job['id']}.iso" for job in jobs]
        looks: list[list[str]] = []
        while sum(map(bool, looks)) < LOOKS:
            listed = host.back_ends()
            looks.append([name for name in names if name in listed])
            await asyncio.sleep(0.2)
    assert max(map(len, looks)) == 1, looks
    jobs = await asyncio.gather(*(impatient.wait_for(job["id"], "SUCCEEDED") for job in jobs))
    for job in jobs:
        assert states(job) == STORY
        assert_nothing_is_left(job)


async def test_a_cancelled_attach_that_libxl_gives_up_half_way_leaves_nothing(
    impatient: Service, guests: Guests
) -> None:
    """libvirt then knows of no disk, but both of its ends are there."""
    guest = guests.start("givenup3")
    with host.no_disk_gets_on():
        job = await impatient.submit(wanted(guest))
        while f"{job['id']}.iso" not in host.back_ends():  # noqa: ASYNC110 - libxl tells nobody
            await asyncio.sleep(0.1)
        await impatient.cancel(job["id"])
        await impatient.wait_for(job["id"], "UNDOING")
        assert f"{job['id']}.iso" not in host.live_xml(guest)
    job = await impatient.wait_for(job["id"], "FAILED")
    assert job["failure"]["code"] == "cancelled"
    assert_nothing_is_left(job)
    assert host.frontend_state(guests.look(guest), "xvdp") is None
