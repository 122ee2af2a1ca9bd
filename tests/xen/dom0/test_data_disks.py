"""Data disks of PV guests: seen and written from inside, detached with their data, refused."""

import asyncio
import json
from pathlib import Path

from tests.xen.dom0 import host
from tests.xen.dom0.disks import (
    MARK,
    MIB,
    PLACE,
    assert_attached,
    assert_detached,
    attach,
    attach_of,
    detach,
    read,
    write,
)
from tests.xen.dom0.guests import Guests, assert_nobody_has, in_guest
from tests.xen.dom0.service import DISK_FOLDER, Service

SIZE = 16 * MIB


async def test_a_disk_is_seen_and_written_in_the_guest_and_its_data_outlive_the_detach(
    service: Service, guests: Guests
) -> None:
    guest = guests.start("data1", silent=True)
    said = (await service.command("disk", "attach", guest.name, "--size", "16M")).out
    before, _, after = said.partition("data1: disks after:\n")
    *_, row, last = after.splitlines()
    target, name, disk_format, _access, path = row.split("\t")
    assert (target, disk_format) == ("xvdb", "raw")
    assert last == f"data1: {path} is attached as xvdb"
    assert "xvdb\t" not in before
    file = Path(path)
    assert file == DISK_FOLDER / f"{name}.raw"
    await assert_attached(guest, file, "xvdb")
    assert host.loop_files().count(path) == 1
    assert await in_guest(guest, "cat /sys/block/xvdb/size") == f"{SIZE // 512}\n"
    await write(guest, "xvdb")
    assert await read(guest, "xvdb") == MARK

    said = (await service.command("disk", "detach", guest.name, "xvdb", "--json")).out
    await assert_detached(guest, json.loads(said), "xvdb")
    kept = file.read_bytes()
    assert len(kept) == SIZE
    assert kept[PLACE * 512 :].startswith(MARK.encode())

    again = await attach(service, guest, disk=name, target="xvdf")
    assert (again["disk"], again["target"]) == (path, "xvdf")
    assert await read(guest, "xvdf") == MARK
    await detach(service, guest, "xvdf", remove=True)
    assert not file.exists()


async def test_provisiond_is_killed_while_a_data_disk_is_being_attached(
    service: Service, guests: Guests
) -> None:
    guest = guests.start("data2", silent=True)
    with host.no_disk_gets_on():
        job = await service.submit(attach_of(guest, name="data2-disk", size=SIZE))
        while "data2-disk.raw" not in host.back_ends():  # noqa: ASYNC110 - libxl tells nobody
            await asyncio.sleep(0.1)
        service.kill()
    await service.answered()
    job = await service.wait_for(job["id"], "SUCCEEDED")
    assert "data2: resumed in DISKS_CREATED" in service.said()
    assert job["target"] == "xvdb"
    await assert_attached(guest, DISK_FOLDER / "data2-disk.raw", "xvdb")
    assert host.live_xml(guest).count("<disk ") == 1
    assert host.back_ends().count(f'/params = "{job["disk"]}"') == 1
    assert host.loop_files().count(job["disk"]) == 1
    assert await in_guest(guest, "cd /sys/block && echo xvd*") == "xvdb\n"
    await detach(service, guest, "xvdb", remove=True)
    assert list(DISK_FOLDER.glob("*data2*")) == []


async def test_without_a_device_model_a_qcow2_disk_is_refused_with_the_reason_and_nothing_is_left(
    service: Service, guests: Guests
) -> None:
    guest = guests.start("data3", silent=True)
    job = await service.submit(attach_of(guest, name="data3-disk", size=SIZE, format="qcow2"))
    job = await service.wait_for(job["id"], "FAILED")
    assert job["failure"]["code"] == "hypervisor_failed"
    assert "A disk that is not raw needs a device model" in job["failure"]["message"]
    assert job["failure"]["hint"].startswith("Use a raw disk")
    assert "<disk " not in host.live_xml(guest)
    assert_nobody_has("data3-disk")
    assert f"/{guests.look(guest)}/" not in host.back_ends()
    assert list(DISK_FOLDER.glob("*data3*")) == []
