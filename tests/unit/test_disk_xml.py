"""The `<disk>` of an image: its target, its back end, and nothing left to be guessed."""

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import libvirt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisiond.api.requests import DiskFormat
from provisiond.disk.chain import DiskChain
from provisiond.errors import VhdNeedsTapdisk
from provisiond.virt.disk_xml import (
    DataDisk,
    build_data_disk,
    build_detached,
    bus_of,
    data_targets,
    needs_device_model,
)
from provisiond.virt.xml import SCSI_TARGETS, DomainXml, parse_domain
from tests.unit.names import NAMES
from tests.unit.test_template import chain

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def connection() -> Iterator[Any]:
    connection = libvirt.open("test:///default")
    yield connection
    connection.close()


def domain_with(*targets: str, kind: str = "qemu", os_type: str = "hvm") -> DomainXml:
    disks = "".join(f"<disk><target dev='{target}'/></disk>" for target in targets)
    return parse_domain(
        f"<domain type='{kind}'><name>web1</name><os><type>{os_type}</type></os>"
        f"<devices>{disks}</devices></domain>"
    )


# ---------------------------------------------------------------- targets
def test_on_qemu_the_first_free_virtio_target_comes_first() -> None:
    assert data_targets(None, domain_with())[0] == "vda"
    assert data_targets(None, domain_with("vda", "sda"), domain_with("vdb"))[0] == "vdc"
    assert len(data_targets(None, domain_with("hda"))) == 26
    assert data_targets(None, domain_with(*(f"vd{letter}" for letter in LETTERS))) == []


def test_on_xen_the_root_disk_and_emulated_disks_are_kept_clear_of() -> None:
    pv = domain_with("xvda", kind="xen", os_type="linux")
    assert data_targets(None, pv)[0] == "xvdb"
    assert data_targets(None, domain_with(kind="xen", os_type="xenpvh"))[0] == "xvdb"
    hvm = domain_with("hda", kind="xen", os_type="hvm")
    assert data_targets(None, hvm)[0] == "xvde"
    assert data_targets("xvdb", hvm) == ["xvdb"], "who asks for it knows the guest"
    assert data_targets(None, pv)[-1] == "xvdp"


@given(st.sampled_from(["qemu", "xen"]), st.text(st.sampled_from("svxdabhq1"), max_size=5))
def test_what_is_asked_for_is_had_or_refused_and_never_replaced(kind: str, wanted: str) -> None:
    free = data_targets(wanted, domain_with(kind=kind))
    assert free in ([], [wanted])
    if free:
        assert bus_of(wanted) in ({"xen"} if kind == "xen" else {"virtio", "scsi"})


def test_a_wanted_target_that_is_taken_in_any_view_is_not_had() -> None:
    assert data_targets("sdb", domain_with("sda")) == ["sdb"]
    assert data_targets("sdb", domain_with("sda"), domain_with("sdb")) == []
    assert data_targets("vdb", domain_with("vdb")) == []
    assert set(SCSI_TARGETS) & set(data_targets(None, domain_with())) == set()


# ---------------------------------------------------------------- the disk
@pytest.mark.parametrize("formats", [[DiskFormat.RAW], [DiskFormat.QCOW2, DiskFormat.RAW]])
@pytest.mark.parametrize(("target", "bus"), [("vdb", "virtio"), ("sdb", "scsi"), ("xvdb", "xen")])
def test_libvirt_takes_the_disk(
    connection: Any, formats: list[DiskFormat], target: str, bus: str
) -> None:
    disk = DataDisk(chain(*formats), "data-1")
    xml = build_data_disk(disk, target, is_xen=bus == "xen")
    domain = connection.defineXMLFlags(
        "<domain type='test'><name>web1</name><memory>1</memory><os><type>hvm</type></os>"
        f"<devices>{xml}</devices></domain>",
        libvirt.VIR_DOMAIN_DEFINE_VALIDATE,
    )
    try:
        (read,) = parse_domain(domain.XMLDesc()).disks
    finally:
        domain.undefine()
    assert (read.target, read.source, read.read_only) == (target, disk.source, False)
    assert (read.bus, read.format) == (bus, formats[0].value)


def test_only_qemu_shows_a_serial_and_a_scsi_disk_has_its_place() -> None:
    disk = DataDisk(chain(DiskFormat.RAW), "data-1")
    scsi = ET.fromstring(build_data_disk(disk, "sdc", is_xen=False, address=(2, 5)))
    assert scsi.findtext("serial") == "data-1"
    address = scsi.find("address")
    assert address is not None
    assert address.attrib == {
        "type": "drive", "controller": "2", "bus": "0", "target": "0", "unit": "5"
    }  # fmt: skip
    assert ET.fromstring(build_data_disk(disk, "xvdc", is_xen=True)).find("serial") is None


def test_a_device_model_is_needed_for_what_the_kernel_cannot_read() -> None:
    assert not needs_device_model(chain(DiskFormat.RAW))
    for formats in ([DiskFormat.QCOW2, DiskFormat.RAW], [DiskFormat.QCOW], [DiskFormat.VHD]):
        assert needs_device_model(chain(*formats))
    assert not needs_device_model(chain(DiskFormat.VHD, DiskFormat.VHD)), "tapdisk reads that"


def test_a_differencing_vhd_is_never_given_to_qemu() -> None:
    overlay = DataDisk(chain(DiskFormat.VHD, DiskFormat.RAW), "data-1")
    with pytest.raises(VhdNeedsTapdisk):
        build_data_disk(overlay, "vdb", is_xen=False)
    assert 'name="tap"' in build_data_disk(overlay, "xvdb", is_xen=True)


@given(NAMES)
def test_no_file_name_breaks_out_of_its_attribute(name: str) -> None:
    (image,) = chain(DiskFormat.RAW).images
    path = Path("/srv") / name.lstrip("/")
    disk = DataDisk(DiskChain((replace(image, path=path),)), "data-1")
    for target, is_xen in (("vdb", False), ("xvdb", True)):
        text = f"<domain><devices>{build_data_disk(disk, target, is_xen=is_xen)}</devices></domain>"
        (read,) = parse_domain(text).disks
        assert (read.source, read.target) == (path, target)
        detached = ET.fromstring(build_detached(read))
        assert detached.findall("source")[0].get("file") == str(path)
        assert detached.findall("target")[0].attrib == {"dev": target, "bus": bus_of(target)}
