"""The daemon over a state file that is spoilt or cannot be written: what it says, what it keeps."""

import asyncio
import contextlib
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.daemon.command import Command
from tests.daemon.host import in_guest
from tests.daemon.images import import_of, raw_image, run_job
from tests.daemon.program import Daemon, Json, request
from tests.lab.program import Lab
from tests.unit.test_state_file import overwrite
from tests.unit.test_store import fill_up

UNUSABLE = 78  # the exit status with which systemd is told not to try again


@pytest.fixture
def small_state(idle_daemon: Daemon) -> Iterator[Path]:
    """The daemon's state directory, a file system of one mebibyte."""
    folder = idle_daemon.state_file.parent
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return raw_image(tmp_path / "image.raw", mib=1)


def state_of(daemon: Daemon) -> dict[str, bytes]:
    """The state file, and a log of it that holds something."""
    files = daemon.state_file.parent.glob("provisiond.sqlite*")
    found = {file.name: file.read_bytes() for file in files if not file.name.endswith("-shm")}
    return {name: content for name, content in found.items() if content}


# ---------------------------------------------------------------- at the start
def overwrite_a_page(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.seek(4096)
        opened.write(os.urandom(4096))


def empty(file: Path) -> None:
    os.truncate(file, 0)


def put_a_newer_one(file: Path) -> None:
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA user_version = 99")


@pytest.mark.parametrize("spoil", [overwrite_a_page, empty, put_a_newer_one])
async def test_a_spoilt_file_is_left_as_it_is_and_a_copy_brings_its_jobs_back(
    daemon: Daemon, image: Path, spoil: Callable[[Path], None]
) -> None:
    job = await run_job(daemon, import_of(image, name="golden"))
    await daemon.stop()
    copy = shutil.copyfile(daemon.state_file, daemon.folder / "copy")
    spoil(daemon.state_file)
    before = state_of(daemon)
    daemon.log.unlink()
    for _ in range(2):  # a service manager that tries again does no harm
        status, said = await daemon.run_to_its_end()
        assert status == UNUSABLE
        assert f"provisiond: state_unusable: {daemon.state_file}" in said
        assert "Traceback" not in said
        assert state_of(daemon) == before
    shutil.copyfile(copy, daemon.state_file)
    await daemon.start()
    assert (await daemon.job(job["id"]))["state"] == "SUCCEEDED"


async def test_a_state_file_that_is_a_folder_is_refused(idle_daemon: Daemon) -> None:
    idle_daemon.state_file.mkdir(parents=True)
    status, said = await idle_daemon.run_to_its_end()
    assert status == 1
    assert f"state_unwritable: cannot write {idle_daemon.state_file}: Is a directory" in said


async def test_a_state_file_that_all_may_read_is_its_owners_alone_afterwards(
    daemon: Daemon,
) -> None:
    await daemon.stop()
    daemon.state_file.chmod(0o666)
    await daemon.start()
    assert daemon.state_file.stat().st_mode & 0o777 == 0o600


# ---------------------------------------------------------------- while it runs
async def test_a_state_directory_that_is_full_is_told_before_anybody_asks_for_a_job(
    idle_daemon: Daemon, small_state: Path, image: Path
) -> None:
    await idle_daemon.start()
    assert (await health(idle_daemon)) == (200, None)
    fill_up(small_state / "filler")
    status, trouble = await health(idle_daemon)
    assert (status, trouble) == (503, f"{small_state} is full")
    settings = idle_daemon.write_settings()
    said = await Command(idle_daemon.socket).run("doctor", "--config", settings)
    assert said.status == 1
    assert "is full" in said.out
    replies = [await idle_daemon.post(import_of(image, name=f"b{n}")) for n in range(20)]
    last = replies[-1]  # the log may have had room for some
    assert (last.status_code, last.json()["code"]) == (507, "state_unwritable")
    assert (await health(idle_daemon))[0] == 503
    (small_state / "filler").unlink()
    assert (await health(idle_daemon)) == (200, None)
    await run_job(idle_daemon, import_of(image, name="golden"))


async def health(daemon: Daemon) -> tuple[int, str | None]:
    reply = await daemon.get("/healthz")
    return reply.status_code, reply.json()["state_trouble"]


async def test_a_file_spoilt_under_a_job_ends_the_daemon_and_the_job_goes_on_with_a_copy(
    lab: Lab, guest_daemon: Daemon
) -> None:
    (guest,) = lab.start("--silent")
    guest_daemon.settings["ready_seconds"] = 1
    await guest_daemon.start()
    job = await guest_daemon.submit(request(guest.name))
    await guest_daemon.wait_for(job["id"], "ISO_ATTACHED")
    await guest_daemon.stop()  # so that no fact is in the log only
    copy = shutil.copyfile(guest_daemon.state_file, guest_daemon.folder / "copy")
    await guest_daemon.start()
    overwrite(guest_daemon.state_file)
    refused = await guest_daemon.cancel(job["id"])
    assert (refused.status_code, refused.json()["code"]) == (503, "state_unusable")
    assert guest_daemon.process is not None
    async with asyncio.timeout(30):
        assert await guest_daemon.process.wait() == UNUSABLE
    assert "every job stays as it is stored" in guest_daemon.said()
    assert "Traceback" not in guest_daemon.said()
    assert len(list(guest_daemon.iso_folder.iterdir())) == 1
    assert (await in_guest(guest, "ls /dev/sr0")).strip() == "/dev/sr0"

    shutil.copyfile(copy, guest_daemon.state_file)
    await guest_daemon.start()
    assert (await guest_daemon.cancel(job["id"])).status_code == 202
    ended: Json = await guest_daemon.wait_for(job["id"], "FAILED")
    assert ended["failure"]["code"] == "cancelled"
    assert list(guest_daemon.iso_folder.iterdir()) == []
