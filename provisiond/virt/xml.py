"""Domain XML: read what matters of a domain, build what the config ISO is attached with. Pure.

What is read is libvirt's own XML, or what libvirt is about to be given for a new domain. What is
built goes to running domains; a controller to persistent configs too, with a data disk that stays.
"""

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

# libxl: above p the numbering is extended, a to d can overlap an HVM domain's emulated IDE disks.
XEN_TARGETS = tuple(f"xvd{letter}" for letter in "ponmlkjihgfe")
SCSI_TARGETS = tuple(f"sd{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")

_REMEMBERED = 128  # texts, of some 10 KB each
_DEEPEST = 100  # elements in one another; libvirt's own have about ten

# What provisiond writes into the `<metadata>` of a domain that it makes (virt/template.py).
METADATA = "urn:provisiond:guest:1"


@dataclass(frozen=True, slots=True)
class Disk:
    """A `<disk>`: its target, its source file (None for anything else) and its drive address.

    `format` and `bus` are libvirt's words; `chain` is every file and block device that the XML
    names for it, its source first: what it stands on is there while the domain runs on QEMU.
    """

    target: str
    source: Path | None
    controller: int | None
    unit: int | None
    bus: str | None
    format: str | None
    read_only: bool
    chain: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class MadeBy:
    """Which job has made a domain, and the disk that it made for it."""

    job_id: str
    disk: Path


@dataclass(frozen=True, slots=True)
class ScsiController:
    """A `<controller type='scsi'>`."""

    index: int
    model: str | None


@dataclass(frozen=True, slots=True)
class DomainXml:
    """What provisiond reads of a domain's XML; `domid` is None in that of a domain that is off."""

    name: str
    uuid: str
    kind: str
    os_type: str
    domid: int | None
    made_by: MadeBy | None
    disks: tuple[Disk, ...]
    scsi_controllers: tuple[ScsiController, ...]
    macs: tuple[str, ...]
    channels: tuple[tuple[str, Path], ...]

    @property
    def is_xen(self) -> bool:
        """Whether libxl runs this domain; QEMU otherwise."""
        return self.kind == "xen"

    def disk_of(self, source: Path) -> Disk | None:
        """The disk whose source is this file."""
        return next((disk for disk in self.disks if disk.source == source), None)

    def channel(self, name: str) -> Path | None:
        """The Unix socket of the virtio channel with this target name."""
        return next((path for target, path in self.channels if target == name), None)

    @property
    def virtio_scsi(self) -> int | None:
        """The index of the first virtio-scsi controller."""
        models = ("virtio-scsi", "virtio-transitional", "virtio-non-transitional")
        return next((c.index for c in self.scsi_controllers if c.model in models), None)

    @property
    def next_scsi_index(self) -> int:
        """The index that a further SCSI controller would have."""
        return max((c.index for c in self.scsi_controllers), default=-1) + 1


class _Plain(ET.TreeBuilder):
    """Elements and text. What comes with a document type are entities, which may grow or fetch."""

    def __init__(self) -> None:
        super().__init__()
        self._depth = 0

    def doctype(self, *_declared: object) -> None:
        raise ValueError("has a document type, which may bring entities with it")

    def start(self, tag: str, attrs: dict[str, str], /) -> ET.Element:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise ValueError(f"has more than {_DEEPEST} elements in one another")
        return super().start(tag, attrs)

    def end(self, tag: str, /) -> ET.Element:
        self._depth -= 1
        return super().end(tag)


def parse_xml(text: str) -> ET.Element:
    """The root of a document that has no document type; raises ValueError.

    All XML that comes from outside this process is read here.
    """
    try:
        root: ET.Element = ET.fromstring(text, ET.XMLParser(target=_Plain()))
    except ET.ParseError as error:
        raise ValueError(f"is not one XML document: {error}") from None
    return root


@lru_cache(maxsize=_REMEMBERED)
def parse_domain(xml: str) -> DomainXml:
    """Read a `<domain>`; raises ValueError where it is none.

    What was read lately is remembered: a job sees the same text several times.
    """
    root = parse_xml(xml)
    if root.tag != "domain":
        raise ValueError(f"<{root.tag}> where a <domain> was expected")
    domid = root.get("id")
    return DomainXml(
        name=root.findtext("name", ""),
        uuid=root.findtext("uuid", ""),
        kind=root.get("type", ""),
        os_type=root.findtext("os/type", ""),
        domid=int(domid) if domid else None,
        made_by=_made_by(root),
        disks=tuple(map(_parse_disk, root.iterfind("devices/disk"))),
        scsi_controllers=tuple(
            ScsiController(int(element.get("index", "0")), element.get("model"))
            for element in root.iterfind("devices/controller[@type='scsi']")
        ),
        macs=tuple(
            element.get("address", "").lower()
            for element in root.iterfind("devices/interface/mac[@address]")
        ),
        channels=tuple(_channels(root)),
    )


