"""The store: jobs and their history in one SQLite file, the truth after any crash.

A fact is stored (and synced to the disk) before the next step starts. One thread owns the file
(state_file.py), so calls are serialised; each of them is stored whole or not at all, and those
that wait at the same time in one transaction (group_commit.py).
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

from pydantic import TypeAdapter, ValidationError

from provisiond.api.replies import JobState
from provisiond.api.requests import JobKind
from provisiond.errors import Busy, ProvisionError, RequestConflict, StateUnusable
from provisiond.group_commit import GroupCommit, Write
from provisiond.job import GUEST_HAS_WON, Event, Job
from provisiond.state_file import Connection, StateFile, Taken
from provisiond.threads import Threads

_P = ParamSpec("_P")
_R = TypeVar("_R")

_JOB = TypeAdapter(Job)

_LOOKED_AT_ONCE = 200
# Facts that come together are read together by who follows, and not ahead of the jobs' own steps.
_GATHER_SECONDS = 0.01
# Each part finds its rows in an index, however many jobs are unfinished. The column is empty for a
# destroy, whose domain another job may be on as well.
_UNFINISHED_ON = (
    "WHERE (NOT ended AND works_on = ?1) OR (NOT ended AND domain_uuid = ?2)"
    " OR (NOT ended AND domain_uuid IS NULL AND job ->> '$.domain_uuid' = ?2) ORDER BY rowid"
)
_UNFINISHED_WITH_DISK = (
    "WHERE NOT ended AND (job ->> '$.disk_name' = ?1"
    " OR ?1 IN (SELECT value FROM json_each(job, '$.removes'))) LIMIT 1"
)
_LAST_CONFIGURED = (
    "WHERE domain_uuid = ? AND job ->> '$.kind' = ? AND job ->> '$.state' IN (?, ?, ?)"
    " ORDER BY rowid DESC LIMIT 1"
)


@dataclass(frozen=True, slots=True)
class Fact:
    """What one save adds to a job's history; `at` (Unix seconds) is the job's own time if None."""

    state: JobState
    detail: str
    at: float | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known, all of one moment, of a request and of what it would work on."""

    of_request: Job | None
    """The job of its request_id."""
    at_work: Job | None
    """The unfinished job that works on the same."""
    with_disk: Job | None
    """The unfinished job that has its disk."""
    last_generation: int
    """The highest generation that a job of its domain had; 0 where there was none."""


