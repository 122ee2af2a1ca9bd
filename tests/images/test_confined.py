"""A builder's program: whatever becomes of it or of us, nothing of it is left."""

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from provisiond.errors import BuildBusy, BuildFailed
from provisiond.images.build_folder import BuildFolder, opened
from provisiond.images.confined import run_confined
from provisiond.process import run
from tests.images.test_phases import ended_within

SOON = 60  # seconds; far more than any of this takes

# A builder as they are: it mounts, starts others, and one of those leaves its session.
BUILDER = r"""
set -e
mkdir mounted
mount -t tmpfs inner mounted
touch mounted/file
setsid sh -c 'echo ready; sleep 1000; true' &
unshare --mount sh -c 'echo ready; sleep 1000; true' &
wait
"""
STARTED = 2  # say that they are ready
BUILD = """
import asyncio, sys
from pathlib import Path
from provisiond.images.build_folder import opened
from provisiond.images.confined import run_confined

async def main():
    with opened(Path(sys.argv[1])) as folder:
        folder.clear_work()
        await run_confined(
            ["sh", "-c", sys.argv[2]], folder=folder, said=lambda line: print(line, flush=True)
        )

asyncio.run(main())
"""


def mounts() -> str:
    return Path("/proc/self/mountinfo").read_text()


def confined_processes(folder: Path) -> list[int]:
    """Every process of the host that works for the build in the folder: it has inherited that."""
    wanted = b"PROVISIOND_BUILD_LOCK="
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes()
        except OSError:
            continue
        if wanted in environment and f"TMPDIR={folder / 'work'}".encode() in environment:
            found.append(int(process.name))
    return found


def has_open(pid: int, file: Path) -> bool:
    """Whether the process has the file open: the lock on it then lasts as long as it does."""
    return any(path.samefile(file) for path in Path(f"/proc/{pid}/fd").iterdir() if path.exists())


def processes_once_ready(build: subprocess.Popen[str], folder: Path) -> list[int]:
    """The builder's processes, once it has mounted and started all that it will."""
    assert build.stdout is not None
    for _ in range(STARTED):
        assert build.stdout.readline() == "ready\n"
    return confined_processes(folder)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_whatever_ends_the_build_its_mounts_and_processes_go_with_it(
    tmp_path: Path, number: signal.Signals
) -> None:
    before = mounts()
    build = subprocess.Popen(
        ["env", "--default-signal=INT", sys.executable, "-c", BUILD, tmp_path, BUILDER],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        left = processes_once_ready(build, tmp_path)
        assert len(left) >= 3
        assert mounts() == before, "its mounts are seen outside"
        assert all(has_open(pid, tmp_path / "lock") for pid in left)
        with pytest.raises(BuildBusy), opened(tmp_path):
            pass
        build.send_signal(number)
        build.wait(SOON)
    finally:
        build.kill()
        build.communicate()
    assert all(ended_within(pid, SOON) for pid in left)
    assert confined_processes(tmp_path) == []
    assert mounts() == before
    with opened(tmp_path) as folder:
        assert not (folder.work / "mounted" / "file").exists()
        folder.clear_work()
        assert list(folder.work.iterdir()) == []


async def confined(folder: BuildFolder, script: str) -> list[str]:
    """What the script says, confined."""
    said: list[str] = []
    folder.clear_work()
    await run_confined(["sh", "-c", script], folder=folder, said=said.append)
    return said


async def test_stdout_and_stderr_come_line_by_line_in_their_order(tmp_path: Path) -> None:
    with opened(tmp_path) as folder:
        said = await confined(folder, r"echo one; echo two >&2; printf 'three\rfour\n\n'; echo end")
    assert said == ["one", "two", "three", "four", "end"]


async def test_an_error_has_the_last_words_and_the_status(tmp_path: Path) -> None:
    with opened(tmp_path) as folder, pytest.raises(BuildFailed) as caught:
        await confined(folder, "echo working; echo 'no such mirror' >&2; exit 7")
    assert caught.value.message == "sh ended with status 7: working; no such mirror"


async def test_a_builder_sees_its_own_processes_and_little_of_our_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_SECRET", "of the operator")
    monkeypatch.setenv("http_proxy", "http://192.0.2.7:3128")
    with opened(tmp_path) as folder:
        said = await confined(folder, "env; ls /proc | grep -c '^[0-9]'; pwd")
        assert str(folder.work) == said[-1]
    assert int(said[-2]) < 10
    assert not [line for line in said if "A_SECRET" in line]
    assert "http_proxy=http://192.0.2.7:3128" in said


async def test_a_proxys_password_is_in_no_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "http://user:hunter2@192.0.2.7:3128")
    lines: list[bytes] = []

    def said(line: str) -> None:
        if line == "ready":
            for process in Path("/proc").glob("[0-9]*"):
                with suppress(OSError):
                    lines.append((process / "cmdline").read_bytes())
            (folder.work / "seen").touch()

    with opened(tmp_path) as folder:
        folder.clear_work()
        script = 'echo ready; until test -e seen; do sleep 0.1; done; test "$https_proxy"'
        await run_confined(["sh", "-c", script], folder=folder, said=said)
    assert [line for line in lines if b"until test -e seen" in line]
    assert not [line for line in lines if b"hunter2" in line]


async def test_a_cancelled_build_leaves_nothing(tmp_path: Path) -> None:
    started = asyncio.Semaphore(0)

    def said(line: str) -> None:
        if line == "ready":
            started.release()

    with opened(tmp_path) as folder:
        folder.clear_work()
        task = asyncio.create_task(run_confined(["sh", "-c", BUILDER], folder=folder, said=said))
        for _ in range(STARTED):
            await started.acquire()
        left = confined_processes(tmp_path)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert len(left) >= 3
    assert all(ended_within(pid, SOON) for pid in left)
    assert os.path.ismount(tmp_path / "work" / "mounted") is False


async def test_who_is_not_root_is_told_so(tmp_path: Path) -> None:
    script = """
import asyncio, sys
from pathlib import Path
from provisiond.errors import NotPermitted
from provisiond.images.build_folder import opened
from provisiond.images.confined import run_confined
with opened(Path(sys.argv[1])) as folder:
    try:
        asyncio.run(run_confined(["true"], folder=folder, said=print))
    except NotPermitted as error:
        print(error.message, error.hint)
"""
    tmp_path.chmod(0o777)
    for folder in tmp_path.parents[:2]:
        folder.chmod(0o755)
    setpriv = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    ended = await run([*setpriv, sys.executable, "-c", script, tmp_path])
    assert ended.stdout.startswith(b"true needs root")
    assert b"--on" in ended.stdout
