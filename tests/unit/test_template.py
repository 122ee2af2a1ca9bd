"""A domain out of an operator's template: what real tools print is mended, and libvirt takes it."""

import os
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import libvirt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from provisiond.api.requests import DiskFormat
from provisiond.disk.chain import DiskChain, DiskImage
from provisiond.errors import TemplateUnusable, VhdNeedsTapdisk
from provisiond.plan import CHANNEL_NAME, plan_mac, plan_uuid
from provisiond.virt.template import NewDomain, build_domain, read_template
from provisiond.virt.xml import DomainXml, MadeBy, parse_domain

TEMPLATES = Path(__file__).with_name("templates")
QEMU = ("virt-install", "virt-install-scsi-bridge", "virt-install-bare", "virsh-dumpxml")
JOB = "0123456789abcdef0123456789abcdef"


def chain(*formats: DiskFormat) -> DiskChain:
    """Images of these formats, the top first; every one stands on the next."""
    paths = [Path(f"/srv/images/{n}.{one}") for n, one in enumerate(formats)]
    below = [*zip(paths[1:], formats[1:], strict=True), (None, None)]
    return DiskChain(
        tuple(
            DiskImage(path, one, 2**30, 2**20, backing, backing_format)
            for path, one, (backing, backing_format) in zip(paths, formats, below, strict=True)
        )
    )


OVERLAY = chain(DiskFormat.QCOW2, DiskFormat.QCOW2)
NEW = NewDomain(
    name="web1",
    uuid=plan_uuid(JOB),
    job_id=JOB,
    disk=OVERLAY,
    mac=plan_mac(JOB, is_xen=False),
)


@pytest.fixture(scope="module")
def connection() -> Iterator[Any]:
    """libvirt's test driver: the real parser, writer and schema, over nothing."""
    connection = libvirt.open("test:///default")
    yield connection
    connection.close()


def template(name: str) -> str:
    return read_template(TEMPLATES, name)


def with_devices(*devices: str, outside: str = "", kind: str = "qemu") -> str:
    return (
        f"<domain type='{kind}'><name>golden</name><memory>1048576</memory><vcpu>2</vcpu>"
        f"<os><type>hvm</type></os>{outside}<devices>{''.join(devices)}</devices></domain>"
    )


def built(text: str, new: NewDomain = NEW, *, is_xen: bool = False) -> ET.Element:
    return ET.fromstring(build_domain(text, new, is_xen=is_xen))


def grown(tag: str, attributes: dict[str, str], children: list[ET.Element]) -> ET.Element:
    element = ET.Element(tag, attributes)
    element.extend(children)
    return element


