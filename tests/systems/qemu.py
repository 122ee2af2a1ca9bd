"""A golden root as the disk of a QEMU guest: with modules, a terminal, and the script in it."""

import shutil
from pathlib import Path

from tests.lab.debian import copy_modules, run_tool
from tests.lab.packages import fetch_kernel
from tests.systems.golden import System, install

SIZE = "1G"  # sparse
# What Debian's cloud kernel has for the devices of the guest; udev loads what it finds.
MODULES = (
    "virtio_pci",
    "virtio_console",
    "virtio_blk",
    "virtio_scsi",
    "virtio_net",
    "virtio_rng",
    "sd_mod",
    "sr_mod",
    "isofs",
    "ext4",
    "crc32c_generic",
)
FSTAB = "/dev/vda / ext4 noatime 0 1\n"
# The second serial port is the one that the laboratory speaks to.
TERMINAL = "serial-getty@ttyS1.service"


def make_image(folder: Path, system: System, golden: Path) -> Path:
    """A raw image without a partition table, in `folder`; takes some seconds."""
    root = folder / "root"
    run_tool("cp", "--archive", golden, root)
    install(root, system)
    (root / "etc/fstab").write_text(FSTAB)
    copy_modules(root, fetch_kernel(), MODULES)
    run_tool("chroot", root, "sh", "-ec", f"{system.start_up.enable}; systemctl enable {TERMINAL}")
    image = folder / "golden.ext4"
    run_tool("mke2fs", "-q", "-t", "ext4", "-E", "root_owner=0:0", "-d", root, image, SIZE)
    shutil.rmtree(root)
    return image
