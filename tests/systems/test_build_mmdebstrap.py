"""A build by the real mmdebstrap that is killed half-way leaves nothing, and the next one ends.

What it has built is booted in test_verify.py.
"""

import json
from pathlib import Path

import pytest

from tests.images.debian import PATIENCE
from tests.systems.killed_build import KilledBuild

pytestmark = pytest.mark.timeout(2 * PATIENCE)


def test_a_killed_build_leaves_no_process_and_no_mounts(killed_build: KilledBuild) -> None:
    seen = killed_build.killed
    tree = str(killed_build.folder / "work" / "tree")
    assert tree in seen.mounts_inside, "it had mounted nothing yet"
    assert seen.worked
    assert seen.outlived == []
    assert seen.left == []
    assert seen.mounts_after == seen.mounts_before


def test_a_killed_build_is_resumed(killed_build: KilledBuild) -> None:
    seen = killed_build.resumed
    assert seen.ended.status == 0, seen.ended.err
    told = json.loads(seen.ended.out)
    assert list(told["phases"]) == ["init", "update", "precheck", "build"]
    assert Path(told["image"]).stat().st_size > 50 * 2**20
    assert seen.log.count("--- build ended") == 1
    assert seen.log.count(" build\n") == 2, "the killed run is in the log as well"
    assert seen.work == []
    assert seen.mounts_after == killed_build.killed.mounts_before
