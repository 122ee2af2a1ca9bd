"""The store: what it has said yes to is there after any end, and it never spoils a file."""

import asyncio
import contextlib
import errno
import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from provisiond.api.replies import JobState
from provisiond.api.requests import JobKind
from provisiond.clock import BootTime
from provisiond.errors import Busy, RequestConflict, StateUnusable, StateUnwritable
from provisiond.job import Event, Failure, Job, Proof, advance
from provisiond.pruning import prune
from provisiond.settings import Settings
from provisiond.store import Fact, Standing, Store

S = JobState
SOON = 10.0  # seconds; far more than any of this takes


def uuid_of(domain: int) -> str:
    return f"00000000-0000-0000-0000-{domain:012x}"


def job_of(number: int, *, domain: int | None = None, created_at: float = 1.0) -> Job:
    domain = number if domain is None else domain
    return Job(
        id=f"{number:032x}",
        request_id=f"r-{number}",
        kind=JobKind.PROVISION,
        subject=f"web{domain}",
        works_on=f"domain web{domain}",
        domain_uuid=uuid_of(domain),
        generation=number,
        request={"request_id": f"r-{number}", "config": {"hostname": "web"}},
        created_at=created_at,
        updated_at=created_at,
        deadline_at=601.0,
    )


def failed(job: Job) -> Job:
    undoing = advance(job, S.UNDOING, at=5.0, failure=Failure("cancelled", "m", "h", "network"))
    return advance(undoing, S.FAILED, at=6.0, proof=Proof(True, True, True, 6.0))


class _LookedAt(Exception):
    """Nothing is to be stored."""


async def standing_of(store: Store, job: Job) -> Standing:
    """What stands there when the job would be stored."""
    found: list[Standing] = []

    def decide(standing: Standing) -> Job:
        found.append(standing)
        raise _LookedAt

    with pytest.raises(_LookedAt):
        await store.insert(job, "x", decide)
    return found[-1]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state" / "provisiond.sqlite"


@pytest.fixture
async def store(file: Path) -> AsyncIterator[Store]:
    store = Store(file)
    await store.open()
    yield store
    await store.close()


@pytest.fixture
def small_tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A real file system of half a mebibyte."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


