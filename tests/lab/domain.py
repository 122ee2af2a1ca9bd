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
    *, silent: bool = False, delay: int = 0, broken_step: str | None = None
) -> tuple[str, ...]:
    """What the guest's init (`guest-init` says what each word does) is told."""
    words = {
        "lab.silent": silent,
        f"lab.delay={delay}": delay > 0,
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


def domain_xml(guest: Guest, *, files: GuestFiles, folder: Path, own_channel: bool = False) -> str:
    """The definition for `virDomainDefineXML`; log and shell socket go into `folder`.

    So does the channel's socket if it is `own_channel`; otherwise libvirt chooses its place.
    """
    domain = ET.Element("domain", type=guest.accelerator)
    _text(domain, "name", guest.name)
    _text(domain, "uuid", guest.uuid)
    _text(domain, "memory", str(guest.memory_mib), unit="MiB")
    _text(domain, "vcpu", "1")
    _add_boot(domain, guest, files)
    features = ET.SubElement(domain, "features")
    ET.SubElement(features, "acpi")
    for event, action in (("poweroff", "destroy"), ("reboot", "restart"), ("crash", "destroy")):
        _text(domain, f"on_{event}", action)
    _add_devices(domain, guest, folder)
    if own_channel and (source := domain.find("devices/channel/source")) is not None:
        source.set("path", str(channel_socket(folder, guest.name)))
    ET.indent(domain)
    return ET.tostring(domain, encoding="unicode")


def cdrom_xml(iso: Path, *, target: str) -> str:
    """A SCSI CD-ROM for a running guest, as a stranger would attach one."""
    disk = ET.Element("disk", type="file", device="cdrom")
    ET.SubElement(disk, "driver", name="qemu", type="raw")
    ET.SubElement(disk, "source", file=str(iso))
    ET.SubElement(disk, "target", dev=target, bus="scsi")
    ET.SubElement(disk, "readonly")
    return ET.tostring(disk, encoding="unicode")


def _add_boot(domain: ET.Element, guest: Guest, files: GuestFiles) -> None:
    boot = ET.SubElement(domain, "os")
    _text(boot, "type", "hvm", arch="x86_64", machine="pc")
    _text(boot, "kernel", str(files.kernel))
    _text(boot, "initrd", str(files.initramfs))
    _text(boot, "cmdline", " ".join((*KERNEL_WORDS, *guest.kernel_words)))


def _add_devices(domain: ET.Element, guest: Guest, folder: Path) -> None:
    devices = ET.SubElement(domain, "devices")
    ET.SubElement(devices, "controller", type="usb", model="none")
    if guest.scsi_controller:
        ET.SubElement(devices, "controller", type="scsi", index="0", model="virtio-scsi")
    if guest.nic:
        nic = ET.SubElement(devices, "interface", type="user")
        ET.SubElement(nic, "mac", address=guest.mac)
        ET.SubElement(nic, "model", type="virtio")
        ET.SubElement(nic, "rom", enabled="no")
    if guest.channel:
        channel = ET.SubElement(devices, "channel", type="unix")
        ET.SubElement(channel, "source", mode="bind")  # libvirt chooses the path
        ET.SubElement(channel, "target", type="virtio", name=CHANNEL)
    _add_serial(devices, port="0", kind="file", path=console_log(folder, guest.name))
    _add_serial(devices, port="1", kind="unix", path=shell_socket(folder, guest.name))
    ET.SubElement(devices, "memballoon", model="none")


def _add_serial(devices: ET.Element, *, port: str, kind: str, path: Path) -> None:
    serial = ET.SubElement(devices, "serial", type=kind)
    source = ET.SubElement(serial, "source", path=str(path))
    if kind == "unix":
        source.set("mode", "bind")
    ET.SubElement(serial, "target", port=port)


def _text(parent: ET.Element, tag: str, text: str, **attributes: str) -> None:
    ET.SubElement(parent, tag, attributes).text = text
