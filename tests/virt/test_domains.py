"""Whole domains over a real libvirtd: defined, started, looked at, removed, each asked twice."""

import asyncio
import json
import re
import uuid
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import libvirt
import pytest

from provisiond.api.requests import DiskFormat
from provisiond.disk.chain import DiskChain
from provisiond.errors import DomainExists, DomainNotFound, HypervisorFailed, TemplateUnusable
from provisiond.plan import plan_mac, plan_uuid
from provisiond.virt.libvirt import Hypervisor
from provisiond.virt.template import NewDomain, build_domain
from provisiond.virt.xml import MadeBy
from tests.lab.domain import Guest, kernel_words
from tests.lab.libvirtd import Libvirtd
from tests.virt.guests import bytes_of, domain, in_guest, make_image, shell_of, template_of

pytestmark = pytest.mark.timeout(120)

JOB = "0123456789abcdef0123456789abcdef"
UUID = plan_uuid(JOB)
BOOT = 90
LOOK_SECONDS = 0.05
SNAPSHOT = """
<domainsnapshot><name>before</name><state>shutoff</state><creationTime>1</creationTime>{}
</domainsnapshot>"""


def overlay_in(images: Path) -> DiskChain:
    base = make_image(images / "base.qcow2", DiskFormat.QCOW2)
    return make_image(images / "web1.qcow2", DiskFormat.QCOW2, over=base)


def new(disk: DiskChain, *, name: str = "web1", job_id: str = JOB) -> NewDomain:
    return NewDomain(
        name=name,
        uuid=plan_uuid(job_id),
        job_id=job_id,
        disk=disk,
        mac=plan_mac(job_id, is_xen=False),
        memory_mib=112,
    )


def made_of(libvirtd: Libvirtd, wanted: NewDomain) -> str:
    return build_domain(template_of(libvirtd), wanted, is_xen=False)


async def test_a_domain_made_of_a_template_boots_and_writes_to_its_overlay_alone(
    libvirtd: Libvirtd, hypervisor: Hypervisor, images: Path
) -> None:
    overlay = overlay_in(images)
    base = overlay.images[1].path
    before = base.read_bytes()
    for _ in range(2):
        await hypervisor.define(made_of(libvirtd, new(overlay)))
    for _ in range(2):
        await hypervisor.start(UUID)
    found = await hypervisor.details(UUID)
    assert (found.name, found.uuid, found.state) == ("web1", UUID, "running")
    assert found.made_by == MadeBy(JOB, overlay.images[0].path)
    assert found.macs == (plan_mac(JOB, is_xen=False),)
    (root,) = found.disks
    assert (root.target, root.bus, root.format, root.read_only) == ("vda", "virtio", "qcow2", False)
    assert root.chain == (overlay.images[0].path, base)
    assert (await hypervisor.live_xml(UUID)).channel("org.provisiond.0") is not None

    async with asyncio.timeout(BOOT):
        shell = shell_of(libvirtd)
        assert int(await in_guest(shell, "cat /sys/block/vda/size")) * 512 == 16 * 2**20
        await in_guest(shell, "echo written by the guest | dd of=/dev/vda bs=512 seek=9 conv=fsync")
        await hypervisor.destroy_and_undefine(UUID)
    assert bytes_of(overlay)[9 * 512 :].startswith(b"written by the guest")
    assert base.read_bytes() == before


async def test_a_name_that_another_domain_has_is_refused_and_that_one_left_alone(
    libvirtd: Libvirtd, hypervisor: Hypervisor, images: Path
) -> None:
    overlay = overlay_in(images)
    await hypervisor.define(made_of(libvirtd, new(overlay)))
    other = new(overlay, job_id="f" * 32)
    with pytest.raises(DomainExists, match="web1: a domain has this name already"):
        await hypervisor.define(made_of(libvirtd, other))
    assert [found.uuid for found in await hypervisor.domains()] == [UUID]
    # The same UUID: whatever an operator has changed meanwhile stays.
    await hypervisor.define(made_of(libvirtd, replace(new(overlay), memory_mib=256)))
    with domain(libvirtd, UUID) as web1:
        assert web1.maxMemory() == 112 * 1024


