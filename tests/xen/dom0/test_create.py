"""Whole PV guests by provisionctl: base, overlay, domain, provisioned, looked at, ended."""

import hashlib
import struct
from pathlib import Path

from tests.daemon.images import import_of, run_job
from tests.daemon.program import STORY, Json
from tests.lab.domain import Guest
from tests.xen.dom0 import host
from tests.xen.dom0.disks import MARK, MIB, attach, detach, read, write
from tests.xen.dom0.guests import (
    PASSWORD,
    Guests,
    assert_nobody_has,
    assert_nothing_is_left,
    in_guest,
    states,
)
from tests.xen.dom0.service import DISK_FOLDER, Service

XS_WRITE = 11  # xen/include/public/io/xs_wire.h
TYPED = f"{PASSWORD}\n".encode()


async def tell_xenstore(guest: Guest, path: str, value: str) -> None:
    """The guest writes a key below its own home, as its tools do; this one has none."""
    payload = path.encode() + b"\0" + value.encode()
    packet = struct.pack("<4I", XS_WRITE, 0, 0, len(payload)) + payload
    octal = "".join(f"\\{byte:03o}" for byte in packet)
    write = f"printf '{octal}' | dd obs=4096 >&3 2>/dev/null"
    answer = "dd bs=4096 count=1 <&3 2>/dev/null | tr -cd A-Z0-9"
    said = await in_guest(guest, f"exec 3<>/dev/xen/xenbus; {write}; {answer}")
    assert said == "OK"


async def base_named(service: Service, name: str) -> Json:
    base: Json = (await service.get(f"/v1/bases/{name}")).json()
    return base


async def test_one_command_makes_a_guest_and_another_one_ends_it(
    service: Service, guests: Guests
) -> None:
    host.write_template()
    await run_job(service, import_of(host.DISK_FILES.image, name="tiny"))
    base = await base_named(service, "tiny")
    assert (base["format"], base["changed"], base["overlays"]) == ("qcow2", None, [])

    guest = guests.expect("made1")
    words = ("--base", "tiny", "--ip", "192.0.2.50/24", "--hostname", "made1.example.org")
    await service.command("create", guest.name, *words, "--password-stdin", "--wait", stdin=TYPED)
    number = guests.look(guest)
    job = await service.job((await service.job_ids())[-1])
    assert (job["subject"], states(job)) == (guest.name, STORY)
    assert_nothing_is_left(job)
    assert await in_guest(guest, "hostname") == "made1\n"
    assert (await in_guest(guest, "grep ' / ' /proc/mounts")).startswith("/dev/xvda / ext4 rw,")

    overlay = DISK_FOLDER / "made1.qcow2"
    disks = (await service.get("/v1/disks")).json()["disks"]
    (disk,) = [disk for disk in disks if disk["name"] == guest.name]
    assert (disk["path"], disk["base"], disk["domain"]) == (str(overlay), "tiny", guest.name)
    assert host.target_of(guest, overlay) == "xvda"
    assert f"/backend/qdisk/{number}/{host.vdev('xvda')}/" in host.back_ends()

    # What a guest says of itself comes after what it was configured with.
    await tell_xenstore(guest, "attr/vif/0/ipv4/0", "192.0.2.51")
    said = await service.command("ip", guest.name)
    assert said.out == "192.0.2.50\tjob\n192.0.2.51\txenstore\n"
    said = await service.command("domains")
    assert f"\t192.0.2.50 (job), 192.0.2.51 (xenstore)\txvda ({guest.name})\t" in said.out

    # The device model that serves the overlay can take another image than a raw one.
    added = await attach(service, guest, size=16 * MIB, format="qcow2")
    assert (Path(added["disk"]).suffix, added["target"]) == (".qcow2", "xvdb")
    await write(guest, "xvdb")
    assert await read(guest, "xvdb") == MARK
    await detach(service, guest, "xvdb", remove=True)

    await service.command("destroy", guest.name)
    assert f"<name>{guest.name}<" not in host.every_xml()
    assert f"/{number}/" not in host.back_ends()
    assert_nobody_has(overlay.name)
    assert_nobody_has(Path(base["path"]).name)
    assert list(DISK_FOLDER.glob("*made1*")) == []
    assert hashlib.sha256(Path(base["path"]).read_bytes()).hexdigest() == base["sha256"]
    assert await base_named(service, "tiny") == base
    async with service.http() as http:
        assert (await http.delete("/v1/bases/tiny")).is_success
