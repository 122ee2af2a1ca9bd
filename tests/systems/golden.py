"""The golden images: one Debian for each init system and each owner of the network.

Each root is made of packages by mmdebstrap, once, and kept in the cache under the name of all that
it is made of. Nothing of ours is in it: `machine.py` puts the script in, in the state in which it
stands in this tree.
"""

import hashlib
import inspect
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.lab.debian import install_debian, run_tool
from tests.lab.initramfs import GUEST_SCRIPT, PROJECT
from tests.lab.packages import cache_directory, locked, package_versions

INIT_FILES = PROJECT / "guest-agent" / "init"
USER = "ops"

# fuseiso is for containers, see hardware.py.
EVERYWHERE = ("fuseiso", "iproute2", "iputils-ping", "netbase", "openssh-server", "tzdata")
# Made with one /usr from the start, not merged later by a package that brings all of Perl.
MERGED_USR = "--hook-dir=/usr/share/mmdebstrap/hooks/maybe-merged-usr"
# A console is all that a container has; the terminals of a PC are not there.
NO_TERMINALS = "/^[1-6]:.*tty[1-6]/d"
CONSOLE = "co:2345:respawn:/sbin/getty --noclear console 115200 linux\n"


@dataclass(frozen=True, slots=True)
class StartUp:
    """How one init system is told of the script, in the words of guest-agent/init."""

    source: str
    path: str
    mode: int
    enable: str  # a command, run in the image
    status: str = ""  # commands of a system that runs; a success says that the script does
    stop: str = ""
    start: str = ""
    before: str = ""  # what stands in the file before and after what we ship
    after: str = ""

    def content(self) -> str:
        """The file as it stands in the image."""
        return self.before + (INIT_FILES / self.source).read_text() + self.after


SYSTEMD = StartUp(
    "provision-guest.service",
    "etc/systemd/system/provision-guest.service",
    0o644,
    "systemctl enable provision-guest",
    status="systemctl is-active provision-guest",
    stop="systemctl stop provision-guest",
    start="systemctl start provision-guest",
)
SYSV = StartUp(
    "provision-guest.sysv",
    "etc/init.d/provision-guest",
    0o755,
    "update-rc.d provision-guest defaults",
    status="service provision-guest status",
    stop="service provision-guest stop",
    start="service provision-guest start",
)
OPENRC = StartUp(
    "provision-guest.openrc",
    "etc/init.d/provision-guest",
    0o755,
    "rc-update add provision-guest default",
    status="rc-service provision-guest status",
    stop="rc-service provision-guest stop",
    start="rc-service provision-guest start",
)
RC_LOCAL = StartUp(
    "rc.local.snippet", "etc/rc.local", 0o755, "true", before="#!/bin/sh\n", after="exit 0\n"
)


@dataclass(frozen=True, slots=True)
class System:
    """A Debian as its installer leaves it, and what the script writes there."""

    init: str
    network: str
    start_up: StartUp
    packages: tuple[str, ...]
    ours: tuple[str, ...]  # the files that the script writes for the owner of the network
    units: tuple[str, ...] = ()  # enabled, beside those that their packages enable
    files: Mapping[str, str] = field(default_factory=dict)
    resolv_conf: str = "/etc/resolv.conf"  # the one that names the servers
    # netplan looks for a card's own MAC, which those of containers have not; QEMU's have one.
    cards_by_name: bool = False

    @property
    def name(self) -> str:
        return f"{self.init}-{self.network}"

    @property
    def image(self) -> str:
        """Which root it has: rc.local is a way to start programs on a Debian with sysvinit."""
        return "sysvinit-ifupdown" if self.start_up is RC_LOCAL else self.name

    @property
    def has_systemd(self) -> bool:
        return self.start_up is SYSTEMD


