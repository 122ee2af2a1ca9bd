"""Which phases of a build are done, and what is left of them after a kill."""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisiond.errors import BuildBusy, BuildFailed, ProvisionError, StateUnwritable, WrongPhase
from provisiond.images.build import Said, Step, run_phases
from provisiond.images.build_folder import BuildFolder, opened
from provisiond.images.mount_points import mounts_below
from provisiond.images.phases import ORDER, Phase, before, choose_phases
from provisiond.images.recipe import MmdebstrapRecipe
from provisiond.images.steps import Result

RECIPE = MmdebstrapRecipe(name="web")


class Seen:
    """What a build told whoever looks on."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def began(self, phase: Phase) -> None:
        self.told.append(f"{phase} began")

    def said(self, phase: Phase, line: str) -> None:
        self.told.append(f"{phase} said {line}")

    def ended(self, phase: Phase, *, seconds: float, result: Result) -> None:
        self.told.append(f"{phase} ended {result}")

    def failed(self, phase: Phase, *, seconds: float) -> None:
        self.told.append(f"{phase} failed")


def working(*lines: str) -> Step:
    """A step that says these lines and ends well."""

    async def step(said: Said) -> Result:
        for line in lines:
            said(line)
        return {"lines": len(lines)}

    return step


def failing(error: BaseException) -> Step:
    async def step(_said: Said) -> Result:
        raise error

    return step


@contextmanager
def in_new(path: Path) -> Iterator[BuildFolder]:
    with opened(path) as folder:
        folder.keep_recipe(RECIPE)
        yield folder


# ---------------------------------------------------------------- which
PHASES = st.sampled_from(ORDER)


@given(st.integers(0, len(ORDER)))
def test_without_options_what_is_left_is_done(count: int) -> None:
    assert choose_phases(ORDER[:count]) == list(ORDER[count:])


@given(st.sets(PHASES), PHASES)
def test_one_phase_is_done_where_all_before_it_have_ended(ended: set[Phase], only: Phase) -> None:
    if set(before(only)) <= ended:
        assert choose_phases(ended, only=only) == [only]
    else:
        with pytest.raises(WrongPhase, match=str(only)):
            choose_phases(ended, only=only)


@given(st.integers(0, len(ORDER)), st.none() | PHASES, st.none() | PHASES)
def test_whatever_is_asked_for_no_phase_is_done_before_those_that_it_needs(
    count: int, until: Phase | None, again: Phase | None
) -> None:
    ended = set(ORDER[:count])
    try:
        chosen = choose_phases(ended, until=until, again=again)
    except WrongPhase:
        assert again is not None
        assert not set(before(again)) <= ended
        return
    for phase in chosen:
        assert set(before(phase)) <= ended
        ended.add(phase)
    if chosen and until is not None:
        assert chosen[-1] == until


# ---------------------------------------------------------------- done
async def test_each_phase_is_recorded_with_what_it_found_and_logged(tmp_path: Path) -> None:
    seen = Seen()
    steps = {Phase.INIT: working("a", "b\x1b[2J"), Phase.UPDATE: working()}
    with in_new(tmp_path) as folder:
        await run_phases(folder, [Phase.INIT, Phase.UPDATE], steps=steps, watcher=seen)
        assert [record.result for record in folder.ended().values()] == [{"lines": 2}, {"lines": 0}]
        log = folder.log(Phase.INIT).read_text().splitlines()
    assert log[1] == "a"
    assert "\x1b" not in log[2]
    assert seen.told[0] == "init began"
    assert seen.told[3:] == ["init ended {'lines': 2}", "update began", "update ended {'lines': 0}"]


async def test_a_phase_that_fails_ends_the_run_and_is_where_the_next_one_begins(
    tmp_path: Path,
) -> None:
    steps = {phase: working() for phase in ORDER}
    broken = steps | {Phase.PRECHECK: failing(BuildFailed("no room"))}
    seen = Seen()
    with in_new(tmp_path) as folder:
        with pytest.raises(BuildFailed):
            await run_phases(folder, ORDER, steps=broken, watcher=seen)
        assert choose_phases(folder.ended()) == list(ORDER[2:])
        assert "build_failed: no room" in folder.log(Phase.PRECHECK).read_text()
        assert seen.told[-1] == "precheck failed"
    with opened(tmp_path) as folder:
        await run_phases(folder, choose_phases(folder.ended()), steps=steps, watcher=Seen())
        assert choose_phases(folder.ended()) == []


async def test_a_phase_done_again_undoes_those_after_it(tmp_path: Path) -> None:
    steps = {phase: working() for phase in ORDER}
    with in_new(tmp_path) as folder:
        await run_phases(folder, ORDER, steps=steps, watcher=Seen())
        await run_phases(folder, [Phase.UPDATE], steps=steps, watcher=Seen())
        assert choose_phases(folder.ended()) == list(ORDER[2:])


async def test_another_recipe_begins_anew_and_the_same_one_does_not(tmp_path: Path) -> None:
    with in_new(tmp_path) as folder:
        await run_phases(folder, ORDER[:3], steps={p: working() for p in ORDER}, watcher=Seen())
        folder.keep_recipe(MmdebstrapRecipe(name="web"))
        assert len(folder.ended()) == 3
        folder.keep_recipe(MmdebstrapRecipe(name="web", packages=("less",)))
        assert folder.ended() == {}


async def test_another_key_begins_anew_and_the_same_one_does_not(tmp_path: Path) -> None:
    steps = {phase: working() for phase in ORDER}
    with in_new(tmp_path) as folder:
        folder.keep_key("a")
        await run_phases(folder, ORDER[:3], steps=steps, watcher=Seen())
        folder.keep_key("a")
        assert len(folder.ended()) == 3
        folder.keep_key("b")
        assert folder.ended() == {}
        await run_phases(folder, ORDER[:3], steps=steps, watcher=Seen())
        folder.forget_key()
        folder.keep_key("b")
        assert folder.ended() == {}


def test_a_kill_in_a_phase_leaves_those_before_it_ended_and_the_folder_free(
    tmp_path: Path,
) -> None:
    """The build is a process of its own that is killed while its third phase is at work."""
    script = """
