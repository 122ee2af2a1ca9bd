"""libvirt's QEMU driver inside this process (`qemu:///embed`), under a root directory of its own.

The guests outlive the process. One process at a time may have a root open: what starts guests here
ends, and then another process opens the same root. And libvirt lets one process open one root in
all its life; so tests come here through another process (`program.Lab`).
"""

import os
import select
import shutil
import signal
import threading
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import libvirt

from tests.lab.domain import Guest, cdrom_xml, domain_xml
from tests.lab.initramfs import GuestFiles
from tests.lab.packages import cache_directory

# Consoles go to their files without asking virtlogd, which is not there.
SETTINGS = 'stdio_handler = "file"\n'
# As root libvirt would also give files to the user libvirt-qemu and put each guest into cgroups and
# namespaces: nothing that a tiny guest under one directory needs.
ROOT_SETTINGS = """\
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
namespaces = []
cgroup_controllers = []
"""
LONGEST_ROOT = 40  # sockets below it must fit into the 107 bytes that a Unix address has
MARKER = ".provisiond-lab"


def lab_folder(root: Path) -> Path:
    """Where the guests' console logs and shell sockets are."""
    return root / "lab"


def uri(root: Path) -> str:
    """The libvirt URI of the driver under `root`."""
    return f"qemu:///embed?root={root}"


def prepare_root(root: Path) -> None:
    """Makes `root` ready to be opened; may be asked for twice."""
    if len(str(root)) > LONGEST_ROOT:
        raise ValueError(f"{root} is too long for the sockets below it ({LONGEST_ROOT} at most)")
    lab_folder(root).mkdir(parents=True, exist_ok=True)
    (root / MARKER).touch()
    (root / "etc").mkdir(exist_ok=True)
    settings = SETTINGS + (ROOT_SETTINGS if os.geteuid() == 0 else "")
    (root / "etc/qemu.conf").write_text(settings)
    copy_missing(_kept_capabilities(), _capabilities(root))


@contextmanager
def opened(root: Path) -> Iterator[libvirt.virConnect]:
    """A connection to the driver under `root`; its guests go on when it is closed."""
    _start_event_loop()
    connection = libvirt.open(uri(root))
    try:
        yield connection
    finally:
        connection.close()


def start_guests(root: Path, guests: Sequence[Guest], *, files: GuestFiles) -> None:
    """Defines and starts the guests; those that run already are left alone."""
    prepare_root(root)
    with opened(root) as connection:
        running = {domain.name() for domain in connection.listAllDomains() if domain.isActive()}
        for guest in guests:
            if guest.name not in running:
                xml = domain_xml(guest, files=files, folder=lab_folder(root))
                connection.defineXML(xml).create()
    copy_missing(_capabilities(root), _kept_capabilities())


def start_domain(root: Path, xml: str) -> None:
    """Defines and starts a domain from the XML of the caller's own."""
    prepare_root(root)
    with opened(root) as connection:
        connection.defineXML(xml).create()
    copy_missing(_capabilities(root), _kept_capabilities())


def kept_xml(root: Path, name: str) -> str:
    """The running domain as libvirt has written it down for its own next start.

    For when another process has the root open. FileNotFoundError where the domain does not run.
    """
    domain = ET.parse(root / f"run/qemu/{name}.xml").find("domain")
    if domain is None:
        raise ValueError(f"libvirt's state of {name} holds no domain")
    return ET.tostring(domain, encoding="unicode")


def live_xml(root: Path, name: str) -> str:
    """The running domain as libvirt sees it."""
    with opened(root) as connection:
        xml: str = connection.lookupByName(name).XMLDesc()
        return xml


def attach_cdrom(root: Path, name: str, *, iso: Path, target: str) -> None:
    """Hot-attaches `iso` to the running guest."""
    with opened(root) as connection:
        xml = cdrom_xml(iso, target=target)
        connection.lookupByName(name).attachDeviceFlags(xml, libvirt.VIR_DOMAIN_AFFECT_LIVE)


def detach_cdrom(root: Path, name: str, *, iso: Path, target: str) -> None:
    """Asks for the disk to go; libvirt looks at `target` alone."""
    with opened(root) as connection:
        xml = cdrom_xml(iso, target=target)
        connection.lookupByName(name).detachDeviceFlags(xml, libvirt.VIR_DOMAIN_AFFECT_LIVE)


def destroy_all(root: Path) -> None:
    """Ends every guest of `root` and removes `root`, whatever state a crash has left it in.

    It works without libvirt, so it also works while or after another process has the root open.
    """
    if not root.exists():
        return
    if not (root / MARKER).exists():
        raise ValueError(f"{root} is no lab's root directory, nothing of it is removed")
    while pids := list(qemu_pids(root)):
        for pid in pids:
            end_process(pid)
    shutil.rmtree(root)


def _capabilities(root: Path) -> Path:
    return root / "cache/qemu/capabilities"


def _kept_capabilities() -> Path:
    """What libvirt found out about QEMU (4 s of probing), for the next root.

    libvirt itself drops a file that is older than QEMU, libvirt or the kernel.
    """
    return cache_directory() / "libvirt-capabilities"


def copy_missing(source: Path, destination: Path) -> None:
    """Copies the capabilities (*.xml) that are not there yet."""
    destination.mkdir(parents=True, exist_ok=True)
    for path in source.glob("*.xml"):
        if not (destination / path.name).exists():
            part = destination / f"{path.name}.{os.getpid()}.part"
            shutil.copyfile(path, part)
            part.rename(destination / path.name)


def qemu_pids(root: Path) -> Iterator[int]:
    """Every QEMU whose command line names a file under this very root.

    libvirt's pid files would miss one that was just being started, or asked what it can do.
    """
    for process in Path("/proc").glob("[0-9]*"):
        try:
            program, *words = (process / "cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended since it was listed
        if b"qemu-system" in program and any(f"{root}/".encode() in word for word in words):
            yield int(process.name)


def end_process(pid: int) -> None:
    """Kills it; returns once the process has ended, whoever its parent is."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(process, signal.SIGKILL)
        select.select([process], [], [])
    except ProcessLookupError:
        pass  # it ended by itself
    finally:
        os.close(process)


_event_loop_lock = threading.Lock()
_event_loop: threading.Thread | None = None


def _start_event_loop() -> None:
    """The embedded driver talks to QEMU through libvirt's event loop: one thread a process."""
    global _event_loop  # noqa: PLW0603 - libvirt has one event loop a process, for good
    with _event_loop_lock:
        if _event_loop is None:
            libvirt.virEventRegisterDefaultImpl()
            _event_loop = threading.Thread(target=_run_events, name="libvirt-events", daemon=True)
            _event_loop.start()


def _run_events() -> None:
    while libvirt.virEventRunDefaultImpl() == 0:
        pass