IFUPDOWN = ("etc/network/interfaces.d/provision",)
NETWORKD = tuple(f"etc/systemd/network/05-provision-{number}.network" for number in (0, 1))
KEYFILES = tuple(
    f"etc/NetworkManager/system-connections/provision-{number}.nmconnection" for number in (0, 1)
)
RESOLVED = "/run/systemd/resolve/resolv.conf"
WITH_SYSTEMD = ("dbus", "kmod", "systemd-sysv", "udev")
WITH_SYSV = ("ifupdown", "initscripts", "insserv", "startpar", "sysv-rc", "sysvinit-core")
NETPLAN = """\
network:
  version: 2
  renderer: networkd
  ethernets:
    golden:
      match: {name: "e*"}
      dhcp4: true
"""
SYSTEMS = (
    System("systemd", "ifupdown", SYSTEMD, (*WITH_SYSTEMD, "ifupdown"), IFUPDOWN),
    System(
        "systemd",
        "systemd-networkd",
        SYSTEMD,
        (*WITH_SYSTEMD, "systemd-resolved"),
        NETWORKD,
        units=("systemd-networkd.service",),
        resolv_conf=RESOLVED,
    ),
    System("systemd", "NetworkManager", SYSTEMD, (*WITH_SYSTEMD, "network-manager"), KEYFILES),
    System(
        "systemd",
        "netplan",
        SYSTEMD,
        (*WITH_SYSTEMD, "netplan.io", "systemd-resolved"),
        ("etc/netplan/90-provision.yaml",),
        files={"etc/netplan/50-golden.yaml": NETPLAN},
        resolv_conf=RESOLVED,
        cards_by_name=True,
    ),
    System("sysvinit", "ifupdown", SYSV, WITH_SYSV, IFUPDOWN),
    System(
        "OpenRC",
        "ifupdown",
        OPENRC,
        ("ifupdown", "initscripts", "openrc", "sysvinit-core"),
        IFUPDOWN,
    ),
    System("rc.local", "ifupdown", RC_LOCAL, WITH_SYSV, IFUPDOWN),
)


def golden_roots(systems: Sequence[System] = SYSTEMS) -> dict[str, Path]:
    """The root of each system by its name, made where it is not in the cache; never to be written.

    Two are made at a time: half of the work is waiting for packages.
    """
    with ThreadPoolExecutor(2) as pool:
        roots = list(pool.map(golden_root, systems))
    return {system.name: root for system, root in zip(systems, roots, strict=True)}


def golden_root(system: System) -> Path:
    """The root of one system."""
    packages = sorted({*EVERYWHERE, *system.packages})
    versions = package_versions(*packages)
    recipe = (inspect.getsource(_configure), NO_TERMINALS, CONSOLE, USER, MERGED_USR)
    made_of = repr((packages, versions, system.units, sorted(system.files.items()), recipe))
    name = f"system-{system.image}"
    root = cache_directory() / f"{name}-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}"
    root.parent.mkdir(parents=True, exist_ok=True)
    with locked(root.with_name(f"{name}.lock")):
        if not root.exists():
            _make_root(root, root.with_name(f"{name}.part"), system, packages)
    return root


def _make_root(root: Path, part: Path, system: System, packages: Sequence[str]) -> None:
    """Whatever an interrupted making has left, and roots of older packages, are removed."""
    if part.exists():
        shutil.rmtree(part)
    install_debian(part, packages, MERGED_USR)
    _configure(part, system)
    for older in root.parent.glob(f"system-{system.image}-*"):
        shutil.rmtree(older)
    part.rename(root)


def install(root: Path, system: System) -> None:
    """Puts the script and its start-up file below `root`, as they stand in this tree.

    `root` may also be an overlay's upper folder. The start-up file is still to be enabled.
    """
    start_up = system.start_up
    for name, text, mode in (
        ("usr/sbin/provision-guest", GUEST_SCRIPT.read_text(), 0o755),
        (start_up.path, start_up.content(), start_up.mode),
    ):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)


def _configure(root: Path, system: System) -> None:
    """What an installer would have done, and what only a container needs."""
    for name, text in {"etc/hostname": "golden\n", **system.files}.items():
        (root / name).write_text(text)
    run_tool("chroot", root, "useradd", "--create-home", "--shell=/bin/sh", USER)
    for unit in system.units:
        run_tool("chroot", root, "systemctl", "enable", unit)
    inittab = root / "etc/inittab"
    if inittab.exists():
        run_tool("sed", "--in-place", NO_TERMINALS, inittab)
        inittab.write_text(inittab.read_text() + CONSOLE)
