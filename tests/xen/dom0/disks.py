"""A data disk of a running guest: hot-added, written and read inside, and taken away."""

import uuid
from pathlib import Path

from tests.daemon.images import run_job
from tests.daemon.program import Json
from tests.lab.domain import Guest
from tests.xen.dom0 import host
from tests.xen.dom0.guests import assert_nobody_has, in_guest
from tests.xen.dom0.service import Service

MIB = 2**20
MARK = "written in the guest"
PLACE = 2048  # sectors into the disk


def attach_of(guest: Guest, **fields: object) -> Json:
    """The request that hot-adds a disk."""
    return _request("attach_disk", guest, fields)


async def attach(service: Service, guest: Guest, **fields: object) -> Json:
    """The job, once the guest has the disk where the job says."""
    job = await run_job(service, attach_of(guest, **fields))
    await assert_attached(guest, Path(job["disk"]), job["target"])
    return job


async def assert_attached(guest: Guest, file: Path, target: str) -> None:
    """The live domain has this file there, dom0 serves it, and the guest has a device of it."""
    assert host.target_of(guest, file) == target
    assert file.name in host.back_ends()
    await in_guest(guest, f"until [ -b /dev/{target} ]; do usleep 50000; done")


async def detach(service: Service, guest: Guest, target: str, **fields: object) -> Json:
    """The job, once nobody has the disk any more."""
    job = await run_job(service, _request("detach_disk", guest, {"target": target, **fields}))
    await assert_detached(guest, job, target)
    return job


async def assert_detached(guest: Guest, job: Json, target: str) -> None:
    """The disk is gone from the host and from the guest, and the job's record says so."""
    assert job["proof"]["disk_absent_from_live_xml"] is True
    assert job["proof"]["back_end_absent"] is True
    assert_nobody_has(Path(job["disk"]).name)
    await in_guest(guest, f"while [ -e /sys/block/{target} ]; do usleep 50000; done")


async def write(guest: Guest, target: str) -> None:
    """Put MARK on the disk."""
    to = f"dd of=/dev/{target} bs=512 seek={PLACE} conv=fsync"
    await in_guest(guest, f"printf %s '{MARK}' | {to}")


async def read(guest: Guest, target: str) -> str:
    """What is where MARK was put: from the disk itself, not out of the guest's memory."""
    of = f"dd if=/dev/{target} bs=512 skip={PLACE} count=1 2>/dev/null"
    forget = "echo 3 >/proc/sys/vm/drop_caches"
    return await in_guest(guest, f"{forget}; {of} | head -c {len(MARK)}")


def _request(kind: str, guest: Guest, fields: dict[str, object]) -> Json:
    return {"kind": kind, "request_id": uuid.uuid4().hex, "domain": guest.name, **fields}
