"""The manifest of an image: what is one, and what is refused without being shown."""

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from provisiond.api.image_manifest import (
    LONGEST,
    MAX_PACKAGES,
    ImageManifest,
    Package,
    manifest_path,
)
from provisiond.disk.manifest import read_image_manifest
from provisiond.errors import ImageNotFound, ImageRefused

SHA256 = "0" * 64


@pytest.mark.parametrize("packages", [None, (), (Package(name="bash", version="5.2-1"),)])
def test_what_is_written_reads_back(tmp_path: Path, packages: tuple[Package, ...] | None) -> None:
    manifest = ImageManifest(
        sha256=SHA256,
        made_at=datetime(2026, 1, 2, tzinfo=UTC),
        recipe={"suite": "bookworm", "packages": ["ssh"], "size": 2**32, "more": None},
        packages=packages,
    )
    path = manifest_path(tmp_path / "image.qcow2")
    assert path.name == "image.qcow2.manifest.json"
    path.write_bytes(manifest.to_json())
    assert read_image_manifest(path) == manifest


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "\x00",
        '{"sha256": "00"}',
        f'{{"sha256": "{SHA256}", "init": "\\u001b[2J-a secret"}}',
        f'{{"sha256": "{SHA256}", "builder": "{"x" * 256}-a secret"}}',
        f'{{"sha256": "{SHA256}", "password": "a secret"}}',
        "[" * 100_000,
    ],
    ids=lambda text: text[:30],
)
def test_what_is_no_manifest_is_refused_without_a_word_of_it(tmp_path: Path, text: str) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(text)
    with pytest.raises(ImageRefused, match="is no manifest of an image") as refused:
        read_image_manifest(path)
    assert "a secret" not in str(refused.value)
    assert refused.value.message.isprintable()


def test_what_is_too_long_or_no_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    path.write_bytes(b" " * (LONGEST + 1))
    with pytest.raises(ImageRefused, match="has more than"):
        read_image_manifest(path)
    packages = ",".join(['{"name":"a","version":"1"}'] * (MAX_PACKAGES + 1))
    path.write_text(f'{{"sha256": "{SHA256}", "packages": [{packages}]}}')
    with pytest.raises(ImageRefused, match="packages: "):
        read_image_manifest(path)
    with pytest.raises(ImageRefused, match="is no regular file"):
        read_image_manifest(tmp_path)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(ImageRefused, match="is no regular file"):
        read_image_manifest(fifo)
    with pytest.raises(ImageNotFound):
        read_image_manifest(tmp_path / "none")