def as_libvirt_keeps(connection: Any, xml: str) -> str:
    """The domain, checked against libvirt's schema, defined and dumped again.

    The test driver takes the disks of every other driver, but its own type, kind of guest, and
    input devices alone.
    """
    root = ET.fromstring(xml)
    root.set("type", "test")
    for device in root.findall("devices/input[@bus='xen']"):
        root.findall("devices")[0].remove(device)
    if (kind := root.find("os/type")) is not None:
        kind.attrib.clear()
        kind.text = "hvm"
    text = ET.tostring(root, encoding="unicode")
    domain = connection.defineXMLFlags(text, libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
    try:
        return str(domain.XMLDesc())
    finally:
        domain.undefine()


def read(connection: Any, xml: str) -> DomainXml:
    return parse_domain(as_libvirt_keeps(connection, xml))


# ---------------------------------------------------------------- what real tools print
@pytest.mark.parametrize("name", QEMU)
def test_libvirt_takes_what_is_made_of_a_template_and_keeps_what_was_set(
    connection: Any, name: str
) -> None:
    kept = read(connection, build_domain(template(name), NEW, is_xen=False))
    assert (kept.name, kept.uuid) == ("web1", NEW.uuid)
    assert kept.made_by == MadeBy(JOB, OVERLAY.images[0].path)
    (root,) = kept.disks
    assert (root.source, root.format, root.read_only) == (OVERLAY.images[0].path, "qcow2", False)
    assert root.chain == (OVERLAY.images[0].path, OVERLAY.images[1].path)


def test_libvirt_takes_a_xen_guest(connection: Any) -> None:
    new = replace(NEW, mac=plan_mac(JOB, is_xen=True), memory_mib=512, vcpus=2)
    xml = build_domain(template("xen-pv"), new, is_xen=True)
    kept = read(connection, xml)
    (root,) = kept.disks
    assert (root.target, root.bus, root.format) == ("xvda", "xen", "qcow2")
    assert kept.macs == (new.mac,)
    devices = ET.fromstring(xml).find("devices")
    assert devices is not None
    assert devices.find("interface/target") is None, "vif7.0 is another guest's"
    assert devices.find("interface/script") is not None
    assert devices.find("channel") is None, "a Xen guest answers over xenstore"
    assert "/dev/pts" not in xml


@pytest.mark.parametrize("name", QEMU)
def test_nothing_else_of_a_template_is_changed(name: str) -> None:
    before, after = ET.fromstring(template(name)), built(template(name))
    for tag in ("os", "features", "clock", "cpu", "pm", "memory", "vcpu", "on_crash", "resource"):
        one, other = before.find(tag), after.find(tag)
        if one is None:
            assert other is None
        else:
            assert other is not None
            assert words(one) == words(other)
    kept = [d.tag for d in before.iterfind("devices/*") if d.tag not in ("disk", "channel")]
    assert [d.tag for d in after.iterfind("devices/*") if d.tag not in ("disk", "channel")] == kept


def words(element: ET.Element) -> list[tuple[str, dict[str, str], str]]:
    return [(e.tag, e.attrib, (e.text or "").strip()) for e in element.iter()]


def test_what_a_running_guest_had_for_itself_is_gone() -> None:
    original = template("virsh-dumpxml")
    xml = build_domain(original, NEW, is_xen=False)
    root = ET.fromstring(xml)
    assert root.get("id") is None
    assert root.find("seclabel") is None
    assert list(root.iter("alias")) == []
    for gone in ("4b18db8e-b107-5901-9e54-c4eea8950019", "52:54:00:65:9a:7f", "web1.channel"):
        assert gone in original
        assert gone not in xml
    (channel,) = root.iterfind("devices/channel")
    assert (
        ET.tostring(channel).split()
        == (
            b"""<channel type="unix"> <source mode="bind" /> <target type="virtio" """
            b"""name="org.provisiond.0" /> <address type="virtio-serial" controller="0" bus="0" """
            b"""port="1" /> </channel>"""
        ).split()
    )
    assert root.find("devices/serial[@type='unix']/source[@path='/srv/lab/web1.shell']") is not None


def test_identifiers_that_only_one_guest_may_have_are_made_anew(connection: Any) -> None:
    text = with_devices(
        "<disk type='file' device='disk'><source file='/x'/><target dev='vda' bus='virtio'/>"
        "<alias name='ua-root'/><address type='pci' slot='0x05'/></disk>",
        "<console type='pty' tty='/dev/pts/3'><source path='/dev/pts/3'/></console>",
        "<graphics type='vnc' port='5907' autoport='yes'/>",
        "<graphics type='vnc' port='5950' autoport='no'/>",
        outside="<uuid>6c1f1f1a-3a0e-4f7e-9d53-0f0d6f1c2b3a</uuid>"
        "<genid>9e8d4a5c-1f2e-4b3a-8c7d-6e5f4a3b2c1d</genid>"
        "<sysinfo type='smbios'><system><entry name='manufacturer'>ACME</entry>"
        "<entry name='uuid'>6c1f1f1a-3a0e-4f7e-9d53-0f0d6f1c2b3a</entry></system></sysinfo>"
        "<seclabel type='static' model='dac' relabel='yes'><label>+0:+0</label></seclabel>",
    )
    root = built(text)
    assert (genid := root.find("genid")) is not None
    assert not genid.text
    assert [entry.get("name") for entry in root.iterfind("sysinfo/system/entry")] == [
        "manufacturer"
    ]
    assert root.find("seclabel[@type='static']") is not None, "the operator has said so"
    assert root.find("devices/disk/alias[@name='ua-root']") is not None
    assert root.find("devices/disk/address") is None
    assert [g.get("port") for g in root.iterfind("devices/graphics")] == [None, "5950"]
    assert "/dev/pts" not in ET.tostring(root, encoding="unicode")
    assert "6c1f1f1a" not in as_libvirt_keeps(connection, ET.tostring(root, encoding="unicode"))


def test_the_firmwares_variables_are_a_file_of_the_guests_own() -> None:
    for nvram in (
        "<nvram template='/usr/OVMF/VARS.fd'>/var/lib/libvirt/qemu/nvram/golden.fd</nvram>",
        "<nvram template='/usr/OVMF/VARS.fd' type='file'><source file='/x/golden.fd'/></nvram>",
    ):
        text = with_devices().replace("</os>", f"{nvram}</os>")
        found = built(text).find("os/nvram")
        assert found is not None
        assert words(found) == [("nvram", {"template": "/usr/OVMF/VARS.fd"}, "")]


# ---------------------------------------------------------------- root disk
def test_the_root_disk_keeps_its_place_and_changes_its_image() -> None:
    text = with_devices(
        "<disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>",
        "<disk type='block'><driver name='qemu' type='raw' cache='none' io='native'>"
        "<metadata_cache><max_size>1</max_size></metadata_cache></driver>"
        "<auth username='x'/><source dev='/dev/vg/golden'><seclabel model='dac'/></source>"
        "<backingStore type='file'><format type='raw'/><source file='/old'/></backingStore>"
        "<target dev='sdb' bus='scsi'/><boot order='1'/><serial>ROOT</serial>"
        "<address type='drive' controller='0' bus='0' target='0' unit='1'/></disk>",
    )
    cdrom, root = built(text).iterfind("devices/disk")
    assert cdrom.get("device") == "cdrom"
    assert cdrom.find("source") is None
    assert (root.get("type"), [child.tag for child in root]) == (
        "file",
        ["driver", "target", "boot", "serial", "address", "source", "backingStore"],
    )
    driver = root.find("driver")
    assert driver is not None
    assert driver.attrib == {"name": "qemu", "type": "qcow2", "cache": "none", "io": "native"}
    assert list(driver) == []
    assert root.find("backingStore/format[@type='qcow2']") is not None
    assert "/old" not in ET.tostring(root, encoding="unicode")


@pytest.mark.parametrize(
    ("formats", "types"),
    [
        ([DiskFormat.RAW], ["raw"]),
        ([DiskFormat.VHD], ["vpc"]),
        ([DiskFormat.QCOW, DiskFormat.RAW], ["qcow", "raw"]),
        ([DiskFormat.QCOW2, DiskFormat.QCOW2, DiskFormat.VHD], ["qcow2", "qcow2", "vpc"]),
    ],
)
def test_no_image_of_the_chain_is_left_to_be_probed(
    connection: Any, formats: list[DiskFormat], types: list[str]
) -> None:
    disk = chain(*formats)
    xml = build_domain(template("virt-install"), replace(NEW, disk=disk), is_xen=False)
    level = ET.fromstring(as_libvirt_keeps(connection, xml)).find("devices/disk")
    assert level is not None
    found = [level.find("driver"), *level.iterfind(".//backingStore/format")]
    assert [one.get("type") for one in found if one is not None] == types
    assert [source.get("file") for source in level.iter("source")] == [
        str(image.path) for image in disk.images
    ]
    while (below := level.find("backingStore")) is not None:
        level = below
    assert list(level) == [], "the end of the chain is said, so that nobody looks for another image"


@pytest.mark.parametrize(
    ("formats", "driver"),
    [
        ([DiskFormat.RAW], ("phy", "raw")),
        ([DiskFormat.QCOW2, DiskFormat.RAW], ("qemu", "qcow2")),
        ([DiskFormat.QCOW, DiskFormat.QCOW], ("qemu", "qcow")),
        ([DiskFormat.VHD], ("qemu", "vhd")),
        ([DiskFormat.VHD, DiskFormat.VHD], ("tap", "vhd")),
    ],
)
def test_on_xen_each_format_has_its_back_end(
    connection: Any, formats: list[DiskFormat], driver: tuple[str, str]
) -> None:
    xml = build_domain(template("xen-pv"), replace(NEW, disk=chain(*formats)), is_xen=True)
    found = ET.fromstring(as_libvirt_keeps(connection, xml)).find("devices/disk/driver")
    assert found is not None
    assert (found.get("name"), found.get("type")) == driver
    assert ET.fromstring(xml).find("devices/disk/backingStore") is None


def test_a_vhd_that_qemu_would_read_as_zeros_is_refused() -> None:
    overlay = replace(NEW, disk=chain(DiskFormat.VHD, DiskFormat.VHD))
    with pytest.raises(VhdNeedsTapdisk, match=r"/srv/images/0\.vhd is a VHD that stands on"):
        build_domain(template("virt-install"), overlay, is_xen=False)
    below = replace(NEW, disk=chain(DiskFormat.QCOW2, DiskFormat.VHD, DiskFormat.VHD))
    for name, is_xen in (("virt-install", False), ("xen-pv", True)):
        with pytest.raises(VhdNeedsTapdisk, match=r"/srv/images/1\.vhd"):
            build_domain(template(name), below, is_xen=is_xen)


def test_a_template_without_a_disk_gets_one_at_the_first_place() -> None:
    cdrom = "<disk device='cdrom'><target dev='{}'/></disk>"
    for text, is_xen, target in (
        (template("virt-install-bare"), False, ("vda", "virtio")),
        (with_devices(cdrom.format("vda")), False, ("vdb", "virtio")),
        (with_devices(kind="xen"), True, ("xvda", "xen")),
        (with_devices().replace("<devices></devices>", ""), False, ("vda", "virtio")),
    ):
        found = built(text, is_xen=is_xen).find("devices/disk[@device='disk']/target")
        assert found is not None
        assert (found.get("dev"), found.get("bus")) == target


def test_a_disk_that_all_guests_would_write_to_is_refused() -> None:
    root = "<disk><source file='/a'/><target dev='vda'/></disk>"
    second = "<disk><source file='/b'/><target dev='vdb'/>{}</disk>"
    with pytest.raises(
        TemplateUnusable, match="web1: the template has a second disk, vdb,"
    ) as said:
        built(with_devices(root, second.format("")))
    assert "readonly" in said.value.hint
    for mark in ("<readonly/>", "<shareable/>", "<transient/>"):
        disks = built(with_devices(root, second.format(mark))).findall("devices/disk/source")
        assert [source.get("file") for source in disks] == ["/srv/images/0.qcow2", "/b"]


@pytest.mark.parametrize("device", ["disk", "lun", "floppy"])
def test_no_second_disk_of_any_kind_is_written_by_every_guest(device: str) -> None:
    root = "<disk><source file='/a'/><target dev='vda'/></disk>"
    second = f"<disk device='{device}'><source file='/b'/><target dev='vdb'/></disk>"
    with pytest.raises(TemplateUnusable, match="a second disk, vdb,"):
        built(with_devices(root, second))
    built(with_devices(root, second.replace(device, "cdrom")))


def test_nothing_else_is_written_by_every_guest_either() -> None:
    with pytest.raises(TemplateUnusable, match="has an NVDIMM"):
        built(with_devices("<memory model='nvdimm'><source><path>/b</path></source></memory>"))
    with pytest.raises(TemplateUnusable, match="has <devices> twice"):
        built(with_devices(outside="<devices><disk><source file='/b'/></disk></devices>"))


def test_a_template_is_no_deeper_than_libvirt_is() -> None:
    with pytest.raises(TemplateUnusable, match="elements in one another"):
        built(with_devices("<a>" * 20_000 + "</a>" * 20_000))


def test_only_a_regular_file_of_a_decent_size_is_a_template(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.xml")
    (tmp_path / "folder.xml").mkdir()
    (tmp_path / "long.xml").write_text("x" * (2**20 + 1))
    for name, why in (
        ("fifo", "is no regular file"),
        ("folder", "is no regular file"),
        ("long", "is longer than"),
    ):
        with pytest.raises(TemplateUnusable, match=why):
            read_template(tmp_path, name)


# ---------------------------------------------------------------- memory, vcpus
def test_memory_is_what_was_asked_for_whatever_the_unit_was() -> None:
    text = with_devices(outside="<currentMemory unit='GiB'>1</currentMemory>")
    root = built(text, replace(NEW, memory_mib=768))
    for tag in ("memory", "currentMemory"):
        found = root.find(tag)
        assert found is not None
        assert (found.text, found.get("unit")) == ("768", "MiB")


def test_libvirt_counts_the_memory_in_the_same_unit(connection: Any) -> None:
    new = replace(NEW, memory_mib=768, vcpus=3)
    kept = ET.fromstring(
        as_libvirt_keeps(connection, build_domain(template("virt-install"), new, is_xen=False))
    )
    for tag, text in (("memory", "786432"), ("currentMemory", "786432"), ("vcpu", "3")):
        assert kept.findtext(tag) == text


def test_a_topology_stays_where_it_fits_and_goes_where_it_contradicts() -> None:
    text = template("virt-install-scsi-bridge")
    assert built(text, replace(NEW, vcpus=4)).find("cpu/topology") is not None
    root = built(text, replace(NEW, vcpus=6))
    assert root.find("cpu/topology") is None
    assert root.findtext("vcpu") == "6"


def test_what_names_vcpus_that_are_no_more_goes() -> None:
    text = with_devices(
        outside="<vcpus><vcpu id='0' enabled='yes' hotpluggable='no'/></vcpus>"
        "<cputune><shares>512</shares><vcpupin vcpu='0' cpuset='1'/><vcpupin vcpu='3' cpuset='2'/>"
        "<vcpusched vcpus='0-3' scheduler='fifo' priority='1'/></cputune>"
    ).replace("<vcpu>2", "<vcpu placement='static' cpuset='0-3' current='1'>2")
    root = built(text, replace(NEW, vcpus=2))
    assert root.find("vcpus") is None
    tune = root.find("cputune")
    assert tune is not None
    assert [(child.tag, child.get("vcpu")) for child in tune] == [
        ("shares", None),
        ("vcpupin", "0"),
    ]
    vcpu = root.find("vcpu")
    assert vcpu is not None
    assert vcpu.attrib == {"placement": "static", "cpuset": "0-3"}


def test_a_layout_that_only_its_author_could_change_is_refused_when_it_would_be() -> None:
    numa = "<cpu><numa><cell id='0' cpus='0-1' memory='1048576'/></numa></cpu>"
    hotplug = "<maxMemory slots='4' unit='GiB'>8</maxMemory>"
    dimm = "<memory model='dimm'><target><size unit='GiB'>1</size></target></memory>"
    for text, new, what in (
        (with_devices(outside=numa), replace(NEW, memory_mib=512), "<numa>"),
        (with_devices(outside=numa), replace(NEW, vcpus=4), "<numa>"),
        (with_devices(outside=hotplug), replace(NEW, memory_mib=512), "<maxMemory>"),
        (with_devices(dimm), replace(NEW, memory_mib=512), "<memory>"),
    ):
        with pytest.raises(TemplateUnusable, match=f"web1: the template lays out .*{what}"):
            built(text, new)
        built(text)


# ---------------------------------------------------------------- interfaces
def interface(kind: str, *children: str) -> str:
    return f"<interface type='{kind}'>{''.join(children)}</interface>"


def test_the_first_interface_gets_the_mac_and_the_others_lose_theirs() -> None:
    text = with_devices(
        interface("user", "<mac address='52:54:00:00:00:01'/>"),
        interface("user", "<mac address='52:54:00:00:00:02'/>", "<target dev='vnet4'/>"),
        interface("ethernet", "<target dev='tap0' managed='no'/>"),
    )
    root = built(text)
    macs = [one.find("mac") for one in root.iterfind("devices/interface")]
    assert [None if mac is None else mac.get("address") for mac in macs] == [NEW.mac, None, None]
    assert [one.get("dev") for one in root.iterfind("devices/interface/target")] == ["tap0"]


def test_an_interface_is_put_on_another_network(connection: Any) -> None:
    text = with_devices(
        interface(
            "user",
            "<mac address='52:54:00:00:00:01'/>",
            "<backend type='passt'/>",
            "<portForward proto='tcp'><range start='22'/></portForward>",
            "<model type='virtio'/><mtu size='1400'/><boot order='2'/>",
        )
    )
    for new, kind, source in (
        (replace(NEW, network="lan"), "network", {"network": "lan"}),
        (replace(NEW, bridge="br7"), "bridge", {"bridge": "br7"}),
    ):
        xml = build_domain(text, new, is_xen=False)
        found = ET.fromstring(xml).find("devices/interface")
        assert found is not None
        assert found.get("type") == kind
        assert [child.tag for child in found] == ["mac", "model", "mtu", "boot", "source"]
        assert found.findall("source")[0].attrib == source
        assert read(connection, xml).macs == (new.mac,)


def test_on_a_network_of_the_same_kind_an_interface_keeps_all_but_its_port() -> None:
    text = with_devices(
        interface(
            "bridge",
            "<source bridge='ovsbr0'/><script path='vif-bridge'/>",
            "<virtualport type='openvswitch'><parameters interfaceid='1-2-3' profileid='p'/>"
            "</virtualport>",
        ),
        interface("network", "<source network='default' portid='4-5-6' bridge='virbr0'/>"),
    )
    first, second = built(text, replace(NEW, bridge="ovsbr1")).iterfind("devices/interface")
    assert [child.tag for child in first] == ["mac", "script", "virtualport", "source"]
    assert first.findall("source")[0].get("bridge") == "ovsbr1"
    assert first.findall("virtualport/parameters")[0].attrib == {"profileid": "p"}
    assert second.findall("source")[0].attrib == {"network": "default"}


def test_an_interface_is_added_only_where_one_is_asked_for() -> None:
    bare = template("virt-install-bare")
    assert built(bare).find("devices/interface") is None
    (added,) = built(bare, replace(NEW, network="lan")).iterfind("devices/interface")
    assert words(added) == [
        ("interface", {"type": "network"}, ""),
        ("mac", {"address": NEW.mac}, ""),
        ("model", {"type": "virtio"}, ""),
        ("source", {"network": "lan"}, ""),
    ]
    (added,) = built(with_devices(kind="xen"), replace(NEW, bridge="xenbr0"), is_xen=True).iterfind(
        "devices/interface"
    )
    assert [child.tag for child in added] == ["mac", "source"]


# ---------------------------------------------------------------- channel, metadata
def test_the_guest_has_one_channel_to_answer_over_whatever_the_template_has() -> None:
    target = f"<target type='virtio' name='{CHANNEL_NAME}'/>"
    for channels in (
        "",
        f"<channel type='unix'>{target}</channel>",
        f"<channel type='unix'><source mode='bind' path='/run/golden'/>{target}</channel>",
        f"<channel type='unix'><source mode='connect' path='/run/golden'/>{target}</channel>",
        f"<channel type='pty'><source path='/dev/pts/1'/>{target}</channel>",
    ):
        root = built(with_devices(channels))
        (channel,) = root.iterfind("devices/channel")
        assert channel.get("type") == "unix"
        assert "path" not in (s.attrib if (s := channel.find("source")) is not None else {})
        found = channel.find("target")
        assert found is not None
        assert found.attrib == {"type": "virtio", "name": CHANNEL_NAME}


def test_other_metadata_stay_and_an_earlier_job_is_forgotten(connection: Any) -> None:
    once = build_domain(template("virt-install"), replace(NEW, job_id="f" * 32), is_xen=False)
    xml = build_domain(once, NEW, is_xen=False)
    kept = as_libvirt_keeps(connection, xml)
    assert parse_domain(kept).made_by == MadeBy(JOB, OVERLAY.images[0].path)
    assert "f" * 32 not in kept
    assert 'libosinfo:os id="http://debian.org/debian/11"' in kept
    assert f'<provisiond:guest job="{JOB}" disk="/srv/images/0.qcow2"/>' in kept


def test_qemus_own_arguments_keep_their_name() -> None:
    text = with_devices(
        outside="<q:commandline xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'>"
        "<q:arg value='-snapshot'/></q:commandline>"
    )
    assert "<qemu:commandline>" in build_domain(text, NEW, is_xen=False)


# ---------------------------------------------------------------- what cannot be used
BOMB = "<!DOCTYPE d [<!ENTITY a 'aaaa'><!ENTITY b '&a;&a;&a;'>]>"


@pytest.mark.parametrize(
    ("text", "is_xen", "what"),
    [
        ("", False, "not one XML document"),
        ("no XML", False, "not one XML document"),
        ("<domain type='qemu'/><domain type='qemu'/>", False, "not one XML document"),
        ("<network/>", False, "<network>, where a <domain>"),
        ("<domain/>", False, "of type None, and this host runs qemu and kvm"),
        ("<domain type='xen'/>", False, "of type xen, and this host runs qemu and kvm"),
        ("<domain type='kvm'/>", True, "of type kvm, and this host runs xen"),
        (f"{BOMB}<domain type='qemu'><name>&b;</name></domain>", False, "document type"),
        ("<!DOCTYPE d SYSTEM 'file:///etc/passwd'><domain type='qemu'/>", False, "document type"),
        ("<domain type='qemu'><name>&b;</name></domain>", False, "undefined entity"),
    ],
)
def test_what_no_guest_can_be_made_of_is_refused(text: str, is_xen: bool, what: str) -> None:
    with pytest.raises(TemplateUnusable) as said:
        build_domain(text, NEW, is_xen=is_xen)
    assert said.value.message.startswith("web1: the template ")
    assert what in said.value.message
    assert said.value.hint


TAGS = ["disk", "interface", "channel", "memory", "vcpu", "cpu", "numa", "topology", "source"]
TAGS += [
    "driver",
    "target",
    "readonly",
    "cputune",
    "vcpupin",
    "os",
    "nvram",
    "metadata",
    "seclabel",
]
TAGS += ["graphics", "listen", "alias", "mac", "genid", "sysinfo", "name", "uuid", "devices"]
ATTRIBUTES = st.dictionaries(
    st.sampled_from(["type", "device", "dev", "vcpu", "cores", "name", "model", "file", "mode"]),
    st.sampled_from(["disk", "cdrom", "file", "network", "0", "-1", "x", "9" * 5000, "unix", "²"]),
    max_size=2,
)
ELEMENTS = st.recursive(
    st.builds(ET.Element, st.sampled_from(TAGS), ATTRIBUTES),
    lambda inner: st.builds(grown, st.sampled_from(TAGS), ATTRIBUTES, st.lists(inner, max_size=3)),
    max_leaves=8,
)


MANY = "9" * 5000
PINNED = grown("cputune", {}, [ET.Element("vcpupin", vcpu=MANY)])


@given(st.lists(ELEMENTS, max_size=5), st.lists(ELEMENTS, max_size=5), st.booleans())
@example([PINNED], [], False)
@example([grown("cpu", {}, [ET.Element("topology", cores=MANY)])], [], False)
def test_whatever_a_template_says_the_guest_is_the_wanted_one_or_none_is_made(
    outside: list[ET.Element], devices: list[ET.Element], is_xen: bool
) -> None:
    kind = {"type": "xen" if is_xen else "qemu"}
    root = grown("domain", kind, [*outside, grown("devices", {}, devices)])
    new = replace(NEW, memory_mib=64, vcpus=2, network="default")
    try:
        made = build_domain(ET.tostring(root, encoding="unicode"), new, is_xen=is_xen)
    except TemplateUnusable:
        return
    read = parse_domain(made)
    assert (read.name, read.uuid, read.domid) == (new.name, new.uuid, None)
    assert read.made_by == MadeBy(JOB, OVERLAY.top.path)
    roots = [disk for disk in read.disks if disk.source == OVERLAY.top.path]
    assert len(roots) == 1
    assert not roots[0].read_only
    assert new.mac in read.macs or not ET.fromstring(made).findall("devices/interface")


def test_a_template_that_cannot_be_read_is_named_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(TemplateUnusable, match=f"{tmp_path}/absent.xml cannot be read: No such"):
        read_template(tmp_path, "absent")
    (tmp_path / "latin.xml").write_bytes("<domain>\xe9</domain>".encode("latin-1"))
    with pytest.raises(TemplateUnusable, match=r"latin\.xml is no UTF-8 text"):
        read_template(tmp_path, "latin")
