"""Nothing of a secret rests on dom0: not while a job is at work, and not after all of them."""

import re
from collections.abc import Iterator
from pathlib import Path

from tests.xen.dom0 import host
from tests.xen.dom0.guests import PASSWORD, Guests, wanted
from tests.xen.dom0.service import ISO_FOLDER, STATE_FOLDER, Service

SHA512CRYPT = re.compile(rb"\$6\$[^\s$]*\$[./0-9A-Za-z]{8}")
LOGS = (Path("/var/log/libvirt"), Path("/var/log/xen"), STATE_FOLDER)


def resting_places() -> Iterator[tuple[str, bytes]]:
    """All that dom0 keeps of its guests and of provisiond, but for the ISO itself."""
    yield "journal", host.run("journalctl", "--boot", "--all", "--output=export").encode()
    yield "xenstore", host.run("xenstore-ls", "-f").encode()
    yield "libvirt's XML", host.every_xml().encode()
    yield "command lines", host.run("ps", "axwwe").encode()
    for folder in LOGS:
        for path in folder.rglob("*"):
            if path.is_file():
                yield str(path), path.read_bytes()


def secrets_found() -> list[str]:
    """The places that hold the password or any hash."""
    return [
        place
        for place, content in resting_places()
        if PASSWORD.encode() in content or SHA512CRYPT.search(content)
    ]


async def test_while_a_job_is_at_work_its_secret_is_on_the_iso_alone(
    impatient: Service, guests: Guests
) -> None:
    guest = guests.start("secret1", silent=True)
    job = await impatient.submit(wanted(guest))
    await impatient.wait_for(job["id"], "ISO_ATTACHED")
    (iso,) = ISO_FOLDER.iterdir()
    assert SHA512CRYPT.search(iso.read_bytes())
    found = secrets_found()
    await impatient.cancel(job["id"])
    await impatient.wait_for(job["id"], "FAILED")
    assert found == []


async def test_after_all_jobs_nothing_is_left_anywhere(service: Service) -> None:
    jobs = await service.jobs()
    assert jobs
    assert {job["state"] for job in jobs} <= {"SUCCEEDED", "FAILED"}
    assert list(ISO_FOLDER.iterdir()) == []
    assert [file for file in host.loop_files() if ".iso" in file] == []
    assert secrets_found() == []
    for job in (job for job in jobs if job["kind"] == "provision"):
        assert job["proof"]["iso_file_absent"] is True
