"""libvirtd gone in each phase of each story: stopped, killed, killed in the middle of a call.

What matters of its absence is whether it is noticed (at once, by its socket) and that each call is
tried again: pauses() in story.py grow from 0.5 s to 30 s, and the daemon itself looks every 2 s. A
minute's absence differs from that of these tests only in how long the last pause is.
"""

import asyncio
from collections.abc import Callable

import pytest

from tests.daemon.data_disks import (
    ATTACH,
    DETACH,
    SIZE,
    attach_of,
    detach_of,
    disks_of,
    holders,
    seen,
)
from tests.daemon.images import files_of, import_of, run_job
from tests.daemon.program import STORY, Daemon, Json, facts, request
from tests.daemon.test_libvirtd import (
    assert_nothing_is_left,
    health,
    start_guest,
    stuck_in_monitor,
)
from tests.daemon.test_libvirtd_disks import booted
from tests.faults.scenario import is_forgotten
from tests.lab.disk import DiskGuestFiles
from tests.lab.libvirtd import Libvirtd

pytestmark = pytest.mark.timeout(240)

ENDS = ("SUCCEEDED", "FAILED")
DESTROY = ["ACCEPTED", "DOMAIN_REMOVED", "SUCCEEDED"]


async def without_libvirtd(daemon: Daemon, libvirtd: Libvirtd, end: Callable[[], None]) -> None:
    """An outage that the daemon has noticed."""
    end()
    await health(daemon, 503)
    libvirtd.start()


async def with_an_outage_at_each_fact(
    daemon: Daemon, libvirtd: Libvirtd, body: Json, end: Callable[[], None]
) -> Json:
    """The job of this request at its end; libvirtd went away when each of its facts was told."""
    async with daemon.events("/v1/events") as events:
        job = await daemon.submit(body)
        told: set[str] = set()
        async for event in events:
            if event["job_id"] == job["id"] and event["state"] not in told:
                told.add(event["state"])
                if event["state"] in ENDS:
                    break
                await without_libvirtd(daemon, libvirtd, end)
    return await daemon.job(job["id"])


async def with_both_down_at(daemon: Daemon, libvirtd: Libvirtd, body: Json, fact: str) -> Json:
    """The job at its end; provisiond was killed at the fact and was back before libvirtd was."""
    async with daemon.events("/v1/events") as events:
        job = await daemon.submit(body)
        async for event in events:
            if (event["job_id"], event["state"]) == (job["id"], fact):
                break
    await daemon.kill()
    libvirtd.stop()
    await daemon.start()
    assert (await daemon.get("/healthz")).status_code == 503
    async with asyncio.timeout(60), daemon.events(f"/v1/jobs/{job['id']}/events") as events:
        async for event in events:
            if "cannot open" in event["detail"]:
                break
    libvirtd.start()
    return await daemon.wait_for(job["id"], *ENDS)


# ---------------------------------------------------------------- a guest of one request
async def test_libvirtd_killed_at_each_fact_of_a_new_guest_and_of_its_end(
    libvirtd: Libvirtd, system_daemon: Daemon, disk_guest_files: DiskGuestFiles
) -> None:
    system_daemon.template_dir.mkdir()
    template = libvirtd.template(disk_guest_files.boot)
    (system_daemon.template_dir / "default.xml").write_text(template)
    system_daemon.prefix = libvirtd.inside  # the guest answers below libvirt's own folder
    await system_daemon.start()
    await run_job(system_daemon, import_of(disk_guest_files.image, name="tiny"))
    body = request("web1") | {"create": {"base": "tiny"}}
    job = await with_an_outage_at_each_fact(system_daemon, libvirtd, body, libvirtd.kill)
    assert job["failure"] is None
    assert facts(job) == STORY
    assert_nothing_is_left(system_daemon, libvirtd, job)
    assert files_of(system_daemon) == ["bases/tiny.json", "bases/tiny.qcow2", "disks/web1.qcow2"]

    destroy = {"kind": "destroy", "request_id": "end", "domain": "web1"}
    job = await with_an_outage_at_each_fact(system_daemon, libvirtd, destroy, libvirtd.kill)
    assert job["failure"] is None
    assert facts(job) == DESTROY
    assert files_of(system_daemon) == ["bases/tiny.json", "bases/tiny.qcow2"]
    await health(system_daemon, 200)
    assert (await system_daemon.get("/v1/domains")).json()["domains"] == []


