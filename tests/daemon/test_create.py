"""Whole guests from one request: base → overlay → domain → provisioned; and their end."""

import asyncio
import hashlib
from pathlib import Path

import pytest

from provisiond.disk.folder import is_immutable
from tests.daemon.data_disks import SIZE, attach_of, detach_of, disks_of, holders
from tests.daemon.images import files_of, import_of, run_job
from tests.daemon.program import STORY, Daemon, Json, request
from tests.lab.console import open_console
from tests.lab.disk import DiskGuestFiles
from tests.lab.domain import Guest, template_xml
from tests.lab.embed import lab_folder
from tests.lab.program import Lab

# A share of a processor each: an emulated guest boots in 4 s of one, and two have to do for all.
GUESTS_OF_ONE_BASE = 8
BASE_ONLY = ["bases/tiny.json", "bases/tiny.qcow2"]


def write_template(daemon: Daemon, lab: Lab, files: DiskGuestFiles, *words: str) -> None:
    """The operator's template `default` and, with `words` for its kernel, `odd`."""
    daemon.template_dir.mkdir(exist_ok=True)
    for name, more in (("default", ()), ("odd", words)):
        model = Guest("any", kernel_words=tuple(more))
        xml = template_xml(model, files=files.boot, folder=lab_folder(lab.root))
        (daemon.template_dir / f"{name}.xml").write_text(xml)


def create_of(name: str, *, template: str = "default", **create: object) -> Json:
    """The request for a guest over the base `tiny`; more fields of `create` go into it."""
    return request(name) | {"create": {"base": "tiny", "template": template, **create}}


@pytest.fixture
async def creating(guest_daemon: Daemon, lab: Lab, disk_guest_files: DiskGuestFiles) -> Daemon:
    """A daemon that serves, with the base `tiny` and templates of a guest that boots from it."""
    write_template(guest_daemon, lab, disk_guest_files, "lab.silent")
    await guest_daemon.start()
    await run_job(guest_daemon, import_of(disk_guest_files.image, name="tiny"))
    return guest_daemon


async def names_of(daemon: Daemon) -> list[str]:
    return [one["name"] for one in (await daemon.get("/v1/domains")).json()["domains"]]


async def told(lab: Lab, name: str, command: str) -> str:
    async with asyncio.timeout(60), open_console(lab.running(name).shell) as console:
        return (await console.run(command)).output


