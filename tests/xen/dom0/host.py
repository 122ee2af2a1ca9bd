"""dom0 as the suite sees it: by libvirt, by Xen's own tools, by the kernel; never by provisiond."""

import fcntl
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import libvirt

from tests.lab.disk import DiskGuestFiles
from tests.lab.domain import Guest
from tests.lab.initramfs import GuestFiles
from tests.xen.domu import BRIDGE, domu_template_xml, domu_xml

URI = "xen:///system"
FILES = GuestFiles(
    kernel=Path("/laboratory/guest/vmlinuz"), initramfs=Path("/laboratory/guest/initramfs.gz")
)
DISK_FILES = DiskGuestFiles(
    boot=GuestFiles(kernel=FILES.kernel, initramfs=Path("/laboratory/guest/disk-initramfs.gz")),
    image=Path("/laboratory/guest/root.ext4"),
)
TEMPLATE = Path("/etc/provisiond/templates/default.xml")
HOTPLUG_LOCK = Path("/run/xen-hotplug/block")  # /etc/xen/scripts/locking.sh
ADDRESS = "192.0.2.1/24"  # dom0's own on the bridge
CONNECTED = "4"  # XenbusStateConnected (xen/include/public/io/xenbus.h)


def run(*argv: str | Path) -> str:
    """What a tool prints; it has to succeed."""
    return subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True).stdout


@contextmanager
def opened() -> Iterator[libvirt.virConnect]:
    """A connection of the suite's own."""
    connection = libvirt.open(URI)
    try:
        yield connection
    finally:
        connection.close()


# ---------------------------------------------------------------- guests
def start(guest: Guest) -> int:
    """Defines and starts the guest; its domid."""
    with opened() as connection:
        domain = connection.defineXML(domu_xml(guest, files=FILES))
        domain.create()
        return int(domain.ID())


def write_template() -> None:
    """What an operator does before the first create: a PV guest that boots from its disk."""
    TEMPLATE.parent.mkdir(parents=True, exist_ok=True)
    TEMPLATE.write_text(domu_template_xml(Guest("template"), files=DISK_FILES.boot))


def destroy(guest: Guest) -> None:
    """Ends and forgets the guest, whatever state it is in."""
    with opened() as connection:
        for domain in connection.listAllDomains():
            if domain.name() == guest.name:
                if domain.isActive():
                    domain.destroy()
                domain.undefine()


def domid(guest: Guest) -> int:
    """Its number now; -1 while it is off."""
    with opened() as connection:
        return int(connection.lookupByName(guest.name).ID())


def live_xml(guest: Guest) -> str:
    """The running domain as libvirt sees it."""
    with opened() as connection:
        return str(connection.lookupByName(guest.name).XMLDesc())


def target_of(guest: Guest, file: Path) -> str | None:
    """Where a running guest has the disk that is this file."""
    for disk in ET.fromstring(live_xml(guest)).iterfind("devices/disk"):
        source, target = disk.find("source"), disk.find("target")
        if source is not None and target is not None and source.get("file") == str(file):
            return target.get("dev")
    return None


def every_xml() -> str:
    """Every domain, as it runs and as it is kept."""
    with opened() as connection:
        return "".join(
            domain.XMLDesc(flags)
            for domain in connection.listAllDomains()
            for flags in (0, libvirt.VIR_DOMAIN_XML_INACTIVE)
        )


def terminal(number: int) -> Path:
    """The pty of a guest's console."""
    return Path(read(f"/local/domain/{number}/console/tty") or "")


# ---------------------------------------------------------------- xenstore, loop devices, bridge
def read(path: str) -> str | None:
    """A value of xenstore; None where there is none."""
    argv = ["xenstore-read", path]
    said = subprocess.run(argv, capture_output=True, text=True, check=False)
    return said.stdout.removesuffix("\n") if said.returncode == 0 else None


def vdev(target: str) -> int:
    """The number of xvdX: major 202, 16 minors a disk (xen-vbd-interface(7))."""
    return (202 << 8) | ((ord(target[-1]) - ord("a")) << 4)


def frontend_state(number: int, target: str) -> str | None:
    """The guest's side of a disk."""
    return read(f"/local/domain/{number}/device/vbd/{vdev(target)}/state")


def back_ends() -> str:
    """Every disk that dom0 serves, of any domain: its kernel's or tapdisk's, and QEMU's."""
    return "".join(
        subprocess.run(
            ["xenstore-ls", "-f", f"/local/domain/0/backend/{kind}"],
            capture_output=True,  # there is no such path while none was ever made
            text=True,
            check=False,
        ).stdout
        for kind in ("vbd", "qdisk")
    )


@contextmanager
def no_disk_gets_on() -> Iterator[None]:
    """While this lasts, every attach waits in Xen's hotplug script; libxl gives it 40 s."""
    HOTPLUG_LOCK.parent.mkdir(exist_ok=True)
    with HOTPLUG_LOCK.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def loop_files() -> list[str]:
    """What every loop device stands for; a file that was unlinked under it has ` (deleted)`."""
    return [path.read_text().strip() for path in Path("/sys/block").glob("loop*/loop/backing_file")]


def make_bridge() -> None:
    """The bridge that the guests' interfaces are put on; dom0 has an address there."""
    if Path(f"/sys/class/net/{BRIDGE}").exists():
        return
    run("ip", "link", "add", BRIDGE, "type", "bridge")
    run("ip", "address", "add", ADDRESS, "dev", BRIDGE)
    run("ip", "link", "set", BRIDGE, "up")
