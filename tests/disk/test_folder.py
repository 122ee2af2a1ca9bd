"""Files appear whole, under their name or not at all, and a stranger's file is never touched."""

import contextlib
import itertools
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from provisiond.api.requests import DiskFormat
from provisiond.disk.folder import (
    begin,
    is_immutable,
    is_placed,
    make_immutable,
    make_mutable,
    place,
    prepare_folder,
    refuse_writers,
    require_room,
    settle,
    take_back,
    write_whole,
)
from provisiond.errors import DiskExists, ImageBusy, ImageNotFound, NoSpace, StateUnwritable
from provisiond.plan import FilePlan, plan_disk
from tests.disk.images import writing_guest

JOB, OTHER_JOB = "0" * 32, "1" * 32


def plan_in(folder: Path, job: str = JOB) -> FilePlan:
    """The plan of the disk `web1`; its folder is there."""
    plan = plan_disk(job, name="web1", disk_format=DiskFormat.QCOW2, image_dir=folder)
    prepare_folder(plan.path.parent)
    return plan


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_of_images_is_no_symbolic_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "disks").symlink_to("elsewhere")
    with pytest.raises(StateUnwritable, match="is a symbolic link"):
        prepare_folder(tmp_path / "disks")


# ---------------------------------------------------------------- whole files
def test_a_file_has_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    plan = plan_in(tmp_path)
    begin(plan)
    assert plan.part.stat().st_mode & 0o777 == 0o600
    plan.part.write_text("whole")
    assert not plan.path.exists()
    assert not is_placed(plan)
    place(plan)
    assert is_placed(plan)
    settle(plan)
    assert names_in(plan.path.parent) == ["web1.qcow2"]
    assert plan.path.read_text() == "whole"


def test_every_step_may_be_asked_for_twice(tmp_path: Path) -> None:
    plan = plan_in(tmp_path)
    for step in (begin, begin, place, place, settle, settle):
        step(plan)
    assert names_in(plan.path.parent) == ["web1.qcow2"]
    for _ in range(2):
        take_back(plan, made=True)
    assert names_in(plan.path.parent) == []


def test_a_strangers_file_keeps_its_name_and_its_content(tmp_path: Path) -> None:
    plan = plan_in(tmp_path)
    plan.path.write_text("a stranger's")
    begin(plan)
    with pytest.raises(DiskExists, match=r"web1.qcow2: exists already"):
        place(plan)
    take_back(plan, made=False)
    assert names_in(plan.path.parent) == ["web1.qcow2"]
    assert plan.path.read_text() == "a stranger's"


def test_a_dangling_link_of_a_stranger_is_a_strangers_file_too(tmp_path: Path) -> None:
    plan = plan_in(tmp_path)
    plan.path.symlink_to(tmp_path / "nowhere")
    begin(plan)
    with pytest.raises(DiskExists):
        place(plan)
    take_back(plan, made=False)
    assert plan.path.is_symlink()


def test_two_jobs_with_one_name_make_one_file(tmp_path: Path) -> None:
    first, second = plan_in(tmp_path), plan_in(tmp_path, OTHER_JOB)
    for plan in (first, second):
        begin(plan)
    first.part.write_text("first")
    place(first)
    with pytest.raises(DiskExists):
        place(second)
    take_back(second, made=False)
    assert is_placed(first)
    assert first.path.read_text() == "first"


