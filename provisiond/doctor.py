"""Is this host ready for provisiond? Each check looks at one thing and says what it found.

Nothing is changed: the most that a check does is a file that never gets a name, or a kernel that
boots under QEMU without any disk.
"""

import asyncio
import contextlib
import grp
import os
import re
import shutil
import socket
import stat
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from provisiond.api.client import ProvisiondClient
from provisiond.api.replies import HealthView
from provisiond.api.requests import DEFAULT_TEMPLATE
from provisiond.errors import (
    DaemonUnreachable,
    ProvisionError,
    SettingsError,
    TemplateUnusable,
    ToolFailed,
)
from provisiond.iso.image import IN_MEMORY, file_system
from provisiond.process import run
from provisiond.settings import DEFAULT_CONFIG, Settings, read_settings
from provisiond.virt.kvm import PROBE_SECONDS, Kvm, host_kernel, probe_kvm
from provisiond.virt.template import read_template
from provisiond.virt.xml import parse_domain
from provisiond.xenstore.client import find_xenstore

MIB = 1024 * 1024
# A config ISO has well under one MiB, and a job some KiB in the state file.
SPACE_NEEDED = 8 * MIB
SPACE_COMFORTABLE = 64 * MIB
_ANSWER_SECONDS = 5.0
_SWAPS = Path("/proc/swaps")
_XEN_CAPABILITIES = Path("/proc/xen/capabilities")


class Level(StrEnum):
    """FAIL: provisiond needs it. WARN: something will be missing, slower or less safe."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Check:
    """What one check looked at, what it found, and what to do where that is not well."""

    name: str
    level: Level
    found: str
    todo: str = ""


async def examine(
    *, config: Path | None, address: Path | None, kernel: Path | None
) -> AsyncIterator[Check]:
    """Every check, each as soon as it is known.

    `config` and `address` (the socket) are those of the daemon, if not the usual ones; `kernel` is
    what is booted to prove KVM, the host's own if None.
    """
    try:
        settings = read_settings(config)
    except SettingsError as error:
        yield Check("settings", Level.FAIL, error.message, error.hint)
        return
    yield _settings_found(config)
    address = address or settings.socket
    health = await asyncio.to_thread(_ask_health, address)
    yield check_daemon(address, health)
    if isinstance(health, HealthView):
        yield check_state(health)
    yield check_socket(address)
    if settings.socket_group is not None:
        yield check_group(settings.socket_group)
    yield await check_libvirt(settings, health)
    for check in _folders(settings):
        yield check
    yield check_swap()
    yield await check_kvm(kernel)
    yield await check_qemu_img()
    yield await check_vhd_util()
    yield check_xen(health)


def _settings_found(config: Path | None) -> Check:
    file = config or (DEFAULT_CONFIG if DEFAULT_CONFIG.exists() else None)
    found = f"{file} is valid" if file else f"no {DEFAULT_CONFIG}; the defaults hold"
    return Check("settings", Level.OK, found)


# ---------------------------------------------------------------- the daemon
Health = HealthView | ProvisionError


def _ask_health(address: Path) -> Health:
    try:
        with ProvisiondClient(address, reply_seconds=_ANSWER_SECONDS) as client:
            return client.health()
    except ProvisionError as error:
        return error


def check_daemon(address: Path, health: Health) -> Check:
    """Does provisiond answer on its socket?"""
    if isinstance(health, HealthView):
        jobs = f"{health.jobs_unfinished} unfinished jobs"
        return Check("daemon", Level.OK, f"provisiond {health.version} answers, {jobs}")
    if isinstance(health, DaemonUnreachable) and not _takes_connections(address):
        return Check("daemon", Level.WARN, health.message, health.hint)
    return Check("daemon", Level.FAIL, f"{address}: {health.message}", health.hint)


def _takes_connections(address: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_ANSWER_SECONDS)
        return probe.connect_ex(str(address)) == 0


def check_state(health: HealthView) -> Check:
    """Can the daemon store facts?"""
    if health.state_trouble is not None:
        todo = "Make room, or mend the disk; no request is taken and no job ends before that."
        return Check("state file", Level.FAIL, health.state_trouble, todo)
    return Check("state file", Level.OK, "provisiond can write it")


def check_socket(address: Path) -> Check:
    """Who may use the socket?"""
    try:
        status = address.stat()
    except OSError as error:
        return Check("socket", Level.WARN, f"{address}: {error.strerror}", _NO_SOCKET)
    if not stat.S_ISSOCK(status.st_mode):
        return Check("socket", Level.FAIL, f"{address} is no socket", "Move it away.")
    mode = stat.S_IMODE(status.st_mode)
    found = f"{address}: mode {mode:04o}, group {_group_name(status.st_gid)}"
    if mode & stat.S_IRWXO:
        todo = f"Everybody on this host may provision: chmod 0660 {address}"
        return Check("socket", Level.WARN, found, todo)
    return Check("socket", Level.OK, found)


_NO_SOCKET = "provisiond makes it when it starts; a user who may not see it asks as root."


def _group_name(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def check_group(name: str) -> Check:
    """Does the socket's group exist?"""
    try:
        grp.getgrnam(name)
    except KeyError:
        return Check("socket group", Level.FAIL, f"no group {name}", f"groupadd --system {name}")
    return Check("socket group", Level.OK, f"the group {name} exists")


