"""Domain and disk XML: what libvirt wrote is read, and libvirt takes what is built."""

import socket
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import libvirt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisiond.plan import CHANNEL_NAME
from provisiond.virt.xml import (
    SCSI_TARGETS,
    XEN_TARGETS,
    Disk,
    DomainXml,
    ScsiController,
    build_scsi_cdrom,
    build_scsi_controller,
    build_xen_disk,
    free_targets,
    free_unit,
    parse_domain,
)
from tests.lab.domain import Guest, domain_xml
from tests.lab.initramfs import GuestFiles
from tests.unit.names import NAMES

UUID = "5f3a0f5e-2a6b-4d5c-9d8e-0f6a1c2b3d4e"
ISO = Path("/run/provisiond/iso/0123456789abcdef0123456789abcdef.iso")


def domain_with(*devices: str, kind: str = "test") -> str:
    return (
        f"<domain type='{kind}'><name>web1</name><uuid>{UUID}</uuid><memory>1024</memory>"
        f"<os><type>hvm</type></os><devices>{''.join(devices)}</devices></domain>"
    )


def disk(target: str, *, bus: str, file: str = "/x.img", address: str = "") -> str:
    return (
        f"<disk type='file' device='disk'><source file='{file}'/>"
        f"<target dev='{target}' bus='{bus}'/>{address}</disk>"
    )


def drive(controller: int, unit: int) -> str:
    return f"<address type='drive' controller='{controller}' bus='0' target='0' unit='{unit}'/>"


@pytest.fixture(scope="module")
def connection() -> Iterator[Any]:
    """libvirt's test driver: the real parser and the real writer, over nothing."""
    connection = libvirt.open("test:///default")
    yield connection
    connection.close()


def as_libvirt_writes(connection: Any, xml: str) -> DomainXml:
    """What libvirt makes of a domain: defined, dumped, and undefined again."""
    domain = connection.defineXML(xml)
    try:
        return parse_domain(domain.XMLDesc())
    finally:
        domain.undefine()


# ---------------------------------------------------------------- reading
def test_what_libvirt_wrote_is_read(connection: Any) -> None:
    read = as_libvirt_writes(
        connection,
        domain_with(
            disk("vda", bus="virtio", file="/var/lib/a&lt;b&amp;c.img"),
            disk("sdb", bus="scsi", address=drive(1, 3)),
            "<disk type='block' device='disk'><source dev='/dev/sdx'/><target dev='vdb'/></disk>",
            "<disk type='file' device='cdrom'><target dev='hdc' bus='ide'/></disk>",
            "<controller type='scsi' index='0' model='lsilogic'/>",
            "<controller type='scsi' index='1' model='virtio-scsi'/>",
            "<controller type='usb' index='2'/>",
            "<interface type='network'><mac address='52:54:00:AA:BB:01'/>"
            "<source network='default'/></interface>",
            "<interface type='user'><mac address='52:54:00:aa:bb:02'/></interface>",
            "<channel type='unix'><source mode='bind' path='/run/x.sock'/>"
            f"<target type='virtio' name='{CHANNEL_NAME}'/></channel>",
            "<channel type='unix'><source mode='bind' path='/run/y.sock'/>"
            "<target type='virtio' name='org.qemu.guest_agent.0'/></channel>",
        ),
    )
    assert (read.name, read.uuid, read.kind, read.is_xen) == ("web1", UUID, "test", False)
    assert (read.os_type, read.made_by) == ("hvm", None)
    found = {disk.target: disk for disk in read.disks}
    assert set(found) == {"vda", "sdb", "vdb", "hdc"}
    assert found["vda"].source == Path("/var/lib/a<b&c.img")
    assert found["sdb"] == Disk(
        target="sdb",
        source=Path("/x.img"),
        controller=1,
        unit=3,
        bus="scsi",
        format=None,
        read_only=False,
        chain=(Path("/x.img"),),
    )
    assert found["vdb"].source is None
    assert found["vdb"].chain == (Path("/dev/sdx"),)
    assert found["hdc"].source is None
    assert read.scsi_controllers == (
        ScsiController(0, "lsilogic"),
        ScsiController(1, "virtio-scsi"),
    )
    assert (read.virtio_scsi, read.next_scsi_index) == (1, 2)
    assert read.macs == ("52:54:00:aa:bb:01", "52:54:00:aa:bb:02")
    assert read.channel(CHANNEL_NAME) == Path("/run/x.sock")
    assert read.channel("org.provisiond.1") is None