import asyncio, sys
from pathlib import Path
from tests.images.test_phases import ORDER, Seen, in_new, working
from provisiond.images.build import run_phases

async def stay(said):
    print("at work", flush=True)
    await asyncio.Event().wait()

async def main():
    steps = {phase: working() for phase in ORDER} | {ORDER[2]: stay}
    with in_new(Path(sys.argv[1])) as folder:
        await run_phases(folder, ORDER, steps=steps, watcher=Seen())

asyncio.run(main())
"""
    build = subprocess.Popen(
        [sys.executable, "-c", script, tmp_path], stdout=subprocess.PIPE, text=True
    )
    try:
        assert build.stdout is not None
        assert build.stdout.readline() == "at work\n"
        with pytest.raises(BuildBusy), opened(tmp_path):
            pass
    finally:
        build.send_signal(signal.SIGKILL)
        build.communicate()
    with opened(tmp_path) as folder:
        assert choose_phases(folder.ended()) == list(ORDER[2:])
        assert folder.recipe() == RECIPE


def test_a_record_that_is_none_is_told_and_not_guessed(tmp_path: Path) -> None:
    with in_new(tmp_path) as folder:
        for damaged in (b"", b"{", b"[]", json.dumps({"bake": {"seconds": "x"}}).encode()):
            (tmp_path / "phases.json").write_bytes(damaged)
            with pytest.raises(BuildFailed, match=r"phases\.json"):
                folder.ended()


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ProvisionError, match="file"), opened(tmp_path / "file" / "build"):
        pass


def test_a_work_folder_that_cannot_be_removed_is_told(tmp_path: Path) -> None:
    with in_new(tmp_path) as folder:
        folder.work.write_text("no folder")
        with pytest.raises(StateUnwritable, match="work: Not a directory"):
            folder.clear_work()


# ---------------------------------------------------------------- mounts
def test_only_mounts_below_the_folder_count_with_the_deepest_first(tmp_path: Path) -> None:
    names = [
        "/",
        f"{tmp_path}/work",
        f"{tmp_path}/work/a\\040b/proc",
        f"{tmp_path}/work/a\\040b",
        f"{tmp_path}/workshop",
    ]
    mountinfo = "".join(f"36 35 98:0 / {name} rw - ext4 /dev/x rw\n" for name in names)
    work = tmp_path / "work"
    assert mounts_below(work, mountinfo) == [work / "a b" / "proc", work / "a b", work]


def test_what_is_mounted_in_the_work_folder_is_not_removed(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from provisiond.errors import BuildFailed
from provisiond.images.build_folder import opened
with opened(Path(sys.argv[1])) as folder:
    try:
        folder.clear_work()
    except BuildFailed as error:
        print(error.message)
"""
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("kept")
    (tmp_path / "build" / "work" / "inner").mkdir(parents=True)
    mount = 'mount --bind "$1" "$2/work/inner" && exec "$3" -c "$4" "$2"'
    argv: list[str | Path] = [
        "sh",
        "-c",
        mount,
        "sh",
        precious,
        tmp_path / "build",
        sys.executable,
        script,
    ]
    ended = subprocess.run(
        ["unshare", "--mount", *argv], stdout=subprocess.PIPE, text=True, check=True
    )
    assert "inner is mounted" in ended.stdout
    assert (precious / "file").read_text() == "kept"


def test_a_loop_device_over_a_file_in_the_work_folder_is_detached(tmp_path: Path) -> None:
    """diskimage-builder takes one, and a kill leaves it; this one is removed as well."""
    with in_new(tmp_path) as folder:
        folder.clear_work()
        files = [folder.work / "image", tmp_path / "not-ours"]
        for file in files:
            file.write_bytes(bytes(2**20))
        devices = [attach(file) for file in files]
        try:
            files[0].unlink()
            folder.clear_work()
            assert not backing_file(devices[0]).exists()
            assert backing_file(devices[1]).read_text().strip() == str(files[1])
        finally:
            subprocess.run(["losetup", "--detach", devices[1]], check=True)


def attach(file: Path) -> str:
    """The loop device that has the file from now on."""
    argv = ["losetup", "--find", "--show", str(file)]
    return subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def backing_file(device: str) -> Path:
    return Path("/sys/block", Path(device).name, "loop/backing_file")


def ended_within(pid: int, seconds: float) -> bool:
    """Whether the process has ended before so many seconds are over."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([process], [], [], seconds)[0])
    finally:
        os.close(process)