# ---------------------------------------------------------------- libvirt
async def check_libvirt(settings: Settings, health: Health) -> Check:
    """Can libvirt be reached? A running daemon knows best; else this process asks libvirt."""
    if isinstance(health, HealthView):
        if health.hypervisor_connected:
            return Check("libvirt", Level.OK, f"provisiond is connected to {health.hypervisor}")
        todo = "Start libvirtd; provisiond reconnects by itself."
        return Check("libvirt", Level.FAIL, f"provisiond has lost {health.hypervisor}", todo)
    uri = settings.libvirt_uri
    if uri == "auto":
        uri = "xen:///system" if in_dom0() else "qemu:///system"
    if "///embed" in uri:
        found = f"{uri} belongs to provisiond's own process and is not opened here"
        return Check("libvirt", Level.WARN, found, "Start provisiond and ask again.")
    try:
        # Only here: provisionctl also runs where libvirt's binding is not installed.
        from provisiond.virt.libvirt import Hypervisor  # noqa: PLC0415
    except ImportError as error:
        todo = "Install python3-libvirt; a venv needs --system-site-packages to see it."
        return Check("libvirt", Level.FAIL, str(error), todo)
    hypervisor = Hypervisor(uri, threads=1)
    try:
        count = len(await hypervisor.domains())
    except ProvisionError as error:
        return Check("libvirt", Level.FAIL, error.message, error.hint)
    finally:
        await hypervisor.close()
    return Check("libvirt", Level.OK, f"{uri} answers: {count} domains")


# ---------------------------------------------------------------- folders
def _folders(settings: Settings) -> Iterator[Check]:
    yield check_writable("state_dir", settings.state_dir)
    yield check_space("state_dir", settings.state_dir)
    yield check_writable("runtime_dir", settings.runtime_dir)
    yield check_space("runtime_dir", settings.runtime_dir)
    yield check_tmpfs(settings.runtime_dir, allow_disk=settings.allow_iso_on_disk)
    yield check_writable("image_dir", settings.image_dir)
    yield check_reserve(settings.image_dir, reserve=settings.reserve_mib * MIB)
    yield check_templates(settings.template_dir)


def check_writable(name: str, folder: Path) -> Check:
    """Can a file be made in the folder, or in what it will be made in?"""
    there = nearest(folder)
    where = str(folder) if there == folder else f"{there} ({folder} will be made in it)"
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        found = f"{where}: {error.strerror}"
        if os.geteuid() != 0 and isinstance(error, PermissionError):
            todo = "provisiond may write there where this user may not: ask again as its user."
            return Check(name, Level.WARN, found, todo)
        return Check(name, Level.FAIL, found, "Mend owner, mode or file system.")
    return Check(name, Level.OK, f"{where} is writable")


