"""provisionctl image bake and extract as an operator meets them."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

from provisiond.api.image_manifest import ImageManifest, manifest_path
from provisiond.api.requests import DiskFormat
from provisiond.disk.manifest import read_image_manifest
from provisiond.images.agent_files import read_agent
from tests.images.golden import LAYOUTS, make_golden, make_tree


def provisionctl(*words: str | Path, path: str | None = None) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("provisionctl")
    environment = {**os.environ, **({} if path is None else {"PATH": path})}
    return subprocess.run(
        [program, "image", *words], env=environment, capture_output=True, text=True, check=False
    )


def golden(tmp_path: Path) -> Path:
    tree = make_tree(tmp_path / "tree", LAYOUTS["systemd"])
    return make_golden(tmp_path / "a.qcow2", tree, disk_format=DiskFormat.QCOW2)


def test_bake_says_what_it_put_where(tmp_path: Path) -> None:
    image = golden(tmp_path)
    ended = provisionctl("bake", image, "--json")
    assert ended.returncode == 0
    told = json.loads(ended.stdout)
    assert told["agent_sha256"] == read_agent().sha256
    assert told["files"][0] == "/usr/sbin/provision-guest"
    ended = provisionctl("bake", image)
    assert ended.stdout.splitlines() == told["files"]
    assert "started by systemd" in ended.stderr


def test_a_manifest_beside_the_image_is_true_after_the_bake_as_well(tmp_path: Path) -> None:
    image = golden(tmp_path)
    assert provisionctl("describe", image).returncode == 0
    place = manifest_path(image)
    before = read_image_manifest(place).model_copy(update={"builder": "kiwi", "recipe": {"a": 1}})
    place.write_bytes(before.to_json())
    assert provisionctl("bake", image).returncode == 0
    after = read_image_manifest(place)
    assert after.sha256 == hashlib.sha256(image.read_bytes()).hexdigest() != before.sha256
    assert after.agent_sha256 == read_agent().sha256
    assert (after.builder, after.recipe) == ("kiwi", {"a": 1})


def test_a_manifest_of_another_image_stays_as_it_is(tmp_path: Path) -> None:
    image = golden(tmp_path)
    other = ImageManifest(sha256="0" * 64).to_json()
    manifest_path(image).write_bytes(other)
    assert provisionctl("bake", image).returncode == 0
    assert manifest_path(image).read_bytes() == other


def test_a_refusal_says_why_and_what_to_do(tmp_path: Path) -> None:
    image = golden(tmp_path)
    ended = provisionctl("extract", image, "--kernel", tmp_path / "k", "--json")
    assert ended.returncode != 0
    told = json.loads(ended.stdout)
    assert told["code"] == "image_refused"
    assert "has no kernel in /boot" in told["message"]
    assert not (tmp_path / "k").exists()


def test_a_program_that_is_missing_is_named_with_its_package(tmp_path: Path) -> None:
    image = golden(tmp_path)
    before = image.read_bytes()
    ended = provisionctl("bake", image, path=str(tmp_path))
    assert ended.returncode != 0
    assert "apt install" in ended.stderr
    assert image.read_bytes() == before


def test_wrong_usage_is_told(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(bytes(512))
    assert provisionctl("bake", tmp_path / "image").returncode == 2  # of no known suffix
    assert provisionctl("extract", tmp_path / "a.raw").returncode == 2  # nothing is wanted
