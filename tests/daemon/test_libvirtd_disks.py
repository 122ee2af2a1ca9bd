"""Disks beside a libvirtd that is a process of its own: its QEMU is another user, hangs, is paused.

Here a power cut is provisiond's alone, as on a real host: what libvirtd was asked for goes on.
"""

import asyncio
import hashlib
import pwd
from pathlib import Path
from typing import Any

import libvirt
import pytest

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
from tests.daemon.host import in_guest
from tests.daemon.images import MIB, files_of, import_of, run_job
from tests.daemon.program import STORY, Daemon, Json, facts, request, states
from tests.daemon.test_libvirtd import start_guest, stuck_in_monitor
from tests.lab.disk import DiskGuestFiles
from tests.lab.domain import shell_path
from tests.lab.libvirtd import Libvirtd
from tests.lab.program import Running
from tests.virt.guests import domain

pytestmark = pytest.mark.timeout(180)

SHORT = 5  # seconds; the shortest deadline that a request may have


async def booted(libvirtd: Libvirtd, name: str) -> Running:
    """A guest that hears of disks."""
    guest = start_guest(libvirtd, name, silent=True)
    async with asyncio.timeout(90):
        await in_guest(guest, "true")
    return guest


def kept(libvirtd: Libvirtd, guest: Running) -> str:
    """What the domain is started from the next time."""
    with domain(libvirtd, guest.uuid) as found:
        return str(found.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))


async def refused(daemon: Daemon, body: Json) -> tuple[int, str, str]:
    reply = await daemon.post(body)
    return reply.status_code, reply.json()["code"], reply.json()["message"]


async def delete_disk(daemon: Daemon, name: str) -> tuple[int, Any]:
    async with daemon.http() as http:
        reply = await http.delete(f"/v1/disks/{name}")
    return reply.status_code, reply.json()["code"] if reply.content else None


# ---------------------------------------------------------------- QEMU as another user
async def test_a_guest_over_an_immutable_base_and_its_data_disk_where_qemu_is_another_user(
    libvirtd: Libvirtd, system_daemon: Daemon, disk_guest_files: DiskGuestFiles
) -> None:
    system_daemon.template_dir.mkdir()
    template = libvirtd.template(disk_guest_files.boot)
    (system_daemon.template_dir / "default.xml").write_text(template)
    (system_daemon.folder / "elsewhere").mkdir(mode=0o755)
    system_daemon.image_dir.symlink_to("elsewhere")  # as where the images have a disk of their own
    system_daemon.prefix = libvirtd.inside  # the guest answers below libvirt's own folder
    await system_daemon.start()
    await run_job(system_daemon, import_of(disk_guest_files.image, name="tiny"))
    base = (await system_daemon.get("/v1/bases/tiny")).json()
    job = await run_job(system_daemon, request("web1") | {"create": {"base": "tiny"}})
    assert facts(job) == STORY
    (overlay,) = (await disks_of(system_daemon, "web1")).values()
    qemu = pwd.getpwnam("libvirt-qemu").pw_uid
    assert Path(overlay["source"]).stat().st_uid == qemu

    job = await run_job(system_daemon, attach_of("web1", size=SIZE, name="data", persistent=True))
    assert job["target"] == "vdb"
    assert Path(job["disk"]).stat().st_uid == qemu
    web1 = Running(
        name="web1",
        uuid=job["domain_uuid"],
        mac="",
        uri=libvirtd.uri,
        log=libvirtd.log,
        shell=shell_path(libvirtd.xml("web1")),
    )
    await seen(web1, "vdb")
    await in_guest(web1, "dd if=/dev/urandom of=/root/much bs=1M count=4; sync")
    written = await fill(web1, "vdb")
    code = (await refused(system_daemon, detach_of("web1", "vda")))[1]
    assert code == "disk_in_use", "what the domain was made with is no data disk"
    await run_job(system_daemon, detach_of("web1", "vdb", persistent=True))
    assert content_hash(job["disk"], "qcow2") == written
    after = (await system_daemon.get("/v1/bases/tiny")).json()
    assert hashlib.sha256(Path(base["path"]).read_bytes()).hexdigest() == base["sha256"]
    assert after | {"overlays": []} == base
    assert after["overlays"] == ["web1"]
    destroy = {"kind": "destroy", "request_id": "end", "domain": "web1"}
    await run_job(system_daemon, destroy)
    assert await holders(system_daemon) == {"data": None}


