"""What an image is made of, read out of real file systems and real databases of packages."""

import hashlib
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from provisiond.api.image_manifest import ImageManifest, Package, manifest_path
from provisiond.api.requests import DiskFormat
from provisiond.disk.manifest import read_image_manifest
from provisiond.images.agent_files import read_agent
from provisiond.images.contents import describe, parse_apk, parse_dpkg

RELEASE = 'ID=debian\nVERSION_ID="12"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n'
STATUS = """\
Package: bash
Status: install ok installed
Description: GNU Bourne Again SHell
 Version: 9, which is only told of
Version: 5.2.15-2+b7

Package: removed
Status: deinstall ok config-files
Version: 1.0

Package: libc6
Status: install ok installed
Version: 2.36-9+deb12u10
"""
APK = "C:Q1=\nP:musl\nV:1.2.5-r0\nF:lib\n\nP:busybox\nV:1.36.1-r29\n\n"


def root_image(image: Path, files: Mapping[str, str | bytes]) -> Path:
    """A file system of its own with these files, filled by mke2fs."""
    root = image.with_name("root")
    for name, content in {"sbin/init": "#!/bin/sh\n", "etc/os-release": RELEASE, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", root, image, "16M"], check=True)
    return image


async def described(image: Path) -> ImageManifest:
    made_of = await describe(image, disk_format=DiskFormat.RAW, said=lambda _line: None)
    assert read_image_manifest(manifest_path(image)) == made_of
    assert made_of.sha256 == hashlib.sha256(image.read_bytes()).hexdigest()
    return made_of


async def test_a_debian_tells_its_release_its_packages_and_its_script(tmp_path: Path) -> None:
    agent = read_agent()
    files: Mapping[str, str | bytes] = {
        "usr/sbin/provision-guest": agent.script,
        "var/lib/dpkg/status": STATUS,
    }
    made_of = await described(root_image(tmp_path / "image.raw", files))
    assert made_of.distribution == "Debian GNU/Linux 12 (bookworm)"
    assert (made_of.agent_version, made_of.agent_sha256) == (agent.version, agent.sha256)
    assert made_of.packages == (
        Package(name="bash", version="5.2.15-2+b7"),
        Package(name="libc6", version="2.36-9+deb12u10"),
    )


async def test_an_alpine_tells_its_packages_and_that_no_script_is_there(tmp_path: Path) -> None:
    made_of = await described(root_image(tmp_path / "image.raw", {"lib/apk/db/installed": APK}))
    assert (made_of.agent_version, made_of.agent_sha256) == (None, None)
    assert made_of.packages == (
        Package(name="busybox", version="1.36.1-r29"),
        Package(name="musl", version="1.2.5-r0"),
    )


async def test_what_nobody_can_read_is_not_told(tmp_path: Path) -> None:
    made_of = await described(root_image(tmp_path / "image.raw", {"var/lib/rpm/Packages": "x"}))
    assert made_of.packages is None


def test_this_hosts_own_packages_are_those_that_dpkg_tells() -> None:
    told = subprocess.run(
        ["dpkg-query", "--show", "--showformat=${db:Status-Status} ${Package} ${Version}\\n"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    installed = [line.split(" ")[1:] for line in told.splitlines() if line[:10] == "installed "]
    parsed = parse_dpkg(Path("/var/lib/dpkg/status").read_text())
    assert sorted([one.name, one.version] for one in parsed) == sorted(installed)


@pytest.mark.parametrize("parse", [parse_dpkg, parse_apk])
def test_what_is_no_word_of_a_package_is_left_out(parse: object) -> None:
    assert callable(parse)
    for name in ("", "a\x1b[2J", "x" * 256, "two words", "ä"):
        entry = f"Package: {name}\nStatus: a b installed\nVersion: 1\n\nP:{name}\nV:1\n"
        assert list(parse(entry)) == []