def check_space(name: str, folder: Path) -> Check:
    """Is there room?"""
    name = f"{name} space"
    free = shutil.disk_usage(nearest(folder)).free
    found = f"{free // MIB} MiB free"
    if free >= SPACE_COMFORTABLE:
        return Check(name, Level.OK, found)
    level = Level.WARN if free >= SPACE_NEEDED else Level.FAIL
    return Check(name, level, found, f"Make room: {SPACE_COMFORTABLE // MIB} MiB or more.")


def check_reserve(folder: Path, *, reserve: int) -> Check:
    """May anything be written into the folder of images? `reserve` bytes of it are left free."""
    free = shutil.disk_usage(nearest(folder)).free
    found = f"{free // MIB} MiB free, of which {reserve // MIB} MiB stay so (reserve_mib)"
    if free - reserve >= SPACE_COMFORTABLE:
        return Check("image_dir space", Level.OK, found)
    todo = "No base is imported and no disk made: make room, or lower reserve_mib."
    return Check("image_dir space", Level.WARN, found, todo)


def check_templates(folder: Path) -> Check:
    """Is there a template that guests are made of where a request names none?"""
    try:
        made_of = parse_domain(read_template(folder, DEFAULT_TEMPLATE))
    except TemplateUnusable as error:
        todo = f"To create guests: virt-install --print-xml … > {folder}/{DEFAULT_TEMPLATE}.xml"
        return Check("templates", Level.WARN, error.message, todo)
    except ValueError as error:
        found = f"{folder}/{DEFAULT_TEMPLATE}.xml: {error}"
        return Check("templates", Level.WARN, found, TemplateUnusable.default_hint)
    found = f"{folder}/{DEFAULT_TEMPLATE}.xml makes guests of type {made_of.kind}"
    return Check("templates", Level.OK, found)


def check_tmpfs(folder: Path, *, allow_disk: bool) -> Check:
    """Would a secret in the folder stay in memory?"""
    kind = file_system(nearest(folder))
    found = f"{folder} is on {kind}"
    if kind in IN_MEMORY:
        return Check("runtime_dir memory", Level.OK, found)
    todo = "A secret could reach a disk: put runtime_dir on a tmpfs, as /run is elsewhere."
    return Check("runtime_dir memory", Level.WARN if allow_disk else Level.FAIL, found, todo)


def nearest(folder: Path) -> Path:
    """The folder, or the first above it that exists."""
    return next(one for one in (folder, *folder.parents) if os.access(one, os.F_OK))


# ---------------------------------------------------------------- swap
def check_swap() -> Check:
    """Would a secret stay in memory, or could it be swapped out to where it can be read later?"""
    areas = parse_swaps(_SWAPS.read_text()) if _SWAPS.exists() else []
    if not areas:
        return Check("swap", Level.OK, "this host does not swap")
    open_ones = [str(area) for area in areas if not _is_safe(area)]
    if not open_ones:
        names = ", ".join(map(str, areas))
        return Check("swap", Level.OK, f"in memory or encrypted: {names}")
    found = f"neither in memory nor known to be encrypted: {', '.join(open_ones)}"
    todo = "Memory and tmpfs are swapped out, secrets too: encrypt it, or end it with swapoff."
    return Check("swap", Level.WARN, found, todo)


def parse_swaps(text: str) -> list[Path]:
    """The swap areas of /proc/swaps, which writes blanks as octal escapes."""
    names = (line.split()[0] for line in text.splitlines()[1:])
    return [Path(re.sub(r"\\([0-7]{3})", lambda it: chr(int(it[1], 8)), name)) for name in names]


