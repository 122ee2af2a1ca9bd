"""A new domain's XML out of the operator's template, a libvirt domain XML. Pure but for its reader.

What a template says stays as it is, but for what every domain must have for itself. So a template
may be what `virt-install --print-xml` prints, or what `virsh dumpxml` shows of a guest that runs.
"""

import os
import stat
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

from provisiond.disk.chain import DiskChain
from provisiond.errors import TemplateUnusable
from provisiond.plan import CHANNEL_NAME
from provisiond.virt.disk_xml import VIRTIO_TARGETS, remove, set_image
from provisiond.virt.original import forget_original
from provisiond.virt.xml import METADATA, parse_xml

# So that what an operator reads later with virsh has the prefixes of the template.
for _prefix, _namespace in (
    ("provisiond", METADATA),
    ("qemu", "http://libvirt.org/schemas/domain/qemu/1.0"),
    ("xen", "http://libvirt.org/schemas/domain/xen/1.0"),
    ("libosinfo", "http://libosinfo.org/xmlns/libvirt/domain/1.0"),
):
    ET.register_namespace(_prefix, _namespace)

_LONGEST = 2**20  # characters of a template
_LONGEST_NUMBER = 9  # digits; Python reads none of more than 4,300

# What an interface keeps when it is put on another network.
_OF_ANY_NETWORK = (
    *("mac", "model", "driver", "boot", "rom", "mtu", "link", "address"),
    *("bandwidth", "filterref", "tune", "target", "guest"),
)


@dataclass(frozen=True, slots=True)
class NewDomain:
    """What a domain has for itself. What is None stays as the template has it.

    Of `network` (libvirt's) and `bridge` (the host's) one at most is given.
    """

    name: str
    uuid: str
    job_id: str
    disk: DiskChain
    mac: str
    memory_mib: int | None = None
    vcpus: int | None = None
    network: str | None = None
    bridge: str | None = None


