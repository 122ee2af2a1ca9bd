"""The host's power is cut while jobs of every kind are at work: no domain runs afterwards, and what
was in memory (config ISOs, sockets, libvirt's own notes of what runs) is gone."""

import shutil

import pytest

from tests.daemon.data_disks import SIZE, attach_of, detach_of, holders
from tests.daemon.images import files_of, import_of, raw_image, run_job
from tests.daemon.program import Daemon, Json, request
from tests.daemon.test_libvirtd import start_guest, stuck_in_monitor
from tests.lab.disk import DiskGuestFiles
from tests.lab.domain import kernel_words
from tests.lab.libvirtd import Libvirtd

pytestmark = pytest.mark.timeout(240)

ENDS = ("SUCCEEDED", "FAILED")
BASE = ["bases/tiny.json", "bases/tiny.qcow2"]


async def begin(daemon: Daemon, libvirtd: Libvirtd) -> dict[str, Json]:
    """Jobs that are at work and do not end by themselves, by what becomes of them."""
    names = ("attached", "undoing", "attaching", "detaching", "destroyed")
    guests = {name: start_guest(libvirtd, name, silent=True) for name in names}
    await run_job(daemon, attach_of("detaching", size=SIZE, name="old", format="raw"), "SUCCEEDED")
    jobs = {
        "attached": await daemon.submit(request("attached")),
        "undoing": await daemon.submit(request("undoing")),
        "made": await daemon.submit(request("made") | {"create": {"base": "tiny"}}),
        "detaching": await daemon.submit(detach_of("detaching", "vda")),
    }
    for name in ("attached", "undoing", "made"):
        await daemon.wait_for(jobs[name]["id"], "ISO_ATTACHED")
    for name in ("undoing", "attaching"):
        libvirtd.freeze_qemu(name)
    jobs["attaching"] = await daemon.submit(attach_of("attaching", size=SIZE, name="new"))
    await daemon.cancel(jobs["undoing"]["id"])
    for name in ("undoing", "attaching"):
        await stuck_in_monitor(libvirtd, guests[name])
    return jobs


async def test_after_a_power_cut_every_job_ends_as_it_is_and_nothing_is_left(
    libvirtd: Libvirtd, system_daemon: Daemon, disk_guest_files: DiskGuestFiles
) -> None:
    daemon = system_daemon
    daemon.settings["ready_seconds"] = 1
    daemon.prefix = libvirtd.inside  # its guests answer below libvirt's own folder
    daemon.template_dir.mkdir()
    template = libvirtd.template(disk_guest_files.boot, *kernel_words(silent=True))
    (daemon.template_dir / "default.xml").write_text(template)
    await daemon.start()
    await run_job(daemon, import_of(disk_guest_files.image, name="tiny"))
    jobs = await begin(daemon, libvirtd)
    image = raw_image(daemon.folder / "image.raw", mib=64, data_mib=64)
    jobs["import"] = await daemon.submit(import_of(image, name="half"))
    destroy = {"kind": "destroy", "request_id": "end", "domain": "destroyed", "force": True}
    jobs["destroyed"] = await daemon.submit(destroy)
    await daemon.kill()
    libvirtd.lose_power()
    shutil.rmtree(daemon.folder / "run")

    libvirtd.start()
    await daemon.start()
    ended = {name: await daemon.wait_for(job["id"], *ENDS) for name, job in jobs.items()}
    codes = {name: job["failure"] and job["failure"]["code"] for name, job in ended.items()}
    assert codes.pop("import") in (None, "interrupted")
    assert codes == {
        "attached": "guest_lost",
        "undoing": "cancelled",
        "made": "guest_lost",
        "detaching": None,
        "attaching": "domain_not_running",
        "destroyed": None,
    }
    assert list(daemon.iso_folder.iterdir()) == []
    assert set(files_of(daemon)) - {"bases/half.json", "bases/half.qcow2"} == {
        *BASE,
        "disks/old.raw",
    }
    assert await holders(daemon) == {"old": None}
    domains = (await daemon.get("/v1/domains")).json()["domains"]
    assert {domain["name"]: domain["state"] for domain in domains} == dict.fromkeys(
        ("attached", "attaching", "detaching", "undoing"), "off"
    )

    for name in ("attached", "made"):
        create = {"create": {"base": "tiny"}} if name == "made" else {}
        if not create:
            libvirtd.power_on(name)
        again = await daemon.submit(request(name, request_id=f"{name}-again") | create)
        again = await daemon.wait_for(again["id"], "ISO_ATTACHED")
        assert again["generation"] > ended[name]["generation"]
        await daemon.cancel(again["id"])
        await daemon.wait_for(again["id"], "FAILED")
