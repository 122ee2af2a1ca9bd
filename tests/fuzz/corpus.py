"""What each target begins with: real images by qemu-img and by our own writer, words, requests."""

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

from provisiond.disk.vhd_differencing import build_differencing
from provisiond.disk.vhd_format import RAW_PARENT
from provisiond.xenstore.wire import DIRECTORY_PART, ERROR, READ, WATCH_EVENT, build_request
from tests.daemon.program import request
from tests.disk.images import tool
from tests.fuzz.targets import NONCE

SECTOR = 512
TEMPLATES = Path(__file__).parents[1] / "unit" / "templates"


def write_seeds(name: str, folder: Path) -> None:
    """The seeds of a target as files in this folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(SEEDS[name](folder.parent)):
        (folder / f"seed-{number:02}").write_bytes(seed)


def _words(_: Path) -> Iterator[bytes]:
    said = ("done", "failed network it is down", "failed x $6$abcdefgh$" + "x" * 86)
    yield b"hello 0.1.0\n"
    for text in said:
        yield f"{NONCE} {text}\n".encode()
    yield f"{NONCE} failed step \x1b[31m\u202e".encode() + b"\xff" * 2000


def _created(folder: Path, name: str, size: int | str, *options: str) -> bytes:
    path = folder / "seed"
    words = [word for option in options for word in ("-o", option)]
    tool("qemu-img", "create", "-q", "-f", name, *words, path, size)
    return path.read_bytes()


def _vhds(folder: Path) -> Iterator[bytes]:
    for size in (SECTOR, 2**20, 2**30):
        yield _created(folder, "vpc", size, "force_size=on")
    for size in (SECTOR, 4 * SECTOR):
        yield _created(folder, "vpc", size, "force_size=on", "subformat=fixed")
    for parent, uuid in (("base.vhd", UUID(int=7)), ("../b/base.raw", RAW_PARENT)):
        made = build_differencing(
            size=2**20,
            parent=parent,
            parent_uuid=uuid,
            parent_timestamp=0,
            uuid=UUID(int=8),
            timestamp=0,
        )
        yield made
        yield made[:-SECTOR]  # as it is while tapdisk has it open


def _qcows(folder: Path) -> Iterator[bytes]:
    base = folder / "base.raw"
    base.write_bytes(bytes(2**20))
    for options in (
        ("cluster_size=512",),
        ("cluster_size=512", "compat=0.10"),
        ("cluster_size=16K", "extended_l2=on"),
        ("cluster_size=512", "compression_type=zstd"),
        ("cluster_size=512", f"backing_file={base}", "backing_fmt=raw"),
        ("cluster_size=512", f"data_file={folder}/data"),
    ):
        yield _created(folder, "qcow2", 2**20, *options)
    yield _created(folder, "qcow", 2**20)


def _chains(folder: Path) -> Iterator[bytes]:
    base, overlay = folder / "base.qcow2", folder / "overlay.qcow2"
    tool("qemu-img", "create", "-q", "-f", "qcow2", base, 2**20)
    tool("qemu-img", "create", "-q", "-f", "qcow2", "-b", base.name, "-F", "qcow2", overlay)
    info = ("qemu-img", "info", "--output=json")
    yield tool(*info, base).encode()
    yield tool(*info, "--backing-chain", overlay).encode()
    _created(folder, "vpc", 2**20, "force_size=on")
    yield tool(*info, "-f", "vpc", folder / "seed").encode()


def _packets(_: Path) -> Iterator[bytes]:
    strings = b"0123\0a\0b\0\0"
    for op, payload in ((READ, b"7\0"), (ERROR, b"ENOENT\0"), (WATCH_EVENT, b"/a\0t-1\0")):
        yield struct.pack("=IIII", op, 1, 0, len(payload)) + payload
    yield struct.pack("=IIII", DIRECTORY_PART, 2, 0, len(strings)) + strings
    yield strings
    yield build_request(READ, b"/a\0", request_id=3) * 2


def _requests(_: Path) -> Iterator[bytes]:
    guest = request("web1", gateway="10.0.2.2", nameservers=["10.0.2.3"], timezone="Europe/Vienna")
    interface = {"mac": "52:54:00:12:34:56", "addresses": ["2001:db8::5/64"], "mtu": 1500}
    route = {"to": "198.51.100.0/24", "via": "192.0.2.1", "metric": 5}
    more = {"addresses": ["192.0.2.10/24"], "routes": [route], "gateway4": "192.0.2.1"}
    long = request("web2", interfaces=[interface | {"name": None}, more | {"name": "eth1"}])
    del long["config"]["ip"]
    create = {"base": "debian", "size": 2**30, "memory_mib": 512, "bridge": "br0"}
    for body in (
        guest,
        long,
        guest | {"create": create},
        {"kind": "destroy", "request_id": "a", "domain": "web1", "force": True},
        {"kind": "attach_disk", "request_id": "a", "domain": "web1", "size": 512},
        {"kind": "detach_disk", "request_id": "a", "domain": "web1", "target": "vdb"},
        {"kind": "create_overlay", "request_id": "a", "name": "o", "base": "b"},
        {
            "kind": "import_base",
            "request_id": "a",
            "name": "b",
            "source": "/x.raw",
            "source_format": "raw",
        },
        {"kind": "verify_base", "request_id": "a", "base": "b"},
    ):
        yield json.dumps(body).encode()


def _domains(_: Path) -> Iterator[bytes]:
    for path in sorted(TEMPLATES.glob("*.xml")):
        yield path.read_bytes()


SEEDS: dict[str, Callable[[Path], Iterator[bytes]]] = {
    "planted": _words,
    "verdict": _words,
    "vhd": _vhds,
    "qcow": _qcows,
    "chain": _chains,
    "wire": _packets,
    "request": _requests,
    "domain": _domains,
}
