"""A build by the real mmdebstrap that is killed half-way leaves nothing, and the next one ends."""

import json
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.command import PROVISIONCTL
from tests.images.test_confined import confined_processes, mounts
from tests.images.test_phases import ended_within

PATIENCE = 1800  # seconds; half a minute for the build on a free machine

pytestmark = pytest.mark.timeout(2 * PATIENCE)


@pytest.fixture
def folder() -> Iterator[Path]:
    """On a disk: an image is made in it."""
    with tempfile.TemporaryDirectory(prefix="build-", dir="/var/tmp") as name:
        yield Path(name)


def test_a_killed_build_leaves_no_mounts_and_is_resumed(folder: Path) -> None:
    before = mounts()
    argv: list[str | Path] = [PROVISIONCTL, "image", "build", "web", "--folder", folder]
    build = subprocess.Popen(
        [*argv, "--from", "mmdebstrap", "--network-stack", "networkd", "--until", "build"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert build.stdout is not None
        said = []
        # From here on the root has /proc, /sys and /dev of its own mounted.
        while "installing remaining packages" not in (line := build.stdout.readline()):
            said.append(line)
            assert line, "".join(said)
        left = confined_processes(folder)
        inside = Path(f"/proc/{left[-1]}/mountinfo").read_text()
        build.send_signal(signal.SIGKILL)
        build.wait(PATIENCE)
    finally:
        build.kill()
        build.communicate()
    assert str(folder / "work" / "tree") in inside, "it has mounted nothing yet"
    assert left
    assert all(ended_within(pid, PATIENCE) for pid in left)
    assert confined_processes(folder) == []
    assert mounts() == before
    ended = subprocess.run(
        [*argv, "--until", "build", "--json"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    assert list(told["phases"]) == ["init", "update", "precheck", "build"]
    assert Path(told["image"]).stat().st_size > 50 * 2**20
    log = (folder / "logs" / "build.log").read_text()
    assert log.count("--- build ended") == 1
    assert log.count(" build\n") == 2, "the killed run is in the log as well"
    assert list((folder / "work").iterdir()) == []
    assert mounts() == before
