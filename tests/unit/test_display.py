"""What provisionctl shows, on a terminal and in a pipe; nothing in it can make a terminal obey."""

import io
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from provisiond.api.replies import (
    ErrorReply,
    EventView,
    FailureView,
    FieldError,
    JobState,
    JobView,
    ProgressView,
    ProofView,
)
from provisiond.api.requests import JobKind
from provisiond.display import (
    say,
    seconds,
    show_check,
    show_error,
    show_event,
    show_job,
    show_jobs,
)
from provisiond.doctor import Check, Level
from provisiond.terminal import printable

AT = datetime(2025, 3, 1, 12, 0, 0, 250_000, UTC)
JOB_ID = "0123456789abcdef0123456789abcdef"
HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\r\n\t[bold]:skull:\u202e\x7f"
TAMED = "�]0;owned��[2J�31m���[bold]:skull:��"


def failed_job(text: str = "web1") -> JobView:
    """A job with everything that a job can have; `text` wherever a guest or libvirt wrote it."""
    later = AT + timedelta(seconds=65.4)
    event = EventView(
        seq=1, job_id=JOB_ID, subject=text, at=later, state=JobState.UNDOING, detail=text
    )
    return JobView(
        id=JOB_ID,
        requested_by="unix:root",
        request_id="order-4711",
        kind=JobKind.PROVISION,
        subject=text,
        disk=text,
        progress=None,
        domain_uuid="5f3a0f5e-2a6b-4d5c-9d8e-0f6a1c2b3d4e",
        state=JobState.FAILED,
        cancel_requested=True,
        created_at=AT,
        updated_at=later,
        deadline_at=later,
        generation=7,
        target="sdb",
        iso_attached_seconds=3.72,
        failure=FailureView(code="guest_failed", message=text, hint="Mend it.", step="network"),
        proof=ProofView(
            disk_absent_from_live_xml=True,
            back_end_absent=True,
            iso_overwritten_and_unlinked=False,
            iso_file_absent=True,
            at=later,
        ),
        guest_log=[text, "second line"],
        request={},
        history=[event],
    )


def console(*, terminal: bool) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return (
        Console(
            file=out,
            force_terminal=terminal,
            width=100,
            markup=False,
            emoji=False,
            highlight=False,
            color_system="standard" if terminal else None,
            legacy_windows=False,
        ),
        out,
    )


def everything(text: str, *, terminal: bool) -> str:
    """All that can be shown, with `text` wherever somebody else's text may stand."""
    target, out = console(terminal=terminal)
    job = failed_job(text)
    refused = FieldError(field="config.ip", message=text)
    error = ErrorReply(title="t", status=422, code="c", message=text, hint=text, fields=[refused])
    show_job(target, job)
    show_jobs(target, [job])
    show_error(target, error)
    show_error(target, error.model_copy(update={"fields": []}))
    show_check(target, Check("libvirt", Level.FAIL, text, text))
    for event in job.history or ():
        show_event(target, event)
    say(target, text)
    return out.getvalue()


# ---------------------------------------------------------------- what others wrote
def test_what_a_terminal_could_obey_is_replaced_and_no_markup_is_read() -> None:
    assert printable(HOSTILE) == TAMED
    shown = everything(HOSTILE, terminal=False)
    assert not set(shown) & set(HOSTILE) - set(TAMED) - set("\n\t")
    assert TAMED in shown


def test_a_terminal_gets_the_same_escapes_whatever_others_wrote() -> None:
    def escapes(text: str) -> int:
        return everything(text, terminal=True).count("\x1b")

    assert escapes("x" * len(HOSTILE)) == escapes(HOSTILE) > 0


@given(st.text())
def test_what_is_shown_is_printable_and_as_long_as_before(text: str) -> None:
    assert printable(text).isprintable()
    assert len(printable(text)) == len(text)


# ---------------------------------------------------------------- for a person, for a pipe
@pytest.mark.parametrize(
    ("count", "shown"), [(0.04, "0.0 s"), (3.25, "3.2 s"), (60, "1:00"), (125.9, "2:05")]
)
def test_a_time_is_shown_as_a_person_reads_it(count: float, shown: str) -> None:
    assert seconds(count) == shown


def test_in_a_pipe_a_row_is_a_line_with_tabs_and_nothing_is_cut() -> None:
    target, out = console(terminal=False)
    show_jobs(target, [failed_job("web" * 50)])
    head, row = out.getvalue().splitlines()
    assert head.split("\t") == ["JOB", "KIND", "SUBJECT", "STATE", "CREATED", "FAILURE"]
    assert row.split("\t") == [
        JOB_ID,
        "provision",
        "web" * 50,
        "FAILED",
        "2025-03-01T12:00:00.250Z",
        "guest_failed",
    ]


def test_on_a_terminal_an_id_is_short() -> None:
    target, out = console(terminal=True)
    show_jobs(target, [failed_job()])
    assert JOB_ID[:8] in out.getvalue()
    assert JOB_ID not in out.getvalue()


def test_a_job_is_shown_with_history_failure_proof_and_guest_log() -> None:
    target, out = console(terminal=False)
    show_job(target, failed_job("something " * 30))
    lines = [line.split(": ", 1) for line in out.getvalue().splitlines()]
    facts = {name: value.strip() for name, *rest in lines for value in rest}
    assert facts["state"] == "FAILED (cancel requested)"
    assert facts["guest's step"] == "network"
    assert facts["hint"] == "Mend it."
    assert facts["attached for"] == "3.7 s"
    assert "disk absent from the live XML: yes, back end absent: yes, ISO overw" in facts["proof"]
    assert "ISO overwritten and unlinked: no" in facts["proof"]
    assert "  second line" in out.getvalue()
    assert "65.400 s  UNDOING" in out.getvalue()


def test_a_job_is_shown_with_what_its_kind_has() -> None:
    target, out = console(terminal=False)
    importing = failed_job("debian12").model_copy(
        update={
            "kind": JobKind.IMPORT_BASE,
            "domain_uuid": None,
            "progress": ProgressView(doing="converting", fraction=0.425),
            "disk": "/images/bases/debian12.qcow2",
        }
    )
    show_job(target, importing)
    lines = out.getvalue().splitlines()
    assert "kind:         import_base" in lines
    assert "base:         debian12" in lines
    assert "progress:     converting, 42%" in lines
    assert "disk:         /images/bases/debian12.qcow2" in lines
    assert not any(line.startswith(("domain:", "generation:")) for line in lines)


def test_an_error_names_each_refused_field_and_what_to_do() -> None:
    target, out = console(terminal=False)
    fields = [
        FieldError(field="config.ip", message="is no address"),
        FieldError(field="x", message="y"),
    ]
    error = ErrorReply(
        title="t", status=422, code="invalid_request", message="m", hint="Correct.", fields=fields
    )
    show_error(target, error)
    assert out.getvalue().splitlines() == [
        "error: invalid_request: the request is refused",
        "  config.ip: is no address",
        "  x: y",
        "hint: Correct.",
    ]


def test_a_check_that_is_not_well_says_what_to_do() -> None:
    target, out = console(terminal=False)
    show_check(target, Check("swap", Level.OK, "none"))
    show_check(target, Check("kvm", Level.WARN, "absent", "Use TCG."))
    assert [line.split() for line in out.getvalue().splitlines()] == [
        ["ok", "swap:", "none"],
        ["warn", "kvm:", "absent"],
        ["→", "Use", "TCG."],
    ]