async def test_what_libvirt_cannot_make_a_domain_of_is_the_templates_fault(
    libvirtd: Libvirtd, hypervisor: Hypervisor, images: Path
) -> None:
    xml = made_of(libvirtd, new(overlay_in(images)))
    for wrong in (
        xml.replace('machine="pc"', 'machine="abacus"'),
        xml.replace("</devices>", "<disk><target dev='vdx'/></disk></devices>"),
    ):
        assert wrong != xml
        with pytest.raises(TemplateUnusable, match="web1: libvirt cannot make a domain of the"):
            await hypervisor.define(wrong)
    assert await hypervisor.domains() == []


async def test_a_domain_that_cannot_start_says_why_and_can_be_removed(
    libvirtd: Libvirtd, hypervisor: Hypervisor, images: Path
) -> None:
    overlay = overlay_in(images)
    await hypervisor.define(made_of(libvirtd, new(overlay)))
    overlay.images[1].path.unlink()
    with pytest.raises(HypervisorFailed, match=r"base\.qcow2"):
        await hypervisor.start(UUID)
    assert (await hypervisor.find(UUID)).state == "off"
    await hypervisor.destroy_and_undefine(UUID)
    with pytest.raises(DomainNotFound):
        await hypervisor.start(UUID)
    with pytest.raises(DomainNotFound):
        await hypervisor.details(UUID)


