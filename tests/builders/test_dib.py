"""diskimage-builder with the shipped element: an image that boots and is provisioned, and so do the
kernel and the root that are taken out of it.
"""

import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from provisiond.images.agent_files import read_agent
from tests.builders.tools import builders_environment, with_programs
from tests.daemon.command import PROVISIONCTL
from tests.images.debian import Parts, take_apart, verified
from tests.images.golden import debugfs

PATIENCE = 3600  # seconds; two minutes for the build on a free machine, and one for the guest

pytestmark = pytest.mark.timeout(2 * PATIENCE)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """On a disk: an image is made in it."""
    with tempfile.TemporaryDirectory(prefix="dib-", dir="/var/tmp") as name:
        yield Path(name)


def mirrors() -> list[str]:
    """Debian's mirror and its security mirror, as this host's apt has them."""
    said = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(SITE) $(CODENAME)"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    sites = sorted({line.split()[0] for line in said.splitlines() if "debian" in line})
    (plain,) = (site for site in sites if re.search(r"/debian/?$", site))
    (security,) = (site for site in sites if re.search(r"/debian-security/?$", site))
    return ["--mirror", plain, "--security-mirror", security]


def build(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    argv: list[str | Path] = [
        PROVISIONCTL,
        "image",
        "build",
        "dib",
        "--folder",
        folder / "build",
        *more,
    ]
    return subprocess.run(
        argv,
        env=with_programs(builders_environment()),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


@pytest.fixture(scope="module")
def unbaked(folder: Path) -> Path:
    """A copy of the image, raw, from before anything but the element has put the script there."""
    # The other owner than mmdebstrap's image has in tests/systems.
    words = ("--from", "dib", "--network-stack", "networkd", *mirrors())
    ended = build(folder, *words, "--until", "build")
    assert ended.returncode == 0, ended.stdout[-5000:] + ended.stderr
    raw = folder / "unbaked"
    image = folder / "build" / "image.qcow2"
    subprocess.run(["qemu-img", "convert", "-O", "raw", image, raw], check=True)
    return raw


@pytest.fixture(scope="module")
def image(folder: Path, unbaked: Path) -> Path:
    """The image, baked."""
    assert unbaked.exists()
    ended = build(folder, "--until", "bake")
    assert ended.returncode == 0, ended.stdout[-5000:] + ended.stderr
    return folder / "build" / "image.qcow2"


@pytest.fixture(scope="module")
def parts(folder: Path, image: Path) -> Parts:
    return take_apart(image, folder / "parts")


def test_debian_minimal_has_the_script_by_our_element_alone(unbaked: Path) -> None:
    root = 2048 * 512
    script = debugfs(unbaked, "cat /usr/sbin/provision-guest", start=root)
    assert read_agent().script.decode() in script
    wants = debugfs(unbaked, "ls -p /etc/systemd/system/multi-user.target.wants", start=root)
    assert "/provision-guest.service/" in wants
    assert "dib_build" not in Path("/proc/self/mountinfo").read_text()


def test_the_image_is_verified_by_its_build(folder: Path, image: Path) -> None:
    assert image.exists()
    ended = build(folder, "--until", "verify")
    assert ended.returncode == 0, ended.stdout[-5000:] + ended.stderr
    phases = json.loads((folder / "build" / "phases.json").read_text())
    print(phases["verify"]["result"])
    assert phases["verify"]["result"]["login_seconds"] > 0


def test_kernel_and_initrd_boot_the_disk_they_were_taken_from(image: Path, parts: Parts) -> None:
    verified(image, *parts.boot_of_the_disk())


def test_the_root_boots_out_of_memory(image: Path, parts: Parts) -> None:
    # 1 GB when it is unpacked: there are two kernels with all of their modules in it.
    verified(image, *parts.boot_of_memory("4G"))
