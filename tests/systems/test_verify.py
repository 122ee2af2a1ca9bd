"""A real Debian from its packages to a provisioned guest, and what is taken out of it boots.

All by the commands as a person types them. The same steps over the tiny guest are in tests/images.
"""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from provisiond.api.image_manifest import ImageManifest
from tests.images.debian import PATIENCE, Parts, image_command, take_apart, verified
from tests.lab.disk import DiskGuestFiles
from tests.lab.domain import KERNEL_WORDS
from tests.systems.killed_build import KilledBuild

pytestmark = pytest.mark.timeout(2 * PATIENCE)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """On a disk: an image is made in it."""
    with tempfile.TemporaryDirectory(prefix="systems-", dir="/var/tmp") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def image(killed_build: KilledBuild) -> Path:
    """A Debian with the guest's script."""
    said = killed_build.until("bake")
    assert said.status == 0, said
    return Path(json.loads(said.out)["image"])


@pytest.fixture(scope="module")
def parts(folder: Path, image: Path) -> Parts:
    return take_apart(image, folder / "parts")


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


def test_kernel_and_initrd_boot_the_disk_they_were_taken_from(image: Path, parts: Parts) -> None:
    verified(image, *parts.boot_of_the_disk())


def test_the_root_boots_out_of_memory(image: Path, parts: Parts) -> None:
    verified(image, *parts.boot_of_memory("2G"))


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
