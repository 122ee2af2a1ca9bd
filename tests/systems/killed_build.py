"""A Debian by the real mmdebstrap, out of the host's own apt sources: the build is killed when it
is half-way, and then asked for again. What was seen is told; the tests say what it has to be.
"""

import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.daemon.command import PROVISIONCTL, Ended
from tests.images.debian import PATIENCE, image_command
from tests.images.test_confined import confined_processes, mounts
from tests.images.test_phases import ended_within

NAME = "debian"


@dataclass(frozen=True, slots=True, kw_only=True)
class Killed:
    """How it was around the kill; mounts are as mountinfo has them."""

    mounts_before: str
    mounts_inside: str  # of a process of the build, when the kill came
    worked: list[int]  # the processes of the build, when the kill came
    outlived: list[int]  # those of them that did not end
    left: list[int]  # processes of the build that are there afterwards
    mounts_after: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed:
    """How it was when the same was asked for again."""

    ended: Ended  # its output is JSON
    log: str
    work: list[Path]  # what is in its folder for what it works with
    mounts_after: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KilledBuild:
    """The image in `folder` is built and not yet baked."""

    folder: Path
    killed: Killed
    resumed: Resumed

    def until(self, phase: str) -> Ended:
        """All phases that are left, to this one; the output is JSON."""
        return _ask_again(self.folder, phase)


def build_killed_and_resumed(folder: Path) -> KilledBuild:
    """Build, kill, build."""
    killed = _kill(folder)
    ended = _ask_again(folder, "build")
    resumed = Resumed(
        ended=ended,
        log=(folder / "logs" / "build.log").read_text(),
        work=list((folder / "work").iterdir()),
        mounts_after=mounts(),
    )
    return KilledBuild(folder=folder, killed=killed, resumed=resumed)


def _ask_again(folder: Path, phase: str) -> Ended:
    """The same build; the folder knows its recipe."""
    return image_command("build", NAME, "--folder", folder, "--until", phase, "--json")


def _kill(folder: Path) -> Killed:
    before = mounts()
    build = subprocess.Popen(
        [
            *(PROVISIONCTL, "image", "build", NAME, "--folder", folder),
            *("--from", "mmdebstrap", "--until", "build"),
        ],
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
        worked = confined_processes(folder)
        inside = Path(f"/proc/{worked[-1]}/mountinfo").read_text()
        build.send_signal(signal.SIGKILL)
        build.wait(PATIENCE)
    finally:
        build.kill()
        build.communicate()
    return Killed(
        mounts_before=before,
        mounts_inside=inside,
        worked=worked,
        outlived=[pid for pid in worked if not ended_within(pid, PATIENCE)],
        left=confined_processes(folder),
        mounts_after=mounts(),
    )