def _is_safe(area: Path) -> bool:
    try:
        status = area.stat()
    except OSError:  # deleted, or of another mount namespace
        return False
    device = status.st_rdev if stat.S_ISBLK(status.st_mode) else status.st_dev
    return keeps_secrets(Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"))


def keeps_secrets(device: Path) -> bool:
    """Whether a block device, given by its folder in /sys, is in memory or encrypted by dm-crypt.

    A device over others (LVM, RAID) is what all of those are.
    """
    device = device.resolve()
    if device.name.startswith("zram"):  # some write what is idle to a disk
        backing = device / "backing_dev"
        return not backing.exists() or backing.read_text().strip() == "none"
    kind = device / "dm" / "uuid"
    if kind.exists() and kind.read_text().startswith("CRYPT-"):
        return True
    below = list(device.glob("slaves/*"))
    return bool(below) and all(map(keeps_secrets, below))


# ---------------------------------------------------------------- KVM, tools
async def check_kvm(kernel: Path | None) -> Check:
    """Does KVM work? Guests run without it, slowly; a device that exists proves nothing."""
    if in_dom0():
        return Check("kvm", Level.OK, "this is a Xen dom0, which has no use for it")
    kernel = kernel or host_kernel()
    if kernel is None or not os.access(kernel, os.R_OK):
        if not Path("/dev/kvm").exists():
            return Check("kvm", Level.WARN, "/dev/kvm does not exist", _NO_KVM)
        found = f"/dev/kvm exists, not proven: cannot read {kernel or 'any kernel in /boot'}"
        return Check("kvm", Level.WARN, found, "Name one: provisionctl doctor --kernel FILE")
    try:
        state = await probe_kvm(kernel, within=PROBE_SECONDS)
    except ToolFailed as error:
        return Check("kvm", Level.WARN, f"not proven: {error.message}", "Install QEMU.")
    if state.kvm is Kvm.WORKS:
        return Check("kvm", Level.OK, state.reason)
    return Check("kvm", Level.WARN, f"{state.kvm}: {state.reason}", _NO_KVM)


_NO_KVM = "Use <domain type='qemu'>, which needs no KVM and is slow."


async def check_qemu_img() -> Check:
    """Can bases be imported and disks be made? Guests that exist can be configured without."""
    try:
        said = (await run(["qemu-img", "--version"])).stdout
    except ToolFailed as error:
        todo = "Install qemu-utils (Debian) or qemu-img: every base and most disks are made by it."
        return Check("qemu-img", Level.WARN, error.message, todo)
    return Check("qemu-img", Level.OK, said.decode(errors="replace").partition("\n")[0])


async def check_vhd_util() -> Check:
    """Who makes overlays in VHD? Optional: provisiond can do it (disk/vhd.py)."""
    try:
        await run(["vhd-util"], check=False)
    except ToolFailed:
        return Check("vhd-util", Level.OK, "absent; provisiond writes VHD overlays itself")
    return Check("vhd-util", Level.OK, "installed")


# ---------------------------------------------------------------- Xen
def in_dom0() -> bool:
    """Whether this is Xen's control domain."""
    with contextlib.suppress(OSError):
        return "control_d" in _XEN_CAPABILITIES.read_text()
    return False


def check_xen(health: Health) -> Check:
    """On Xen, can xenstore be reached? Without Xen nobody asks it; a running daemon knows best."""
    if isinstance(health, HealthView) and health.xenstore_connected is not None:
        if health.xenstore_connected:
            return Check("xen", Level.OK, "provisiond is connected to xenstore")
        todo = "Look whether xenstored runs; provisiond reconnects by itself."
        return Check("xen", Level.FAIL, "provisiond is not connected to xenstore", todo)
    if not in_dom0():
        return Check("xen", Level.OK, "this is no Xen dom0; guests answer over a virtio channel")
    way = find_xenstore()
    if not way.exists():
        return Check("xen", Level.FAIL, "a dom0 without xenstore", "Start xenstored.")
    if not os.access(way, os.R_OK | os.W_OK):
        return Check("xen", Level.FAIL, f"{way} may not be used by this user", "Ask as root.")
    return Check("xen", Level.OK, f"a dom0; xenstore is at {way}")
