"""Requests about images as tests write them, and images to import."""

import json
import os
import subprocess
import uuid
from collections.abc import Sequence
from pathlib import Path

from provisiond.disk.folder import make_mutable
from tests.daemon.program import Daemon, Json

MIB = 2**20


def import_of(source: Path, *, name: str = "debian", **fields: object) -> Json:
    """The request that makes a base of a raw image; `fields` go over it."""
    return {
        "kind": "import_base",
        "request_id": f"import-{name}",
        "name": name,
        "source": str(source),
        "source_format": "raw",
        **fields,
    }


def overlay_of(base: str, *, name: str, **fields: object) -> Json:
    """The request that makes an overlay; `fields` go over it."""
    return {
        "kind": "create_overlay",
        "request_id": f"overlay-{name}",
        "name": name,
        "base": base,
        **fields,
    }


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


def raw_image(path: Path, *, mib: int = 8, data_mib: int = 1) -> Path:
    """A raw image of `mib` MiB whose first `data_mib` are random."""
    with path.open("wb") as file:
        for _ in range(data_mib):
            file.write(os.urandom(MIB))
        file.truncate(mib * MIB)
    return path


async def run_job(daemon: Daemon, body: Json, *states: str) -> Json:
    """The job of the request, once it has come to its end (SUCCEEDED if no other is named)."""
    job = await daemon.submit(body)
    return await daemon.wait_for(job["id"], *(states or ("SUCCEEDED",)))


async def disks_of(daemon: Daemon, domain: str) -> dict[str, Json]:
    """The disks of a domain as the daemon shows them, by target."""
    reply = await daemon.get(f"/v1/domains/{domain}")
    assert reply.status_code == 200, reply.text
    return {disk["target"]: disk for disk in reply.json()["disks"]}


async def holders(daemon: Daemon) -> dict[str, str | None]:
    """Every disk that the daemon has made, and the domain that has it."""
    listed = (await daemon.get("/v1/disks")).json()["disks"]
    return {disk["name"]: disk["domain"] for disk in listed}


def files_of(daemon: Daemon) -> Sequence[str]:
    """Every file below the daemon's image folder, hidden ones too."""
    folder = daemon.image_dir
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def qemu_io(path: Path, *commands: str, disk_format: str = "qcow2") -> str:
    """What qemu-io says to these commands on the image."""
    words = [word for command in commands for word in ("-c", command)]
    return called("qemu-io", "-f", disk_format, *words, path)


def called(*argv: str | Path) -> str:
    """What a program says; it has to succeed."""
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def chain_of(path: Path | str) -> list[Json]:
    """The image and all that it stands on, as qemu-img sees them."""
    said = called("qemu-img", "info", "--output=json", "--backing-chain", path)
    return list(json.loads(said))


def flip_last_bit(path: Path) -> None:
    """Change the file in a way that its size and time do not show."""
    make_mutable(path)
    before = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    path.chmod(0o444)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