CRASH = """
import os, signal, sys
from pathlib import Path
from provisiond.disk.folder import begin, place, settle
from provisiond.plan import FilePlan
plan = FilePlan(Path(sys.argv[1]), Path(sys.argv[2]))
for step in (begin, place, settle)[: int(sys.argv[3])]:
    step(plan)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("steps", [1, 2])
def test_after_a_kill_before_the_fact_is_stored_nothing_is_left_or_all_goes_on(
    tmp_path: Path, steps: int
) -> None:
    plan = plan_in(tmp_path)
    argv: list[str | Path] = [sys.executable, "-c", CRASH, plan.path, plan.part, str(steps)]
    for undone in (True, False):
        assert subprocess.run(argv, check=False).returncode == -signal.SIGKILL
        assert is_placed(plan) is (steps == 2)
        if undone:
            take_back(plan, made=False)
            assert names_in(plan.path.parent) == []
        else:
            place(plan)
            settle(plan)
            assert names_in(plan.path.parent) == ["web1.qcow2"]


def test_after_a_kill_behind_the_stored_fact_the_job_knows_its_file(tmp_path: Path) -> None:
    plan = plan_in(tmp_path)
    argv: list[str | Path] = [sys.executable, "-c", CRASH, plan.path, plan.part, "3"]
    assert subprocess.run(argv, check=False).returncode == -signal.SIGKILL
    take_back(plan, made=False)
    assert plan.path.exists()  # whose it is, only the stored fact knows
    take_back(plan, made=True)
    assert not plan.path.exists()


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path, part = tmp_path / "a.json", tmp_path / ".a.part"
    write_whole(path, b"one", part=part)
    write_whole(path, b"two", part=part)
    assert path.read_bytes() == b"two"
    assert names_in(tmp_path) == ["a.json"]


def test_the_folders_let_another_user_pass_through(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        prepare_folder(tmp_path / "images" / "bases")
    finally:
        os.umask(before)
    for folder in (tmp_path / "images", tmp_path / "images" / "bases"):
        assert folder.stat().st_mode & 0o777 == 0o711


def test_what_the_file_system_refuses_is_explained(tmp_path: Path) -> None:
    plan = FilePlan(tmp_path / "absent" / "a", tmp_path / "absent" / ".a.part")
    with pytest.raises(StateUnwritable, match="No such file or directory"):
        begin(plan)
    assert make_immutable(tmp_path)
    try:
        with pytest.raises(StateUnwritable, match="Operation not permitted"):
            prepare_folder(tmp_path / "images")
    finally:
        make_mutable(tmp_path)


# ---------------------------------------------------------------- room
def test_room_is_what_is_free_without_the_reserve(small_folder: Path) -> None:
    free = os.statvfs(small_folder).f_bavail * os.statvfs(small_folder).f_frsize
    require_room(small_folder, free, reserve=0)
    require_room(small_folder, free - 4096, reserve=4096)
    with pytest.raises(NoSpace, match=f"{free - 4095} bytes are wanted, {free} are free and 4096"):
        require_room(small_folder, free - 4095, reserve=4096)


def test_a_file_system_that_becomes_full_is_no_space(small_folder: Path) -> None:
    with pytest.raises(NoSpace, match="No space left"):
        write_whole(small_folder / "a", bytes(5 * 2**20), part=small_folder / "part")


# ---------------------------------------------------------------- writers
def test_a_file_that_is_open_for_writing_is_busy_until_it_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"x")
    refuse_writers(path)
    with path.open("r+b"), pytest.raises(ImageBusy, match=f"{path}: is open for writing"):
        refuse_writers(path)
    with path.open("rb"):
        refuse_writers(path)
    with pytest.raises(ImageNotFound):
        refuse_writers(tmp_path / "absent")


async def test_a_guests_program_that_writes_makes_the_file_busy(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(2**20))
    async with writing_guest(path, disk_format=DiskFormat.RAW):
        with pytest.raises(ImageBusy):
            refuse_writers(path)
    refuse_writers(path)


def test_the_look_for_writers_neither_ends_this_process_nor_stops_a_writer(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"x")
    script = f"while :; do : >>{path}; echo; done"
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        free = 0
        for looked in itertools.count(1):
            with contextlib.suppress(ImageBusy):
                refuse_writers(path)
                free += 1
            if free and looked >= 3000:
                break
        # It went on: whoever has to wait for a lease's end otherwise waits for 45 seconds.
        assert select.select([writer.stdout], [], [], 10)[0]
        os.read(writer.stdout.fileno(), 65536)
        writer.kill()


# ---------------------------------------------------------------- the immutable flag
def test_an_immutable_file_withstands_root(tmp_path: Path) -> None:
    path = tmp_path / "base"
    path.write_bytes(b"golden")
    assert not is_immutable(path)
    assert make_immutable(path)
    assert make_immutable(path)
    assert is_immutable(path)
    for argv in (["rm", "-f"], ["mv", "-t", tmp_path.parent], ["ln", "-t", tmp_path.parent]):
        refused = subprocess.run([*map(str, argv), str(path)], check=False, stderr=subprocess.PIPE)
        assert refused.returncode != 0
    with pytest.raises(PermissionError):
        path.write_bytes(b"changed")
    assert path.read_bytes() == b"golden"
    assert make_mutable(path)
    path.unlink()


def test_a_file_system_without_the_flag_is_fine(flagless_folder: Path) -> None:
    path = flagless_folder / "base"
    path.write_bytes(b"golden")
    assert not make_immutable(path)
    assert not is_immutable(path)
    assert not make_mutable(path)
