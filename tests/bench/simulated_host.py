"""The other process of the simulated host: its libvirtd with libxl, and all its guests.

An attach takes 10 ms and a detach 50 ms, as on a real host; a guest answers some seconds after it
has got its disk. What libxl and the guests write into xenstore, they write into a real one.

`python -m tests.bench.simulated_host SOCKET XENSTORED COUNT THINK`: says `ready`, and serves until
its stdin is closed; THINK is how many seconds each guest takes, or `never`.
"""

import asyncio
import json
import sys
import uuid
import xml.etree.ElementTree as ET
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import time
from typing import Any

import libvirt

from provisiond.virt.vbd import vdev_number
from tests.xenstore.wire import Connection

ATTACH_SECONDS = 0.010
DETACH_SECONDS = 0.050
_NAMESPACE = uuid.UUID("0d7e6f5a-6f0b-4f6e-9a51-3b1f0c2d4e5a")
FIRST_DOMID = 1


def name_of(number: int) -> str:
    """What the domain with this number is called."""
    return f"guest{number}"


def uuid_of(number: int) -> str:
    """Its UUID, the same in each run."""
    return str(uuid.uuid5(_NAMESPACE, str(number)))


@dataclass
class _Domain:
    """One domain: what is attached by target, and what became of its jobs."""

    number: int
    disks: dict[str, str] = field(default_factory=dict)

    @property
    def domid(self) -> int:
        return FIRST_DOMID + self.number

    def xml(self) -> str:
        domain = ET.Element("domain", type="xen", id=str(self.domid))
        ET.SubElement(domain, "name").text = name_of(self.number)
        ET.SubElement(domain, "uuid").text = uuid_of(self.number)
        ET.SubElement(ET.SubElement(domain, "os"), "type").text = "xenpvh"
        devices = ET.SubElement(domain, "devices")
        for target, source in {"xvda": f"/srv/{self.number}.qcow2", **self.disks}.items():
            disk = ET.SubElement(devices, "disk", type="file", device="disk")
            ET.SubElement(disk, "driver", name="qemu", type="raw")
            ET.SubElement(disk, "source", file=source)
            ET.SubElement(disk, "target", dev=target, bus="xen")
        nic = ET.SubElement(devices, "interface", type="bridge")
        ET.SubElement(
            nic, "mac", address=f"00:16:3e:00:{self.number >> 8:02x}:{self.number & 255:02x}"
        )
        return ET.tostring(domain, encoding="unicode")


class _Host:
    """All domains. Every time that a reader of the figures needs is printed as it happens."""

    def __init__(self, store: Path, count: int, think: float | None) -> None:
        self._store = Connection(store)
        self._think = think
        self._domains = [_Domain(number) for number in range(count)]
        self._by = {uuid_of(one.number): one for one in self._domains}
        self._by |= {name_of(one.number): one for one in self._domains}
        self._answering: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One thread of the daemon's: its calls, one after the other."""
        with suppress(ConnectionError):
            while line := await reader.readline():
                answer = await self._answer(*json.loads(line))
                writer.write(json.dumps(answer).encode() + b"\n")
        writer.close()

    async def _answer(self, verb: str, *words: str) -> dict[str, Any]:
        if verb == "list":
            return {"is": [self._known(one) for one in self._domains]}
        if words[0] not in self._by:
            return {"error": "no domain", "code": libvirt.VIR_ERR_NO_DOMAIN}
        domain = self._by[words[0]]
        match verb:
            case "look_up":
                return {"is": self._known(domain)}
            case "is_active" | "state":
                return {"is": 1}
            case "xml":
                return {"is": domain.xml()}
            case "attach":
                return {"is": await self._attach(domain, words[1])}
            case "detach":
                return {"is": await self._detach(domain, words[1])}
        raise ValueError(verb)

    @staticmethod
    def _known(domain: _Domain) -> list[str | int]:
        return [name_of(domain.number), uuid_of(domain.number), domain.domid]

    # ------------------------------------------------------------ libxl
    async def _attach(self, domain: _Domain, xml: str) -> int:
        started = time()
        source, target = _disk(xml)
        await asyncio.sleep(ATTACH_SECONDS)
        front, back = ends_of(domain.domid, target)
        self._store.write(f"{back}/params", source.encode())
        self._store.write(f"{back}/state", b"4")
        self._store.write(f"{front}/backend", back.encode())
        self._store.write(f"{front}/state", b"4")
        domain.disks[target] = source
        _tell(source, "attach", time() - started)
        if self._think is not None:
            task = asyncio.create_task(self._say_done(domain, source, self._think))
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)
        return 0

    async def _detach(self, domain: _Domain, xml: str) -> int:
        started = time()
        source, target = _disk(xml)
        await asyncio.sleep(DETACH_SECONDS)
        for end in ends_of(domain.domid, target):
            self._store.rm(end)
            self._store.rm(str(Path(end).parent))  # libxl removes what is left empty
        domain.disks.pop(target, None)
        _tell(source, "detach", time() - started)
        return 0

    # ------------------------------------------------------------ the guest
    async def _say_done(self, domain: _Domain, source: str, think: float) -> None:
        """As the guest's script does: its log, and then its word. The ISO's name is the nonce."""
        await asyncio.sleep(think)
        nonce = Path(source).stem
        folder = f"/local/domain/{domain.domid}/data/provisiond"
        self._store.write(f"{folder}/log", f"{nonce} log done: all was read back".encode())
        _tell(source, "done", time())
        self._store.write(f"{folder}/verdict", f"{nonce} done".encode())


def _disk(xml: str) -> tuple[str, str]:
    disk = ET.fromstring(xml)
    source, target = disk.find("source"), disk.find("target")
    assert source is not None
    assert target is not None
    return source.attrib["file"], target.attrib["dev"]


def ends_of(domid: int, target: str) -> tuple[str, str]:
    """The guest's end of a disk in xenstore, and dom0's."""
    number = vdev_number(target)
    return (
        f"/local/domain/{domid}/device/vbd/{number}",
        f"/local/domain/0/backend/vbd/{domid}/{number}",
    )


def _tell(source: str, what: str, seconds: float) -> None:
    print(json.dumps([Path(source).stem, what, seconds]))


async def main() -> None:
    """Until stdin is closed."""
    path, store, count, think = sys.argv[1:]
    host = _Host(Path(store), int(count), None if think == "never" else float(think))
    server = await asyncio.start_unix_server(host.serve, path, backlog=1000)
    print("ready", flush=True)
    async with server:
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
    sys.stdout.flush()