# ---------------------------------------------------------------- the next start
async def test_a_persistent_disk_is_there_at_the_next_start_and_a_domain_that_is_off_takes_no_other(
    libvirtd: Libvirtd, system_daemon: Daemon
) -> None:
    guest = await booted(libvirtd, "web1")
    await system_daemon.start()
    lasting = attach_of(guest.name, size=SIZE, name="lasting", persistent=True)
    assert (await run_job(system_daemon, lasting))["target"] == "vda"
    await run_job(system_daemon, attach_of(guest.name, size=SIZE, name="passing"))
    assert "lasting.qcow2" in kept(libvirtd, guest)
    assert "passing.qcow2" not in kept(libvirtd, guest)
    await seen(guest, "vda")
    written = await fill(guest, "vda")
    await run_job(system_daemon, detach_of(guest.name, "vda"))
    assert "lasting.qcow2" in kept(libvirtd, guest), "at the next start it is there again"
    assert await holders(system_daemon) == {"lasting": guest.name, "passing": guest.name}
    status, code, _ = await refused(system_daemon, attach_of(guest.name, disk="lasting"))
    assert (status, code) == (409, "disk_in_use")

    libvirtd.destroy_guest(guest.name)
    assert await holders(system_daemon) == {"lasting": guest.name, "passing": None}
    status, code, _ = await refused(system_daemon, attach_of(guest.name, disk="passing"))
    assert (status, code) == (409, "domain_not_running")
    job = await run_job(
        system_daemon, attach_of(guest.name, disk="passing", persistent=True, target="vdc")
    )
    assert (states(job), job["target"]) == (ATTACH, "vdc")
    assert set(await disks_of(system_daemon, guest.name)) == {"vda", "vdc"}
    with domain(libvirtd, guest.uuid) as web1:
        web1.create()
    await seen(guest, "vda")
    await seen(guest, "vdb")
    assert written in {await hash_in_guest(guest, device) for device in ("vda", "vdb")}
    await run_job(system_daemon, detach_of(guest.name, "vda", remove=True))
    assert "lasting.qcow2" not in kept(libvirtd, guest)
    assert await holders(system_daemon) == {"passing": guest.name}


# ---------------------------------------------------------------- disks of somebody else
async def test_a_disk_that_somebody_else_attached_is_left_alone_and_is_known_as_taken(
    libvirtd: Libvirtd, system_daemon: Daemon
) -> None:
    guest = start_guest(libvirtd, "web1", silent=True)
    other = start_guest(libvirtd, "web2", silent=True)
    await system_daemon.start()
    for name in ("first", "second"):
        body = attach_of(guest.name, size=SIZE, name=name, format="raw", persistent=True)
        await run_job(system_daemon, body)
    libvirtd.destroy_guest(guest.name)
    for target in ("vda", "vdb"):
        await run_job(system_daemon, detach_of(guest.name, target, persistent=True))
    strange = libvirtd.folder / "strange.raw"
    strange.write_bytes(bytes(MIB))
    linked = libvirtd.folder / "linked"
    linked.symlink_to(system_daemon.image_dir / "disks")
    paths = (strange, system_daemon.image_dir / "disks/first.raw", linked / "second.raw")
    with domain(libvirtd, other.uuid) as web2:
        for path, target in zip(paths, ("vda", "vdb", "vdc"), strict=True):
            web2.attachDevice(
                f"<disk type='file' device='disk'><driver name='qemu' type='raw'/>"
                f"<source file='{path}'/><target dev='{target}' bus='virtio'/></disk>"
            )
    status, code, _ = await refused(system_daemon, detach_of(other.name, "vda"))
    assert (status, code) == (409, "not_made_here")
    assert await holders(system_daemon) == {"first": other.name, "second": other.name}
    for name in ("first", "second"):
        body = attach_of(guest.name, disk=name, persistent=True)
        status, code, message = await refused(system_daemon, body)
        assert (status, code) == (409, "disk_in_use")
        assert other.name in message
        assert await delete_disk(system_daemon, name) == (409, "disk_in_use")
    assert await disks_of(system_daemon, guest.name) == {}