# ---------------------------------------------------------------- back
async def test_a_cancel_while_libvirtd_is_away_is_heard_and_ends_once_it_is_back(
    libvirtd: Libvirtd, system_daemon: Daemon
) -> None:
    guest = start_guest(libvirtd, "web1", silent=True)
    system_daemon.settings["ready_seconds"] = 1
    await system_daemon.start()
    job = await system_daemon.submit(request(guest.name))
    await system_daemon.wait_for(job["id"], "ISO_ATTACHED")
    libvirtd.stop()
    assert (await system_daemon.cancel(job["id"])).status_code == 202
    await system_daemon.wait_for(job["id"], "UNDOING")
    assert len(list(system_daemon.iso_folder.iterdir())) == 1  # QEMU has it open
    libvirtd.start()
    job = await system_daemon.wait_for(job["id"], "FAILED")
    assert job["failure"]["code"] == "cancelled"
    assert_nothing_is_left(system_daemon, libvirtd, job)
    again = await system_daemon.submit(request(guest.name, request_id="again"))
    await system_daemon.wait_for(again["id"], "ISO_ATTACHED")
    await system_daemon.cancel(again["id"])
    await without_libvirtd(system_daemon, libvirtd, libvirtd.kill)
    again = await system_daemon.wait_for(again["id"], "FAILED")
    assert again["failure"]["code"] == "cancelled"
    assert_nothing_is_left(system_daemon, libvirtd, again)


# ---------------------------------------------------------------- data disks
async def test_a_data_disk_is_attached_once_and_taken_away_once_wherever_both_went_down(
    libvirtd: Libvirtd, system_daemon: Daemon
) -> None:
    guest = await booted(libvirtd, "web1")
    await system_daemon.start()
    for fact in ATTACH[:-1]:
        body = attach_of(guest.name, size=SIZE, name="data", persistent=True)
        job = await with_both_down_at(system_daemon, libvirtd, body, fact)
        assert facts(job) == ATTACH
        assert await holders(system_daemon) == {"data": guest.name}
        assert list(await disks_of(system_daemon, guest.name)) == ["vda"]
        await seen(guest, "vda")
        body = detach_of(guest.name, "vda", remove=True)
        down = DETACH[ATTACH.index(fact) % 2]
        job = await with_both_down_at(system_daemon, libvirtd, body, down)
        assert facts(job) == DETACH
        assert files_of(system_daemon) == []
        assert "data.qcow2" not in libvirtd.xml(guest.name)


async def test_libvirtd_killed_in_the_middle_of_an_attach_leaves_a_disk_or_none(
    libvirtd: Libvirtd, system_daemon: Daemon
) -> None:
    """QEMU may have done what nobody lived to hear of: libvirt then cannot attach under the same
    name, and says so."""
    guest = await booted(libvirtd, "web1")
    await system_daemon.start()
    libvirtd.freeze_qemu(guest.name)
    job = await system_daemon.submit(attach_of(guest.name, size=SIZE, name="data"))
    await stuck_in_monitor(libvirtd, guest)
    libvirtd.kill()
    await health(system_daemon, 503)
    libvirtd.thaw_qemu(guest.name)
    libvirtd.start()
    job = await system_daemon.wait_for(job["id"], *ENDS)
    if job["failure"] is None:
        assert files_of(system_daemon) == ["disks/data.qcow2"]
        assert list(await disks_of(system_daemon, guest.name)) == ["vda"]
        await seen(guest, "vda")
    else:
        assert is_forgotten(job), job["failure"]
        assert files_of(system_daemon) == []
        assert await disks_of(system_daemon, guest.name) == {}


async def test_libvirtd_killed_in_the_middle_of_the_attach_of_an_iso_leaves_no_secret(
    libvirtd: Libvirtd, system_daemon: Daemon
) -> None:
    guest = start_guest(libvirtd, "web1", silent=True)
    system_daemon.settings["ready_seconds"] = 1
    await system_daemon.start()
    job = await system_daemon.submit(request(guest.name, deadline_seconds=60))
    await system_daemon.wait_for(job["id"], "ISO_WRITTEN")
    libvirtd.freeze_qemu(guest.name)
    await stuck_in_monitor(libvirtd, guest)
    libvirtd.kill()
    await health(system_daemon, 503)
    libvirtd.thaw_qemu(guest.name)
    libvirtd.start()
    job = await system_daemon.wait_for(job["id"], "ISO_ATTACHED", *ENDS)
    await system_daemon.cancel(job["id"])
    job = await system_daemon.wait_for(job["id"], "FAILED")
    assert job["failure"]["code"] == "cancelled" or is_forgotten(job), job["failure"]
    assert_nothing_is_left(system_daemon, libvirtd, job)
    async with asyncio.timeout(60):
        await health(system_daemon, 200)
