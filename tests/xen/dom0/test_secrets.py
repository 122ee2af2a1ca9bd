"""Nothing of a secret rests on dom0: not while a job is at work, and not after all of them."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.daemon.canary import SHA512CRYPT, Place, files_below, found
from tests.xen.dom0 import host
from tests.xen.dom0.guests import PASSWORD, Guests, wanted
from tests.xen.dom0.service import ISO_FOLDER, STATE_FOLDER, Service

LOGS = (Path("/var/log/libvirt"), Path("/var/log/xen"), STATE_FOLDER)
KNOWN = {
    "journal": "MESSAGE=",
    "xenstore": "/local/domain/0",
    "command lines": "provisiond serve",
    f"{STATE_FOLDER}/provisiond.sqlite": "SQLite format 3",
}


def resting_places() -> Iterator[Place]:
    """All that dom0 keeps of its guests and of provisiond, but for the ISO itself."""
    yield Place("journal", host.run("journalctl", "--boot", "--all", "--output=export").encode())
    yield Place("xenstore", host.run("xenstore-ls", "-f").encode())
    yield Place("libvirt's XML", host.every_xml().encode())
    yield Place("command lines", host.run("ps", "axwwe").encode())
    yield from files_below(*LOGS)


def secrets_found(*, known: Mapping[str, str] = KNOWN) -> list[str]:
    """The places that hold the password or any hash."""
    return found([PASSWORD], resting_places(), known=known)


async def test_while_a_job_is_at_work_its_secret_is_on_the_iso_alone(
    impatient: Service, guests: Guests
) -> None:
    guest = guests.start("secret1", silent=True)
    job = await impatient.submit(wanted(guest))
    await impatient.wait_for(job["id"], "ISO_ATTACHED")
    (iso,) = ISO_FOLDER.iterdir()
    assert SHA512CRYPT.search(iso.read_bytes())
    holding = secrets_found(known=KNOWN | {"libvirt's XML": guest.uuid, "xenstore": guest.uuid})
    await impatient.cancel(job["id"])
    await impatient.wait_for(job["id"], "FAILED")
    assert holding == []


async def test_after_all_jobs_nothing_is_left_anywhere(service: Service) -> None:
    jobs = await service.jobs()
    assert jobs
    assert {job["state"] for job in jobs} <= {"SUCCEEDED", "FAILED"}
    assert list(ISO_FOLDER.iterdir()) == []
    assert [file for file in host.loop_files() if ".iso" in file] == []
    assert secrets_found() == []
    for job in (job for job in jobs if job["kind"] == "provision"):
        assert job["proof"]["iso_file_absent"] is True
