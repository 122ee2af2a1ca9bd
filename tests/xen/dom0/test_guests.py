"""End to end on real Xen: the installed service, libxl, a PV guest, the real guest script."""

import asyncio
import base64

from passlib.hash import sha512_crypt

from tests.daemon.program import STORY
from tests.xen.dom0 import host
from tests.xen.dom0.guests import (
    PASSWORD,
    Guests,
    assert_nothing_is_left,
    in_guest,
    states,
    wanted,
)
from tests.xen.dom0.service import Service

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl ops"


async def test_a_guest_is_provisioned(service: Service, guests: Guests) -> None:
    guest = guests.start("one1")
    body = wanted(
        guest,
        hostname="web1.example.org",
        gateway="192.0.2.1",
        nameservers=["192.0.2.1"],
        ssh_authorized_keys=[KEY],
        timezone="Europe/Vienna",
    )
    job = await service.submit(body)
    job = await service.wait_for(job["id"], "SUCCEEDED")
    assert states(job) == STORY
    assert job["target"] == "xvdp"
    assert_nothing_is_left(job)

    assert await in_guest(guest, "hostname") == "web1\n"
    assert KEY in await in_guest(guest, "cat /root/.ssh/authorized_keys")
    # Xen keeps what a console shows, and the suite looks there for hashes in the end.
    shadow = base64.b64decode(await in_guest(guest, "grep ^root: /etc/shadow | base64 -w 0"))
    assert sha512_crypt.verify(PASSWORD, shadow.decode().split(":")[1])
    assert "default via 192.0.2.1" in await in_guest(guest, "ip route")
    host.run("ping", "-c", "1", "-W", "20", "192.0.2.10")


async def test_three_guests_at_once(service: Service, guests: Guests) -> None:
    three = [guests.start(f"three{number}") for number in (1, 2, 3)]
    jobs = [
        await service.submit(wanted(guest, address=20 + number))
        for number, guest in enumerate(three)
    ]
    jobs = await asyncio.gather(*(service.wait_for(job["id"], "SUCCEEDED") for job in jobs))
    for job in jobs:
        assert states(job) == STORY
        assert_nothing_is_left(job)


async def test_a_step_of_the_script_that_fails_is_named_with_the_guests_log(
    service: Service, guests: Guests
) -> None:
    guest = guests.start("broken1", broken_step="timezone")
    job = await service.submit(wanted(guest, timezone="UTC"))
    job = await service.wait_for(job["id"], "FAILED")
    assert (job["failure"]["code"], job["failure"]["step"]) == ("guest_failed", "timezone")
    assert any("zoneinfo" in line for line in job["guest_log"]), job
    assert states(job)[-3:] == ["ISO_ATTACHED", "UNDOING", "FAILED"]
    assert_nothing_is_left(job)


async def test_a_guest_that_never_answers_costs_its_deadline(
    impatient: Service, guests: Guests
) -> None:
    guest = guests.start("silent1", silent=True)
    job = await impatient.submit(wanted(guest, deadline_seconds=90))
    job = await impatient.wait_for(job["id"], "FAILED")
    assert job["failure"]["code"] == "deadline_exceeded"
    assert states(job)[-3:] == ["ISO_ATTACHED", "UNDOING", "FAILED"]
    assert_nothing_is_left(job)


async def test_a_cancel_takes_away_even_a_disk_that_the_guest_has_mounted(
    impatient: Service, guests: Guests
) -> None:
    guest = guests.start("mounted1", silent=True)
    job = await impatient.submit(wanted(guest))
    job = await impatient.wait_for(job["id"], "ISO_ATTACHED")
    mount = f"mount -t iso9660 -o ro /dev/{job['target']} /mnt"
    await in_guest(guest, f"{mount} && (cd /mnt && exec sleep 1000) >/dev/null 2>&1 </dev/null &")
    await in_guest(guest, "until grep -q iso9660 /proc/mounts; do usleep 50000; done")
    assert (await impatient.cancel(job["id"])).status_code == 202
    job = await impatient.wait_for(job["id"], "FAILED")
    assert job["failure"]["code"] == "cancelled"
    assert_nothing_is_left(job)
