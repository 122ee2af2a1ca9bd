"""What dom0 boots from: Xen, Debian's kernel, a small initramfs, and Debian's root as one ext4.

Everything is the release of this machine, as its apt knows it. Made once for each content, kept in
the cache.
"""

import hashlib
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

from tests.lab.debian import copy_modules, install_debian, run_tool
from tests.lab.initramfs import (
    Entry,
    busybox_entries,
    file_entry,
    keep_initramfs,
    module_entries,
)
from tests.lab.packages import (
    cache_directory,
    fetch_kernel,
    fetch_package,
    locked,
    package_versions,
    real_package,
)

HERE = Path(__file__).parent

# What an operator's dom0 has before provisiond comes, and what README.md installs for it. No
# package is fetched inside: dom0 has no network.
PACKAGES = (
    "dbus",
    "iproute2",
    "iputils-ping",
    "kmod",
    "libvirt-clients",
    "libvirt-daemon-driver-xen",
    "libvirt-daemon-system",
    "procps",
    "python3-libvirt",
    "python3-systemd",
    "python3-venv",
    "qemu-system-xen",
    "qemu-utils",
    "systemd-sysv",
    "udev",
    "xen-system-amd64",
)
BOOT_MODULES = ("virtio_pci", "virtio_blk", "crc32c_generic", "ext4")
# Loaded when dom0 is up: Xen's devices and back ends, loop devices for the config ISOs, the port
# that the laboratory speaks through, a bridge for the guests' network.
MODULES = (
    "xen_evtchn",
    "xen_gntdev",
    "xen_gntalloc",
    "xen_privcmd",
    "xenfs",
    "xen_blkback",
    "xen_netback",
    "loop",
    "isofs",
    "bridge",
    "tun",
    "virtio_console",
    "virtio_rng",
    # libvirt's default network and its firewall
    "nf_tables",
    "iptable_nat",
    "iptable_filter",
    "iptable_mangle",
    "ip6table_filter",
)
# Of no use in a machine that lives for minutes, and each costs seconds under emulation.
MASKED_UNITS = (
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "dev-hugepages.mount",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty.target",
    "libvirt-guests.service",
    "proc-sys-fs-binfmt_misc.automount",
    "serial-getty@hvc0.service",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "systemd-networkd.service",
    "systemd-pstore.service",
    "systemd-timesyncd.service",
    "systemd-update-utmp-runlevel.service",
    "systemd-update-utmp.service",
)
FILES = {
    "etc/hostname": "dom0\n",
    "etc/hosts": "127.0.0.1 localhost dom0\n",
    "etc/fstab": "/dev/vda / ext4 noatime 0 0\n",
    "etc/machine-id": "5f3c0b1e2d4a4c6f8a9b0c1d2e3f4a5b\n",
    "etc/modules-load.d/laboratory.conf": "".join(f"{name}\n" for name in MODULES),
    # The guests' consoles are kept: the transcript of a failed run shows them.
    "etc/default/xen": "XENCONSOLED_ARGS='--log=guest --log-dir=/var/log/xen/console'\n",
    "etc/systemd/journald.conf.d/laboratory.conf": "[Journal]\nStorage=volatile\n",
    "etc/systemd/system/laboratory.service": (HERE / "laboratory.service").read_text(),
    "usr/local/sbin/laboratory": (HERE / "laboratory").read_text(),
}
SIZE = "3G"  # sparse


@dataclass(frozen=True, slots=True)
class Dom0Files:
    """What the machine boots from."""

    xen: Path
    kernel: Path
    initramfs: Path
    root: Path


def dom0_files() -> Dom0Files:
    """Everything that dom0 boots from, made where it is not in the cache."""
    hypervisor = fetch_package(real_package("xen-system-amd64", "xen-hypervisor-"))
    kernel_tree = fetch_kernel("linux-image-amd64")
    (xen,) = hypervisor.glob("boot/xen-*.gz")
    (kernel,) = kernel_tree.glob("boot/vmlinuz-*")
    entries = (
        *busybox_entries(),
        *module_entries(kernel_tree, BOOT_MODULES),
        file_entry("init", HERE / "dom0-init", 0o755),
        *(Entry(name, stat.S_IFDIR | 0o755) for name in ("dev", "proc", "sys", "root")),
    )
    return Dom0Files(
        xen=xen,
        kernel=kernel,
        initramfs=keep_initramfs(entries),
        root=_kept_root(kernel_tree),
    )


def _kept_root(kernel_tree: Path) -> Path:
    """dom0's root in the cache, under the name of all that it is made of."""
    versions = package_versions(*PACKAGES)
    made_of = repr(
        (PACKAGES, versions, sorted(FILES.items()), MASKED_UNITS, MODULES, kernel_tree.name, SIZE)
    )
    digest = hashlib.sha256(made_of.encode()).hexdigest()[:16]
    image = cache_directory() / f"dom0-{digest}.ext4"
    with locked(image.with_name("dom0.lock")):
        if not image.exists():
            _make_root(kernel_tree, image)
    return image


def _make_root(kernel_tree: Path, image: Path) -> None:
    """Whatever an interrupted making has left, and images of older packages, are removed."""
    folder = image.with_name("dom0.part")
    _remove(folder)
    folder.mkdir()
    try:
        install_debian(folder / "root", PACKAGES)
        _configure(folder / "root", kernel_tree)
        _make_filesystem(folder / "root", folder / "image")
        for older in image.parent.glob("dom0-*.ext4"):
            older.unlink()
        (folder / "image").rename(image)
    finally:
        _remove(folder)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _configure(root: Path, kernel_tree: Path) -> None:
    for path, text in FILES.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (root / "usr/local/sbin/laboratory").chmod(0o755)
    (root / "var/log/xen/console").mkdir(parents=True, exist_ok=True)
    units = root / "etc/systemd/system"
    for unit in MASKED_UNITS:
        (units / unit).unlink(missing_ok=True)
        (units / unit).symlink_to("/dev/null")
    (units / "default.target").unlink(missing_ok=True)
    (units / "default.target").symlink_to("/lib/systemd/system/multi-user.target")
    (units / "multi-user.target.wants/laboratory.service").symlink_to("../laboratory.service")
    copy_modules(root, kernel_tree, (*BOOT_MODULES, *MODULES))


def _make_filesystem(root: Path, image: Path) -> None:
    run_tool(
        "mke2fs",
        "-q",
        "-t",
        "ext4",
        "-O",
        "^has_journal",
        "-E",
        "lazy_itable_init=1,root_owner=0:0",
        "-d",
        root,
        image,
        SIZE,
    )