# ---------------------------------------------------------------- a guest that does not answer
async def test_a_guest_that_does_not_let_go_keeps_its_disk_and_lets_go_when_asked_again(
    libvirtd: Libvirtd, system_daemon: Daemon
) -> None:
    guest = await booted(libvirtd, "web1")
    other = start_guest(libvirtd, "web2", silent=True)
    await system_daemon.start()
    body = attach_of(guest.name, size=SIZE, name="data", format="raw")
    path = Path((await run_job(system_daemon, body))["disk"])
    await seen(guest, "vda")
    written = await fill(guest, "vda")
    with domain(libvirtd, guest.uuid) as web1:
        web1.suspend()
        body = detach_of(guest.name, "vda", remove=True, deadline_seconds=SHORT)
        job = await system_daemon.submit(body)
        for body, code in (
            (detach_of(guest.name, "vda"), "busy"),
            (attach_of(guest.name, size=SIZE), "domain_not_running"),
            (attach_of(other.name, disk="data"), "disk_in_use"),
        ):
            assert (await refused(system_daemon, body))[:2] == (409, code)
        assert await delete_disk(system_daemon, "data") == (409, "disk_in_use")
        job = await system_daemon.wait_for(job["id"], "FAILED")
        assert job["failure"]["code"] == "deadline_exceeded"
        assert "does it use the disk?" in job["failure"]["hint"]
        assert job["proof"] is None
        assert await holders(system_daemon) == {"data": guest.name}
        assert str(path) in libvirtd.xml(guest.name)
        assert hashlib.sha256(path.read_bytes()).hexdigest() == written
        job = await system_daemon.submit(detach_of(guest.name, "vda"))
        web1.resume()
    job = await system_daemon.wait_for(job["id"], "SUCCEEDED")
    assert states(job) == DETACH
    await in_guest(guest, "[ ! -e /dev/vda ]")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == written


async def test_a_cancelled_attach_takes_back_what_libvirt_does_in_the_meantime(
    libvirtd: Libvirtd, system_daemon: Daemon
) -> None:
    guest = await booted(libvirtd, "web1")
    other = await booted(libvirtd, "web2")
    await system_daemon.start()
    target = (await run_job(system_daemon, attach_of(other.name, size=SIZE, name="old")))["target"]
    await seen(other, target)
    written = await fill(other, target)
    await run_job(system_daemon, detach_of(other.name, target))
    path = system_daemon.image_dir / "disks/old.qcow2"
    for name, fields in (("new", {"size": SIZE, "name": "new"}), ("old", {"disk": "old"})):
        libvirtd.freeze_qemu(guest.name)
        job = await system_daemon.submit(attach_of(guest.name, **fields))
        await stuck_in_monitor(libvirtd, guest)
        status, code, message = await refused(system_daemon, attach_of(other.name, disk=name))
        assert (status, code) == (409, "disk_in_use")
        assert job["id"] in message
        assert await delete_disk(system_daemon, name) == (409, "disk_in_use")
        assert (await system_daemon.cancel(job["id"])).status_code == 202
        libvirtd.thaw_qemu(guest.name)
        job = await system_daemon.wait_for(job["id"], "FAILED")
        assert job["failure"]["code"] == "cancelled"
        asked = ["DISKS_CREATED", "DISKS_CREATED"]  # the second says who cancelled it
        assert states(job) == ["ACCEPTED", *asked, "UNDOING", "FAILED"]
        assert await disks_of(system_daemon, guest.name) == {}
        await in_guest(guest, "[ ! -e /dev/vda ]")
        assert files_of(system_daemon) == ["disks/old.qcow2"]
    assert content_hash(str(path), "qcow2") == written
    target = (await run_job(system_daemon, attach_of(other.name, disk="old")))["target"]
    await seen(other, target)
    assert await hash_in_guest(other, target) == written


