"""The template of a guest that shows whether an image works. Pure: paths go in, XML comes out.

The serial console and a monitor of our own are Unix sockets; what the guest says on the console is
in a file as well, also while nobody listens. Its network is QEMU's own (SLIRP).
"""

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

_QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
ET.register_namespace("qemu", _QEMU)

# Where QEMU's own network has its gateway and name server (QEMU's documentation of -netdev user).
ADDRESS, GATEWAY, NAME_SERVER = "10.0.2.15/24", "10.0.2.2", "10.0.2.3"


class Accelerator(StrEnum):
    """How a guest's instructions run: by the processor, or translated."""

    KVM = "kvm"
    TCG = "tcg"


@dataclass(frozen=True, slots=True)
class Boot:
    """What the guest boots instead of what its disk holds; `initrd` may be all of its root."""

    kernel: Path
    initrd: Path | None = None
    words: str = "root=/dev/vda console=ttyS0"
    """The kernel's command line."""


@dataclass(frozen=True, slots=True)
class Model:
    """What the guest has; `console`, `console_log` and `monitor` are where to find it."""

    accelerator: Accelerator
    memory_mib: int
    vcpus: int
    boot: Boot | None
    console: Path
    console_log: Path
    monitor: Path


def model_xml(model: Model) -> str:
    """The template, for a host with x86-64 and libvirt's QEMU driver."""
    kvm = model.accelerator is Accelerator.KVM
    domain = ET.Element("domain", type="kvm" if kvm else "qemu")
    _text(domain, "name", "template")
    _text(domain, "memory", str(model.memory_mib), unit="MiB")
    _text(domain, "vcpu", str(model.vcpus))
    system = ET.SubElement(domain, "os")
    _text(system, "type", "hvm", arch="x86_64", machine="pc")
    if model.boot is not None:
        _text(system, "kernel", str(model.boot.kernel))
        if model.boot.initrd is not None:
            _text(system, "initrd", str(model.boot.initrd))
        _text(system, "cmdline", model.boot.words)
    # Today's distributions need more than QEMU's default, a processor of 2003.
    ET.SubElement(domain, "cpu", mode="host-passthrough" if kvm else "maximum")
    ET.SubElement(ET.SubElement(domain, "features"), "acpi")
    for event, action in (("poweroff", "destroy"), ("reboot", "restart"), ("crash", "destroy")):
        _text(domain, f"on_{event}", action)
    _add_devices(domain, model)
    line = ET.SubElement(domain, f"{{{_QEMU}}}commandline")
    for word in ("-qmp", f"unix:{model.monitor},server=on,wait=off"):
        ET.SubElement(line, f"{{{_QEMU}}}arg", value=word)
    ET.indent(domain)
    return ET.tostring(domain, encoding="unicode")


def _add_devices(domain: ET.Element, model: Model) -> None:
    devices = ET.SubElement(domain, "devices")
    ET.SubElement(devices, "controller", type="usb", model="none")
    ET.SubElement(devices, "controller", type="scsi", index="0", model="virtio-scsi")
    nic = ET.SubElement(devices, "interface", type="user")
    ET.SubElement(nic, "model", type="virtio")
    ET.SubElement(nic, "rom", enabled="no")  # it shall boot from its disk
    serial = ET.SubElement(devices, "serial", type="unix")
    ET.SubElement(serial, "source", mode="bind", path=str(model.console))
    ET.SubElement(serial, "log", file=str(model.console_log), append="off")
    ET.SubElement(serial, "target", port="0")
    ET.SubElement(ET.SubElement(devices, "video"), "model", type="vga")
    ET.SubElement(devices, "memballoon", model="none")
    rng = ET.SubElement(devices, "rng", model="virtio")  # SSH host keys do not wait for chance
    _text(rng, "backend", "/dev/urandom", model="random")


def _text(parent: ET.Element, tag: str, text: str, **attributes: str) -> None:
    ET.SubElement(parent, tag, attributes).text = text
