"""Data disks of real guests, from request to proof: what a guest sees, and what is refused.

The tests share two guests that have booted; each leaves them without a disk.
"""

import asyncio
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.daemon.data_disks import (
    ATTACH,
    DETACH,
    SIZE,
    attach_of,
    content_hash,
    detach_of,
    disks_of,
    fill,
    hash_in_guest,
    holders,
    seen,
)
from tests.daemon.host import Host, in_guest, with_guests
from tests.daemon.images import MIB, files_of, run_job
from tests.daemon.program import Daemon, states
from tests.lab.embed import kept_xml

pytestmark = [with_guests, pytest.mark.timeout(120)]


@pytest_asyncio.fixture(loop_scope="module")
async def guests(host: Host) -> AsyncIterator[Host]:
    """The host without a disk; at the end nothing is left that a detach does not take away."""
    for guest in (host.web, host.mute):
        await in_guest(guest, "true")  # it has booted, and hears of disks
    yield host
    for guest in (host.web, host.mute):
        for target in await disks_of(host.daemon, guest.uuid):
            await run_job(host.daemon, detach_of(guest.uuid, target, remove=True))
    async with host.daemon.http() as http:
        for name in await holders(host.daemon):
            assert (await http.delete(f"/v1/disks/{name}")).status_code == 204
    assert files_of(host.daemon) == []


