"""An installation from an ISO: its command line and its answers, read by their own programs."""

import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path

import pytest

from provisiond.images.iso import answers_of, install_argv
from provisiond.images.recipe import IsoRecipe
from provisiond.iso.installation import read_installation
from tests.builders.tools import builders_environment
from tests.images.test_iso import DEBIAN, RED_HAT, write_iso


@pytest.mark.parametrize(
    ("files", "answers"), [(DEBIAN, "preseed.cfg"), (RED_HAT, "kickstart.cfg")]
)
def test_virt_install_makes_the_guest_that_installs(
    tmp_path: Path, files: Mapping[str, bytes], answers: str
) -> None:
    iso = write_iso(tmp_path / "installation.iso", files)
    recipe = IsoRecipe.model_validate(
        {"name": "web", "iso": iso, "libvirt_uri": "test:///default", "memory_mib": 1024}
    )
    found = read_installation(iso)
    file = tmp_path / answers
    file.write_text(answers_of(recipe, found))
    argv = install_argv(
        recipe,
        found,
        guest="provisiond-build-web-0",
        iso=iso,
        disk=tmp_path / "image.qcow2",
        answers=file,
        console=tmp_path / "console.log",
    )
    ended = subprocess.run([*argv, "--print-xml", "1"], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    domain = ET.fromstring(ended.stdout)
    assert domain.findtext("name") == "provisiond-build-web-0"
    assert domain.findtext("on_reboot") == "destroy"
    command_line = domain.findtext("os/cmdline") or ""
    assert f"/{answers}" in command_line
    sources = [one.get("file") for one in domain.findall("devices/disk/source")]
    assert str(tmp_path / "image.qcow2") in sources
    assert str(iso) in sources
    serial = domain.find("devices/serial/source")
    assert serial is not None
    assert serial.get("path") == str(tmp_path / "console.log")


def test_virt_install_refuses_what_it_does_not_know() -> None:
    """So the test above can fail."""
    ended = subprocess.run(
        ["virt-install", "--connect", "test:///default", "--no-such-option"],
        capture_output=True,
        check=False,
    )
    assert ended.returncode != 0


# ---------------------------------------------------------------- the answers
def answers(tmp_path: Path, files: Mapping[str, bytes], **more: object) -> Path:
    """The preseed or kickstart for an ISO of these files."""
    iso = write_iso(tmp_path / "installation.iso", files)
    recipe = IsoRecipe.model_validate({"name": "web", "iso": iso, "packages": ("less",), **more})
    file = tmp_path / "answers"
    file.write_text(answers_of(recipe, read_installation(iso)))
    return file


def test_debconf_reads_the_preseed(tmp_path: Path) -> None:
    file = answers(tmp_path, DEBIAN)
    check = ["debconf-set-selections", "--checkonly"]
    ended = subprocess.run([*check, file], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    file.write_text(file.read_text() + "d-i passwd/root-login\n")
    assert subprocess.run([*check, file], capture_output=True, check=False).returncode != 0


@pytest.mark.parametrize("version", ["RHEL8", "RHEL9"])
@pytest.mark.parametrize("tree", [None, "https://mirror.example/9/BaseOS"])
def test_pykickstart_reads_the_kickstart(tmp_path: Path, version: str, tree: str | None) -> None:
    file = answers(tmp_path, RED_HAT, tree=tree)
    check: list[str | Path] = [builders_environment() / "ksvalidator", "--version", version]
    ended = subprocess.run([*check, file], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    file.write_text(file.read_text() + "nosuchcommand\n")
    assert subprocess.run([*check, file], capture_output=True, check=False).returncode != 0