def _parse_disk(element: ET.Element) -> Disk:
    file = _attribute(element, "source", "file")
    controller = _attribute(element, "address[@type='drive']", "controller")
    unit = _attribute(element, "address[@type='drive']", "unit")
    return Disk(
        target=_attribute(element, "target", "dev") or "",
        source=Path(file) if file else None,
        controller=int(controller) if controller else None,
        unit=int(unit) if unit else None,
        bus=_attribute(element, "target", "bus"),
        format=_attribute(element, "driver", "type"),
        read_only=element.find("readonly") is not None,
        chain=tuple(_sources(element)),
    )


def _sources(disk: ET.Element) -> Iterator[Path]:
    """Its own source, and those of its `<backingStore>`s and `<mirror>`."""
    for source in disk.iter("source"):
        if path := source.get("file") or source.get("dev"):
            yield Path(path)


def _made_by(root: ET.Element) -> MadeBy | None:
    guest = root.find(f"metadata/{{{METADATA}}}guest")
    if guest is None:
        return None
    job_id, disk = guest.get("job"), guest.get("disk")
    return MadeBy(job_id, Path(disk)) if job_id and disk else None


def _channels(root: ET.Element) -> Iterator[tuple[str, Path]]:
    for element in root.iterfind("devices/channel[@type='unix']"):
        name = _attribute(element, "target[@type='virtio']", "name")
        path = _attribute(element, "source", "path")
        if name and path:
            yield name, Path(path)


def _attribute(element: ET.Element, path: str, name: str) -> str | None:
    child = element.find(path)
    return None if child is None else child.get(name)


# ---------------------------------------------------------------- targets
def free_targets(*views: DomainXml) -> list[str]:
    """The targets the config ISO may take, best first: free in every view (live, inactive)."""
    taken = {disk.target for view in views for disk in view.disks}
    wanted = XEN_TARGETS if views[0].is_xen else SCSI_TARGETS
    return [target for target in wanted if target not in taken]


def free_unit(domain: DomainXml, controller: int) -> int:
    """The lowest free unit of a SCSI controller."""
    taken = {disk.unit for disk in domain.disks if disk.controller == controller}
    return next(unit for unit in range(len(taken) + 1) if unit not in taken)


# ---------------------------------------------------------------- what is attached
def build_xen_disk(iso: Path, target: str) -> str:
    """A read-only PV disk from a file: hot-pluggable in libxl, through the block scripts.

    A `cdrom` cannot be hot-plugged there, and `driver name='qemu'` reports success where the guest
    never sees the disk.
    """
    disk = ET.Element("disk", type="file", device="disk")
    ET.SubElement(disk, "driver", name="phy", type="raw")
    return _finish_disk(disk, iso, target, "xen")


def build_scsi_cdrom(iso: Path, target: str, *, controller: int, unit: int) -> str:
    """A SCSI CD-ROM: the one kind that QEMU removes at once whatever the guest does."""
    disk = ET.Element("disk", type="file", device="cdrom")
    ET.SubElement(disk, "driver", name="qemu", type="raw")
    ET.SubElement(
        disk,
        "address",
        type="drive",
        controller=str(controller),
        bus="0",
        target="0",
        unit=str(unit),
    )
    return _finish_disk(disk, iso, target, "scsi")


def _finish_disk(disk: ET.Element, iso: Path, target: str, bus: str) -> str:
    ET.SubElement(disk, "source", file=str(iso))
    ET.SubElement(disk, "target", dev=target, bus=bus)
    ET.SubElement(disk, "readonly")
    return ET.tostring(disk, encoding="unicode")


def build_scsi_controller(index: int) -> str:
    """A virtio-scsi controller: libvirt's own default is one that guests have no driver for."""
    controller = ET.Element("controller", type="scsi", index=str(index), model="virtio-scsi")
    return ET.tostring(controller, encoding="unicode")