async def test_a_destroy_ends_a_domain_whose_cancelled_job_waits_for_it(
    libvirtd: Libvirtd, system_daemon: Daemon
) -> None:
    guest = await booted(libvirtd, "web1")
    await system_daemon.start()
    libvirtd.freeze_qemu(guest.name)
    job = await system_daemon.submit(attach_of(guest.name, size=SIZE, name="new"))
    await stuck_in_monitor(libvirtd, guest)
    destroy = {"kind": "destroy", "domain": guest.uuid, "force": True}
    early = await system_daemon.post(destroy | {"request_id": "early"})
    assert (early.status_code, early.json()["code"]) == (409, "busy")
    await system_daemon.cancel(job["id"])  # which has to wait for what libvirt was asked for
    ended = await run_job(system_daemon, destroy | {"request_id": "late"})
    assert states(ended) == ["ACCEPTED", "DOMAIN_REMOVED", "SUCCEEDED"]
    job = await system_daemon.wait_for(job["id"], "FAILED")
    assert job["failure"]["code"] == "cancelled"
    assert files_of(system_daemon) == []


# ---------------------------------------------------------------- power cuts
async def cut_power_at(daemon: Daemon, body: Json, state: str) -> Json:
    """The job of this request at its end; the daemon was killed when it had come to `state`."""
    async with daemon.events("/v1/events") as events:
        job = await daemon.submit(body)
        async for event in events:
            if (event["job_id"], event["state"]) == (job["id"], state):
                break
    await daemon.kill()
    await daemon.start()
    return await daemon.wait_for(job["id"], "SUCCEEDED", "FAILED")


async def test_a_power_cut_at_any_fact_of_an_attach_changes_nothing_in_the_end(
    libvirtd: Libvirtd, system_daemon: Daemon
) -> None:
    guest = await booted(libvirtd, "web1")
    other = await booted(libvirtd, "web2")
    await system_daemon.start()
    for state in ATTACH:
        body = attach_of(guest.name, size=SIZE, name="data")
        job = await cut_power_at(system_daemon, body, state)
        assert states(job) == ATTACH
        assert files_of(system_daemon) == ["disks/data.qcow2"]
        assert list(await disks_of(system_daemon, guest.name)) == ["vda"]
        await seen(guest, "vda")
        written = await fill(guest, "vda")
        await run_job(system_daemon, detach_of(guest.name, "vda"))

        job = await cut_power_at(system_daemon, attach_of(other.name, disk="data"), state)
        assert states(job) == ATTACH
        assert await holders(system_daemon) == {"data": other.name}
        assert await disks_of(system_daemon, guest.name) == {}
        assert list(await disks_of(system_daemon, other.name)) == ["vda"]
        await seen(other, "vda")
        assert await hash_in_guest(other, "vda") == written
        await run_job(system_daemon, detach_of(other.name, "vda", remove=True))
        assert files_of(system_daemon) == []


async def test_a_power_cut_at_any_fact_of_a_detach_changes_nothing_in_the_end(
    libvirtd: Libvirtd, system_daemon: Daemon
) -> None:
    guest = await booted(libvirtd, "web1")
    await system_daemon.start()
    for state in DETACH:
        await run_job(system_daemon, attach_of(guest.name, size=SIZE, name="data"))
        await seen(guest, "vda")
        written = await fill(guest, "vda")
        job = await cut_power_at(system_daemon, detach_of(guest.name, "vda"), state)
        assert states(job) == DETACH
        await in_guest(guest, "[ ! -e /dev/vda ]")
        assert await holders(system_daemon) == {"data": None}
        assert content_hash(job["disk"], "qcow2") == written

        await run_job(system_daemon, attach_of(guest.name, disk="data"))
        job = await cut_power_at(system_daemon, detach_of(guest.name, "vda", remove=True), state)
        assert states(job) == DETACH
        assert await disks_of(system_daemon, guest.name) == {}
        assert files_of(system_daemon) == []


async def test_a_power_cut_while_libvirt_attaches_attaches_the_disk_once(
    libvirtd: Libvirtd, system_daemon: Daemon
) -> None:
    guest = await booted(libvirtd, "web1")
    await system_daemon.start()
    libvirtd.freeze_qemu(guest.name)
    job = await system_daemon.submit(attach_of(guest.name, size=SIZE, name="data"))
    await stuck_in_monitor(libvirtd, guest)
    await system_daemon.kill()
    await system_daemon.start()
    libvirtd.thaw_qemu(guest.name)
    job = await system_daemon.wait_for(job["id"], "SUCCEEDED", "FAILED")
    assert states(job) == ATTACH
    assert list(await disks_of(system_daemon, guest.name)) == ["vda"]
    await seen(guest, "vda")
