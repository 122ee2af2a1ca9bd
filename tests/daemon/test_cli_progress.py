"""provisionctl and a job that takes long: the bar it draws, Ctrl-C, and a cancel.

The real qemu-img that copies is stopped (SIGSTOP) and let go on as the test wants it.
"""

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from provisiond.api.replies import BaseView, ErrorReply
from tests.daemon.command import Command
from tests.daemon.images import files_of, raw_image
from tests.daemon.program import LOOK_SECONDS, Daemon

COLOURS = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Large enough that its copy can be caught half-way."""
    return raw_image(tmp_path / "image.raw", mib=512, data_mib=400)


def copying(daemon: Daemon) -> int | None:
    """The PID of the daemon's qemu-img that copies an image, while there is one."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended since it was listed
        if b"convert" in words and any(str(daemon.image_dir).encode() in word for word in words):
            return int(process.name)
    return None


@asynccontextmanager
async def held(daemon: Daemon, *, beyond: float = 0) -> AsyncIterator[tuple[str, float]]:
    """The newest job's id and how far its copy has come; it stands still inside the block."""
    pid = None
    while pid is None:
        await asyncio.sleep(LOOK_SECONDS)
        pid = copying(daemon)
    process = os.pidfd_open(pid)
    try:
        while True:
            signal.pidfd_send_signal(process, signal.SIGSTOP)
            (newest, *_) = (await daemon.get("/v1/jobs")).json()["jobs"]
            progress = (await daemon.job(newest["id"]))["progress"]
            if progress["doing"] == "converting" and progress["fraction"] > beyond:
                break
            signal.pidfd_send_signal(process, signal.SIGCONT)
            await asyncio.sleep(LOOK_SECONDS)
        yield newest["id"], progress["fraction"]
        if copying(daemon) == pid:
            signal.pidfd_send_signal(process, signal.SIGCONT)
    finally:
        os.close(process)


def words_for(image: Path) -> tuple[str | Path, ...]:
    return ("base", "import", "debian12", image, "--source-format", "raw")


# ---------------------------------------------------------------- waiting
async def test_ctrl_c_at_the_bar_leaves_the_import_going_on(
    daemon: Daemon, command: Command, image: Path
) -> None:
    async with (
        command.on_terminal(*words_for(image)) as terminal,
        held(daemon) as (job_id, fraction),
    ):
        await terminal.until(f"{fraction:4.0%}")
        shown = COLOURS.sub("", terminal.shown.decode())
        said = await terminal.interrupted()
        assert (await daemon.job(job_id))["state"] == "ACCEPTED"
    assert said.status == 130
    assert re.search(r"converting \d+\.\d s\s+[╸━]", shown)  # a half, where it has just begun
    assert f"debian12: job {job_id} goes on" in said.out
    assert f"provisionctl watch {job_id}" in said.out
    assert "\x1b[?25h" in said.out  # the cursor is shown again
    await daemon.wait_for(job_id, "SUCCEEDED")
    base = await command.run("base", "show", "debian12", "--json")
    assert BaseView.model_validate_json(base.out).changed is None


async def test_a_cancel_ends_the_import_that_somebody_waits_for_and_leaves_nothing(
    daemon: Daemon, command: Command, image: Path
) -> None:
    async with (
        command.on_terminal(*words_for(image)) as terminal,
        held(daemon) as (job_id, fraction),
    ):
        await terminal.until(f"{fraction:4.0%}")
        assert files_of(daemon) != []
        cancelled = await command.run("cancel", job_id[:8])
        assert (cancelled.status, cancelled.err) == (0, "")
        said = await terminal.ended()
        assert copying(daemon) is None
    assert said.status == 1
    assert "debian12: FAILED after " in said.out
    assert "failure: cancelled: " in said.out
    assert files_of(daemon) == []
    shown = await command.run("base", "show", "debian12", "--json")
    assert ErrorReply.model_validate_json(shown.out).code == "base_not_found"


async def test_the_bar_grows_and_is_gone_at_the_end(
    daemon: Daemon, command: Command, image: Path
) -> None:
    async with command.on_terminal(*words_for(image)) as terminal:
        async with held(daemon) as (_, first):
            await terminal.until(f"{first:4.0%}")
        async with held(daemon, beyond=first + 0.01) as (_, second):
            await terminal.until(f"{second:4.0%}")
        said = await terminal.ended()
    assert said.status == 0
    last_drawn = COLOURS.sub("", said.out.rpartition("\x1b[2K")[2])
    assert re.search(r"debian12: SUCCEEDED in \d+\.\d s\r\n$", last_drawn)
    assert "━" not in last_drawn
    assert "✔ IMAGE_WRITTEN" in last_drawn


async def test_in_a_pipe_there_is_no_bar(daemon: Daemon, command: Command, image: Path) -> None:
    said = await command.run(*words_for(image))
    assert said.status == 0
    assert "━" not in said.out
    assert "%" not in said.out
    verified = await command.run("base", "verify", "debian12")
    assert verified.status == 0
    assert "━" not in verified.out
    assert files_of(daemon) == ["bases/debian12.json", "bases/debian12.qcow2"]
