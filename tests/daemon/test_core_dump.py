"""Nothing of the daemon's memory is written, however it dies and whoever asks."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.daemon.command import Command
from tests.daemon.images import import_of, raw_image, run_job
from tests.daemon.program import PROVISIOND, Daemon

CORE_PATTERN = Path("/proc/sys/kernel/core_pattern")
PAUSE = "import signal; print('ready', flush=True); signal.pause()"
UNTRACING = ("setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace")
UNLIMITED = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)


@contextmanager
def child(*argv: str | Path, folder: Path, log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A process in `folder`, where core_pattern puts cores by default."""
    with log.open("wb") as said:
        process = subprocess.Popen(argv, cwd=folder, stdout=said, stderr=said)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def paused(folder: Path, *prefix: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Any process, once it is there."""
    log = folder / "said"
    with child(*prefix, sys.executable, "-c", PAUSE, folder=folder, log=log) as process:
        while b"ready" not in log.read_bytes():
            assert process.poll() is None
        yield process


def dies_with_a_dump(process: "subprocess.Popen[bytes]", number: signal.Signals) -> bool:
    """Whether the kernel has written a core, to a file or to a program, when the signal came.

    With no limit of size any more, as for a program that core_pattern names, where the tests may
    lift it (CAP_SYS_RESOURCE).
    """
    with suppress(PermissionError):
        resource.prlimit(process.pid, resource.RLIMIT_CORE, UNLIMITED)
    process.send_signal(number)
    ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert ended is not None
    assert ended.si_status == number
    return ended.si_code == os.CLD_DUMPED


def require_dumps(folder: Path) -> None:
    """Skip where this kernel dumps nobody: that the daemon is not dumped would say nothing."""
    with paused(folder) as process:
        if not dies_with_a_dump(process, signal.SIGABRT):
            pytest.skip(f"this host dumps no cores: core_pattern is {CORE_PATTERN.read_text()!r}")


@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGSEGV])
async def test_a_daemon_that_is_aborted_leaves_no_core(
    idle_daemon: Daemon, tmp_path: Path, number: signal.Signals
) -> None:
    require_dumps(tmp_path)
    argv = (PROVISIOND, "serve", "--config", idle_daemon.write_settings())
    with child(*argv, folder=idle_daemon.folder, log=idle_daemon.log) as process:
        await idle_daemon.until_it_answers(lambda: process.poll() is not None)
        assert resource.prlimit(process.pid, resource.RLIMIT_CORE) == (0, 0)
        assert not dies_with_a_dump(process, number)
    assert not list(idle_daemon.folder.rglob("core*"))


async def test_another_process_of_root_cannot_read_its_memory_without_the_right_to_trace(
    idle_daemon: Daemon, tmp_path: Path
) -> None:
    idle_daemon.prefix = UNTRACING
    await idle_daemon.start()
    assert idle_daemon.process is not None
    with paused(tmp_path, *UNTRACING) as any_other:
        assert can_open_memory(any_other.pid)
        assert not can_open_memory(idle_daemon.process.pid)


def can_open_memory(pid: int) -> bool:
    read = f"open('/proc/{pid}/mem', 'rb').close()"
    argv = (*UNTRACING, sys.executable, "-c", read)
    return subprocess.run(argv, check=False, capture_output=True).returncode == 0


async def test_an_image_is_imported_without_the_right_to_trace(
    idle_daemon: Daemon, tmp_path: Path
) -> None:
    """qemu-img reads what the daemon holds open, and cannot find it in the daemon's /proc."""
    idle_daemon.prefix = UNTRACING
    await idle_daemon.start()
    await run_job(idle_daemon, import_of(raw_image(tmp_path / "image")))


async def test_ctrl_backslash_at_the_question_for_a_password_leaves_no_core(tmp_path: Path) -> None:
    require_dumps(tmp_path)
    command = Command(tmp_path / "none", prefix=(*UNTRACING, "env", f"--chdir={tmp_path}"))
    words = ("provision", "web1", "--hostname", "web1", "--password-stdin")
    async with command.on_terminal(*words) as terminal:
        await terminal.until("Password of the guest: ")
        assert resource.prlimit(terminal.pid, resource.RLIMIT_CORE) == (0, 0)
        assert not can_open_memory(terminal.pid)
        before = set(tmp_path.iterdir())
        terminal.type(b"\x1c")
        assert (await terminal.ended()).status == -signal.SIGQUIT
    assert set(tmp_path.iterdir()) == before
