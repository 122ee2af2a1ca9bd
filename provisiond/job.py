"""The job: what is stored of one request, and the only ways its state may go.

Pure: nothing here reads a clock, a file or a socket. Times are Unix seconds.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from provisiond.api.replies import JobState
from provisiond.api.requests import JobKind
from provisiond.clock import BootTime
from provisiond.errors import GuestFailed, ProvisionError

_S = JobState
_Ways = Mapping[JobState, frozenset[JobState]]


def _ways(*way: JobState, undo: bool = False, irrevocable: JobState | None = None) -> _Ways:
    """The way from state to state in order, and where it may fail: before `irrevocable`.

    With `undo` a failure leads through UNDOING; else there is nothing to take back.
    """
    failure = _S.UNDOING if undo else _S.FAILED
    last = way.index(irrevocable or way[-1])
    ways = {
        state: frozenset({to, failure} if number < last else {to})
        for number, (state, to) in enumerate(itertools.pairwise(way))
    }
    ends = {way[-1]: frozenset[JobState](), _S.FAILED: frozenset[JobState]()}
    return ways | ends | ({_S.UNDOING: frozenset({_S.FAILED})} if undo else {})


_PROVISION = (
    _S.ACCEPTED,
    _S.DISKS_CREATED,
    _S.DOMAIN_STARTED,
    _S.ISO_WRITTEN,
    _S.ISO_ATTACHED,
    _S.GUEST_CONFIGURED,
    _S.ISO_DETACHED,
    _S.SUCCEEDED,
)

# The story of each kind in order, and its way back. A provisioning's UNDOING may still turn into
# GUEST_CONFIGURED: the cancel is a compare-and-set, and the guest may have won it. After
# GUEST_CONFIGURED nothing reverts.
TRANSITIONS: Mapping[JobKind, _Ways] = MappingProxyType(
    {
        JobKind.PROVISION: {
            **_ways(*_PROVISION, undo=True, irrevocable=_S.GUEST_CONFIGURED),
            _S.UNDOING: frozenset({_S.GUEST_CONFIGURED, _S.FAILED}),
        },
        JobKind.DESTROY: _ways(
            _S.ACCEPTED, _S.DOMAIN_REMOVED, _S.SUCCEEDED, irrevocable=_S.DOMAIN_REMOVED
        ),
        JobKind.ATTACH_DISK: _ways(
            _S.ACCEPTED, _S.DISKS_CREATED, _S.DISK_ATTACHED, _S.SUCCEEDED, undo=True
        ),
        JobKind.DETACH_DISK: _ways(
            _S.ACCEPTED, _S.DISK_DETACHED, _S.SUCCEEDED, irrevocable=_S.DISK_DETACHED
        ),
        JobKind.CREATE_OVERLAY: _ways(_S.ACCEPTED, _S.DISKS_CREATED, _S.SUCCEEDED, undo=True),
        JobKind.IMPORT_BASE: _ways(_S.ACCEPTED, _S.IMAGE_WRITTEN, _S.SUCCEEDED, undo=True),
        JobKind.VERIFY_BASE: _ways(_S.ACCEPTED, _S.SUCCEEDED),
    }
)


# From its stored verdict on a guest is configured.
GUEST_HAS_WON = (_S.GUEST_CONFIGURED, _S.ISO_DETACHED, _S.SUCCEEDED)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a job failed; `step` is the guest's step where the guest said it."""

    code: str
    message: str
    hint: str
    step: str | None = None

    @classmethod
    def of(cls, error: ProvisionError) -> "Failure":
        """The failure that an error of ours stands for."""
        step = error.step if isinstance(error, GuestFailed) else None
        return cls(error.code, error.message, error.hint, step)


@dataclass(frozen=True, slots=True)
class Proof:
    """What was looked at after a detach, and when (Unix seconds); None is what only an ISO has."""

    disk_absent_from_live_xml: bool
    iso_overwritten_and_unlinked: bool | None
    iso_file_absent: bool | None
    at: float
    back_end_absent: bool = False


@dataclass(frozen=True, slots=True)
class Job:
    """One request and all that became of it; holds no secret, so it can be stored and shown.

    `subject` is the name of what it works on, `works_on` the key under which no other unfinished
    job may work on it ("domain web1", "base debian12"). `disk` is the file of the disk that it has
    made, has attached or takes away, `disk_name` that disk's name from the start: no two unfinished
    jobs have one. `removes` are the names of the disks that go with a domain which is destroyed.
    `deadline_boot` is the deadline by a clock that nobody can set.
    """

    id: str
    kind: JobKind
    request_id: str
    subject: str
    works_on: str
    domain_uuid: str | None
    generation: int
    request: Mapping[str, Any]
    created_at: float
    updated_at: float
    deadline_at: float
    deadline_boot: BootTime | None = None
    requested_by: str = ""
    state: JobState = JobState.ACCEPTED
    cancel_requested: bool = False
    target: str | None = None
    disk: str | None = None
    disk_name: str | None = None
    removes: tuple[str, ...] = ()
    attached_at: float | None = None
    detached_at: float | None = None
    failure: Failure | None = None
    proof: Proof | None = None
    guest_log: tuple[str, ...] = ()

    def has_reached(self, state: JobState) -> bool:
        """Whether the story has come to `state` or past it."""
        if self.state in (_S.UNDOING, _S.FAILED):
            return state in (_S.UNDOING, self.state)
        way = list(TRANSITIONS[self.kind])
        return state in way and way.index(self.state) >= way.index(state)

    def seconds_left(self, *, wall: float, boot: BootTime) -> float:
        """Until the deadline. A wall clock that was set changes nothing before the host's next
        boot; after that it has to be believed, but never gives more than the job had at first."""
        if self.deadline_boot is not None and self.deadline_boot.boot_id == boot.boot_id:
            return self.deadline_boot.seconds - boot.seconds
        return min(self.deadline_at - wall, self.deadline_at - self.created_at)

    @property
    def may_fail(self) -> bool:
        """Whether a way leads back from here: a failure, a cancel or a deadline still counts."""
        return not TRANSITIONS[self.kind][self.state].isdisjoint((_S.UNDOING, _S.FAILED))

    @property
    def guest_has_won(self) -> bool:
        """The guest said done and that was stored: nothing may be undone any more."""
        return self.kind is JobKind.PROVISION and self.state in GUEST_HAS_WON


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a job's history. `seq` grows by one for every event of any job."""

    seq: int
    job_id: str
    subject: str
    at: float
    state: JobState
    detail: str


def advance(job: Job, to: JobState, *, at: float, **facts: Any) -> Job:
    """`job` in the state `to`, with the facts that came with it.

    Raises ValueError where the story has no such step: a defect of ours, never the master's.
    """
    if to not in TRANSITIONS[job.kind][job.state]:
        raise ValueError(f"job {job.id}: no step leads from {job.state} to {to}")
    return replace(job, state=to, updated_at=at, **facts)