# ---------------------------------------------------------------- what a guest sees
async def test_a_disk_is_written_in_the_guest_taken_away_and_comes_back_with_its_data(
    guests: Host,
) -> None:
    daemon, web = guests.daemon, guests.web
    job = await run_job(daemon, attach_of(web.name, size=8 * MIB))
    assert states(job) == ATTACH
    name, target = f"{web.name}-{job['id'][:8]}", job["target"]
    assert job["disk"] == str(daemon.image_dir / f"disks/{name}.qcow2")
    live = ET.fromstring(kept_xml(guests.lab.root, web.name))
    (found,) = (disk for disk in live.iterfind("devices/disk") if disk.get("device") == "disk")
    assert [one.get("dev") for one in found.iterfind("target")] == [target]
    assert [one.get("file") for one in found.iterfind("source")] == [job["disk"]]
    assert await disks_of(daemon, web.name) == {
        target: {
            "target": target,
            "source": job["disk"],
            "format": "qcow2",
            "read_only": False,
            "name": name,
        }
    }
    (disk,) = (await daemon.get("/v1/disks")).json()["disks"]
    assert (disk["name"], disk["base"], disk["domain"]) == (name, None, web.name)
    await seen(web, target)
    about = await in_guest(web, f"cd /sys/block/{target} && cat serial; echo; cat size ro")
    assert about.split() == [job["id"][:20], str(8 * MIB // 512), "0"]
    written = await fill(web, target)

    detached = await run_job(daemon, detach_of(web.name, target))
    assert states(detached) == DETACH
    proof = detached["proof"]
    assert proof.pop("at")
    assert proof == {
        "disk_absent_from_live_xml": True,
        "back_end_absent": True,
        "iso_overwritten_and_unlinked": None,
        "iso_file_absent": None,
    }
    await in_guest(web, f"[ ! -e /dev/{target} ] && [ ! -e /sys/block/{target} ]")
    assert await disks_of(daemon, web.name) == {}
    assert await holders(daemon) == {name: None}
    assert content_hash(job["disk"], "qcow2") == written

    again = await run_job(daemon, attach_of(guests.mute.uuid, disk=name))
    assert (again["disk"], again["target"]) == (job["disk"], "vda")
    await seen(guests.mute, "vda")
    assert await hash_in_guest(guests.mute, "vda") == written
    removed = await run_job(daemon, detach_of(guests.mute.uuid, "vda", remove=True))
    assert removed["history"][-1]["detail"] == f"disk {name} removed"
    await in_guest(guests.mute, "[ ! -e /dev/vda ]")
    assert files_of(daemon) == []


@pytest.mark.parametrize(
    ("disk_format", "target", "device"),
    [("raw", "vdc", "vda"), ("qcow", "sdd", "sda"), ("vhd", None, "vda")],
)
async def test_a_disk_of_another_format_is_at_the_target_that_was_asked_for(
    guests: Host, disk_format: str, target: str | None, device: str
) -> None:
    wanted = {} if target is None else {"target": target}
    body = attach_of(guests.web.name, size=4 * MIB, format=disk_format, name="data", **wanted)
    job = await run_job(guests.daemon, body)
    assert job["target"] == (target or "vda")
    assert files_of(guests.daemon) == [f"disks/data.{disk_format}"]
    (disk,) = (await disks_of(guests.daemon, guests.web.name)).values()
    assert (disk["target"], disk["name"]) == (job["target"], "data")
    await seen(guests.web, device)
    assert (await in_guest(guests.web, f"cat /sys/block/{device}/size")).strip() == "8192"
    written = await fill(guests.web, device)
    await run_job(guests.daemon, detach_of(guests.web.name, job["target"]))
    assert content_hash(job["disk"], disk_format) == written


async def test_the_name_of_a_disk_is_safe_whatever_its_domain_is_called(guests: Host) -> None:
    job = await run_job(guests.daemon, attach_of(guests.mute.uuid, size=SIZE))
    (name,) = await holders(guests.daemon)
    assert name == f"mute-31m1-{job['id'][:8]}"
    reply = await guests.daemon.get(f"/v1/domains/{guests.mute.uuid}")
    assert [disk["name"] for disk in reply.json()["disks"]] == [name]


# ---------------------------------------------------------------- refusals
async def test_what_cannot_be_done_is_refused_and_nothing_was_done(guests: Host) -> None:
    daemon, web, mute = guests.daemon, guests.web.name, guests.mute.uuid
    await run_job(daemon, attach_of(web, size=SIZE, name="taken"))
    jobs = (await daemon.get("/v1/jobs")).json()["jobs"]
    before = await disks_of(daemon, web)
    for body, status, code in (
        (attach_of("absent", size=SIZE), 404, "domain_not_found"),
        (detach_of("absent", "vda"), 404, "domain_not_found"),
        (attach_of(web, disk="absent"), 404, "disk_not_found"),
        (detach_of(web, "vdq"), 404, "disk_not_found"),
        (attach_of(web, size=SIZE, name="taken"), 409, "disk_exists"),
        (attach_of(mute, size=SIZE, name="taken", format="raw"), 409, "disk_exists"),
        (attach_of(mute, disk="taken"), 409, "disk_in_use"),
        (attach_of(web, disk="taken"), 409, "disk_in_use"),
    ):
        reply = await daemon.post(body)
        assert (reply.status_code, reply.json()["code"]) == (status, code), reply.text
    for fields, field in (
        ({}, "size"),
        ({"size": SIZE, "disk": "taken"}, "size"),
        ({"size": SIZE + 1}, "size"),
        ({"disk": "taken", "format": "raw"}, "format"),
        ({"disk": "taken", "name": "other"}, "name"),
        ({"size": SIZE, "name": "../etc"}, "name"),
        ({"size": SIZE, "target": "hda"}, "target"),
    ):
        reply = await daemon.post(attach_of(web, **fields))
        assert reply.status_code == 422, reply.text
        assert [one["field"] for one in reply.json()["fields"]] == [field], reply.text
    async with daemon.http() as http:
        refused = await http.delete("/v1/disks/taken")
    assert (refused.status_code, refused.json()["code"]) == (409, "disk_in_use")
    assert (await daemon.get("/v1/jobs")).json()["jobs"] == jobs
    assert await disks_of(daemon, web) == before
    assert files_of(daemon) == ["disks/taken.qcow2"]


async def test_an_attach_that_fails_takes_back_the_disk_it_made_and_no_other(guests: Host) -> None:
    daemon, web = guests.daemon, guests.web.name
    await run_job(daemon, attach_of(web, size=SIZE, name="first", target="vdb"))
    body = attach_of(web, size=SIZE, name="second", target="vdb")
    job = await run_job(daemon, body, "FAILED")
    assert job["failure"]["code"] == "no_free_target"
    assert states(job) == ["ACCEPTED", "DISKS_CREATED", "UNDOING", "FAILED"]
    assert files_of(daemon) == ["disks/first.qcow2"]
    await run_job(daemon, detach_of(web, "vdb"))
    await run_job(daemon, attach_of(web, size=SIZE, name="other", target="vdb"))
    job = await run_job(daemon, attach_of(web, disk="first", target="vdb"), "FAILED")
    assert job["failure"]["code"] == "no_free_target"
    assert await holders(daemon) == {"first": None, "other": web}


async def test_of_two_domains_that_want_a_disk_at_once_one_gets_it(guests: Host) -> None:
    daemon, pair = guests.daemon, (guests.web, guests.mute)
    job = await run_job(daemon, attach_of(guests.web.name, size=SIZE, name="wanted"))
    await run_job(daemon, detach_of(guests.web.name, job["target"]))
    for _ in range(5):
        ends = await asyncio.gather(*(_attach_somehow(daemon, guest.uuid) for guest in pair))
        assert sorted(ends) == ["SUCCEEDED", "disk_in_use"]
        winner = pair[ends.index("SUCCEEDED")]
        assert await holders(daemon) == {"wanted": winner.name}
        found = [list(await disks_of(daemon, guest.uuid)) for guest in pair]
        assert sorted(found) == [[], ["vda"]]
        await run_job(daemon, detach_of(winner.uuid, "vda"))


async def _attach_somehow(daemon: Daemon, domain: str) -> str:
    """SUCCEEDED, or why not: the request was refused, or its job failed."""
    reply = await daemon.post(attach_of(domain, disk="wanted"))
    if reply.status_code != 202:
        return str(reply.json()["code"])
    job = await daemon.wait_for(reply.json()["id"], "SUCCEEDED", "FAILED")
    return str(job["failure"]["code"] if job["failure"] else job["state"])