def make_read_only(mount: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", mount], check=True)


def fill_up(filler: Path) -> None:
    """Take all the room that is left."""
    with filler.open("wb", buffering=0) as full:
        try:
            while True:
                full.write(bytes(4096))
        except OSError as error:
            assert error.errno == errno.ENOSPC  # noqa: PT017 - the way out of the loop


def run_python(program: str, argument: Path) -> bytes:
    """What a Python of its own says; it must end well."""
    argv: list[str | Path] = [sys.executable, "-c", program, argument]
    return subprocess.run(argv, stdout=subprocess.PIPE, check=True, timeout=60).stdout


async def reopened(file: Path) -> tuple[list[Job], list[Event]]:
    """All that a new daemon would find."""
    store = Store(file)
    try:
        await store.open()
        return await store.newest(100), await store.events_after(0, limit=100_000)
    finally:
        await store.close()


async def refused(file: Path) -> StateUnusable:
    """The error of a file that is refused; asserts that not a byte and not its mode changed, nor
    of what lies beside it."""
    before = bytes_and_modes(file.parent)
    store = Store(file)
    with pytest.raises(StateUnusable) as caught:
        await store.open()
    await store.close()
    assert bytes_and_modes(file.parent) == before
    assert str(file) in str(caught.value)
    return caught.value


def bytes_and_modes(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Of every file but what SQLite makes to read: a log's index, and a log that is empty."""
    files = ((path, path.read_bytes()) for path in folder.iterdir())
    return {
        path.name: (content, path.stat().st_mode)
        for path, content in files
        if not path.name.endswith("-shm") and (content or not path.name.endswith("-wal"))
    }


# ---------------------------------------------------------------- keeping
async def test_a_job_comes_back_as_it_was_stored(store: Store, file: Path) -> None:
    job = job_of(1)
    await store.insert(job, "request accepted")
    assert await store.find(job.id) == job
    later = replace(
        failed(job), target="sda", attached_at=2.5, detached_at=3.5, guest_log=("one", "zwei ü")
    )
    await store.save(later, [Fact(S.UNDOING, "undoing"), Fact(S.FAILED, "undone")])
    assert await store.find(job.id) == await store.find_request("r-1") == later
    await store.close()
    jobs, events = await reopened(file)
    assert jobs == [later]
    assert [(e.seq, e.at, e.state, e.detail) for e in events] == [
        (1, 1.0, S.ACCEPTED, "request accepted"),
        (2, 6.0, S.UNDOING, "undoing"),
        (3, 6.0, S.FAILED, "undone"),
    ]
    assert {(e.job_id, e.subject) for e in events} == {(job.id, "web1")}


async def test_what_is_not_there_is_none(store: Store) -> None:
    assert await store.find("0" * 32) is None
    assert await store.find_request("r-1") is None
    assert await store.unfinished_on("x", None) is None
    assert await standing_of(store, job_of(1)) == Standing(None, None, None, 0)
    assert await store.unfinished() == await store.newest(10) == []
    assert await store.events_after(0) == []


async def test_the_file_is_its_owners_alone(store: Store, file: Path) -> None:
    await store.insert(job_of(1), "x")
    for path in file.parent.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


async def test_a_domain_has_one_unfinished_job(store: Store) -> None:
    first = job_of(1, domain=7)
    await store.insert(first, "x")
    assert await store.unfinished_on(first.works_on, None) == first
    with pytest.raises(Busy, match="web7"):
        await store.insert(job_of(2, domain=7), "x")
    await store.insert(job_of(3, domain=8), "x")
    await store.save(failed(first), [Fact(S.FAILED, "x")])
    assert await store.unfinished_on(first.works_on, None) is None
    await store.insert(job_of(2, domain=7), "x")
    assert {job.generation for job in await store.unfinished()} == {2, 3}


async def test_what_stands_in_a_requests_way_is_known_all_at_once(store: Store) -> None:
    asked, other = job_of(1, domain=7), replace(job_of(2, domain=8), disk_name="data")
    nothing = Standing(None, None, None, 0)
    new = job_of(9, domain=7)
    assert await standing_of(store, replace(asked, disk_name="data")) == nothing
    await store.insert(asked, "x")
    await store.insert(other, "x")
    assert await standing_of(store, new) == Standing(None, asked, None, 1)
    again = replace(new, request_id="r-2", disk_name="data")
    assert await standing_of(store, again) == Standing(other, asked, other, 1)
    await store.save(failed(asked), [Fact(S.FAILED, "x")])
    await store.insert(job_of(3, domain=7), "x")
    named = replace(new, disk_name="other")
    assert await standing_of(store, named) == Standing(None, job_of(3, domain=7), None, 3)
    disk = replace(new, works_on="disk x", domain_uuid=None, disk_name="x")
    assert await standing_of(store, disk) == nothing, "what has no domain has no generation"


async def test_a_job_is_stored_as_it_is_decided_by_what_stands_there(store: Store) -> None:
    first = await store.insert(job_of(1, domain=7), "x")
    await store.save(failed(first), [Fact(S.FAILED, "x")])

    def decide(standing: Standing) -> Job:
        return standing.of_request or replace(new, generation=standing.last_generation + 1)

    new = job_of(2, domain=7)
    stored = await asyncio.gather(*(store.insert(new, "x", decide) for _ in range(5)))
    assert stored == 5 * [replace(new, generation=first.generation + 1)]
    assert store.inserted == 2
    assert await store.unfinished() == stored[:1]


async def test_a_request_id_is_taken_for_ever(store: Store) -> None:
    first = job_of(1)
    await store.insert(first, "x")
    await store.save(failed(first), [Fact(S.FAILED, "x")])
    with pytest.raises(RequestConflict, match="r-1"):
        await store.insert(replace(job_of(2), request_id="r-1"), "x")


async def test_a_refused_job_leaves_nothing(store: Store) -> None:
    await store.insert(job_of(1, domain=7), "x")
    with pytest.raises(Busy):
        await store.insert(job_of(2, domain=7), "never")
    assert await store.find(job_of(2).id) is None
    assert [event.detail for event in await store.events_after(0)] == ["x"]


async def test_one_of_many_inserts_for_one_domain_wins(store: Store) -> None:
    jobs = [job_of(number, domain=7) for number in range(20)]
    tries = [store.insert(job, "x") for job in jobs]
    answers = await asyncio.gather(*tries, return_exceptions=True)
    assert sorted(type(answer).__name__ for answer in answers) == ["Busy"] * 19 + ["Job"]
    assert len(await store.unfinished()) == 1


async def test_a_cancel_that_was_asked_for_outlives_later_saves(store: Store) -> None:
    job = job_of(1)
    await store.insert(job, "x")
    await store.request_cancel(job, Fact(job.state, "cancel asked for", at=3.0))
    await store.save(advance(job, S.DISKS_CREATED, at=2.0), [Fact(S.DISKS_CREATED, "x")])
    found = await store.find(job.id)
    assert found is not None
    assert found.cancel_requested


async def test_jobs_are_listed_newest_first_and_resumed_oldest_first_whatever_the_clock_said(
    store: Store,
) -> None:
    for number, created_at in ((1, 30.0), (2, 10.0), (3, 20.0)):
        await store.insert(job_of(number, created_at=created_at), "x")
    assert [job.generation for job in await store.newest(2)] == [3, 2]
    assert [job.generation for job in await store.unfinished()] == [1, 2, 3]


async def test_the_start_of_an_id_finds_two_jobs_at_most(store: Store) -> None:
    for number in (0x10, 0x20, 0x30):
        await store.insert(replace(job_of(number), id=f"{number:x}".ljust(32, "a")), "x")
    assert [job.generation for job in await store.find_by_prefix("20")] == [0x20]
    assert len(await store.find_by_prefix("")) == 2
    assert await store.find_by_prefix("4") == []


def succeeded(job: Job) -> Job:
    for state in WAY[1:]:
        job = advance(job, state, at=job.created_at)
    return job


WAY = (
    *(S.ACCEPTED, S.DISKS_CREATED, S.DOMAIN_STARTED, S.ISO_WRITTEN, S.ISO_ATTACHED),
    *(S.GUEST_CONFIGURED, S.ISO_DETACHED, S.SUCCEEDED),
)


async def add_ended(store: Store, numbers: range, *, domains: int, fails: bool = False) -> None:
    """Jobs that have ended, each created at its number; job N is of the domain N mod `domains`."""
    for number in numbers:
        job = job_of(number, domain=number % domains, created_at=float(number))
        await store.insert(job, "x")
        ended = failed(job) if fails else succeeded(job)
        await store.save(ended, [Fact(ended.state, "x")])


async def kept(store: Store) -> list[int]:
    return sorted(int(job.id, 16) for job in await store.newest(10_000))


async def test_old_jobs_go_and_the_last_that_each_guest_has_taken_stays(store: Store) -> None:
    await add_ended(store, range(1, 451), domains=3)
    await add_ended(store, range(451, 461), domains=3, fails=True)
    unfinished = job_of(461, domain=9, created_at=2.5)
    await store.insert(unfinished, "x")
    assert await store.prune(before=1000.0, keep=1000) == 457
    assert await kept(store) == [448, 449, 450, 461]
    assert await store.prune(before=1000.0, keep=1000) == 0
    events = await store.events_after(0)
    assert {event.job_id for event in events} == {f"{n:032x}" for n in (448, 449, 450, 461)}
    last = await store.last_configured(uuid_of(0))
    assert last is not None
    assert last.id == f"{450:032x}"


async def test_the_last_job_that_a_guest_has_taken_is_so_though_the_clock_was_set_back(
    store: Store,
) -> None:
    for number, created_at in ((1, 4e9), (2, 10.0)):
        job = job_of(number, domain=7, created_at=created_at)
        await store.insert(job, "x")
        await store.save(succeeded(job), [Fact(S.SUCCEEDED, "x")])
    last = await store.last_configured(uuid_of(7))
    assert last is not None
    assert last.generation == 2


async def test_whoever_waits_for_growth_hears_of_it_and_of_nothing_less(store: Store) -> None:
    waiting = asyncio.create_task(store.grown_to(3))
    await add_ended(store, range(1, 3), domains=3)
    assert not waiting.done()
    await add_ended(store, range(3, 4), domains=3)
    async with asyncio.timeout(10):
        await waiting


async def test_the_daemon_prunes_when_many_jobs_have_come(store: Store) -> None:
    settings = Settings().model_copy(update={"keep_jobs": 10})
    pruning = asyncio.create_task(prune(store, settings))
    await add_ended(store, range(1, 301), domains=300)
    async with asyncio.timeout(20):
        while len(await kept(store)) > 10 + 100:  # so many more may come before it is done again
            pass
    pruning.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pruning


async def test_pruning_that_meets_a_lost_file_leaves_the_end_to_who_waits_for_damage(
    store: Store, tmp_path: Path
) -> None:
    for file in tmp_path.rglob("*.sqlite"):
        file.unlink()
    pruning = asyncio.create_task(prune(store, Settings()))
    async with asyncio.timeout(SOON):
        await store.damaged()
        await asyncio.sleep(0)
    assert not pruning.done()
    pruning.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pruning


async def test_young_jobs_stay_and_no_more_than_so_many(store: Store) -> None:
    await add_ended(store, range(1, 31), domains=30)
    assert await store.prune(before=5.0, keep=1000) == 0  # each is the last of its domain
    assert await store.prune(before=0.0, keep=10) == 20
    assert await kept(store) == list(range(21, 31))


async def test_events_are_read_from_where_the_reader_was(store: Store) -> None:
    for number in (1, 2):
        await store.insert(job_of(number), f"job {number}")
    await store.save(job_of(1), [Fact(S.ACCEPTED, "a"), Fact(S.ACCEPTED, "b")])
    of_all = await store.events_after(1)
    assert [(event.seq, event.detail) for event in of_all] == [(2, "job 2"), (3, "a"), (4, "b")]
    of_one = await store.events_after(0, job_id=job_of(1).id, limit=2)
    assert [event.seq for event in of_one] == [1, 3]


# ---------------------------------------------------------------- following
async def take(events: AsyncIterator[Event], count: int) -> list[int]:
    async with asyncio.timeout(SOON):
        return [(await anext(events)).seq for _ in range(count)]


async def test_a_note_has_its_own_time(store: Store) -> None:
    job = job_of(1)
    await store.insert(job, "accepted")
    await store.save(job, [Fact(S.ACCEPTED, "a fact"), Fact(S.ACCEPTED, "a note", at=77.5)])
    assert [event.at for event in await store.events_after(0)] == [job.updated_at] * 2 + [77.5]


async def test_a_follower_has_every_event_once_and_in_order(store: Store) -> None:
    await store.insert(job_of(1), "x")
    events = store.follow(0)
    assert await take(events, 1) == [1]
    following = asyncio.create_task(take(events, 40))
    for _ in range(20):
        await store.save(job_of(1), [Fact(S.ACCEPTED, "a"), Fact(S.ACCEPTED, "b")])
    assert await following == list(range(2, 42))


async def test_a_follower_from_now_on_hears_nothing_old(store: Store) -> None:
    await store.insert(job_of(1), "old")
    following = asyncio.create_task(take(store.follow(None), 1))
    await asyncio.sleep(0)  # it starts
    await store.insert(job_of(2), "new")
    assert await following == [2]


async def test_following_a_job_ends_with_its_last_event(store: Store) -> None:
    job = job_of(1)
    await store.insert(job, "x")

    async def follow() -> list[int]:
        return [event.seq async for event in store.follow(0, job_id=job.id)]

    following = asyncio.create_task(follow())
    await store.insert(job_of(2), "another job's")
    await store.save(failed(job), [Fact(S.UNDOING, "a"), Fact(S.FAILED, "b")])
    async with asyncio.timeout(SOON):
        assert await following == [1, 3, 4]


async def test_following_an_ended_job_from_its_last_event_ends_at_once(store: Store) -> None:
    """A client that comes back with the Last-Event-ID that ended its stream."""
    job = job_of(1)
    await store.insert(job, "x")
    await store.save(failed(job), [Fact(S.FAILED, "b")])
    async with asyncio.timeout(SOON):
        assert [event async for event in store.follow(2, job_id=job.id)] == []


async def test_every_follower_ends_when_the_daemon_stops(store: Store) -> None:
    async def follow() -> int:
        return len([event async for event in store.follow(None)])

    followers = [asyncio.create_task(follow()) for _ in range(3)]
    await asyncio.sleep(0)
    await store.stop_following()
    async with asyncio.timeout(SOON):
        assert await asyncio.gather(*followers) == [0, 0, 0]


async def test_a_follower_hears_what_a_cancelled_caller_has_stored(store: Store) -> None:
    await store.insert(job_of(1), "x")
    following = asyncio.create_task(take(store.follow(1), 1))
    saving = asyncio.create_task(store.save(job_of(1), [Fact(S.ACCEPTED, "stored")]))
    await asyncio.sleep(0)  # its transaction is on its way, and cannot be taken back
    saving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await saving
    assert await following == [2]


async def test_a_domain_that_was_renamed_still_has_one_unfinished_job(store: Store) -> None:
    first = job_of(1, domain=7)
    await store.insert(first, "x")
    assert await store.unfinished_on("domain new", first.domain_uuid) == first
    with pytest.raises(Busy, match="new"):
        await store.insert(
            replace(job_of(2, domain=7), subject="new", works_on="domain new"), "never"
        )


async def test_to_look_for_a_job_at_work_costs_the_same_however_many_there_are(
    store: Store,
) -> None:
    said: list[str] = []
    for number in range(20):
        await store.insert(job_of(number), "x")
    store._file.connection.set_trace_callback(said.append)
    assert await store.unfinished_on("domain web7", uuid_of(7)) == job_of(7)
    assert await store.unfinished_on("domain renamed", uuid_of(7)) == job_of(7)
    assert await store.unfinished_on("domain new", None) is None
    store._file.connection.set_trace_callback(None)
    for query in said:
        plan = store._file.connection.execute(f"EXPLAIN QUERY PLAN {query}").fetchall()
        assert "SCAN" not in " ".join(row[3] for row in plan)


async def test_a_destroy_is_found_by_the_domain_that_it_ends(store: Store) -> None:
    end = replace(job_of(1), kind=JobKind.DESTROY, works_on="end of domain web1")
    await store.insert(end, "x")
    assert await store.unfinished_on("domain web1", end.domain_uuid) == end


async def test_jobs_without_a_domain_are_apart_from_each_other(store: Store) -> None:
    jobs = [
        replace(
            job_of(number, created_at=number),
            kind=kind,
            subject="x",
            works_on=f"{kind} x",
            domain_uuid=None,
        )
        for number, kind in enumerate(JobKind)
    ]
    for job in jobs:
        await store.insert(job, "x")
    assert await store.unfinished() == jobs
    with pytest.raises(Busy, match="x: another job"):
        await store.insert(replace(jobs[0], id="f" * 32, request_id="other"), "never")


# ---------------------------------------------------------------- an older provisiond's file
VERSION_1 = """
PRAGMA application_id = 1886547830; PRAGMA user_version = 1; PRAGMA journal_mode = WAL;
CREATE TABLE jobs (id TEXT PRIMARY KEY, request_id TEXT NOT NULL UNIQUE, domain_uuid TEXT NOT NULL,
    generation INTEGER NOT NULL, created_at REAL NOT NULL, ended INTEGER NOT NULL,
    cancel_requested INTEGER NOT NULL DEFAULT 0, job TEXT NOT NULL) STRICT;
CREATE UNIQUE INDEX one_unfinished_job_a_domain ON jobs (domain_uuid) WHERE NOT ended;
CREATE INDEX newest_first ON jobs (created_at DESC);
CREATE TABLE events (seq INTEGER PRIMARY KEY AUTOINCREMENT,
    job_id TEXT NOT NULL REFERENCES jobs (id), domain TEXT NOT NULL, at REAL NOT NULL,
    state TEXT NOT NULL, detail TEXT NOT NULL) STRICT;
CREATE INDEX history ON events (job_id, seq);
INSERT INTO events (job_id, domain, at, state, detail)
    VALUES ('00000000000000000000000000000007', 'web7', 1.0, 'ACCEPTED', 'request accepted');
"""


async def test_the_jobs_of_version_1_are_there_afterwards(file: Path) -> None:
    file.parent.mkdir()
    job = replace(job_of(7), cancel_requested=True, request={"kind": "provision", "target": "sda"})
    old = json.loads(TypeAdapter(Job).dump_json(job))
    old["domain"] = old.pop("subject")
    for new in ("kind", "works_on", "disk"):
        del old[new]
    del old["request"]["kind"]
    connection = sqlite3.connect(file)
    connection.executescript(VERSION_1)
    connection.execute(
        "INSERT INTO jobs VALUES (?, ?, ?, 7, 1.0, 0, 1, ?)",
        (job.id, job.request_id, job.domain_uuid, json.dumps(old)),
    )
    connection.commit()
    connection.close()
    for _ in range(2):
        store = Store(file)
        await store.open()
        assert await store.unfinished() == [job]
        (event,) = await store.events_after(0, job_id=job.id)
        assert (event.subject, event.detail) == ("web7", "request accepted")
        with pytest.raises(Busy):
            await store.insert(replace(job_of(8), works_on=job.works_on), "never")
        await store.close()


# ---------------------------------------------------------------- files that are refused
async def a_whole_file(file: Path, *, jobs: int = 40) -> None:
    store = Store(file)
    await store.open()
    for number in range(jobs):
        await store.insert(replace(job_of(number), request={"x": "y" * 2000}), "x")
    await store.close()


async def test_what_is_no_database_is_refused(file: Path) -> None:
    file.parent.mkdir()
    for content in (b"x", b"not a database at all, but a text\n" * 100, bytes(8192)):
        file.write_bytes(content)
        error = await refused(file)
        assert "is no state file of provisiond" in str(error)


async def test_a_database_of_something_else_is_refused(file: Path) -> None:
    file.parent.mkdir()
    connection = sqlite3.connect(file)
    connection.executescript("CREATE TABLE jobs (id TEXT); INSERT INTO jobs VALUES ('precious')")
    connection.close()
    assert "is no state file of provisiond" in str(await refused(file))


async def test_a_database_of_something_else_keeps_its_write_ahead_log(file: Path) -> None:
    """Whoever opens such a database and closes it again moves its log into it."""
    file.parent.mkdir()
    program = (
        "import os, sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None);"
        "c.execute('PRAGMA journal_mode = WAL'); c.execute('CREATE TABLE t (x)'); os._exit(0)"
    )
    run_python(program, file)
    log = file.with_name(file.name + "-wal")
    before = log.read_bytes()
    await refused(file)
    assert log.read_bytes() == before


async def test_a_newer_file_is_refused(file: Path) -> None:
    await a_whole_file(file)
    connection = sqlite3.connect(file)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    error = await refused(file)
    assert "version 99" in str(error)
    assert "Run the provisiond that wrote it" in error.hint


@pytest.mark.parametrize("keep", [1, 99, 100, 4096, 3 * 4096, 0.5, 0.9])
async def test_a_file_that_was_cut_short_is_refused(file: Path, keep: float) -> None:
    await a_whole_file(file)
    size = keep if isinstance(keep, int) else int(file.stat().st_size * keep)
    os.truncate(file, size)
    await refused(file)


async def test_a_file_with_a_damaged_page_is_refused(file: Path) -> None:
    await a_whole_file(file)
    pages = file.stat().st_size // 4096
    whole = file.read_bytes()
    for page in (1, 2, pages // 2):
        damaged = bytearray(whole)
        damaged[page * 4096 : page * 4096 + 512] = b"\xa5" * 512
        file.write_bytes(damaged)
        await refused(file)


async def test_a_job_that_cannot_be_read_is_told(file: Path) -> None:
    await a_whole_file(file, jobs=1)
    connection = sqlite3.connect(file, isolation_level=None)
    connection.execute("UPDATE jobs SET job = '{}'")
    connection.close()
    with pytest.raises(StateUnusable, match="cannot be read"):
        await reopened(file)


# ---------------------------------------------------------------- places that are refused
async def test_a_place_that_is_no_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StateUnwritable, match=r"Not a directory|File exists"):
        await reopened(tmp_path / "file" / "provisiond.sqlite")


async def test_a_read_only_place_is_told(small_tmpfs: Path) -> None:
    file = small_tmpfs / "provisiond.sqlite"
    await a_whole_file(file, jobs=1)
    make_read_only(small_tmpfs)
    with pytest.raises(StateUnwritable, match="Read-only file system"):
        await reopened(file)


async def test_a_full_disk_is_told_and_forgets_nothing(small_tmpfs: Path) -> None:
    file, filler = small_tmpfs / "provisiond.sqlite", small_tmpfs / "filler"
    store = Store(file)
    await store.open()
    await store.insert(job_of(1), "before")
    fill_up(filler)
    big = replace(job_of(2), request={"x": "y" * 50_000})
    with pytest.raises(StateUnwritable, match="full"):
        await store.insert(big, "no room")
    assert await store.newest(10) == [job_of(1)], "what is there can be read"
    filler.unlink()
    await store.insert(big, "room again")
    await store.close()
    jobs, events = await reopened(file)
    assert {job.generation for job in jobs} == {1, 2}
    assert [event.detail for event in events] == ["before", "room again"]


# ---------------------------------------------------------------- sudden ends
WRITER = """
import asyncio, itertools, sys
from pathlib import Path
from provisiond.store import Fact, Store
from tests.unit.test_store import S, job_of

async def write():
    store = Store(Path(sys.argv[1]))
    await store.open()
    start = int(sys.argv[2])
    for number in itertools.count(start):
        job = job_of(number)
        await store.insert(job, "accepted")
        facts = [Fact(S.ACCEPTED, f"{number} {part}") for part in ("one", "two")]
        await store.save(job, facts)
        print(number, flush=True)

asyncio.run(write())
"""


async def test_kill_9_in_mid_stream_loses_nothing_that_was_acknowledged(file: Path) -> None:
    acknowledged: set[int] = set()
    start = 0
    for round_ in range(3):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", WRITER, str(file), str(start)), stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        async with asyncio.timeout(SOON * 3):
            lines = [await process.stdout.readline() for _ in range(20 + round_)]
            process.send_signal(signal.SIGKILL)
            lines += (await process.stdout.read()).splitlines(keepends=True)
            await process.wait()
        acknowledged |= {int(line) for line in lines if line.endswith(b"\n")}
        store = Store(file)
        await store.open()
        jobs = await store.unfinished()
        details = [event.detail for event in await store.events_after(0, limit=100_000)]
        await store.close()
        assert len(acknowledged) >= 20 * (round_ + 1)
        assert acknowledged <= {job.generation for job in jobs}
        for number in acknowledged:
            assert details.count(f"{number} one") == details.count(f"{number} two") == 1
        # A transaction is there whole or not at all; the last of a round may be a job's first.
        assert sum("one" in detail for detail in details) == sum("two" in d for d in details)
        assert details.count("accepted") == len(jobs)
        start = max(job.generation for job in jobs) + 1


MAKER = """
import os, signal, sqlite3, sys
from pathlib import Path
from provisiond.store import Store

connect = sqlite3.connect

def killed_at(statement):
    left = [statement]
    def count(_):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
    def connect_and_count(*arguments, **options):
        connection = connect(*arguments, **options)
        connection.set_trace_callback(count)
        return connection
    sqlite3.connect = connect_and_count

for statement in range(1000):
    file = Path(sys.argv[1]) / str(statement)
    if (child := os.fork()) == 0:
        killed_at(statement)
        Store(file)._open()
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
print(statement)
"""


async def test_kill_9_at_any_statement_of_the_making_leaves_a_file_that_opens(
    tmp_path: Path,
) -> None:
    kills = int(run_python(MAKER, tmp_path))
    assert kills > 10
    for statement in range(kills + 1):
        store = Store(tmp_path / str(statement))
        await store.open()
        await store.insert(job_of(1), "x")
        assert await store.unfinished() == [job_of(1)]
        await store.close()


async def test_of_too_many_jobs_the_first_to_come_go_though_the_clock_was_set_back(
    store: Store,
) -> None:
    for number in range(1, 21):
        job = job_of(number, created_at=4e9 if number <= 10 else 10.0 + number)
        await store.insert(job, "x")
        await store.save(succeeded(job), [Fact(S.SUCCEEDED, "x")])
    unfinished = job_of(21, created_at=1.0)
    await store.insert(unfinished, "x")
    assert await store.prune(before=0.0, keep=8) == 12
    assert await kept(store) == [*range(13, 21), 21]
    assert {int(event.job_id, 16) for event in await store.events_after(0)} == {*range(13, 22)}


async def test_what_is_left_of_a_making_that_was_killed_is_made_again(file: Path) -> None:
    """The journal is on the disk and the database half written: what SQLite calls hot."""
    file.parent.mkdir()
    part = file.with_name(file.name + ".part")
    write_half_a_database(part)
    assert await reopened(file) == ([], [])
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def write_half_a_database(file: Path) -> None:
    """And its journal, from which SQLite would take back what is written."""
    program = (
        "import os, sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None);"
        # so small a cache writes pages before the commit, after it has synced the journal
        "c.execute('PRAGMA cache_size = 1'); c.execute('PRAGMA cache_spill = 1');"
        "c.execute('BEGIN'); c.execute('CREATE TABLE t (x)');"
        "[c.execute('INSERT INTO t VALUES (zeroblob(9000))') for _ in range(50)]; os._exit(0)"
    )
    run_python(program, file)
    assert file.stat().st_size > 0
    assert file.with_name(file.name + "-journal").exists()


# ---------------------------------------------------------------- whatever a row holds
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
numbers = st.floats(allow_nan=False, allow_infinity=False)
failures = st.builds(Failure, code=texts, message=texts, hint=texts, step=st.none() | texts)
proofs = st.builds(
    Proof,
    disk_absent_from_live_xml=st.booleans(),
    iso_overwritten_and_unlinked=st.none() | st.booleans(),
    iso_file_absent=st.none() | st.booleans(),
    at=numbers,
    back_end_absent=st.booleans(),
)
jobs = st.builds(
    Job,
    id=texts,
    request_id=texts,
    kind=st.sampled_from(JobKind),
    subject=texts,
    works_on=texts,
    domain_uuid=st.none() | texts,
    generation=st.integers(0, 2**53),
    request=st.dictionaries(texts, st.none() | st.integers() | texts | st.lists(texts, max_size=2)),
    created_at=numbers,
    updated_at=numbers,
    deadline_at=numbers,
    deadline_boot=st.none() | st.builds(BootTime, boot_id=texts, seconds=numbers),
    requested_by=texts,
    state=st.sampled_from(S),
    cancel_requested=st.booleans(),
    target=st.none() | texts,
    disk=st.none() | texts,
    disk_name=st.none() | texts,
    removes=st.lists(texts, max_size=3).map(tuple),
    attached_at=st.none() | numbers,
    detached_at=st.none() | numbers,
    failure=st.none() | failures,
    proof=st.none() | proofs,
    guest_log=st.lists(texts, max_size=3).map(tuple),
)


@given(jobs)
def test_a_job_reads_back_as_it_was_stored(job: Job) -> None:
    assert parse_row(ROW.dump_json(job).decode(), cancel_requested=job.cancel_requested) == job


@given(jobs, st.data())
def test_a_row_that_was_changed_is_a_job_or_told_to_be_unusable(
    job: Job, data: st.DataObject
) -> None:
    row = json.loads(ROW.dump_json(job))
    name = data.draw(st.sampled_from(sorted(row)))
    row[name] = data.draw(st.none() | st.booleans() | st.integers() | texts | st.just([{}]))
    text = json.dumps(row)
    for one in (text, text[: data.draw(st.integers(0, len(text)))], data.draw(st.text())):
        with contextlib.suppress(StateUnusable):
            read = parse_row(one, cancel_requested=False)
            assert isinstance(read.state, S)
            assert isinstance(read.id, str)


ROW = TypeAdapter(Job)


def parse_row(text: str, *, cancel_requested: bool) -> Job:
    return Store(Path("/nowhere"))._parse_job(text, cancel_requested=cancel_requested)


async def test_an_event_in_a_state_that_nobody_knows_is_told(store: Store, file: Path) -> None:
    await store.insert(job_of(1), "x")
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("UPDATE events SET state = 'LOST'")
        connection.commit()
    with pytest.raises(StateUnusable, match="holds an event that cannot be read"):
        await store.events_after(0)
