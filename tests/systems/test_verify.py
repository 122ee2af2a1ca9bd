"""A real Debian from its packages to a provisioned guest, and what is taken out of it boots.

All by the commands as a person types them. The same steps over the tiny guest are in tests/images.
"""

import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from provisiond.api.image_manifest import ImageManifest
from tests.daemon.command import PROVISIONCTL, Ended
from tests.lab.disk import DiskGuestFiles
from tests.lab.domain import KERNEL_WORDS

PATIENCE = 1800  # seconds; a Debian boots in half a minute without KVM, on a free core

pytestmark = pytest.mark.timeout(2 * PATIENCE)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """On a disk: an image is made in it."""
    with tempfile.TemporaryDirectory(prefix="systems-", dir="/var/tmp") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def image(folder: Path) -> Path:
    """A Debian with the guest's script, by mmdebstrap out of the host's own apt sources."""
    build = folder / "debian"
    words = ("build", "debian", "--from", "mmdebstrap", "--folder", build, "--until", "bake")
    said = image_command(*words)
    assert said.status == 0, said
    return build / "image.qcow2"


@pytest.fixture(scope="module")
def parts(folder: Path, image: Path) -> Path:
    """Kernel, initrd and the whole root as an initramfs, out of the image."""
    out = folder / "parts"
    out.mkdir()
    said = image_command(
        *("extract", image),
        *("--kernel", out / "vmlinuz"),
        *("--initrd", out / "initrd"),
        *("--rootfs", out / "root.cpio.gz"),
    )
    assert said.status == 0, said
    return out


def image_command(*words: str | Path) -> Ended:
    """`provisionctl image …` to its end, however long that takes."""
    argv = [PROVISIONCTL, "image", *words]
    said = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=PATIENCE)
    return Ended(said.returncode, said.stdout, said.stderr)


def verified(image: Path, *more: str | Path) -> dict[str, Any]:
    """What was seen of a guest of the image, which works; it is told with the test."""
    words = ("--within", str(PATIENCE // 2), "--login-within", str(PATIENCE // 2))
    said = image_command("verify", image, "--json", *words, *more)
    assert said.status == 0, said
    seen = dict(json.loads(said.out)["seen"])
    print({name: seen[name] for name in ("hello", "attached", "done", "succeeded", "login")})
    assert "10.0.2.15/24" in seen["checks"]["address"]
    return seen


def test_a_debian_out_of_its_packages_is_verified_from_its_own_disk(image: Path) -> None:
    picture = image.with_name("screen.png")
    verified(image, "--screenshot", picture)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_what_the_debian_is_made_of_is_read_out_of_it(image: Path) -> None:
    said = image_command("describe", image, "--json")
    assert said.status == 0, said
    made_of = ImageManifest.model_validate_json(said.out)
    assert (made_of.distribution or "").startswith("Debian GNU/Linux")
    assert {"dpkg", "systemd"} <= {package.name for package in made_of.packages or ()}
    assert made_of.agent_version is not None


def test_kernel_and_initrd_boot_the_disk_they_were_taken_from(image: Path, parts: Path) -> None:
    boot = ("--kernel", parts / "vmlinuz", "--initrd", parts / "initrd")
    verified(image, *boot, "--append", "root=/dev/vda1 console=ttyS0")


def test_the_root_boots_out_of_memory(image: Path, parts: Path) -> None:
    boot = ("--kernel", parts / "vmlinuz", "--initrd", parts / "root.cpio.gz")
    verified(image, *boot, "--append", "console=ttyS0", "--memory", "2G")


def test_a_guest_without_a_log_in_is_told_as_such(disk_guest_files: DiskGuestFiles) -> None:
    said = image_command(
        *("verify", disk_guest_files.image),
        *("--format", "raw"),
        *("--kernel", disk_guest_files.boot.kernel),
        *("--initrd", disk_guest_files.boot.initramfs),
        *("--append", " ".join(KERNEL_WORDS)),
        *("--memory", "128M"),
        *("--login-within", "10"),
    )
    assert said.status == 1, said
    assert "error: no_login: " in said.err
    assert "configured, but nobody could log in" in said.err