def read_template(template_dir: Path, name: str) -> str:
    """The text of a template, one XML document without entities; raises TemplateUnusable."""
    path = template_dir / f"{name}.xml"
    try:
        # Whatever is there: opening a FIFO must not wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise TemplateUnusable(f"the template {path} is no regular file")
        with os.fdopen(descriptor, encoding="utf-8") as file:
            text = file.read(_LONGEST + 1)
            if len(text) > _LONGEST:
                raise TemplateUnusable(f"the template {path} is longer than {_LONGEST}")
    except OSError as error:
        raise TemplateUnusable(f"the template {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise TemplateUnusable(f"the template {path} is no UTF-8 text") from None
    _root(text, f"the template {path}")
    return text


def build_domain(template: str, new: NewDomain, *, is_xen: bool) -> str:
    """The XML of the domain `new`; raises TemplateUnusable, VhdNeedsTapdisk.

    - Root disk: the first `<disk>` that is a disk; where there is none, `vda` or `xvda`. Another
      disk that guests could write to is refused: all that are made would write to the same.
    - `vcpus` takes what contradicts it out of the template: a topology of another product, pins of
      vcpus that are no more. Memory or vcpus that the template lays out in NUMA cells, or memory
      that can grow by hot-plug, are refused: only the operator knows what they shall become.
    - MACs: the first interface gets `new.mac`, libvirt makes those of all others.
    """
    domain = _parse(template, new, is_xen=is_xen)
    forget_original(domain)
    devices = _only_devices(domain, new)
    _set_text(domain, "name", new.name)
    _set_text(domain, "uuid", new.uuid)
    _set_memory(domain, new)
    _set_vcpus(domain, new)
    _set_root_disk(devices, new, is_xen=is_xen)
    _set_interfaces(devices, new, is_xen=is_xen)
    if not is_xen:
        _set_channel(devices)
    _set_metadata(domain, new)
    ET.indent(domain)
    return ET.tostring(domain, encoding="unicode")


# ---------------------------------------------------------------- reading
def _parse(template: str, new: NewDomain, *, is_xen: bool) -> ET.Element:
    root = _root(template, f"{new.name}: the template")
    if root.tag != "domain":
        raise TemplateUnusable(
            f"{new.name}: the template is a <{root.tag}>, where a <domain> was expected"
        )
    kinds = ("xen",) if is_xen else ("qemu", "kvm")
    if (kind := root.get("type")) not in kinds:
        raise TemplateUnusable(
            f"{new.name}: the template is of type {kind}, and this host runs {' and '.join(kinds)}",
            hint="Make the template on a host of this kind, or correct <domain type='…'>.",
        )
    return root


def _root(template: str, what: str) -> ET.Element:
    try:
        return parse_xml(template)
    except ValueError as error:
        raise TemplateUnusable(
            f"{what} {error}",
            hint="virt-install prints a right one with --import, or with --print-xml 2.",
        ) from None


def _unusable(new: NewDomain, what: str, hint: str) -> TemplateUnusable:
    return TemplateUnusable(f"{new.name}: the template {what}", hint=hint)


def _only_devices(domain: ET.Element, new: NewDomain) -> ET.Element:
    devices = domain.findall("devices")
    if len(devices) > 1:
        raise _unusable(new, "has <devices> twice", "Put all of them into one <devices>.")
    if not devices:
        return ET.SubElement(domain, "devices")
    if devices[0].find("memory[@model='nvdimm']") is not None:
        raise _unusable(
            new,
            "has an NVDIMM, that every guest made from it would write to",
            "Take <memory model='nvdimm'> out of the template.",
        )
    return devices[0]


# ---------------------------------------------------------------- memory, vcpus
def _set_memory(domain: ET.Element, new: NewDomain) -> None:
    if new.memory_mib is None:
        return
    for path in ("maxMemory", "cpu/numa", "devices/memory"):
        if domain.find(path) is not None:
            raise _unusable(
                new,
                f"lays out its memory (<{path.rpartition('/')[2]}>), so it cannot be given another",
                "Leave the memory out of the request, or that element out of the template.",
            )
    for tag in ("memory", "currentMemory"):
        _set_text(domain, tag, str(new.memory_mib)).set("unit", "MiB")


def _set_vcpus(domain: ET.Element, new: NewDomain) -> None:
    if new.vcpus is None:
        return
    if domain.find("cpu/numa") is not None:
        raise _unusable(
            new,
            "lays out its vcpus (<numa>), so it cannot be given another number",
            "Leave the vcpus out of the request, or that element out of the template.",
        )
    _set_text(domain, "vcpu", str(new.vcpus)).attrib.pop("current", None)
    remove(domain, "vcpus")
    if (cpu := domain.find("cpu")) is not None:
        for topology in cpu.findall("topology"):
            if _product(topology) != new.vcpus:
                cpu.remove(topology)
    if (tune := domain.find("cputune")) is not None:
        for pin in tune.findall("vcpupin"):
            if _number(pin.get("vcpu", "")) not in range(new.vcpus):
                tune.remove(pin)
        remove(tune, "vcpusched", "cachetune", "memorytune")


def _product(topology: ET.Element) -> int:
    product = 1
    for count in topology.attrib.values():
        product *= _number(count) or 0
    return product


def _number(text: str) -> int | None:
    """A count of vcpus; None where it is none that libvirt would take."""
    return int(text) if len(text) <= _LONGEST_NUMBER and text.isdecimal() else None


# ---------------------------------------------------------------- root disk
def _set_root_disk(devices: ET.Element, new: NewDomain, *, is_xen: bool) -> None:
    every = devices.findall("disk")
    disks = [disk for disk in every if disk.get("device", "disk") == "disk"]
    # libvirt makes a cdrom read-only by itself, nothing else.
    for disk in [disk for disk in every if disk.get("device") != "cdrom" and disk not in disks[:1]]:
        if not any(disk.find(tag) is not None for tag in ("readonly", "shareable", "transient")):
            target = disk.find("target")
            raise _unusable(
                new,
                f"has a second disk, {'' if target is None else target.get('dev')}, that every "
                "guest made from it would write to",
                "Take it out of the template, or mark it <readonly/>, <transient/>, <shareable/>.",
            )
    root = disks[0] if disks else _add_root_disk(devices, is_xen=is_xen)
    for address in root.findall("address"):
        if address.get("type") != "drive":
            root.remove(address)
    remove(root, "readonly", "shareable", "transient")
    set_image(root, new.disk, is_xen=is_xen)


def _add_root_disk(devices: ET.Element, *, is_xen: bool) -> ET.Element:
    taken = {target.get("dev") for target in devices.findall("disk/target")}
    disk = ET.SubElement(devices, "disk", device="disk")
    if is_xen:
        ET.SubElement(disk, "target", dev="xvda", bus="xen")
    else:
        free = next(target for target in VIRTIO_TARGETS if target not in taken)
        ET.SubElement(disk, "target", dev=free, bus="virtio")
    return disk


# ---------------------------------------------------------------- interfaces
def _set_interfaces(devices: ET.Element, new: NewDomain, *, is_xen: bool) -> None:
    interfaces = devices.findall("interface")
    if not interfaces:
        if new.network is None and new.bridge is None:
            return
        interfaces = [ET.SubElement(devices, "interface")]
        if not is_xen:
            ET.SubElement(interfaces[0], "model", type="virtio")
    first = interfaces[0]
    first.insert(0, ET.Element("mac", address=new.mac))
    for kind, name in (("network", new.network), ("bridge", new.bridge)):
        if name is not None:
            _put_on(first, kind, name)


def _put_on(interface: ET.Element, kind: str, name: str) -> None:
    """On another network of the same kind it stays as it is; of another, what does not belong."""
    if interface.get("type") != kind:
        interface.set("type", kind)
        for child in [child for child in interface if child.tag not in _OF_ANY_NETWORK]:
            interface.remove(child)
    remove(interface, "source")
    interface.append(ET.Element("source", {kind: name}))


# ---------------------------------------------------------------- channel, metadata
def _set_channel(devices: ET.Element) -> None:
    """The channel over which the guest answers; one of another kind under its name is replaced."""
    for channel in devices.findall("channel"):
        if channel.find(f"target[@name='{CHANNEL_NAME}']") is not None:
            source = channel.find("source")
            if channel.get("type") == "unix" and (source is None or source.get("mode") == "bind"):
                return
            devices.remove(channel)
    channel = ET.SubElement(devices, "channel", type="unix")
    ET.SubElement(channel, "target", type="virtio", name=CHANNEL_NAME)


def _set_metadata(domain: ET.Element, new: NewDomain) -> None:
    metadata = domain.find("metadata")
    if metadata is None:
        metadata = ET.SubElement(domain, "metadata")
    remove(metadata, f"{{{METADATA}}}guest")
    facts = {"job": new.job_id, "disk": str(new.disk.images[0].path)}
    ET.SubElement(metadata, f"{{{METADATA}}}guest", facts)


# ---------------------------------------------------------------- elements
def _set_text(domain: ET.Element, tag: str, text: str) -> ET.Element:
    element = domain.find(tag)
    if element is None:
        element = ET.SubElement(domain, tag)
    element.text = text
    return element
