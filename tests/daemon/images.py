"""Requests about images as tests write them, and images to import."""

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from provisiond.disk.folder import make_mutable
from tests.daemon.program import Api, Daemon, Json

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


def raw_image(path: Path, *, mib: int = 8, data_mib: int = 1) -> Path:
    """A raw image of `mib` MiB whose first `data_mib` are random."""
    with path.open("wb") as file:
        for _ in range(data_mib):
            file.write(os.urandom(MIB))
        file.truncate(mib * MIB)
    return path


async def run_job(daemon: Api, body: Json, *states: str) -> Json:
    """The job of the request, once it has come to its end (SUCCEEDED if no other is named)."""
    job = await daemon.submit(body)
    return await daemon.wait_for(job["id"], *(states or ("SUCCEEDED",)))


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