def test_the_tests_own_guests_are_read() -> None:
    guest = Guest("web1")
    files = GuestFiles(kernel=Path("/vmlinuz"), initramfs=Path("/initramfs"))
    read = parse_domain(domain_xml(guest, files=files, folder=Path("/x")))
    assert (read.name, read.uuid, read.macs) == (guest.name, guest.uuid, (guest.mac,))
    assert read.virtio_scsi == 0
    assert read.channel(CHANNEL_NAME) is None, "before it starts nobody knows the path"


def test_a_xen_domain_is_told_apart() -> None:
    assert parse_domain(domain_with(kind="xen")).is_xen
    assert not parse_domain(domain_with(kind="kvm")).is_xen


def test_a_domain_with_nothing_is_read() -> None:
    read = parse_domain("<domain type='qemu'><name>bare</name></domain>")
    assert (read.disks, read.macs, read.channels, read.virtio_scsi) == ((), (), (), None)
    assert read.next_scsi_index == 0


@pytest.mark.parametrize("xml", ["", "<domain", "<network/>", "no XML", "<domain/><domain/>"])
def test_what_is_no_domain_is_refused(xml: str) -> None:
    with pytest.raises(ValueError, match=r"is not one XML document|where a <domain> was expected"):
        parse_domain(xml)


LAUGHS = "".join(f"<!ENTITY l{number} '{f'&l{number - 1};' * 10}'>" for number in range(1, 10))
ENTITIES = {
    "billion laughs": (f"<!ENTITY l0 'ha'>{LAUGHS}", "&l9;"),
    "quadratic blow-up": (f"<!ENTITY a '{'a' * 100_000}'>", "&a;" * 20_000),
    "a file": ("<!ENTITY f SYSTEM 'file:///etc/passwd'>", "&f;"),
    "a page": ("<!ENTITY f SYSTEM 'http://127.0.0.1:{port}/'>", "&f;"),
    "a page as a parameter": ("<!ENTITY % p SYSTEM 'http://127.0.0.1:{port}/'>%p;", ""),
    "an entity that nobody uses": ("<!ENTITY a 'a'>", ""),
    "a default attribute": ("<!ATTLIST domain type CDATA 'xen'>", ""),
}


@pytest.mark.parametrize("name", ENTITIES)
def test_xml_with_a_document_type_is_refused_and_nothing_is_fetched(name: str) -> None:
    declared, used = ENTITIES[name]
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        subset = declared.replace("{port}", str(server.getsockname()[1]))
        xml = f"<!DOCTYPE domain [{subset}]><domain type='qemu'><name>{used}</name></domain>"
        with pytest.raises(ValueError, match="has a document type, which may bring entities"):
            parse_domain(xml)
        with pytest.raises(BlockingIOError):  # nobody has connected
            server.accept()


@pytest.mark.parametrize("where", ["PUBLIC 'x' 'file:///etc/passwd'", "SYSTEM '/etc/passwd'", ""])
def test_a_document_type_from_elsewhere_is_refused_as_well(where: str) -> None:
    with pytest.raises(ValueError, match="has a document type"):
        parse_domain(f"<!DOCTYPE domain {where}><domain/>")


def test_elements_in_one_another_end_somewhere() -> None:
    with pytest.raises(ValueError, match="more than 100 elements in one another"):
        parse_domain(f"<domain>{'<a>' * 200_000}{'</a>' * 200_000}</domain>")


XML_TEXT = st.text(
    st.characters(categories=["L", "N", "P", "S", "Zs"], exclude_characters="\x85"), max_size=20
)


@given(
    st.lists(
        st.tuples(
            st.from_regex(r"(sd|vd|xvd)[a-z]", fullmatch=True),
            XML_TEXT,
            st.none() | st.tuples(st.integers(0, 999), st.integers(0, 999)),
            st.booleans(),
        ),
        max_size=6,
    ),
    XML_TEXT,
    st.none() | st.integers(0, 2**31),
)
def test_what_was_built_reads_back(
    disks: list[tuple[str, str, tuple[int, int] | None, bool]], name: str, domid: int | None
) -> None:
    root = ET.Element("domain", {"type": "qemu"} | ({} if domid is None else {"id": str(domid)}))
    ET.SubElement(root, "name").text = name
    devices = ET.SubElement(root, "devices")
    for target, path, place, read_only in disks:
        device = ET.SubElement(devices, "disk")
        ET.SubElement(device, "source", file=f"/{path}")
        ET.SubElement(device, "target", dev=target, bus="virtio")
        if place is not None:
            controller, unit = map(str, place)
            ET.SubElement(device, "address", type="drive", controller=controller, unit=unit)
        if read_only:
            ET.SubElement(device, "readonly")
    read = parse_domain(ET.tostring(root, encoding="unicode"))
    assert (read.name, read.domid) == (name, domid)
    found = [
        (disk.target, disk.source, (disk.controller, disk.unit), disk.read_only)
        for disk in read.disks
    ]
    assert found == [
        (target, Path(f"/{path}"), place or (None, None), read_only)
        for target, path, place, read_only in disks
    ]


