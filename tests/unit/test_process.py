"""Real programs: what they say comes back, and nothing of them goes on when nobody waits."""

import asyncio
import logging
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from provisiond.errors import ToolFailed
from provisiond.process import become, hand_over, output_of, run, run_as_init

SOON = 10  # seconds; far more than any of this takes


def end_of(pid: int) -> None:
    """Returns once `pid` has ended; fails when it goes on."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    ended, _, _ = select.select([process], [], [], SOON)
    os.close(process)
    assert ended, f"process {pid} goes on"


async def test_what_a_program_says_comes_back() -> None:
    finished = await run(["sh", "-c", "cat; echo err >&2"], stdin=b"in")
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, b"in", b"err\n")


async def test_what_it_says_on_stderr_comes_in_its_place_where_that_is_asked_for() -> None:
    heard: list[str] = []
    script = "echo one; echo two >&2; echo three; exit 3"
    finished = await run(["sh", "-c", script], hear=heard.append, with_stderr=True, check=False)
    assert heard == ["one", "two", "three"]
    assert (finished.returncode, finished.stdout, finished.stderr) == (3, b"", b"")
    assert (await run(["sh", "-c", script], with_stderr=True, check=False)).stdout == (
        b"one\ntwo\nthree\n"
    )


async def test_a_program_without_input_reads_its_end_at_once() -> None:
    async with asyncio.timeout(SOON):
        assert (await run(["cat"])).stdout == b""


async def test_much_input_and_much_output_do_not_wait_for_each_other() -> None:
    data = os.urandom(900_000)
    async with asyncio.timeout(SOON):
        assert (await run(["cat"], stdin=data)).stdout == data


async def test_input_that_nobody_reads_is_no_error() -> None:
    assert (await run(["true"], stdin=b"x" * 900_000)).returncode == 0


async def test_a_failure_carries_the_programs_own_last_words() -> None:
    with pytest.raises(ToolFailed) as failure:
        await run(["sh", "-c", "seq 1 100000 >&2; echo no such image >&2; exit 3"])
    assert "sh ended with status 3: " in failure.value.message
    assert failure.value.message.endswith("no such image")
    assert len(failure.value.message) < 2100


async def test_a_status_can_be_the_answer() -> None:
    assert (await run(["sh", "-c", "exit 3"], check=False)).returncode == 3
    assert (await run(["sh", "-c", "kill -9 $$"], check=False)).returncode == -signal.SIGKILL


async def test_a_file_of_ours_is_open_in_the_program_where_a_word_names_it(tmp_path: Path) -> None:
    (tmp_path / "image").write_text("what it held when it was opened")
    with (tmp_path / "image").open() as image:
        (tmp_path / "image").unlink()
        named = f"/proc/self/fd/{image.fileno()}"
        assert (await run(["cat", named])).stdout == b"what it held when it was opened"
        listed = await run(["ls", "/proc/self/fd"])
        assert str(image.fileno()).encode() not in listed.stdout.split(), "and only there"


async def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ToolFailed, match="/nowhere cannot be started: No such file"):
        await run([tmp_path / "nowhere"])


async def test_a_program_that_never_stops_talking_is_killed() -> None:
    async with asyncio.timeout(SOON):
        with pytest.raises(ToolFailed, match="said more than 100000 bytes"):
            await run(["yes"], limit_output=100_000)


async def test_at_the_callers_limit_the_whole_group_ends(tmp_path: Path) -> None:
    fifo = tmp_path / "pids"
    os.mkfifo(fifo)
    script = f"sleep 1000 & echo $$ $! >{fifo}; wait"
    task = asyncio.create_task(run(["sh", "-c", script]))
    pids = (await asyncio.to_thread(fifo.read_text)).split()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for pid in pids:
        end_of(int(pid))


async def test_a_start_that_is_cancelled_half_way_leaves_nothing(tmp_path: Path) -> None:
    for turns in range(30):  # of the event loop: the start takes some, and each may be the last
        fifo = tmp_path / f"pids-{turns}"
        os.mkfifo(fifo)
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        task = asyncio.create_task(run(["sh", "-c", f"sleep 1000 & echo $$ $! >{fifo}; wait"]))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        async with asyncio.timeout(SOON):
            with pytest.raises(asyncio.CancelledError):
                await task
        pids = os.read(reader, 100).split()
        os.close(reader)
        for pid in pids:
            end_of(int(pid))


async def test_a_stranger_that_holds_the_pipe_does_not_outlast_the_callers_limit(
    tmp_path: Path,
) -> None:
    pid_file = tmp_path / "pid"
    script = f"setsid sleep 1000 & echo $! >{pid_file}"
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await run(["sh", "-c", script])
    os.kill(int(pid_file.read_text()), signal.SIGKILL)


async def test_a_stream_ends_with_its_block() -> None:
    async with (
        asyncio.timeout(SOON),
        output_of(["sh", "-c", "echo $$; exec sleep 1000"]) as stream,
    ):
        pid = int(await stream.readline())
    end_of(pid)


async def test_the_command_is_logged_as_one_could_type_it_and_its_input_is_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.DEBUG, logger="provisiond.process"):
        await run(["printf", "%s", "it's"], stdin=b"very-secret")
    assert [record.getMessage() for record in caplog.records] == ["""printf %s 'it'"'"'s'"""]


async def test_lines_are_heard_as_they_come_also_those_that_are_written_over(
    tmp_path: Path,
) -> None:
    fifo = tmp_path / "go-on"
    os.mkfifo(fifo)
    heard: list[str] = []
    second = asyncio.Event()

    def hear(line: str) -> None:
        heard.append(line)
        if line == "two":
            second.set()

    script = f"printf 'one\\rtwo\\n'; read go <{fifo}; printf 'three\\rfour'"
    task = asyncio.create_task(run(["sh", "-c", script], hear=hear))
    async with asyncio.timeout(SOON):
        await second.wait()
        assert heard == ["one", "two"]
        await asyncio.to_thread(fifo.write_text, "go\n")
        assert (await task).stdout == b""
    assert heard == ["one", "two", "three", "four"]


async def test_a_program_that_is_heard_may_talk_for_ever_and_keeps_no_memory() -> None:
    lengths: list[int] = []
    script = "head -c 3000000 /dev/zero; echo; echo end"
    await run(["sh", "-c", script], hear=lambda line: lengths.append(len(line)), limit_output=1000)
    assert lengths[-1] == len("end")
    assert max(lengths) <= 4096


RUNNING = """
import asyncio, os, signal
from provisiond.process import running
async def main():
    async with running(["sleep", "1000"]) as program:
        print(program.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""


async def test_a_running_program_ends_with_the_one_who_was_killed() -> None:
    status, said = await in_python(RUNNING)
    assert status == -signal.SIGKILL
    end_of(int(said))


# ---------------------------------------------------------------- a command's own terminal
HAND_OVER = """
import asyncio, sys
from provisiond.process import hand_over
sys.exit(asyncio.run(hand_over(sys.argv[1:])))
"""
BECOME = """
import os, sys
from provisiond.process import become
print(os.getpid(), flush=True)
become(sys.argv[1:])
"""


async def in_python(script: str, *argv: str, stdin: bytes = b"") -> tuple[int, str]:
    """How a Python that runs `script` with a program's words ends, and what is said on stdout."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", script, *argv),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate(stdin)
    return await process.wait(), out.decode()


async def test_a_program_that_is_handed_the_terminal_stays_in_the_group_and_its_status_is_told(
    tmp_path: Path,
) -> None:
    words = tmp_path / "words.py"
    words.write_text("import os, sys; print(input(), os.getpgrp()); sys.exit(7)")
    status, said = await in_python(HAND_OVER, sys.executable, str(words), stdin=b"typed\n")
    assert status == 7
    assert said.split() == ["typed", str(os.getpgrp())]


async def test_a_program_that_has_the_terminal_ends_with_the_one_who_waits_for_it(
    tmp_path: Path,
) -> None:
    fifo = tmp_path / "pid"
    os.mkfifo(fifo)
    task = asyncio.create_task(hand_over(["sh", "-c", f"echo $$ >{fifo}; exec sleep 1000"]))
    pid = await asyncio.to_thread(fifo.read_text)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    end_of(int(pid))


async def test_a_program_that_takes_our_place_has_our_pid_and_no_signal_is_ignored() -> None:
    status, said = await in_python(
        BECOME, "sh", "-c", "echo $$; grep SigIgn: /proc/self/status; exit 7"
    )
    ours, its, _, ignored = said.split()
    assert (status, ours) == (7, its)
    assert not int(ignored, 16) & 1 << (signal.SIGPIPE - 1)
    assert not int(ignored, 16) & 1 << (signal.SIGXFSZ - 1)


async def test_a_program_that_is_not_there_takes_nobodys_place(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGPIPE)
    with pytest.raises(ToolFailed, match="/nowhere cannot be started: No such file"):
        become([tmp_path / "nowhere"])
    assert signal.getsignal(signal.SIGPIPE) == before
    with pytest.raises(ToolFailed, match="/nowhere cannot be started: No such file"):
        await hand_over([tmp_path / "nowhere"])


# ---------------------------------------------------------------- the first process of a namespace
IN_NAMESPACE = ("unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c")
AS_INIT = """
import os, sys
from provisiond.process import run_as_init
run_as_init(["sh", "-c", sys.argv[1]], environment=dict(os.environ), attend=sys.stdin.read)
left = [name for name in os.listdir("/proc") if name.isdecimal()]
print("left:", left, flush=True)
"""


def test_only_a_first_process_may_end_all_others() -> None:
    with pytest.raises(RuntimeError, match="this is no init"):
        run_as_init(["true"], environment={}, attend=lambda: None)


@pytest.mark.parametrize("ends", ["program", "attention"])
def test_a_first_process_leaves_nothing_whichever_ends_first(ends: str) -> None:
    # Both sleeps lose their parents; the third process is the program itself.
    orphans = "(setsid sleep 1000 &) ; (sleep 1000 &) ; echo started"
    program = orphans if ends == "program" else f"{orphans}; exec sleep 1000"
    with subprocess.Popen(
        [*IN_NAMESPACE, AS_INIT, program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        if ends == "attention":
            process.stdin.close()
        assert process.stdout.read() == "left: ['1']\n"
        assert process.wait() == 0
