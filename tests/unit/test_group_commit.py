"""Group commit: writes that wait are stored together, and each has its own answer."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from provisiond.errors import Busy, RequestConflict, StateUnwritable
from provisiond.group_commit import GroupCommit
from provisiond.job import Job
from provisiond.state_file import Connection, StateFile
from provisiond.store import Standing, Store
from tests.unit.test_store import S, fill_up, job_of, reopened, small_tmpfs

__all__ = ["small_tmpfs"]
SOON = 10.0  # seconds; far more than any of this takes


@pytest.fixture
def state(tmp_path: Path) -> Iterator[StateFile]:
    state = StateFile(tmp_path / "provisiond.sqlite")
    state.open()
    yield state
    state.close()


def adding(number: int) -> Callable[[Connection], int]:
    """A write of a job with this number, which is its seq as well."""

    def write(connection: Connection) -> int:
        connection.execute(
            "INSERT INTO jobs (id, request_id, works_on, generation, created_at, ended, job)"
            " VALUES (?, ?, ?, 1, 1.0, 0, '{}')",
            (str(number), str(number), str(number)),
        )
        return number

    return write


def ids(state: StateFile) -> list[str]:
    rows = state.connection.execute("SELECT id FROM jobs ORDER BY rowid").fetchall()
    return [row[0] for row in rows]


def test_what_waits_is_stored_with_one_commit_in_the_order_in_which_it_came(
    state: StateFile,
) -> None:
    commits, said = GroupCommit(state), list[str]()
    writes = [commits.put(adding(number)) for number in range(10)]
    state.connection.set_trace_callback(said.append)
    assert commits.store(writes[3]) == 3
    assert [write.outcome.result() for write in writes] == list(range(10))
    assert [commits.store(write) for write in writes] == list(range(10))
    assert said.count("COMMIT") == 1
    assert ids(state) == [str(number) for number in range(10)]


def test_more_than_may_be_stored_at_once_is_stored_all_the_same(state: StateFile) -> None:
    commits = GroupCommit(state)
    writes = [commits.put(adding(number)) for number in range(300)]
    assert commits.store(writes[-1]) == 299
    assert len(ids(state)) == 300


def test_a_write_that_fails_takes_no_other_with_it(state: StateFile) -> None:
    commits = GroupCommit(state)
    defect = KeyError("a defect of ours")

    def fail(connection: Connection) -> int:
        adding(100)(connection)
        raise defect

    first, bad, last = (commits.put(write) for write in (adding(1), fail, adding(2)))
    assert commits.store(first) == 1
    with pytest.raises(KeyError, match="a defect of ours"):
        commits.store(bad)
    assert commits.store(last) == 2
    assert ids(state) == ["1", "2"], "nothing of it is left"


async def test_of_inserts_that_wait_together_only_the_refused_one_is_refused(
    tmp_path: Path,
) -> None:
    store = Store(tmp_path / "provisiond.sqlite")
    await store.open()
    jobs = [job_of(number) for number in range(20)]
    taken = replace(job_of(99), request_id=job_of(7).request_id)
    answers = await asyncio.gather(
        *(store.insert(job, f"of {job.id}") for job in [*jobs, taken]), return_exceptions=True
    )
    assert answers[:-1] == jobs
    assert isinstance(answers[-1], RequestConflict)
    assert store.inserted == 20
    await store.close()
    found, events = await reopened(tmp_path / "provisiond.sqlite")
    assert found == list(reversed(jobs))
    assert [event.detail for event in events] == [f"of {job.id}" for job in jobs]


async def test_a_refusal_by_what_stands_there_takes_no_other_write_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "provisiond.sqlite")
    await store.open()
    transactions = []
    real = StateFile.transaction

    def counted(state: StateFile, function: Callable[..., object], *args: object) -> object:
        transactions.append(function)
        return real(state, function, *args)

    def refuse(_standing: Standing) -> Job:
        raise Busy("web1: another job is at work on it")

    monkeypatch.setattr(StateFile, "transaction", counted)
    answers = await asyncio.gather(
        store.insert(job_of(1), "x"),
        *(store.insert(job_of(number), "x") for number in range(2, 9)),
        store.insert(job_of(9), "x", refuse),
        return_exceptions=True,
    )
    assert isinstance(answers[-1], Busy)
    assert answers[:-1] == await store.unfinished()
    assert store.inserted == 8
    assert len(transactions) < 6, "the first may have been alone, the others were together"
    await store.close()


async def test_what_finds_no_room_leaves_the_room_to_the_others(small_tmpfs: Path) -> None:
    file, filler = small_tmpfs / "provisiond.sqlite", small_tmpfs / "filler"
    store = Store(file)
    await store.open()
    await store.insert(job_of(0), "before")
    fill_up(filler)
    with filler.open("r+b") as opened:
        opened.truncate(filler.stat().st_size - 100 * 1024)
    big = replace(job_of(1), request={"x": "y" * 200_000})
    answers = await asyncio.gather(
        *(store.insert(job, "x") for job in (job_of(2), big, job_of(3))), return_exceptions=True
    )
    assert [type(answer) for answer in answers] == [Job, StateUnwritable, Job]
    await store.close()
    jobs, _ = await reopened(file)
    assert [job.generation for job in jobs] == [3, 2, 0]


WRITER = """
import asyncio, sys
from pathlib import Path
from provisiond.store import Fact, Store
from tests.unit.test_store import S, job_of

async def one(store, number):
    while True:
        await store.insert(job_of(number), "accepted")
        await store.save(job_of(number), [Fact(S.ACCEPTED, f"{number}")])
        print(number, flush=True)
        number += 20

async def write():
    store = Store(Path(sys.argv[1]))
    await store.open()
    await asyncio.gather(*(one(store, number) for number in range(20)))

asyncio.run(write())
"""


async def test_kill_9_amid_many_writers_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    file = tmp_path / "provisiond.sqlite"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", WRITER, str(file)), stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    async with asyncio.timeout(SOON * 3):
        lines = [await process.stdout.readline() for _ in range(200)]
        process.send_signal(signal.SIGKILL)
        lines += (await process.stdout.read()).splitlines(keepends=True)
        await process.wait()
    acknowledged = {line.decode().strip() for line in lines if line.endswith(b"\n")}
    _, events = await reopened(file)
    stored = {event.detail for event in events}
    assert acknowledged <= stored
    assert all(fact.state is S.ACCEPTED for fact in events)