@given(st.recursive(XML_TEXT, lambda inner: st.lists(inner, max_size=4), max_leaves=10), st.data())
def test_whatever_the_xml_says_it_is_a_domain_or_a_value_error(tree: Any, data: Any) -> None:
    tags = st.sampled_from(
        ["domain", "name", "devices", "disk", "source", "target", "address", "controller", "os"]
    )
    names = st.sampled_from(["type", "id", "file", "dev", "unit", "index", "controller", "name"])
    values = st.sampled_from(["", "drive", "scsi", "-1", "x", "9" * 5000, "/x"]) | XML_TEXT

    def grow(part: Any) -> ET.Element:
        element = ET.Element(data.draw(tags), data.draw(st.dictionaries(names, values, max_size=3)))
        if isinstance(part, str):
            element.text = part
        else:
            element.extend(grow(one) for one in part)
        return element

    root = ET.Element("domain")
    root.append(grow(tree))
    try:
        parse_domain(ET.tostring(root, encoding="unicode"))
    except ValueError:
        pass


def test_a_disk_is_found_by_its_whole_path() -> None:
    read = parse_domain(domain_with(disk("sda", bus="scsi", file=str(ISO))))
    assert read.disk_of(ISO) == read.disks[0]
    assert read.disk_of(Path(f"{ISO}.part")) is None
    assert read.disk_of(Path(ISO.name)) is None


# ---------------------------------------------------------------- targets and units
def test_the_targets_of_each_hypervisor_come_best_first() -> None:
    assert free_targets(parse_domain(domain_with(kind="xen"))) == list(XEN_TARGETS)
    assert XEN_TARGETS[0] == "xvdp"
    assert XEN_TARGETS[-1] == "xvde"
    assert free_targets(parse_domain(domain_with())) == list(SCSI_TARGETS)


def test_a_target_that_is_taken_in_any_view_is_not_free() -> None:
    live = parse_domain(domain_with(disk("sda", bus="scsi"), disk("vda", bus="virtio")))
    inactive = parse_domain(domain_with(disk("sdb", bus="sata")))
    assert free_targets(live, inactive)[0] == "sdc"
    everything = [disk(target, bus="xen") for target in XEN_TARGETS]
    assert free_targets(parse_domain(domain_with(*everything, kind="xen"))) == []


@given(st.sets(st.integers(0, 20)), st.sets(st.integers(0, 20)))
def test_a_free_unit_is_the_lowest_that_nobody_has(here: set[int], there: set[int]) -> None:
    disks = [disk(f"sd{unit}", bus="scsi", address=drive(1, unit)) for unit in here]
    disks += [disk(f"se{unit}", bus="scsi", address=drive(0, unit)) for unit in there]
    unit = free_unit(parse_domain(domain_with(*disks)), 1)
    assert unit not in here
    assert set(range(unit)) <= here


# ---------------------------------------------------------------- building
@given(NAMES)
def test_no_file_name_breaks_out_of_its_attribute(name: str) -> None:
    iso = Path("/run") / name.lstrip("/")
    for xml, kind in (
        (build_xen_disk(iso, "xvdp"), "xen"),
        (build_scsi_cdrom(iso, "sda", controller=2, unit=5), "qemu"),
    ):
        read = parse_domain(domain_with(xml, kind=kind))
        assert [disk.source for disk in read.disks] == [iso]
        assert read.disk_of(iso) is not None


def test_libvirt_takes_the_cdrom_and_its_controller(connection: Any) -> None:
    iso = Path("/run/a&b 'c' \"d\" <e>.iso")
    read = as_libvirt_writes(
        connection,
        domain_with(build_scsi_controller(1), build_scsi_cdrom(iso, "sdc", controller=1, unit=4)),
    )
    assert read.disk_of(iso) == Disk(
        target="sdc",
        source=iso,
        controller=1,
        unit=4,
        bus="scsi",
        format="raw",
        read_only=True,
        chain=(iso,),
    )
    assert read.virtio_scsi == 1


def test_both_are_read_only_and_raw(connection: Any) -> None:
    xen = build_xen_disk(ISO, "xvdp")
    cdrom = build_scsi_cdrom(ISO, "sda", controller=0, unit=0)
    for xml in (xen, cdrom):
        domain = connection.defineXML(domain_with(xml))
        written = domain.XMLDesc()
        domain.undefine()
        assert "<readonly/>" in written
        assert "type='raw'" in written
    # `qemu` there reports success where the guest never sees the disk; a cdrom cannot be plugged.
    assert 'name="phy"' in xen
    assert 'device="disk"' in xen
    assert 'device="cdrom"' in cdrom
