"""The libvirt domain of a tiny guest. Pure: a guest and a folder go in, XML comes out."""

import hashlib
import uuid
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tests.lab.initramfs import GuestFiles

CHANNEL = "org.provisiond.0"
NAMESPACE = uuid.UUID("5f3a0f5e-2a6b-4d5c-9d8e-0f6a1c2b3d4e")

KERNEL_WORDS = (
    "console=ttyS0",
    "quiet",
    "loglevel=4",
    "panic=-1",
    # Under TCG on a busy host a kernel that tests or calibrates its timers can panic (one boot in
    # ten did) or end with a wrong clock: so it tests none and uses the HPET, which needs neither.
    "no_timer_check",
    "nolapic_timer",
    "tsc=unstable",
)


@dataclass(frozen=True, slots=True)
class Guest:
    """One tiny guest; UUID and MAC come from its name, so a name is enough to know all of it."""

    name: str
    kernel_words: tuple[str, ...] = ()
    nic: bool = True
    scsi_controller: bool = True
    channel: bool = True
    accelerator: Literal["qemu", "kvm"] = "qemu"
    memory_mib: int = 96
    uuid: str = field(init=False)
    mac: str = field(init=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha256(self.name.encode()).hexdigest()
        object.__setattr__(self, "uuid", str(uuid.uuid5(NAMESPACE, self.name)))
        mac = f"52:54:00:{digest[:2]}:{digest[2:4]}:{digest[4:6]}"
        object.__setattr__(self, "mac", mac)


def kernel_words(
    *, silent: bool = False, delay: int = 0, held: bool = False, broken_step: str | None = None
) -> tuple[str, ...]:
    """What the guest's init (`guest-init` says what each word does) is told."""
    words = {
        "lab.silent": silent,
        f"lab.delay={delay}": delay > 0,
        "lab.hold": held,
        f"lab.break={broken_step}": broken_step is not None,
    }
    return tuple(word for word, wanted in words.items() if wanted)


def console_log(folder: Path, name: str) -> Path:
    """What the guest's kernel and its script say."""
    return folder / f"{name}.log"


def shell_socket(folder: Path, name: str) -> Path:
    """Where the guest's root shell answers."""
    return folder / f"{name}.shell"


def channel_socket(folder: Path, name: str) -> Path:
    """Where the guest's channel answers, if it is not libvirt that chooses."""
    return folder / f"{name}.channel"


def template_log(folder: Path) -> Path:
    """What all guests of the template say, one after the other: they cannot have a log each."""
    return folder / "template.log"


def domain_xml(guest: Guest, *, files: GuestFiles, folder: Path, own_channel: bool = False) -> str:
    """The definition for `virDomainDefineXML`; log and shell socket go into `folder`.

    So does the channel's socket if it is `own_channel`; otherwise libvirt chooses its place.
    """
    domain, devices = _domain(guest, files)
    _text(domain, "uuid", guest.uuid)
    if (nic := devices.find("interface")) is not None:
        ET.SubElement(nic, "mac", address=guest.mac)
    if own_channel and (source := devices.find("channel/source")) is not None:
        source.set("path", str(channel_socket(folder, guest.name)))
    _add_serial(devices, port="0", kind="file", path=str(console_log(folder, guest.name)))
    _add_serial(devices, port="1", kind="unix", path=str(shell_socket(folder, guest.name)))
    return _xml(domain)


def template_xml(
    model: Guest, *, files: GuestFiles, folder: Path, target: str | None = "vda"
) -> str:
    """An operator's template for guests like `model`: no UUID, no MAC, no file that is one guest's.

    So each guest's shell is at a terminal that libvirt chooses (`shell_path`), and what they say is
    in one log in `folder`. The root disk at `target` is a file that does not exist; with None there
    is no disk.
    """
    domain, devices = _domain(model, files)
    if target is not None:
        disk = ET.SubElement(devices, "disk", type="file", device="disk")
        ET.SubElement(disk, "driver", name="qemu", type="qcow2")
        ET.SubElement(disk, "source", file=f"/var/lib/libvirt/images/{model.name}.qcow2")
        bus = "virtio" if target.startswith("vd") else "scsi"
        ET.SubElement(disk, "target", dev=target, bus=bus)
    _add_serial(devices, port="0", kind="file", path=str(template_log(folder)), append="on")
    _add_serial(devices, port="1", kind="pty")
    return _xml(domain)


def shell_path(live_xml: str) -> Path:
    """Where the root shell of a running guest answers: a socket, or a terminal of libvirt's."""
    return _serial_path(live_xml, port="1")


def log_path(live_xml: str) -> Path:
    """Where to read what a running guest says, and perhaps others of its template."""
    return _serial_path(live_xml, port="0")


def cdrom_xml(iso: Path, *, target: str) -> str:
    """A SCSI CD-ROM for a running guest, as a stranger would attach one."""
    disk = ET.Element("disk", type="file", device="cdrom")
    ET.SubElement(disk, "driver", name="qemu", type="raw")
    ET.SubElement(disk, "source", file=str(iso))
    ET.SubElement(disk, "target", dev=target, bus="scsi")
    ET.SubElement(disk, "readonly")
    return ET.tostring(disk, encoding="unicode")


def _domain(guest: Guest, files: GuestFiles) -> tuple[ET.Element, ET.Element]:
    """What guests can have in common, and the `<devices>` of it."""
    domain = ET.Element("domain", type=guest.accelerator)
    _text(domain, "name", guest.name)
    _text(domain, "memory", str(guest.memory_mib), unit="MiB")
    _text(domain, "vcpu", "1")
    boot = ET.SubElement(domain, "os")
    _text(boot, "type", "hvm", arch="x86_64", machine="pc")
    _text(boot, "kernel", str(files.kernel))
    _text(boot, "initrd", str(files.initramfs))
    _text(boot, "cmdline", " ".join((*KERNEL_WORDS, *guest.kernel_words)))
    features = ET.SubElement(domain, "features")
    ET.SubElement(features, "acpi")
    for event, action in (("poweroff", "destroy"), ("reboot", "restart"), ("crash", "destroy")):
        _text(domain, f"on_{event}", action)
    return domain, _add_devices(domain, guest)


def _add_devices(domain: ET.Element, guest: Guest) -> ET.Element:
    devices = ET.SubElement(domain, "devices")
    ET.SubElement(devices, "controller", type="usb", model="none")
    if guest.scsi_controller:
        ET.SubElement(devices, "controller", type="scsi", index="0", model="virtio-scsi")
    if guest.nic:
        nic = ET.SubElement(devices, "interface", type="user")
        ET.SubElement(nic, "model", type="virtio")
        ET.SubElement(nic, "rom", enabled="no")
    if guest.channel:
        channel = ET.SubElement(devices, "channel", type="unix")
        ET.SubElement(channel, "source", mode="bind")  # libvirt chooses the path
        ET.SubElement(channel, "target", type="virtio", name=CHANNEL)
    ET.SubElement(devices, "memballoon", model="none")
    return devices


def _add_serial(devices: ET.Element, *, port: str, kind: str, **source: str) -> None:
    serial = ET.SubElement(devices, "serial", type=kind)
    if kind == "unix":
        source["mode"] = "bind"
    if source:
        ET.SubElement(serial, "source", source)
    ET.SubElement(serial, "target", port=port)


def _serial_path(live_xml: str, *, port: str) -> Path:
    source = ET.fromstring(live_xml).find(f"devices/serial/target[@port='{port}']/../source")
    if source is None:
        raise ValueError(f"the domain does not run, or has no serial port {port}")
    return Path(source.attrib["path"])


def _xml(domain: ET.Element) -> str:
    ET.indent(domain)
    return ET.tostring(domain, encoding="unicode")


def _text(parent: ET.Element, tag: str, text: str, **attributes: str) -> None:
    ET.SubElement(parent, tag, attributes).text = text
