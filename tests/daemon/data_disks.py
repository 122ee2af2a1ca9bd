"""A data disk as its requests, its guest and qemu-img have it."""

import asyncio
import hashlib
import uuid
from pathlib import Path

from provisiond.api.requests import DiskFormat
from tests.daemon.host import in_guest
from tests.daemon.images import MIB, called
from tests.daemon.program import Daemon, Json
from tests.lab.program import Running
from tests.virt.guests import QEMU_IMG_NAMES

ATTACH = ["ACCEPTED", "DISKS_CREATED", "DISK_ATTACHED", "SUCCEEDED"]
DETACH = ["ACCEPTED", "DISK_DETACHED", "SUCCEEDED"]
SIZE = 2 * MIB


# ---------------------------------------------------------------- requests
def attach_of(domain: str, **fields: object) -> Json:
    """The request for a data disk of `domain`; each is another request."""
    return {
        "kind": "attach_disk",
        "request_id": f"attach-{uuid.uuid4().hex}",
        "domain": domain,
        **fields,
    }


def detach_of(domain: str, target: str, **fields: object) -> Json:
    """The request that takes the disk at `target` away; each is another request."""
    return {
        "kind": "detach_disk",
        "request_id": f"detach-{uuid.uuid4().hex}",
        "domain": domain,
        "target": target,
        **fields,
    }


# ---------------------------------------------------------------- what the daemon shows
async def disks_of(daemon: Daemon, domain: str) -> dict[str, Json]:
    """The disks of a domain as the daemon shows them, by target."""
    reply = await daemon.get(f"/v1/domains/{domain}")
    assert reply.status_code == 200, reply.text
    return {disk["target"]: disk for disk in reply.json()["disks"]}


async def holders(daemon: Daemon) -> dict[str, str | None]:
    """Every disk that the daemon has made, and the domain that has it."""
    listed = (await daemon.get("/v1/disks")).json()["disks"]
    return {disk["name"]: disk["domain"] for disk in listed}


def content_hash(path: str, disk_format: str) -> str:
    """The SHA-256 of what a guest reads from the disk."""
    raw = Path(path).with_name("content.raw")
    name = QEMU_IMG_NAMES.get(DiskFormat(disk_format), disk_format)
    called("qemu-img", "convert", "-q", "-f", name, "-O", "raw", path, raw)
    try:
        return hashlib.sha256(raw.read_bytes()).hexdigest()
    finally:
        raw.unlink()


# ---------------------------------------------------------------- in the guest
async def seen(guest: Running, device: str) -> None:
    """Returns once the guest has the disk."""
    async with asyncio.timeout(30):
        await in_guest(guest, f"until [ -b /dev/{device} ]; do usleep 10000; done")


async def hash_in_guest(guest: Running, device: str) -> str:
    return (await in_guest(guest, f"sha256sum </dev/{device}")).split()[0]


async def fill(guest: Running, device: str) -> str:
    """Random data that the guest writes; the hash of the whole disk after it."""
    write = f"dd if=/dev/urandom of=/dev/{device} bs=64k count=16 seek=3 conv=fsync"
    await in_guest(guest, write)
    return await hash_in_guest(guest, device)
