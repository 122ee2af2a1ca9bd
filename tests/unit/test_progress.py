"""The live view: every fact with a tick, and what is being done now."""

from datetime import timedelta

import pytest

from provisiond.api.replies import EventView, JobState, ProgressView
from provisiond.api.requests import JobKind
from provisiond.job import TRANSITIONS
from provisiond.progress import LiveView
from tests.unit.test_display import AT, HOSTILE, JOB_ID, TAMED, console, failed_job


def fact(state: JobState, *, after: float, detail: str = "so it is") -> EventView:
    at = AT + timedelta(seconds=after)
    return EventView(seq=1, job_id=JOB_ID, subject="web1", at=at, state=state, detail=detail)


def shown(view: LiveView) -> list[str]:
    target, out = console(terminal=False)
    target.print(view.render())
    return out.getvalue().splitlines()


def new_view(text: str = "web1", *, kind: JobKind = JobKind.PROVISION) -> LiveView:
    job = failed_job(text).model_copy(update={"state": JobState.ACCEPTED, "kind": kind})
    return LiveView(job, spinner="line")


def test_every_fact_is_a_line_with_its_time_since_the_job_was_accepted() -> None:
    view = new_view()
    view.add(fact(JobState.ACCEPTED, after=0))
    view.add(fact(JobState.ISO_ATTACHED, after=61.2, detail="attached as sdb"))
    head, first, second, doing = shown(view)
    assert head == f"web1  job {JOB_ID}"
    assert first.split() == ["✔", "ACCEPTED", "0.0", "s", "so", "it", "is"]
    assert second.split() == ["✔", "ISO_ATTACHED", "1:01", "attached", "as", "sdb"]
    assert "the guest configures itself" in doing


@pytest.mark.parametrize(
    ("kind", "state"),
    [(kind, state) for kind in JobKind for state in TRANSITIONS[kind] if not state.ended],
)
def test_there_is_a_word_for_what_is_done_in_every_state(kind: JobKind, state: JobState) -> None:
    view = new_view(kind=kind)
    view.add(fact(state, after=1))
    assert len(shown(view)) == 3


def test_long_work_has_a_bar_with_its_name_and_how_far_it_is() -> None:
    view = new_view(kind=JobKind.IMPORT_BASE)
    view.add(fact(JobState.ACCEPTED, after=1))
    view.progress = ProgressView(doing="converting", fraction=0.42)
    *_, doing, bar = shown(view)
    assert "converting" in doing
    assert "42%" in bar


def test_nothing_is_being_done_once_the_job_has_ended() -> None:
    view = new_view()
    view.add(fact(JobState.UNDOING, after=1))
    view.add(fact(JobState.FAILED, after=2))
    _, undoing, failed = shown(view)
    assert undoing.startswith("✘ UNDOING")
    assert failed.startswith("✘ FAILED")


def test_what_a_terminal_could_obey_is_replaced() -> None:
    view = new_view(HOSTILE)
    view.add(fact(JobState.ACCEPTED, after=0, detail=HOSTILE))
    text = "\n".join(shown(view))
    assert text.count(TAMED) == 2
    assert "\x1b" not in text
    assert "\x9b" not in text
