"""The state file where something was done to it: before a start, and while it is open."""

import asyncio
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from provisiond.errors import StateUnusable, StateUnwritable
from provisiond.job import Job
from provisiond.store import Fact, Store
from tests.unit.test_store import (
    SOON,
    WRITER,
    S,
    a_whole_file,
    fill_up,
    job_of,
    refused,
    reopened,
    run_python,
    small_tmpfs,
    write_half_a_database,
)

__all__ = ["small_tmpfs"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state" / "provisiond.sqlite"


def wal_of(file: Path) -> Path:
    return file.with_name(f"{file.name}-wal")


def write_and_die(file: Path, first: int, count: int) -> None:
    """Store jobs with this provisiond's own hands, and leave the write-ahead log as a kill does."""
    end = f"\n        if number == {first + count - 1}: import os; os._exit(0)"
    program = WRITER.replace("print(number, flush=True)", f"pass{end}")
    run_python(program.replace("int(sys.argv[2])", str(first)), file)
    assert wal_of(file).stat().st_size > 0


# ---------------------------------------------------------------- before a start
async def test_an_empty_file_is_refused(file: Path) -> None:
    file.parent.mkdir()
    file.touch(mode=0o600)
    assert "is empty" in str(await refused(file))


async def test_a_log_whose_file_is_gone_is_refused_and_its_facts_are_not_lost(file: Path) -> None:
    await a_whole_file(file, jobs=1)
    write_and_die(file, 100, 1)
    kept = file.rename(file.with_name("kept"))
    log = wal_of(file).read_bytes()
    error = await refused(file)
    assert wal_of(file).name in str(error)
    assert "move that away as well" in error.hint
    assert wal_of(file).read_bytes() == log
    kept.rename(file)
    jobs, _ = await reopened(file)
    assert {job.generation for job in jobs} == {0, 100}


async def test_a_journal_of_something_else_is_not_played_back(file: Path) -> None:
    await a_whole_file(file)
    other = file.with_name("other")
    write_half_a_database(other)
    other.with_name("other-journal").rename(file.with_name(f"{file.name}-journal"))
    other.unlink()
    assert "-journal" in str(await refused(file))


async def test_a_newer_file_keeps_its_log(file: Path) -> None:
    await a_whole_file(file, jobs=1)
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA user_version = 99")
    program = (
        "import os, sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None);"
        "c.execute('CREATE TABLE new (x)'); os._exit(0)"
    )
    run_python(program, file)
    assert wal_of(file).stat().st_size > 0
    assert "version 99" in str(await refused(file))


async def test_an_index_that_lacks_a_job_is_refused(file: Path) -> None:
    """It would let a second job work on the same domain."""
    await a_whole_file(file)
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        index = ["one_unfinished_job_a_domain"]
        find = "SELECT * FROM sqlite_schema WHERE name = ?"
        (row,) = connection.execute(find, index).fetchall()
        connection.execute("DELETE FROM sqlite_schema WHERE name = ?", index)
        connection.execute("PRAGMA writable_schema = RESET")
        connection.execute(
            "INSERT INTO jobs SELECT 'new', 'new', 'new', 'new', generation, created_at, ended,"
            " cancel_requested, job FROM jobs LIMIT 1"
        )
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("INSERT INTO sqlite_schema VALUES (?, ?, ?, ?, ?)", row)
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("PRAGMA quick_check").fetchall() == [("ok",)]
    assert "one_unfinished_job_a_domain" in str(await refused(file))


async def test_an_old_copy_under_a_later_log_is_refused(file: Path) -> None:
    """Whoever puts back a copy has to move the log away, which is of the file as it was later."""
    await a_whole_file(file, jobs=5)
    copy = shutil.copyfile(file, file.parent.parent / "copy")
    await add(file, range(100, 160))
    write_and_die(file, 200, 20)
    shutil.copyfile(copy, file)
    assert "is corrupt" in str(await refused(file))
    wal_of(file).rename(file.parent / "later-log")
    jobs, _ = await reopened(file)
    assert {job.generation for job in jobs} == set(range(5))


async def test_a_link_to_nothing_is_no_reason_to_start_empty(file: Path) -> None:
    file.parent.mkdir()
    file.symlink_to(file.parent / "not-mounted" / file.name)
    with pytest.raises(StateUnwritable, match="No such file"):
        await reopened(file)
    assert file.is_symlink()


async def add(file: Path, numbers: range) -> None:
    store = Store(file)
    await store.open()
    for number in numbers:
        await store.insert(big(number), "x")
    await store.close()


def big(number: int) -> Job:
    return replace(job_of(number), request={"x": "y" * 2000})


# ---------------------------------------------------------------- while it is open
def overwrite(file: Path) -> None:
    """As a disk does that loses its data: every byte but those that tell what the file is."""
    size = file.stat().st_size
    with file.open("r+b") as opened:
        opened.seek(100)
        opened.write(b"\xa5" * (size - 100))


def remove(file: Path) -> None:
    file.unlink()


def exchange(file: Path) -> None:
    shutil.copyfile(file, file.with_name("copy")).rename(file)


@pytest.mark.parametrize("spoil", [overwrite, remove, exchange])
async def test_a_file_that_is_spoilt_takes_no_fact_any_more(
    file: Path, spoil: Callable[[Path], None]
) -> None:
    await a_whole_file(file)
    store = Store(file)
    await store.open()
    assert await store.trouble() is None
    spoil(file)
    job = job_of(100)
    for _ in range(2):
        with pytest.raises(StateUnusable, match=str(file)):
            await store.insert(job, "never")
    with pytest.raises(StateUnusable):
        await store.save(job, [Fact(S.ACCEPTED, "never")])
    assert store.damage is not None
    assert await store.trouble() == store.damage.message
    async with asyncio.timeout(SOON):
        await store.damaged()
    await store.close()


async def test_a_file_that_is_exchanged_is_seen_though_nobody_writes(file: Path) -> None:
    store = Store(file)
    await store.open()
    exchange(file)
    assert "exchanged" in str(await store.trouble())
    async with asyncio.timeout(SOON):
        await store.damaged()
    await store.close()


async def test_a_full_disk_is_told_before_and_after_somebody_writes(small_tmpfs: Path) -> None:
    filler = small_tmpfs / "filler"
    store = Store(small_tmpfs / "provisiond.sqlite")
    await store.open()
    known = await store.insert(job_of(2), "x")
    assert await store.trouble() is None
    fill_up(filler)
    assert "is full" in str(await store.trouble())
    with pytest.raises(StateUnwritable):
        await store.insert(replace(job_of(1), request={"x": "y" * 50_000}), "no room")
    assert "disk is full" in str(await store.trouble())
    assert await store.insert(known, "x", lambda standing: standing.of_request or known) == known
    assert "disk is full" in str(await store.trouble()), "nothing was written just now"
    filler.unlink()
    assert await store.trouble() is None
    await store.insert(job_of(1), "room again")
    await store.close()


async def test_to_ask_for_trouble_writes_nothing(file: Path) -> None:
    store = Store(file)
    await store.open()
    await store.insert(job_of(1), "x")
    before = wal_of(file).stat()
    for _ in range(20):
        assert await store.trouble() is None
    after = wal_of(file).stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    await store.close()
