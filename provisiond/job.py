"""The job: what is stored of one request, and the only ways its state may go.

Pure: nothing here reads a clock, a file or a socket. Times are Unix seconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from provisiond.api.messages import JobState
from provisiond.errors import GuestFailed, ProvisionError

_S = JobState

# The story in order, and the one way back. UNDOING may still turn into GUEST_CONFIGURED: the cancel
# is a compare-and-set, and the guest may have won it. After GUEST_CONFIGURED nothing reverts.
TRANSITIONS: Mapping[JobState, frozenset[JobState]] = MappingProxyType(
    {
        _S.ACCEPTED: frozenset({_S.DISKS_CREATED, _S.UNDOING}),
        _S.DISKS_CREATED: frozenset({_S.DOMAIN_STARTED, _S.UNDOING}),
        _S.DOMAIN_STARTED: frozenset({_S.ISO_WRITTEN, _S.UNDOING}),
        _S.ISO_WRITTEN: frozenset({_S.ISO_ATTACHED, _S.UNDOING}),
        _S.ISO_ATTACHED: frozenset({_S.GUEST_CONFIGURED, _S.UNDOING}),
        _S.GUEST_CONFIGURED: frozenset({_S.ISO_DETACHED}),
        _S.ISO_DETACHED: frozenset({_S.SUCCEEDED}),
        _S.SUCCEEDED: frozenset(),
        _S.UNDOING: frozenset({_S.GUEST_CONFIGURED, _S.FAILED}),
        _S.FAILED: frozenset(),
    }
)

_ORDER = list(TRANSITIONS)


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
    """What was looked at after the end of the config ISO, and when (Unix seconds)."""

    disk_absent_from_live_xml: bool
    iso_overwritten_and_unlinked: bool
    iso_file_absent: bool
    at: float
    back_end_absent: bool = False


@dataclass(frozen=True, slots=True)
class Job:
    """One request and all that became of it; holds no secret, so it can be stored and shown."""

    id: str
    request_id: str
    domain: str
    domain_uuid: str
    generation: int
    request: Mapping[str, Any]
    created_at: float
    updated_at: float
    deadline_at: float
    state: JobState = JobState.ACCEPTED
    cancel_requested: bool = False
    target: str | None = None
    attached_at: float | None = None
    detached_at: float | None = None
    failure: Failure | None = None
    proof: Proof | None = None
    guest_log: tuple[str, ...] = ()

    def has_reached(self, state: JobState) -> bool:
        """Whether the story has come to `state` or past it."""
        if self.state in (_S.UNDOING, _S.FAILED):
            return state in (_S.UNDOING, self.state)
        return _ORDER.index(self.state) >= _ORDER.index(state)

    @property
    def guest_has_won(self) -> bool:
        """The guest said done and that was stored: nothing may be undone any more."""
        return self.state in (_S.GUEST_CONFIGURED, _S.ISO_DETACHED, _S.SUCCEEDED)


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a job's history. `seq` grows by one for every event of any job."""

    seq: int
    job_id: str
    domain: str
    at: float
    state: JobState
    detail: str


def advance(job: Job, to: JobState, *, at: float, **facts: Any) -> Job:
    """`job` in the state `to`, with the facts that came with it.

    Raises ValueError where the story has no such step: a defect of ours, never the master's.
    """
    if to not in TRANSITIONS[job.state]:
        raise ValueError(f"job {job.id}: no step leads from {job.state} to {to}")
    return replace(job, state=to, updated_at=at, **facts)
