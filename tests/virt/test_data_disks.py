"""Data disks of real guests: hot-added, written from inside, taken away; each asked for twice."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import libvirt
import pytest

from provisiond.api.requests import DiskFormat
from provisiond.disk.chain import DiskChain
from provisiond.errors import (
    DiskStillAttached,
    DomainNotFound,
    DomainNotRunning,
    NoFreeTarget,
    VhdNeedsTapdisk,
)
from provisiond.virt.libvirt import Hypervisor
from provisiond.virt.xml import Disk
from tests.lab.console import Console, open_console
from tests.lab.domain import Guest, kernel_words
from tests.lab.libvirtd import Libvirtd
from tests.lab.program import Running
from tests.virt.guests import MIB, bytes_of, domain, make_image

pytestmark = pytest.mark.timeout(120)

BOOT = 90
UNPLUG = 30


def start(libvirtd: Libvirtd, *, scsi_controller: bool = True) -> Running:
    words = kernel_words(silent=True)
    (guest,) = libvirtd.start_guests(
        Guest("web1", kernel_words=words, scsi_controller=scsi_controller)
    )
    return guest


def define(libvirtd: Libvirtd) -> str:
    """A domain that is off."""
    guest = start(libvirtd)
    libvirtd.destroy_guest(guest.name)
    return guest.uuid


@asynccontextmanager
async def booted(guest: Running) -> AsyncIterator[Console]:
    """Its shell; a guest that answers there hears of disks as well."""
    async with asyncio.timeout(BOOT), open_console(guest.shell) as console:
        yield console


async def attach(
    hypervisor: Hypervisor,
    uuid: str,
    chain: DiskChain,
    *,
    target: str | None = None,
    persistent: bool = False,
) -> str:
    return await hypervisor.attach_data_disk(
        uuid, chain=chain, serial="data-1", target=target, persistent=persistent
    )


async def detach(
    hypervisor: Hypervisor, uuid: str, chain: DiskChain, *, persistent: bool = False
) -> None:
    source = chain.images[0].path
    async with asyncio.timeout(UNPLUG):
        await hypervisor.detach_data_disk(uuid, source=source, persistent=persistent)
    await hypervisor.prove_detached(uuid, source=source, persistent=persistent)


async def disks(hypervisor: Hypervisor, uuid: str) -> dict[str, Disk]:
    return {disk.target: disk for disk in (await hypervisor.details(uuid)).disks}


def kept(libvirtd: Libvirtd, uuid: str) -> str:
    """What the domain is started from the next time."""
    with domain(libvirtd, uuid) as found:
        return str(found.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))


def raw(images: Path, name: str = "data") -> DiskChain:
    return make_image(images / f"{name}.raw", DiskFormat.RAW)


# ---------------------------------------------------------------- seen from inside
async def test_a_disk_of_any_format_is_seen_written_and_taken_away_and_keeps_its_data(
    libvirtd: Libvirtd, hypervisor: Hypervisor, images: Path
) -> None:
    guest = start(libvirtd)
    base = make_image(images / "base.qcow2", DiskFormat.QCOW2)
    below = base.images[0].path.read_bytes()
    chains = {
        disk_format.value: make_image(images / f"data.{disk_format}", disk_format)
        for disk_format in (DiskFormat.RAW, DiskFormat.QCOW2, DiskFormat.QCOW, DiskFormat.VHD)
    }
    chains |= {"over": make_image(images / "over.qcow2", DiskFormat.QCOW2, over=base)}
    async with booted(guest) as console:
        for number, (name, chain) in enumerate(chains.items()):
            target = await attach(hypervisor, guest.uuid, chain)
            assert target == "vda"
            assert await hypervisor.is_connected(guest.uuid, chain.images[0].path)
            seen = await console.run(
                "until [ -e /sys/block/vda/serial ]; do usleep 10000; done;"
                " cd /sys/block/vda && cat serial size"
            )
            assert seen == (0, f"data-1{16 * MIB // 512}\n"), name
            (disk,) = (await disks(hypervisor, guest.uuid)).values()
            assert (disk.bus, disk.read_only) == ("virtio", False)
            assert disk.chain == tuple(image.path for image in chain.images)
            words = f"written as number {number}"
            wrote = await console.run(f"echo {words} | dd of=/dev/vda bs=512 seek=5 conv=fsync")
            assert wrote.status == 0, wrote
            read = await console.run("dd if=/dev/vda bs=512 skip=5 count=1 | head -c 19")
            assert words in read.output
            await detach(hypervisor, guest.uuid, chain)
            gone = await console.run("while [ -e /sys/block/vda ]; do usleep 10000; done")
            assert gone.status == 0
            assert await disks(hypervisor, guest.uuid) == {}
            assert bytes_of(chain)[5 * 512 :].startswith(words.encode())
    assert base.images[0].path.read_bytes() == below


async def test_a_scsi_disk_works_also_where_the_guest_had_no_controller(
    libvirtd: Libvirtd, hypervisor: Hypervisor, images: Path
) -> None:
    guest = start(libvirtd, scsi_controller=False)
    first, second = raw(images, "first"), raw(images, "second")
    async with booted(guest) as console:
        assert await attach(hypervisor, guest.uuid, first, target="sdb") == "sdb"
        assert await attach(hypervisor, guest.uuid, second, target="sda") == "sda"
        both = "until [ -b /dev/sda ] && [ -b /dev/sdb ]; do usleep 10000; done"
        assert (await console.run(both)).status == 0
        live = await hypervisor.live_xml(guest.uuid)
        assert [controller.model for controller in live.scsi_controllers] == ["virtio-scsi"]
        assert {disk.unit for disk in live.disks} == {0, 1}
        for chain in (first, second):
            await detach(hypervisor, guest.uuid, chain)
        gone = "while [ -e /sys/block/sda ] || [ -e /sys/block/sdb ]; do usleep 10000; done"
        assert (await console.run(gone)).status == 0


# ---------------------------------------------------------------- targets
async def test_the_first_free_target_is_taken_and_one_that_is_not_free_is_refused(
    libvirtd: Libvirtd, hypervisor: Hypervisor, images: Path
) -> None:
    guest = start(libvirtd)
    first, second, third = (raw(images, name) for name in ("first", "second", "third"))
    assert await attach(hypervisor, guest.uuid, first, target="vdb") == "vdb"
    assert await attach(hypervisor, guest.uuid, second) == "vda"
    for wrong in ("vda", "vdb", "xvda", "hda"):
        with pytest.raises(NoFreeTarget, match=f"web1: the target {wrong} is taken by another"):
            await attach(hypervisor, guest.uuid, third, target=wrong)
    # Taken also is what another disk will have after the next start.
    with domain(libvirtd, guest.uuid) as web1:
        web1.attachDeviceFlags(
            "<disk device='cdrom'><target dev='vdc' bus='scsi'/></disk>",
            libvirt.VIR_DOMAIN_AFFECT_CONFIG,
        )
    assert await attach(hypervisor, guest.uuid, third) == "vdd"


async def test_attach_and_detach_may_be_asked_for_twice(
    libvirtd: Libvirtd, hypervisor: Hypervisor, images: Path
) -> None:
    guest = start(libvirtd)
    chain = raw(images)
    for target in ("vdc", None, "vdf"):
        assert await attach(hypervisor, guest.uuid, chain, target=target) == "vdc"
    assert list(await disks(hypervisor, guest.uuid)) == ["vdc"]
    async with booted(guest):
        for _ in range(2):
            await detach(hypervisor, guest.uuid, chain)
    await hypervisor.destroy_and_undefine(guest.uuid)
    await detach(hypervisor, guest.uuid, chain, persistent=True)
    with pytest.raises(DomainNotFound):
        await attach(hypervisor, guest.uuid, chain)


async def test_two_that_ask_at_once_get_two_targets(
    libvirtd: Libvirtd, hypervisor: Hypervisor, images: Path
) -> None:
    guest = start(libvirtd)
    chains = [raw(images, f"data{number}") for number in range(4)]
    targets = await asyncio.gather(*(attach(hypervisor, guest.uuid, one) for one in chains))
    assert sorted(targets) == ["vda", "vdb", "vdc", "vdd"]
    found = await disks(hypervisor, guest.uuid)
    assert {target: found[target].source for target in targets} == {
        target: chain.images[0].path for target, chain in zip(targets, chains, strict=True)
    }


async def test_a_disk_that_is_asked_for_again_while_it_is_attached_is_attached_once(
    libvirtd: Libvirtd, hypervisor: Hypervisor, images: Path
) -> None:
    """As by a provisiond that was killed meanwhile: libvirtd goes on with the call."""
    guest = start(libvirtd)
    chain = raw(images)
    targets = await asyncio.gather(*(attach(hypervisor, guest.uuid, chain) for _ in range(4)))
    assert targets == ["vda"] * 4
    assert list(await disks(hypervisor, guest.uuid)) == ["vda"]


# ---------------------------------------------------------------- the next start
async def test_a_persistent_disk_is_there_after_the_next_start_and_another_is_not(
    libvirtd: Libvirtd, hypervisor: Hypervisor, images: Path
) -> None:
    guest = start(libvirtd)
    passing, lasting, scsi = (raw(images, name) for name in ("passing", "lasting", "scsi"))
    assert await attach(hypervisor, guest.uuid, passing) == "vda"
    for _ in range(2):
        assert await attach(hypervisor, guest.uuid, lasting, persistent=True) == "vdb"
    assert await attach(hypervisor, guest.uuid, scsi, target="sdc", persistent=True) == "sdc"
    libvirtd.destroy_guest(guest.name)
    assert set(await disks(hypervisor, guest.uuid)) == {"vdb", "sdc"}
    await hypervisor.start(guest.uuid)
    assert set(await disks(hypervisor, guest.uuid)) == {"vdb", "sdc"}
    async with booted(guest) as console:
        seen = "until [ -b /dev/vda ] && [ -b /dev/sda ]; do usleep 10000; done"
        assert (await console.run(seen)).status == 0
        for chain in (lasting, scsi):
            await detach(hypervisor, guest.uuid, chain, persistent=True)
    assert "lasting.raw" not in kept(libvirtd, guest.uuid)
    assert "scsi.raw" not in kept(libvirtd, guest.uuid)


async def test_a_disk_that_was_attached_for_now_can_be_made_to_stay_and_the_other_way_round(
    libvirtd: Libvirtd, hypervisor: Hypervisor, images: Path
) -> None:
    guest = start(libvirtd)
    chain = raw(images)
    source = chain.images[0].path
    assert await attach(hypervisor, guest.uuid, chain, target="vdc") == "vdc"
    assert await attach(hypervisor, guest.uuid, chain, persistent=True) == "vdc"
    assert str(source) in kept(libvirtd, guest.uuid)
    async with booted(guest):
        await detach(hypervisor, guest.uuid, chain)
    assert await hypervisor.holders_of(guest.uuid, source=source, persistent=False) == []
    with pytest.raises(DiskStillAttached, match=r"data\.raw is still held: at vdc in the inactive"):
        await hypervisor.prove_detached(guest.uuid, source=source, persistent=True)
    assert await attach(hypervisor, guest.uuid, chain) == "vdc"


async def test_a_domain_that_is_off_takes_persistent_disks_alone(
    libvirtd: Libvirtd, hypervisor: Hypervisor, images: Path
) -> None:
    uuid = define(libvirtd)
    chain = raw(images)
    with pytest.raises(DomainNotRunning, match="web1: the domain is off") as said:
        await attach(hypervisor, uuid, chain)
    assert "persistent" in said.value.hint
    for _ in range(2):
        assert await attach(hypervisor, uuid, chain, persistent=True) == "vda"
    assert list(await disks(hypervisor, uuid)) == ["vda"]
    await detach(hypervisor, uuid, chain)
    assert list(await disks(hypervisor, uuid)) == ["vda"], "what is kept was not spoken of"
    await detach(hypervisor, uuid, chain, persistent=True)
    assert await disks(hypervisor, uuid) == {}


# ---------------------------------------------------------------- what does not go well
async def test_a_guest_that_does_not_answer_keeps_its_disk_until_it_does(
    libvirtd: Libvirtd, hypervisor: Hypervisor, images: Path
) -> None:
    guest = start(libvirtd)
    chain = raw(images)
    source = chain.images[0].path
    async with booted(guest) as console:
        await attach(hypervisor, guest.uuid, chain, persistent=True)
        assert (await console.run("until [ -b /dev/vda ]; do usleep 10000; done")).status == 0
        with domain(libvirtd, guest.uuid) as web1:
            web1.suspend()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(8):  # libvirt itself waits for five
                await hypervisor.detach_data_disk(guest.uuid, source=source, persistent=True)
        with pytest.raises(DiskStillAttached, match=r"data\.raw is still held: at vda in the live"):
            await hypervisor.prove_detached(guest.uuid, source=source, persistent=True)
        assert str(source) in kept(libvirtd, guest.uuid), "the next start would have it as well"
        with domain(libvirtd, guest.uuid) as web1:
            web1.resume()
        await detach(hypervisor, guest.uuid, chain, persistent=True)
        assert (await console.run("[ -e /sys/block/vda ]")).status == 1


async def test_a_guest_that_did_not_hear_while_it_booted_is_asked_again(
    libvirtd: Libvirtd, hypervisor: Hypervisor, images: Path
) -> None:
    guest = start(libvirtd)
    chain = raw(images)
    await attach(hypervisor, guest.uuid, chain)
    async with asyncio.timeout(BOOT):
        await hypervisor.detach_data_disk(guest.uuid, source=chain.images[0].path, persistent=False)
    assert await disks(hypervisor, guest.uuid) == {}


async def test_the_wait_ends_when_the_domain_does(
    libvirtd: Libvirtd, hypervisor: Hypervisor, images: Path
) -> None:
    guest = start(libvirtd)
    chain = raw(images)
    await attach(hypervisor, guest.uuid, chain)
    with domain(libvirtd, guest.uuid) as web1:
        web1.suspend()

    async def until_gone() -> None:
        while True:
            try:
                return await detach(hypervisor, guest.uuid, chain)
            except DiskStillAttached:
                pass  # libvirt's answer when QEMU ends under the call

    waiting = asyncio.create_task(until_gone())
    await hypervisor.destroy_and_undefine(guest.uuid)
    async with asyncio.timeout(UNPLUG):
        await waiting


async def test_another_disk_at_the_same_target_is_never_taken_away(
    libvirtd: Libvirtd, hypervisor: Hypervisor, images: Path
) -> None:
    guest = start(libvirtd)
    ours, other = raw(images, "ours"), raw(images, "other")
    await attach(hypervisor, guest.uuid, other, target="vda", persistent=True)
    await detach(hypervisor, guest.uuid, ours, persistent=True)
    assert (await disks(hypervisor, guest.uuid))["vda"].source == other.images[0].path
    assert "other.raw" in kept(libvirtd, guest.uuid)


async def test_what_qemu_cannot_open_is_told_and_leaves_nothing(
    libvirtd: Libvirtd, hypervisor: Hypervisor, images: Path
) -> None:
    guest = start(libvirtd)
    base = make_image(images / "base.vhd", DiskFormat.VHD)
    (below,) = base.images
    path = images / "over.vhd"
    overlay = DiskChain(
        (type(below)(path, DiskFormat.VHD, 0, 0, below.path, DiskFormat.VHD), below)
    )
    with pytest.raises(VhdNeedsTapdisk):
        await attach(hypervisor, guest.uuid, overlay)
    absent = raw(images, "absent")
    absent.images[0].path.unlink()
    with pytest.raises(Exception, match=r"absent\.raw"):
        await attach(hypervisor, guest.uuid, absent, persistent=True)
    assert await disks(hypervisor, guest.uuid) == {}
    assert "absent.raw" not in kept(libvirtd, guest.uuid)


async def test_the_config_iso_and_data_disks_do_not_meet(
    libvirtd: Libvirtd, hypervisor: Hypervisor, images: Path
) -> None:
    guest = start(libvirtd, scsi_controller=False)
    iso = images / "config.iso"
    iso.write_bytes(b"\0" * 4096)
    data = raw(images)
    async with booted(guest):
        assert await hypervisor.attach(guest.uuid, iso=iso, target=None) == "sda"
        assert await attach(hypervisor, guest.uuid, data, target="sdb", persistent=True) == "sdb"
        found = await disks(hypervisor, guest.uuid)
        assert {name: disk.read_only for name, disk in found.items()} == {"sda": True, "sdb": False}
        await hypervisor.detach(guest.uuid, iso=iso)
        await hypervisor.prove_absence(guest.uuid, iso=iso)
        assert list(await disks(hypervisor, guest.uuid)) == ["sdb"]
    libvirtd.destroy_guest(guest.name)
    await hypervisor.start(guest.uuid)
    assert list(await disks(hypervisor, guest.uuid)) == ["sdb"]
    (controller,) = (await hypervisor.live_xml(guest.uuid)).scsi_controllers
    assert controller.model == "virtio-scsi"