async def test_a_domain_goes_with_all_that_libvirt_keeps_of_it_and_its_disks_stay(
    libvirtd: Libvirtd, hypervisor: Hypervisor, images: Path
) -> None:
    overlay = overlay_in(images)
    xml = made_of(libvirtd, new(overlay))
    await hypervisor.define(xml)
    with domain(libvirtd, UUID) as web1:
        snapshot = SNAPSHOT.format(web1.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
        web1.snapshotCreateXML(snapshot, libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE)
        web1.create()
        web1.managedSave()
        assert web1.hasManagedSaveImage()
        with pytest.raises(libvirt.libvirtError, match=r"managed save|snapshots"):
            web1.undefine()
    for _ in range(2):
        await hypervisor.destroy_and_undefine(UUID)
    assert await hypervisor.domains() == []
    # Nothing of the old one is met by a new one of the same name and UUID.
    await hypervisor.define(xml)
    with domain(libvirtd, UUID) as web1:
        assert not web1.hasManagedSaveImage()
        assert web1.snapshotNum() == 0
    assert [image.path.exists() for image in overlay.images] == [True, True]


async def test_running_paused_and_transient_domains_go_as_well(
    libvirtd: Libvirtd, hypervisor: Hypervisor
) -> None:
    silent = kernel_words(silent=True)
    running, paused = libvirtd.start_guests(Guest("one", silent), Guest("two", silent))
    with domain(libvirtd, paused.uuid) as two:
        two.suspend()
    with domain(libvirtd, running.uuid) as one:
        one.undefine()
        assert not one.isPersistent()
    for guest in (running, paused):
        await hypervisor.destroy_and_undefine(guest.uuid)
    assert await hypervisor.domains() == []


async def test_a_copy_of_a_domain_that_was_made_here_was_not(
    libvirtd: Libvirtd, hypervisor: Hypervisor, images: Path
) -> None:
    xml = made_of(libvirtd, new(overlay_in(images)))
    copy = str(uuid.uuid4())
    await hypervisor.define(xml)
    await hypervisor.define(xml.replace(UUID, copy).replace(">web1<", ">copy<"))
    libvirtd.start_guests(Guest("stranger", kernel_words(silent=True)))
    made_by = {found.name: found.made_by is not None for found in await hypervisor.domains()}
    assert made_by == {"copy": False, "stranger": False, "web1": True}
    assert (await hypervisor.details(UUID)).made_by == MadeBy(JOB, images / "web1.qcow2")
    assert (await hypervisor.details(copy)).made_by is None


async def test_every_file_of_every_domain_is_in_use_whether_it_runs_or_not(
    libvirtd: Libvirtd, hypervisor: Hypervisor, images: Path
) -> None:
    overlay = overlay_in(images)
    await hypervisor.define(made_of(libvirtd, new(overlay)))
    top, base = (image.path for image in overlay.images)
    assert await hypervisor.sources_in_use() == {top: "web1", base: "web1"}
    (guest,) = libvirtd.start_guests(Guest("stranger", kernel_words(silent=True)))
    iso = images / "config.iso"
    iso.write_bytes(b"\0" * 2048)
    later = make_image(images / "later.raw", DiskFormat.RAW)
    await hypervisor.attach(guest.uuid, iso=iso, target=None)
    with domain(libvirtd, guest.uuid) as stranger:
        stranger.attachDeviceFlags(
            f"<disk type='file' device='disk'><driver name='qemu' type='raw'/>"
            f"<source file='{later.images[0].path}'/><target dev='vda'/></disk>",
            libvirt.VIR_DOMAIN_AFFECT_CONFIG,
        )
    assert await hypervisor.sources_in_use() == {
        top: "web1", base: "web1", iso: "stranger", later.images[0].path: "stranger"
    }  # fmt: skip


# ---------------------------------------------------------------- addresses
# What of qemu-ga libvirt asks for: it synchronises, and takes the interfaces. libvirt connects when
# it hears that the port is open; until then, reading finds the end of the file.
AGENT = """
for port in /sys/class/virtio-ports/*; do
    [ "$(cat "$port/name")" = org.qemu.guest_agent.0 ] && device=/dev/${port##*/}
done
exec 3<>"$device"
while :; do
    read -r line <&3 || { sleep 1; continue; }
    line=${line#*"{"}
    case $line in
        *guest-sync*) id=${line##*:}; echo "{\\"return\\": ${id%%[!0-9 ]*}}" ;;
        *guest-network-get-interfaces*) echo '{"return": @}' ;;
        *) echo '{"error": {"class": "CommandNotFound", "desc": "no such command"}}' ;;
    esac >&3
done
"""
INTERFACES = [
    {
        "name": "eth0",
        "hardware-address": "52:54:00:00:00:01",
        "ip-addresses": [
            {"ip-address-type": "ipv4", "ip-address": "192.0.2.7", "prefix": 24},
            {"ip-address-type": "ipv6", "ip-address": "2001:db8::7", "prefix": 64},
        ],
    }
]


async def test_the_guests_agent_is_asked_for_its_addresses(
    libvirtd: Libvirtd, hypervisor: Hypervisor, images: Path
) -> None:
    root = ET.fromstring(made_of(libvirtd, new(overlay_in(images))))
    devices = root.find("devices")
    assert devices is not None
    channel = ET.SubElement(devices, "channel", type="unix")
    ET.SubElement(channel, "target", type="virtio", name="org.qemu.guest_agent.0")
    await hypervisor.define(ET.tostring(root, encoding="unicode"))
    await hypervisor.start(UUID)
    assert await hypervisor.interface_addresses(UUID, "agent") == {}, "nobody answers yet"
    async with asyncio.timeout(BOOT):
        agent = AGENT.replace("@", json.dumps(INTERFACES))
        script = f"cat >/tmp/agent <<'END'\n{agent}\nEND\nsh /tmp/agent >/tmp/log 2>&1 &"
        await in_guest(shell_of(libvirtd), script)
        found: dict[str, Any] = {}
        while not found:  # until the script has the channel open
            await asyncio.sleep(LOOK_SECONDS)
            found = await hypervisor.interface_addresses(UUID, "agent")
    assert found["eth0"]["hwaddr"] == "52:54:00:00:00:01"
    assert [address["addr"] for address in found["eth0"]["addrs"]] == ["192.0.2.7", "2001:db8::7"]


async def test_a_source_of_addresses_that_is_not_there_says_nothing(
    libvirtd: Libvirtd, hypervisor: Hypervisor, images: Path
) -> None:
    (guest,) = libvirtd.start_guests(Guest("plain", kernel_words(silent=True)))
    await hypervisor.define(made_of(libvirtd, new(overlay_in(images))))
    for which in (guest.uuid, UUID, str(uuid.uuid4())):
        assert await hypervisor.interface_addresses(which, "lease") == {}
        assert await hypervisor.interface_addresses(which, "agent") == {}


async def test_domains_are_listed_by_name_with_their_disks(
    libvirtd: Libvirtd, hypervisor: Hypervisor, images: Path
) -> None:
    overlay = overlay_in(images)
    await hypervisor.define(made_of(libvirtd, new(overlay, name="zebra")))
    libvirtd.start_guests(Guest("ape", kernel_words(silent=True)))
    ape, zebra = await hypervisor.domains()
    assert (ape.name, ape.state, ape.disks) == ("ape", "running", ())
    assert ape.domid is not None
    assert (zebra.name, zebra.state, zebra.domid) == ("zebra", "off", None)
    assert [disk.source for disk in zebra.disks] == [overlay.images[0].path]
    assert await hypervisor.details("zebra") == zebra
    assert re.fullmatch(r"[0-9a-f-]{36}", zebra.uuid)
