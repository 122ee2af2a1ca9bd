"""A tree of Debian packages becomes a golden root: what it needs of packages and of files.

The tree is nobody's root yet: files are written into it and links made; no program runs in it.
"""

import shutil
from pathlib import Path

from provisiond.images.agent_files import InitSystem
from provisiond.images.recipe import MmdebstrapRecipe, NetworkStack

# Small, and what a guest that others log in to has: a kernel, udev, the network's tools, sshd, what
# grows its root file system.
_PACKAGES = (
    *("udev", "kmod", "procps", "netbase", "ca-certificates", "login"),
    *("iproute2", "iputils-ping", "openssh-server"),
    *("e2fsprogs", "fdisk", "cloud-guest-utils"),
)
_OF_INIT = {
    InitSystem.SYSTEMD: ("systemd-sysv", "dbus", "libpam-systemd"),
    InitSystem.SYSV: ("sysvinit-core", "initscripts"),
    InitSystem.OPENRC: ("openrc", "sysvinit-core", "initscripts"),
}
STACK_PACKAGES = {
    NetworkStack.IFUPDOWN: ("ifupdown",),
    NetworkStack.NETWORKD: (),
    NetworkStack.NETWORK_MANAGER: ("network-manager",),
    NetworkStack.NETPLAN: ("netplan.io",),
}
_LOOPBACK = """\
# What is configured beside this file comes from it: /etc/network/interfaces.d
source /etc/network/interfaces.d/*

auto lo
iface lo inet loopback
"""
_SERIAL_LOGIN = "T0:23:respawn:/sbin/getty -L ttyS0 115200 vt100\n"


def packages_of(recipe: MmdebstrapRecipe) -> tuple[str, ...]:
    """The packages by name; what they depend on comes with them."""
    return (
        *_PACKAGES,
        recipe.kernel,
        *_OF_INIT[recipe.init],
        *STACK_PACKAGES[recipe.network_stack],
        *recipe.packages,
    )


def configure(tree: Path, *, recipe: MmdebstrapRecipe, root_uuid: str) -> None:
    """Write what is the same in every guest, and remove what must not be."""
    etc = tree / "etc"
    (etc / "fstab").write_text(f"UUID={root_uuid} / ext4 errors=remount-ro 0 1\n")
    (etc / "hostname").write_text(f"{recipe.name}\n")
    (etc / "hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {recipe.name}\n::1 localhost\n")
    configure_network(tree, recipe.network_stack)
    if recipe.init is not InitSystem.SYSTEMD:
        with (etc / "inittab").open("a") as file:
            file.write(_SERIAL_LOGIN)
    forget_identity(tree)


def forget_identity(tree: Path) -> None:
    """No two guests may have these: the machine's id, the host keys. Each makes its own."""
    for key in (tree / "etc/ssh").glob("ssh_host_*_key*"):
        key.unlink()
    machine_id = tree / "etc/machine-id"
    if machine_id.exists():
        machine_id.write_text("")
    (tree / "var/lib/dbus/machine-id").unlink(missing_ok=True)
    (tree / "etc/resolv.conf").unlink(missing_ok=True)  # the building host's
    shutil.rmtree(tree / "tmp")
    (tree / "tmp").mkdir()
    (tree / "tmp").chmod(0o1777)


def configure_network(tree: Path, stack: NetworkStack) -> None:
    """Make the stack the network's one owner; it has nothing but the loopback to set up yet."""
    if stack is NetworkStack.IFUPDOWN:
        (tree / "etc/network/interfaces.d").mkdir(parents=True, exist_ok=True)
        (tree / "etc/network/interfaces").write_text(_LOOPBACK)
    if stack in (NetworkStack.NETWORKD, NetworkStack.NETPLAN):
        _enable(tree, "systemd-networkd.service", wanted_by="multi-user.target")
    if stack is NetworkStack.NETPLAN:
        (tree / "etc/netplan").mkdir(parents=True, exist_ok=True)


def _enable(tree: Path, unit: str, *, wanted_by: str) -> None:
    folder = tree / "etc/systemd/system" / f"{wanted_by}.wants"
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / unit
    if not link.is_symlink():
        link.symlink_to(f"/lib/systemd/system/{unit}")
