"""The job's transitions: the story and the one way back, nothing else."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisiond.api.replies import JobState
from provisiond.api.requests import JobKind
from provisiond.errors import Busy, GuestFailed
from provisiond.job import TRANSITIONS, Failure, Job, advance

S = JobState
STORY = [
    S.ACCEPTED,
    S.DISKS_CREATED,
    S.DOMAIN_STARTED,
    S.ISO_WRITTEN,
    S.ISO_ATTACHED,
    S.GUEST_CONFIGURED,
    S.ISO_DETACHED,
    S.SUCCEEDED,
]
# Written out a second time, by hand, from the description of each story: its way, and from which
# of its states on nothing may fail any more.
WAYS = {
    JobKind.PROVISION: (STORY, S.GUEST_CONFIGURED),
    JobKind.DESTROY: ([S.ACCEPTED, S.DOMAIN_REMOVED, S.SUCCEEDED], S.DOMAIN_REMOVED),
    JobKind.ATTACH_DISK: (
        [S.ACCEPTED, S.DISKS_CREATED, S.DISK_ATTACHED, S.SUCCEEDED],
        S.SUCCEEDED,
    ),
    JobKind.DETACH_DISK: ([S.ACCEPTED, S.DISK_DETACHED, S.SUCCEEDED], S.DISK_DETACHED),
    JobKind.CREATE_OVERLAY: ([S.ACCEPTED, S.DISKS_CREATED, S.SUCCEEDED], S.SUCCEEDED),
    JobKind.IMPORT_BASE: ([S.ACCEPTED, S.IMAGE_WRITTEN, S.SUCCEEDED], S.SUCCEEDED),
    JobKind.VERIFY_BASE: ([S.ACCEPTED, S.SUCCEEDED], S.SUCCEEDED),
}
# These make nothing that could be taken back.
WITHOUT_UNDO = {JobKind.DESTROY, JobKind.DETACH_DISK, JobKind.VERIFY_BASE}


def allowed(kind: JobKind) -> set[tuple[JobState, JobState]]:
    way, safe = WAYS[kind]
    failure = S.FAILED if kind in WITHOUT_UNDO else S.UNDOING
    ways = {*itertools.pairwise(way), *((state, failure) for state in way[: way.index(safe)])}
    if failure is S.UNDOING:
        ways.add((S.UNDOING, S.FAILED))
    if kind is JobKind.PROVISION:
        ways.add((S.UNDOING, S.GUEST_CONFIGURED))
    return ways


STEPS = [(kind, *step) for kind in JobKind for step in sorted(allowed(kind))]
NO_STEPS = [
    (kind, start, to)
    for kind in JobKind
    for start in TRANSITIONS[kind]
    for to in S
    if (start, to) not in allowed(kind)
]
AFTER_THE_VERDICT = {S.GUEST_CONFIGURED, S.ISO_DETACHED, S.SUCCEEDED}


def job_in(state: JobState, kind: JobKind = JobKind.PROVISION) -> Job:
    return Job(
        id="0" * 32,
        request_id="r-1",
        kind=kind,
        subject="web1",
        works_on="domain web1",
        domain_uuid="5f3a0f5e-2a6b-4d5c-9d8e-0f6a1c2b3d4e",
        generation=1,
        request={},
        created_at=1.0,
        updated_at=1.0,
        deadline_at=601.0,
        state=state,
    )


@pytest.mark.parametrize(("kind", "start", "to"), STEPS)
def test_every_step_of_a_story_may_be_taken(kind: JobKind, start: JobState, to: JobState) -> None:
    before = job_in(start, kind)
    after = advance(before, to, at=2.0, target="sda")
    assert (after.state, after.updated_at, after.target) == (to, 2.0, "sda")
    assert before == job_in(start, kind)


@pytest.mark.parametrize(("kind", "start", "to"), NO_STEPS)
def test_no_other_step_may_be_taken(kind: JobKind, start: JobState, to: JobState) -> None:
    with pytest.raises(ValueError, match=f"from {start} to {to}"):
        advance(job_in(start, kind), to, at=2.0)


@pytest.mark.parametrize("kind", JobKind)
def test_only_the_ends_have_no_way_on(kind: JobKind) -> None:
    assert {state for state in S if state.ended} == {S.SUCCEEDED, S.FAILED}
    assert {state for state, ways in TRANSITIONS[kind].items() if not ways} == {
        S.SUCCEEDED,
        S.FAILED,
    }


@given(st.data(), st.sampled_from(JobKind))
def test_every_walk_ends_and_nothing_reverts_once_it_may_not_fail(
    data: st.DataObject, kind: JobKind
) -> None:
    job, walked = job_in(S.ACCEPTED, kind), [S.ACCEPTED]
    while not job.state.ended:
        to = data.draw(st.sampled_from(sorted(TRANSITIONS[kind][job.state])))
        could_fail = job.may_fail
        job = advance(job, to, at=job.updated_at + 1)
        walked.append(to)
        assert could_fail or not job.may_fail
        assert len(walked) <= len(S), "no state comes twice"
    assert len(set(walked)) == len(walked)
    if S.GUEST_CONFIGURED in walked:
        assert walked[-1] is S.SUCCEEDED
        assert set(walked[walked.index(S.GUEST_CONFIGURED) :]) <= AFTER_THE_VERDICT
    assert (walked[-1] is S.FAILED) is (walked[-1] is not S.SUCCEEDED)


def test_a_job_has_reached_what_lies_behind_it_in_the_story() -> None:
    for number, state in enumerate(STORY):
        reached = [other for other in STORY if job_in(state).has_reached(other)]
        assert reached == STORY[: number + 1]
        assert not job_in(state).has_reached(S.UNDOING)


@pytest.mark.parametrize("kind", JobKind)
def test_a_job_may_fail_until_the_state_that_its_kind_cannot_leave(kind: JobKind) -> None:
    way, safe = WAYS[kind]
    assert [state for state in way if job_in(state, kind).may_fail] == way[: way.index(safe)]


def test_a_job_on_its_way_back_has_reached_nothing_of_the_story() -> None:
    assert [state for state in S if job_in(S.UNDOING).has_reached(state)] == [S.UNDOING]
    assert [state for state in S if job_in(S.FAILED).has_reached(state)] == [S.UNDOING, S.FAILED]


def test_the_guest_has_won_from_its_stored_verdict_on() -> None:
    assert {state for state in S if job_in(state).guest_has_won} == AFTER_THE_VERDICT


def test_a_fact_cannot_change_the_state_behind_the_transition() -> None:
    with pytest.raises(TypeError):
        advance(job_in(S.ACCEPTED), S.DISKS_CREATED, at=2.0, state=S.SUCCEEDED)


def test_a_failure_keeps_the_words_of_its_error() -> None:
    busy = Failure.of(Busy("web1: another job is at work on it"))
    assert busy == Failure("busy", "web1: another job is at work on it", Busy.default_hint, None)
    assert Failure.of(GuestFailed("web1: no", step="network")).step == "network"


def test_a_job_is_never_changed() -> None:
    job = job_in(S.ACCEPTED)
    with pytest.raises(AttributeError):
        job.state = S.FAILED  # type: ignore[misc]
    assert replace(job, target="sdb") != job