class Store:
    """Jobs and events in `file`. Open it once."""

    def __init__(self, file: Path) -> None:
        self._file = StateFile(file)
        self._commits = GroupCommit(self._file)
        self._threads = Threads(size=1, name="store")
        self._damaged = asyncio.Event()
        self._changed = asyncio.Condition()
        self._last_seq = 0
        self.inserted = 0
        """Jobs that were stored since the file was opened."""
        self._following = True
        self._is_closed = False

    # ------------------------------------------------------------ opening
    async def open(self) -> None:
        """Open the file, make it where it is absent.

        Raises StateUnusable (corrupt, foreign, newer: the file is left as it is) or
        StateUnwritable.
        """
        self._last_seq = await self._call(self._open)

    async def close(self) -> None:
        """Close the file after the last call; may be asked for twice."""
        if not self._is_closed:
            self._is_closed = True
            await self._threads.call(self._file.close)
            self._threads.close()

    def _open(self) -> int:
        self._file.open()
        query = "SELECT coalesce(max(seq), 0) FROM events"
        return int(self._file.connection.execute(query).fetchone()[0])

    @property
    def last_seq(self) -> int:
        """The `seq` of the newest event: another one whenever a fact was stored."""
        return self._last_seq

    # ------------------------------------------------------------ trouble
    @property
    def damage(self) -> StateUnusable | None:
        """Why the file cannot be relied on any more, once that was seen while it is open."""
        return self._file.damage

    async def damaged(self) -> None:
        """Wait until there is `damage`."""
        await self._damaged.wait()

    async def trouble(self) -> str | None:
        """Why no fact can be stored now; None while they can. Wears no disk that is well."""
        return await self._call(self._file.trouble)

    # ------------------------------------------------------------ writing
    async def insert(
        self, job: Job, detail: str, decide: Callable[[Standing], Job] | None = None
    ) -> Job:
        """Store a new job, or what `decide` makes of it by what stands there at that moment.

        `decide` is asked in the file's thread, maybe twice; a ProvisionError of its is raised here,
        and nothing is stored. Where it returns the job of the same request_id that stands there,
        nothing is stored either. Returns the job that is stored.

        Raises RequestConflict where its request_id is taken, Busy where another unfinished
        job works on the same.
        """
        outcome: Job | ProvisionError = job
        is_new = True

        def look_and_insert(connection: Connection) -> int:
            nonlocal outcome, is_new
            new = job
            if decide is not None:
                standing = self._standing(job)
                try:
                    new = decide(standing)
                except ProvisionError as error:  # what is stored together with it may be
                    outcome, is_new = error, False
                    return 0
                is_new = new is not standing.of_request
            outcome = new
            return self._insert(connection, new, detail) if is_new else 0

        def store_and_count(write: Write) -> None:
            self._store(write)
            self.inserted += is_new

        await self._tell(store_and_count, self._commits.put(look_and_insert))
        if isinstance(outcome, ProvisionError):
            raise outcome
        return outcome

    async def save(self, job: Job, facts: Sequence[Fact]) -> None:
        """Store a job as it is now and what has been added to its history, in one transaction."""
        await self._write(partial(self._save, job=job, facts=facts))

    async def request_cancel(self, job: Job, fact: Fact) -> None:
        """Store that somebody wants this job cancelled, which the fact says; true once this has
        returned."""
        await self._write(partial(self._request_cancel, job=job, fact=fact))

    def _insert(self, connection: Connection, job: Job, detail: str) -> int:
        try:
            connection.execute(
                "INSERT INTO jobs"
                " (id, request_id, works_on, domain_uuid, generation, created_at, ended, job)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    job.id,
                    job.request_id,
                    job.works_on,
                    # A domain may be ended while the undo of another job waits for its guest.
                    None if job.kind is JobKind.DESTROY else job.domain_uuid,
                    job.generation,
                    job.created_at,
                    int(job.state.ended),
                    _JOB.dump_json(job).decode(),
                ),
            )
        except Taken as error:
            if "jobs.request_id" in str(error):
                raise RequestConflict(f"request_id {job.request_id} is taken") from error
            raise Busy(f"{job.subject}: another job is at work on it") from error
        return _add_events(connection, job, [Fact(job.state, detail)])

    def _save(self, connection: Connection, job: Job, facts: Sequence[Fact]) -> int:
        connection.execute(
            "UPDATE jobs SET job = ?, ended = ? WHERE id = ?",
            (_JOB.dump_json(job).decode(), int(job.state.ended), job.id),
        )
        return _add_events(connection, job, facts)

    def _request_cancel(self, connection: Connection, job: Job, fact: Fact) -> int:
        connection.execute("UPDATE jobs SET cancel_requested = 1 WHERE id = ?", (job.id,))
        return _add_events(connection, job, [fact])

    async def prune(self, *, before: float, keep: int) -> int:
        """Remove ended jobs that are from before that time, and those that came first of more than
        `keep`, with their history.

        Of each domain the last job that its guest has taken stays while there are no more than
        `keep`: its addresses are known by it. Some hundred go at once, so that no other call waits
        for long. Returns how many went.
        """
        removed: list[int] = []
        cursor: list[float] = [0.0, 0.0]  # the time and the row of the last job looked at
        while cursor:
            await self._write_alone(self._prune_old, before, cursor, removed)
        went = -1
        while len(removed) > went:
            went = len(removed)
            await self._write_alone(self._prune_surplus, keep, removed)
        return len(removed)

    async def grown_to(self, jobs: int) -> None:
        """Wait until `inserted` is so many."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.inserted >= jobs)

    def _prune_old(
        self, connection: Connection, before: float, cursor: list[float], removed: list[int]
    ) -> None:
        query = (
            "SELECT created_at, rowid, id, domain_uuid FROM jobs"
            " WHERE ended AND created_at <= ? AND (created_at, rowid) > (?, ?)"
            " ORDER BY created_at, rowid LIMIT ?"
        )
        rows = connection.execute(query, (before, *cursor, _LOOKED_AT_ONCE)).fetchall()
        cursor[:] = rows[-1][:2] if rows else []
        for _created_at, row, job_id, domain_uuid in rows:
            if not self._is_last_configured(job_id, domain_uuid):
                _remove(connection, row, job_id)
                removed.append(row)

    def _prune_surplus(self, connection: Connection, keep: int, removed: list[int]) -> None:
        """By their coming: a clock that was set back makes no new job an old one."""
        count = "SELECT (SELECT count(*) FROM jobs) - (SELECT count(*) FROM jobs WHERE NOT ended)"
        (ended,) = connection.execute(count).fetchone()
        most = min(max(0, ended - keep), _LOOKED_AT_ONCE)
        first = "SELECT rowid, id FROM jobs WHERE ended ORDER BY rowid LIMIT ?"
        for row, job_id in connection.execute(first, (most,)).fetchall():
            _remove(connection, row, job_id)
            removed.append(row)

    def _is_last_configured(self, job_id: str, domain_uuid: str | None) -> bool:
        last = self._read_jobs(_LAST_CONFIGURED, (domain_uuid, JobKind.PROVISION, *GUEST_HAS_WON))
        return bool(last) and last[0].id == job_id

    # ------------------------------------------------------------ reading
    async def answer(self) -> None:
        """Return once SQLite has answered in the one thread."""
        await self._call(self._read_schema_version)

    async def find(self, job_id: str) -> Job | None:
        """The job with this id."""
        return _first(await self._jobs("WHERE id = ?", job_id))

    async def find_by_prefix(self, prefix: str) -> list[Job]:
        """The jobs whose id starts with `prefix` (hex digits); two at most: it is unique or it is
        not."""
        return await self._jobs("WHERE id GLOB ? LIMIT 2", f"{prefix}*")

    async def find_request(self, request_id: str) -> Job | None:
        """The job of this request_id."""
        return _first(await self._jobs("WHERE request_id = ?", request_id))

    async def unfinished(self) -> list[Job]:
        """All jobs that have not ended, in the order in which they came."""
        return await self._jobs("WHERE NOT ended ORDER BY rowid")

    def _standing(self, job: Job) -> Standing:
        """What `find_request`, `unfinished_on` and `unfinished_with_disk` say."""
        disk, uuid = job.disk_name, job.domain_uuid
        of_disk = [] if disk is None else self._read_jobs(_UNFINISHED_WITH_DISK, (disk,))
        return Standing(
            of_request=_first(self._read_jobs("WHERE request_id = ?", (job.request_id,))),
            at_work=_first(self._read_jobs(_UNFINISHED_ON, (job.works_on, uuid))),
            with_disk=_first(of_disk),
            last_generation=self._last_generation(uuid),
        )

    async def unfinished_on(self, works_on: str, domain_uuid: str | None) -> Job | None:
        """A job at work on the same: under the same key, or on the same domain."""
        return _first(await self._jobs(_UNFINISHED_ON, works_on, domain_uuid))

    async def unfinished_with_disk(self, name: str) -> Job | None:
        """The job that makes, attaches, takes away or removes the disk of this name."""
        return _first(await self._jobs(_UNFINISHED_WITH_DISK, name))

    async def last_configured(self, domain_uuid: str) -> Job | None:
        """The last job whose configuration the guest of this domain has taken."""
        values = (domain_uuid, JobKind.PROVISION, *GUEST_HAS_WON)
        return _first(await self._jobs(_LAST_CONFIGURED, *values))

    async def newest(self, limit: int) -> list[Job]:
        """The newest jobs, newest first; by their coming, whatever the clock said then."""
        return await self._jobs("ORDER BY rowid DESC LIMIT ?", limit)

    async def events_after(
        self, seq: int, *, job_id: str | None = None, limit: int = 1000
    ) -> list[Event]:
        """Events with a higher `seq`, of one job or of all, in their order."""
        return await self._call(self._events_after, seq, job_id, limit)

    async def follow(self, seq: int | None, *, job_id: str | None = None) -> AsyncIterator[Event]:
        """Events after `seq` (None: after the newest), then each new one as it comes.

        Ends after the last event of the one job asked for, or when `stop_following` is called.
        """
        seq = self._last_seq if seq is None else seq
        while self._following:
            seen = self._last_seq
            ended, events = await self._call(self._news, seq, job_id)
            for event in events:
                seq = event.seq
                yield event
            if not events and ended:
                return
            if not events:
                async with self._changed:
                    await self._changed.wait_for(
                        lambda: self._last_seq > seen or not self._following  # noqa: B023
                    )
                await asyncio.sleep(_GATHER_SECONDS)

    def _news(self, seq: int, job_id: str | None) -> tuple[bool, list[Event]]:
        """Whether the job has ended, and the events after `seq`: none comes once it has."""
        return job_id is not None and self._has_ended(job_id), self._events_after(seq, job_id, 1000)

    def _has_ended(self, job_id: str) -> bool:
        query = "SELECT ended FROM jobs WHERE id = ?"
        row = self._file.connection.execute(query, (job_id,)).fetchone()
        return row is None or bool(row[0])

    async def stop_following(self) -> None:
        """End every `follow`: the daemon stops."""
        async with self._changed:
            self._following = False
            self._changed.notify_all()

    async def _jobs(self, where: str, *values: str | int | None) -> list[Job]:
        return await self._call(self._read_jobs, where, values)

    def _read_jobs(self, where: str, values: Sequence[str | int | None]) -> list[Job]:
        query = f"SELECT job, cancel_requested FROM jobs {where}"  # noqa: S608 - constants of ours
        rows = self._file.connection.execute(query, values).fetchall()
        return [self._parse_job(row[0], cancel_requested=bool(row[1])) for row in rows]

    def _parse_job(self, text: str, *, cancel_requested: bool) -> Job:
        try:
            return replace(_JOB.validate_json(text), cancel_requested=cancel_requested)
        except ValidationError as error:
            raise StateUnusable(f"{self._file.path} holds a job that cannot be read") from error

    def _read_schema_version(self) -> int:
        return int(self._file.connection.execute("PRAGMA user_version").fetchone()[0])

    def _last_generation(self, domain_uuid: str | None) -> int:
        query = "SELECT coalesce(max(generation), 0) FROM jobs WHERE domain_uuid = ?"
        return int(self._file.connection.execute(query, (domain_uuid,)).fetchone()[0])

    def _events_after(self, seq: int, job_id: str | None, limit: int) -> list[Event]:
        rows = self._file.connection.execute(
            "SELECT seq, job_id, subject, at, state, detail FROM events"
            " WHERE seq > ? AND (? IS NULL OR job_id = ?) ORDER BY seq LIMIT ?",
            (seq, job_id, job_id, limit),
        )
        return [self._parse_event(row) for row in rows.fetchall()]

    def _parse_event(self, row: tuple[int, str, str, float, str, str]) -> Event:
        seq, job_id, subject, at, state, detail = row
        try:
            return Event(seq, job_id, subject, at, JobState(state), detail)
        except ValueError as error:
            raise StateUnusable(f"{self._file.path} holds an event that cannot be read") from error

    # ------------------------------------------------------------ the one thread
    async def _write(self, function: Callable[[Connection], int]) -> None:
        """Store what `function` writes; it may be run twice (group_commit.py)."""
        await self._tell(self._store, self._commits.put(function))

    async def _write_alone(self, function: Callable[..., None], *args: object) -> None:
        await self._tell(self._file.transaction, function, *args)

    async def _tell(self, function: Callable[..., object], *args: object) -> None:
        """Call what writes, and let whoever follows know."""
        try:
            await self._call(function, *args)
        finally:  # a cancelled caller's facts are stored as well
            async with self._changed:
                self._changed.notify_all()

    def _store(self, write: Write) -> None:
        self._last_seq = max(self._last_seq, self._commits.store(write))

    async def _call(self, function: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return await self._threads.call(self._file.call, partial(function, *args, **kwargs))
        finally:
            self._tell_damage()

    def _tell_damage(self) -> None:
        if self._file.damage is not None:
            self._damaged.set()


def _first(jobs: list[Job]) -> Job | None:
    return jobs[0] if jobs else None


def _remove(connection: Connection, row: int, job_id: str) -> None:
    connection.execute("DELETE FROM events WHERE job_id = ?", (job_id,))
    connection.execute("DELETE FROM jobs WHERE rowid = ?", (row,))


def _add_events(connection: Connection, job: Job, facts: Sequence[Fact]) -> int:
    seq = 0
    for fact in facts:
        at = job.updated_at if fact.at is None else fact.at
        cursor = connection.execute(
            "INSERT INTO events (job_id, subject, at, state, detail) VALUES (?, ?, ?, ?, ?)",
            (job.id, job.subject, at, fact.state.value, fact.detail),
        )
        seq = cursor.lastrowid or seq
    return seq
