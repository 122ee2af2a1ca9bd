"""The peers' programs, as Debian has them: installed here when they are missing."""

import os
import shutil
import subprocess
from collections.abc import Mapping

# What is called, and the package that has it.
PROGRAMS: Mapping[str, str] = {
    "genisoimage": "genisoimage",
    "xorriso": "xorriso",
    "cloud-localds": "cloud-image-utils",
    "virsh": "libvirt-clients",
    "virt-install": "virtinst",
}


def install_peers() -> None:
    """Nothing where all are there; subprocess.CalledProcessError where apt cannot."""
    missing = sorted(package for name, package in PROGRAMS.items() if shutil.which(name) is None)
    if not missing:
        return
    print(f"installing {' '.join(missing)}", flush=True)
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    apt = ["apt-get", "--quiet", "--quiet", "--option", "DPkg::Lock::Timeout=300"]
    for words in (["update"], ["install", "--yes", "--no-install-recommends", *missing]):
        subprocess.run([*apt, *words], env=environment, check=True, stdin=subprocess.DEVNULL)
