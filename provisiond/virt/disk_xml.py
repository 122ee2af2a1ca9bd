"""The `<disk>` of an image that a guest works on: a domain's root, or a data disk. Pure.

Nothing is left to be guessed: the format of every image of the chain stands in the XML, so that
neither libvirt nor QEMU looks into a file that a guest can write to find out what it is.
"""

import xml.etree.ElementTree as ET
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from provisiond.api.requests import DiskFormat
from provisiond.disk.chain import QEMU_NAMES, DiskChain, DiskImage
from provisiond.errors import VhdNeedsTapdisk
from provisiond.virt.xml import SCSI_TARGETS, Disk, DomainXml

VIRTIO_TARGETS = tuple(f"vd{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")
# libxl: above p the numbering is extended.
_XEN_TARGETS = tuple(f"xvd{letter}" for letter in "abcdefghijklmnop")

_BUSES = {"vd": "virtio", "sd": "scsi", "xvd": "xen"}


@dataclass(frozen=True, slots=True)
class DataDisk:
    """A disk to be hot-added. Guests see `serial` on QEMU; virtio-blk has 20 characters for it."""

    chain: DiskChain
    serial: str

    @property
    def source(self) -> Path:
        """The file that the guest writes to."""
        return self.chain.images[0].path


# ---------------------------------------------------------------- targets
def bus_of(target: str) -> str:
    """The bus that a target's name stands for; raises KeyError for a name of another kind."""
    return _BUSES[target[:-1]]


def data_targets(wanted: str | None, *views: DomainXml) -> list[str]:
    """The targets that a data disk may take, best first: free in every view (live, inactive)."""
    taken = {disk.target for view in views for disk in view.disks}
    if wanted is None:
        possible = _default_targets(views[0])
    else:
        all_targets = _XEN_TARGETS if views[0].is_xen else VIRTIO_TARGETS + SCSI_TARGETS
        possible = (wanted,) if wanted in all_targets else ()
    return [target for target in possible if target not in taken]


def _default_targets(domain: DomainXml) -> tuple[str, ...]:
    """On Xen `a` is the root disk's, and up to `d` an HVM domain's emulated IDE disks may be."""
    if not domain.is_xen:
        return VIRTIO_TARGETS
    return _XEN_TARGETS[4 if domain.os_type == "hvm" else 1 :]


# ---------------------------------------------------------------- the image
def set_image(disk: ET.Element, chain: DiskChain, *, is_xen: bool) -> None:
    """Make `<disk>` one of this chain; whatever it says of another source goes.

    Raises VhdNeedsTapdisk for a chain that QEMU would have to open and cannot.
    """
    refuse_misread(chain, is_xen=is_xen)
    disk.set("type", "file")
    remove(disk, "source", "backingStore", "mirror", "encryption", "auth", "backenddomain")
    driver = disk.find("driver")
    if driver is None:
        driver = ET.Element("driver")
        disk.insert(0, driver)
    for child in list(driver):  # such as <metadata_cache>, which not every format has
        driver.remove(child)
    for name, value in zip(("name", "type"), _driver(chain.images[0], is_xen=is_xen), strict=True):
        driver.set(name, value)
    ET.SubElement(disk, "source", file=str(chain.images[0].path))
    if not is_xen:
        _add_backing(disk, chain.images[1:])


def _add_backing(above: ET.Element, images: Iterable[DiskImage]) -> None:
    """Every image below with its format, and the end of the chain said aloud."""
    for image in images:
        above = ET.SubElement(above, "backingStore", type="file")
        ET.SubElement(above, "format", type=QEMU_NAMES[image.format])
        ET.SubElement(above, "source", file=str(image.path))
    ET.SubElement(above, "backingStore")


def _driver(image: DiskImage, *, is_xen: bool) -> tuple[str, str]:
    """Who serves the image, and as what.

    On Xen that is the kernel (`phy`), tapdisk (`tap`) or a QEMU that runs for the domain. libvirt
    has QEMU's words for a format, but for libxl, where a VHD is `vhd`.
    """
    if not is_xen:
        return "qemu", QEMU_NAMES[image.format]
    if image.format is DiskFormat.RAW:
        return "phy", "raw"
    if image.format is DiskFormat.VHD:
        return ("qemu" if image.backing is None else "tap"), "vhd"
    return "qemu", QEMU_NAMES[image.format]


def needs_device_model(chain: DiskChain) -> bool:
    """Whether on Xen a QEMU has to run for the domain that gets the disk."""
    return _driver(chain.images[0], is_xen=True)[0] == "qemu"


def refuse_misread(chain: DiskChain, *, is_xen: bool) -> None:
    """Refuse what QEMU would open and misread: it takes a differencing VHD for one of zeros.

    Raises VhdNeedsTapdisk.
    """
    if is_xen and _driver(chain.images[0], is_xen=True)[0] == "tap":
        return
    for image in chain.images:
        if image.format is DiskFormat.VHD and image.backing is not None:
            raise VhdNeedsTapdisk(f"{image.path} is a VHD that stands on another image")


def remove(parent: ET.Element, *tags: str) -> None:
    """Take out every child of these names."""
    for child in [child for child in parent if child.tag in tags]:
        parent.remove(child)


# ---------------------------------------------------------------- the disk
def build_data_disk(
    disk: DataDisk, target: str, *, is_xen: bool, address: tuple[int, int] | None = None
) -> str:
    """A writable disk at `target`; `address` is controller and unit of a SCSI disk's drive."""
    element = ET.Element("disk", device="disk")
    set_image(element, disk.chain, is_xen=is_xen)
    ET.SubElement(element, "target", dev=target, bus=bus_of(target))
    if not is_xen:  # a PV disk has no serial number
        ET.SubElement(element, "serial").text = disk.serial
    if address is not None:
        controller, unit = map(str, address)
        place = {"controller": controller, "bus": "0", "target": "0", "unit": unit}
        ET.SubElement(element, "address", place, type="drive")
    return ET.tostring(element, encoding="unicode")


def build_detached(disk: Disk) -> str:
    """What names a disk to be detached: libvirt looks at the target alone."""
    element = ET.Element("disk", type="file", device="disk")
    ET.SubElement(element, "source", file=str(disk.source))
    ET.SubElement(element, "target", dev=disk.target, bus=disk.bus or bus_of(disk.target))
    return ET.tostring(element, encoding="unicode")
