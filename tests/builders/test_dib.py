"""diskimage-builder with the shipped element: an image that boots and is provisioned."""

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


def test_debian_minimal_with_our_element_is_built_and_verified(folder: Path) -> None:
    ended = build(folder, "--from", "dib", *mirrors(), "--until", "build")
    assert ended.returncode == 0, ended.stdout[-5000:] + ended.stderr
    image = folder / "build" / "image.qcow2"
    raw = folder / "raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", image, raw], check=True)
    root = 2048 * 512
    script = debugfs(raw, "cat /usr/sbin/provision-guest", start=root)
    assert read_agent().script.decode() in script, "the element itself has put it there"
    wants = debugfs(raw, "ls -p /etc/systemd/system/multi-user.target.wants", start=root)
    assert "/provision-guest.service/" in wants
    raw.unlink()
    ended = build(folder, "--until", "verify")
    assert ended.returncode == 0, ended.stdout[-5000:] + ended.stderr
    phases = json.loads((folder / "build" / "phases.json").read_text())
    print(phases["verify"]["result"])
    assert phases["verify"]["result"]["login_seconds"] > 0
    assert "dib_build" not in Path("/proc/self/mountinfo").read_text()
