"""What provisionctl shows of jobs, checks and errors: for a person, and for a pipe.

Names and messages come from guests and from libvirt. None of them is read as markup here, and what
a terminal could obey is replaced before it gets there.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from rich.console import Console
from rich.table import Table
from rich.text import Text

from provisiond.api.replies import ErrorReply, EventView, FailureView, JobState, JobView
from provisiond.api.requests import JobKind
from provisiond.doctor import Check, Level
from provisiond.terminal import printable

SHORT_ID = 8  # digits of a job's id that a person is shown in a table
_COLOURS = {JobState.SUCCEEDED: "green", JobState.FAILED: "red", JobState.UNDOING: "yellow"}
_LEVEL_COLOURS = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "red"}
_MINUTE = 60
# What a kind of job works on, where that is no domain.
_NOUNS = {
    JobKind.CREATE_OVERLAY: "overlay",
    JobKind.IMPORT_BASE: "base",
    JobKind.VERIFY_BASE: "base",
}


class _Console(Console):
    """A console that leaves it to the command how it ends when nobody reads any more."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def new_console(*, stderr: bool = False) -> Console:
    """A console that takes every text as it is."""
    return _Console(stderr=stderr, markup=False, emoji=False, highlight=False)


def say(console: Console, text: str, style: str = "") -> None:
    """One line, as long as it is."""
    console.print(Text(printable(text), style=style), soft_wrap=True)


def seconds(count: float) -> str:
    """`count` as a person reads it: 3.2 s, or 2:05 from a minute on."""
    if count < _MINUTE:
        return f"{count:.1f} s"
    return f"{int(count) // _MINUTE}:{int(count) % _MINUTE:02}"


def time_of_day(at: datetime) -> str:
    """The local time, to the millisecond."""
    return at.astimezone().strftime("%H:%M:%S.%f")[:-3]


def exact_time(at: datetime) -> str:
    """The time in UTC as RFC 3339 writes it, to the millisecond."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def state_style(state: JobState) -> str:
    """The colour of a state."""
    return _COLOURS.get(state, "cyan")


# ---------------------------------------------------------------- lists
def show_jobs(console: Console, jobs: Sequence[JobView]) -> None:
    """The jobs; in a pipe with their whole ids."""
    whole = not console.is_terminal
    rows = [
        (
            Text(job.id if whole else job.id[:SHORT_ID]),
            Text(job.kind),
            Text(printable(job.subject)),
            Text(job.state, style=state_style(job.state)),
            Text(exact_time(job.created_at) if whole else _date_and_time(job.created_at)),
            Text("" if job.failure is None else job.failure.code),
        )
        for job in jobs
    ]
    show_rows(console, ("JOB", "KIND", "SUBJECT", "STATE", "CREATED", "FAILURE"), rows)


def show_rows(console: Console, columns: Sequence[str], rows: Sequence[Sequence[Text]]) -> None:
    """A table for a person; one line a row and a tab between two columns for a pipe."""
    if not console.is_terminal:
        for row in (columns, *rows):
            print(*row, sep="\t", file=console.file)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _date_and_time(at: datetime) -> str:
    return at.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def show_fact(console: Console, name: str, value: str, style: str = "") -> None:
    """One line of all that is known of one thing."""
    line = Text.assemble((f"{name + ':':<14}", "bold"), (printable(value), style))
    console.print(line, soft_wrap=True)


# ---------------------------------------------------------------- one job
def show_job(console: Console, job: JobView) -> None:
    """All that is known of a job."""
    for name, value in _facts(job):
        show_fact(console, name, value, state_style(job.state) if name == "state" else "")
    if job.history:
        say(console, "history:", "bold")
        for event in job.history:
            _show_event_of_job(console, job, event)
    if job.guest_log:
        say(console, "guest log:", "bold")
        for line_of_guest in job.guest_log:
            say(console, f"  {line_of_guest}")


def _facts(job: JobView) -> Iterator[tuple[str, str]]:
    yield "job", job.id
    yield "kind", job.kind
    yield _NOUNS.get(job.kind, "domain"), _subject(job)
    yield "state", job.state + (" (cancel requested)" if job.cancel_requested else "")
    if job.progress is not None:
        yield "progress", f"{job.progress.doing}, {job.progress.fraction:.0%}"
    yield "request_id", job.request_id
    if job.requested_by:
        yield "requested by", job.requested_by
    if job.kind is JobKind.PROVISION:
        yield "generation", str(job.generation)
    yield "created", exact_time(job.created_at)
    yield ("ended" if job.state.ended else "updated"), exact_time(job.updated_at)
    yield "deadline", exact_time(job.deadline_at)
    if job.target is not None:
        yield "target", job.target
    if job.disk is not None:
        yield "disk", job.disk
    if job.iso_attached_seconds is not None:
        yield "attached for", seconds(job.iso_attached_seconds)
    if job.failure is not None:
        yield from failure_facts(job.failure)
    if job.proof is not None:
        yield "proof", _proof(job)


def _subject(job: JobView) -> str:
    return job.subject if job.domain_uuid is None else f"{job.subject} ({job.domain_uuid})"


def failure_facts(failure: FailureView) -> Iterator[tuple[str, str]]:
    """Why, in the guest's step if it was there, and what to do."""
    yield "failure", f"{failure.code}: {failure.message}"
    if failure.step is not None:
        yield "guest's step", failure.step
    yield "hint", failure.hint


def _proof(job: JobView) -> str:
    proof = job.proof
    if proof is None:
        return ""
    looked_at = {
        "disk absent from the live XML": proof.disk_absent_from_live_xml,
        "back end absent": proof.back_end_absent,
        "ISO overwritten and unlinked": proof.iso_overwritten_and_unlinked,
        "ISO's file absent": proof.iso_file_absent,
    }
    facts = ", ".join(
        f"{what}: {'yes' if true else 'no'}" for what, true in looked_at.items() if true is not None
    )
    return f"{facts} ({exact_time(proof.at)})"


def _show_event_of_job(console: Console, job: JobView, event: EventView) -> None:
    since = (event.at - job.created_at).total_seconds()
    line = Text(f"  {exact_time(event.at)}  {since:8.3f} s  ")
    line.append(f"{event.state:<16}  ", style=state_style(event.state))
    console.print(line.append(printable(event.detail)), soft_wrap=True)


def show_event(console: Console, event: EventView) -> None:
    """One line a fact: time, subject, state, what happened."""
    at = time_of_day(event.at) if console.is_terminal else exact_time(event.at)
    line = Text(f"{at} {printable(event.subject)} ")
    line.append(event.state, style=state_style(event.state))
    console.print(line.append(f" {printable(event.detail)}"), soft_wrap=True)


# ---------------------------------------------------------------- checks, errors
def show_check(console: Console, check: Check) -> None:
    """One line a check, and a second where there is something to do."""
    line = Text.assemble(
        (f"{check.level:<5}", _LEVEL_COLOURS[check.level]),
        f"{check.name + ':':<20}{printable(check.found)}",
    )
    console.print(line, soft_wrap=True)
    if check.todo:
        say(console, f"{'':<25}→ {check.todo}", "dim")


def show_error(console: Console, error: ErrorReply) -> None:
    """What happened, the refused fields one a line, and what to do next."""
    what = "the request is refused" if error.fields else error.message
    head = Text.assemble(("error: ", "bold red"), f"{error.code}: {printable(what)}")
    console.print(head, soft_wrap=True)
    for one in error.fields:
        say(console, f"  {one.field}: {one.message}")
    say(console, f"hint: {error.hint}")
