"""The PV guest that dom0 starts: the tiny guest of tests/lab, under Xen. Pure."""

import xml.etree.ElementTree as ET

from tests.lab.domain import Guest
from tests.lab.initramfs import GuestFiles

BRIDGE = "xenbr0"
MEMORY_MIB = 128
KERNEL_WORDS = (
    "console=hvc0",
    "quiet",
    "loglevel=4",
    "panic=-1",
    "clocksource=xen",
    "mitigations=off",
)


def domu_xml(guest: Guest, *, files: GuestFiles) -> str:
    """The definition for `virDomainDefineXML`; its interface is on the bridge of dom0."""
    domain = _domain(guest, files)
    _text(domain, "uuid", guest.uuid)
    for nic in domain.iterfind("devices/interface"):
        ET.SubElement(nic, "mac", address=guest.mac)
    return _xml(domain)


def domu_template_xml(model: Guest, *, files: GuestFiles) -> str:
    """An operator's template for PV guests like `model`: no UUID, no MAC, no disk of its own."""
    return _xml(_domain(model, files))


def _domain(guest: Guest, files: GuestFiles) -> ET.Element:
    domain = ET.Element("domain", type="xen")
    _text(domain, "name", guest.name)
    _text(domain, "memory", str(MEMORY_MIB), unit="MiB")
    _text(domain, "vcpu", "1")
    boot = ET.SubElement(domain, "os")
    _text(boot, "type", "linux", arch="x86_64", machine="xenpv")
    _text(boot, "kernel", str(files.kernel))
    _text(boot, "initrd", str(files.initramfs))
    _text(boot, "cmdline", " ".join((*KERNEL_WORDS, *guest.kernel_words)))
    for event, action in (("poweroff", "destroy"), ("reboot", "restart"), ("crash", "destroy")):
        _text(domain, f"on_{event}", action)
    devices = ET.SubElement(domain, "devices")
    nic = ET.SubElement(devices, "interface", type="bridge")
    ET.SubElement(nic, "source", bridge=BRIDGE)
    console = ET.SubElement(devices, "console", type="pty")
    ET.SubElement(console, "target", type="xen", port="0")
    return domain


def _xml(domain: ET.Element) -> str:
    ET.indent(domain)
    return ET.tostring(domain, encoding="unicode")


def _text(parent: ET.Element, tag: str, text: str, **attributes: str) -> None:
    ET.SubElement(parent, tag, attributes).text = text