async def test_one_request_makes_a_guest_and_another_one_ends_it(
    creating: Daemon, lab: Lab
) -> None:
    base = (await creating.get("/v1/bases/tiny")).json()
    job = await run_job(creating, create_of("web1", size=64 * 2**20, memory_mib=112))
    assert [event["state"] for event in job["history"]] == STORY
    assert job["proof"]["iso_overwritten_and_unlinked"] is True
    assert (await told(lab, "web1", "hostname")).strip() == "web1"
    assert "/dev/vda / ext4 rw" in await told(lab, "web1", "grep ' / ' /proc/mounts")
    assert (await told(lab, "web1", "cat /sys/block/vda/size")).strip() == str(64 * 2**20 // 512)
    await told(lab, "web1", "dd if=/dev/urandom of=/root/much bs=1M count=4; sync")
    (domain,) = (await creating.get("/v1/domains")).json()["domains"]
    assert (domain["name"], domain["made_here"]) == ("web1", True)
    assert domain["uuid"] == job["domain_uuid"]
    (disk,) = (await creating.get("/v1/disks")).json()["disks"]
    assert (disk["name"], disk["base"], disk["domain"]) == ("web1", "tiny", "web1")
    assert list(creating.iso_folder.iterdir()) == []
    assert hashlib.sha256(Path(base["path"]).read_bytes()).hexdigest() == base["sha256"]

    async with creating.http() as http:
        refused = await http.delete("/v1/disks/web1")
    assert (refused.status_code, refused.json()["code"]) == (409, "disk_in_use")
    again = await creating.post(create_of("web1") | {"request_id": "again"})
    assert (again.status_code, again.json()["code"]) == (409, "domain_exists")

    ended = await run_job(creating, {"kind": "destroy", "request_id": "end", "domain": "web1"})
    assert [event["state"] for event in ended["history"]] == [
        "ACCEPTED",
        "DOMAIN_REMOVED",
        "SUCCEEDED",
    ]
    assert await names_of(creating) == []
    assert files_of(creating) == BASE_ONLY


async def test_what_cannot_be_made_is_refused_and_nothing_was_done(
    creating: Daemon,
) -> None:
    (creating.template_dir / "broken.xml").write_text("<domain type='qemu'>")
    (creating.template_dir / "foreign.xml").write_text("<domain type='bhyve'/>")
    for number, (body, status, code) in enumerate(
        (
            (create_of("web1", base="absent"), 404, "base_not_found"),
            (create_of("web1", template="absent"), 409, "template_unusable"),
            (create_of("web1", template="broken"), 409, "template_unusable"),
            (create_of("web1", size=2**20), 409, "size_too_small"),
            (create_of("web1", format="vhd"), 409, "vhd_needs_tapdisk"),
            (create_of("web1", network="a", bridge="b"), 422, "invalid_request"),
            (create_of("we b1"), 422, "invalid_request"),
            ({"kind": "destroy", "domain": "absent"}, 404, "domain_not_found"),
        )
    ):
        reply = await creating.post(body | {"request_id": f"r{number}"})
        assert (reply.status_code, reply.json()["code"]) == (status, code), reply.text
    job = await run_job(creating, create_of("web1", template="foreign"), "FAILED")
    assert job["failure"]["code"] == "template_unusable"
    assert await names_of(creating) == []
    assert files_of(creating) == BASE_ONLY


async def test_a_cancelled_guest_is_gone_with_all_that_was_made(creating: Daemon) -> None:
    job = await creating.submit(create_of("mute", template="odd"))
    await creating.wait_for(job["id"], "ISO_WRITTEN")
    assert await names_of(creating) == ["mute"]
    assert (await creating.cancel(job["id"])).status_code == 202
    ended = await creating.wait_for(job["id"], "FAILED")
    assert ended["failure"]["code"] == "cancelled"
    assert await names_of(creating) == []
    assert files_of(creating) == BASE_ONLY
    assert list(creating.iso_folder.iterdir()) == []


async def test_a_destroy_removes_the_data_disks_of_that_domain_where_asked_to_and_no_other(
    creating: Daemon, lab: Lab
) -> None:
    await asyncio.gather(*(run_job(creating, create_of(name)) for name in ("web1", "web2")))
    own = await creating.post(detach_of("web1", "vda"))
    assert (own.status_code, own.json()["code"]) == (409, "disk_in_use")
    for domain, name, persistent in (
        ("web1", "live", False),
        ("web1", "kept", True),
        ("web1", "loose", False),
        ("web2", "other", True),
    ):
        body = attach_of(domain, size=SIZE, name=name, persistent=persistent)
        job = await run_job(creating, body)
        if name in ("kept", "loose"):  # kept: there again with the next start, and not until then
            await run_job(creating, detach_of(domain, job["target"]))
    shown = {disk["name"] for disk in (await disks_of(creating, "web1")).values()}
    assert shown == {"web1", "live"}
    whose = {"web1": "web1", "web2": "web2", "live": "web1", "kept": "web1", "other": "web2"}
    assert await holders(creating) == whose | {"loose": None}

    destroy = {"kind": "destroy", "request_id": "1", "domain": "web1", "remove_data": True}
    await run_job(creating, destroy)
    assert await holders(creating) == {"web2": "web2", "other": "web2", "loose": None}
    assert (await told(lab, "web2", "dd if=/dev/vdb bs=512 count=1 | wc -c")).endswith("512\n")
    await run_job(creating, {"kind": "destroy", "request_id": "2", "domain": "web2"})
    assert await names_of(creating) == []
    assert files_of(creating) == [*BASE_ONLY, "disks/loose.qcow2", "disks/other.qcow2"]


async def test_a_base_is_byte_identical_after_many_guests_have_written_to_their_overlays(
    creating: Daemon, lab: Lab
) -> None:
    base = (await creating.get("/v1/bases/tiny")).json()
    names = [f"web{number}" for number in range(1, GUESTS_OF_ONE_BASE + 1)]
    await asyncio.gather(*(run_job(creating, create_of(name)) for name in names))
    write = "dd if=/dev/urandom of=/root/much bs=256k count=16 && sync && sha256sum </root/much"
    said = await asyncio.gather(*(told(lab, name, write) for name in names))
    written = [text.split()[-2] for text in said]
    assert len(set(written)) == GUESTS_OF_ONE_BASE
    again = "echo 3 >/proc/sys/vm/drop_caches && sha256sum </root/much"
    said = await asyncio.gather(*(told(lab, name, again) for name in names))
    assert [text.split()[0] for text in said] == written
    after = (await creating.get("/v1/bases/tiny")).json()
    assert after == base | {"overlays": names}
    assert is_immutable(Path(base["path"])) is base["immutable"]  # not every tmpfs can
    assert hashlib.sha256(Path(base["path"]).read_bytes()).hexdigest() == base["sha256"]
    verify = {"kind": "verify_base", "request_id": "verify", "base": "tiny"}
    await run_job(creating, verify)


async def test_a_domain_of_somebody_else_is_not_destroyed(lab: Lab, guest_daemon: Daemon) -> None:
    (guest,) = lab.start("--silent")
    await guest_daemon.start()
    destroy = {"kind": "destroy", "domain": guest.name}
    reply = await guest_daemon.post(destroy | {"request_id": "1"})
    assert (reply.status_code, reply.json()["code"]) == (409, "not_made_here")
    assert await names_of(guest_daemon) == [guest.name]
    await run_job(guest_daemon, destroy | {"request_id": "2", "force": True})
    assert await names_of(guest_daemon) == []


@pytest.mark.parametrize("state", STORY)
async def test_a_power_cut_at_any_fact_leaves_a_whole_guest_or_none(
    creating: Daemon, lab: Lab, state: str
) -> None:
    job = await creating.submit(create_of("web1"))
    async with creating.events(f"/v1/jobs/{job['id']}/events") as events:
        async for event in events:
            if event["state"] == state:
                break
    await creating.kill()
    await creating.start()
    job = await creating.ended(job["id"])
    assert list(creating.iso_folder.iterdir()) == []
    if job["state"] == "SUCCEEDED":
        assert (await told(lab, "web1", "hostname")).strip() == "web1"
        assert files_of(creating) == [*BASE_ONLY, "disks/web1.qcow2"]
    else:  # the secret was in memory only; from then on it is on the ISO, and nothing is lost
        assert STORY.index(state) < STORY.index("ISO_WRITTEN")
        assert job["failure"]["code"] == "interrupted"
        assert await names_of(creating) == []
        assert files_of(creating) == BASE_ONLY
