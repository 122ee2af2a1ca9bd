"""Waiting for a job: a live view on a terminal, one line a fact in a pipe."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from provisiond.api.client import ProvisiondClient
from provisiond.api.replies import EventView, JobState, JobView, ProgressView
from provisiond.api.requests import JobKind
from provisiond.display import failure_facts, say, seconds, show_event, state_style
from provisiond.errors import ProvisionError
from provisiond.terminal import printable

_ASK_SECONDS = 0.25
_BAR_WIDTH = 40
# Images that are read or written whole: how far that is can be asked for.
_LONG = (JobKind.IMPORT_BASE, JobKind.VERIFY_BASE)

# What provisiond does once a fact is stored: the next line of the kind's story.
_UNDOING = {JobState.UNDOING: "undoing"}
_DOING: dict[JobKind, dict[JobState, str]] = {
    JobKind.PROVISION: {
        JobState.ACCEPTED: "waiting for its turn, or writing the config ISO",
        JobState.DISKS_CREATED: "starting the domain",
        JobState.DOMAIN_STARTED: "writing the config ISO",
        JobState.ISO_WRITTEN: "waiting for the guest, then attaching the ISO",
        JobState.ISO_ATTACHED: "the guest configures itself",
        JobState.GUEST_CONFIGURED: "detaching the config ISO",
        JobState.ISO_DETACHED: "destroying the config ISO",
        **_UNDOING,
    },
    JobKind.DESTROY: {
        JobState.ACCEPTED: "ending the domain",
        JobState.DOMAIN_REMOVED: "removing its disks",
    },
    JobKind.ATTACH_DISK: {
        JobState.ACCEPTED: "making the disk",
        JobState.DISKS_CREATED: "attaching the disk",
        JobState.DISK_ATTACHED: "waiting for the guest's driver",
        **_UNDOING,
    },
    JobKind.DETACH_DISK: {
        JobState.ACCEPTED: "waiting until the guest lets go of the disk",
        JobState.DISK_DETACHED: "keeping or removing the disk",
    },
    JobKind.CREATE_OVERLAY: {
        JobState.ACCEPTED: "making the overlay",
        JobState.DISKS_CREATED: "putting it into its place",
        **_UNDOING,
    },
    JobKind.IMPORT_BASE: {
        JobState.ACCEPTED: "reading the image",
        JobState.IMAGE_WRITTEN: "putting the base into its place",
        **_UNDOING,
    },
    JobKind.VERIFY_BASE: {JobState.ACCEPTED: "reading the base"},
}


def follow(client: ProvisiondClient, job: JobView, console: Console) -> JobView:
    """Show the job's facts as they come; return it with its history once it has ended."""
    if console.is_terminal:
        _follow_live(client, job, console)
    else:
        for event in client.job_events(job.id):
            show_event(console, event)
    ended = client.job(job.id)
    _show_end(console, ended)
    return ended


def _follow_live(client: ProvisiondClient, job: JobView, console: Console) -> None:
    view = LiveView(job, spinner="dots" if console.encoding.startswith("utf") else "line")
    with (
        _asking_for_progress(client, view) if job.kind in _LONG else nullcontext(),
        Live(console=console, get_renderable=view.render, refresh_per_second=10) as live,
    ):
        for event in client.job_events(job.id):
            view.add(event)
            live.refresh()


@contextmanager
def _asking_for_progress(client: ProvisiondClient, view: "LiveView") -> Iterator[None]:
    """Ask in a thread: the client waits for the next fact."""
    ended = threading.Event()

    def ask() -> None:
        with client.another(reply_seconds=1) as own:
            while not ended.wait(_ASK_SECONDS):
                with suppress(ProvisionError):  # the wait for the facts deals with it
                    view.progress = own.job(view.job_id).progress

    thread = threading.Thread(target=ask, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class LiveView:
    """The facts so far, each with a tick, and what is being done now."""

    def __init__(self, job: JobView, *, spinner: str) -> None:
        self._job = job
        self._events: list[EventView] = []
        self._spinner = Spinner(spinner, style="cyan")
        self.job_id = job.id
        self.progress: ProgressView | None = None

    def add(self, event: EventView) -> None:
        """One more fact."""
        # A new list: the thread that draws may be reading the old one.
        self._events = [*self._events, event]

    def render(self) -> RenderableType:
        """The view as it is now."""
        events = self._events
        lines: list[RenderableType] = [self._head(), *map(self._line, events)]
        state = events[-1].state if events else self._job.state
        if not state.ended:
            elapsed = (datetime.now(UTC) - self._job.created_at).total_seconds()
            progress = self.progress
            what = _DOING[self._job.kind][state] if progress is None else progress.doing
            doing = Text(f"{printable(what)} ").append(seconds(elapsed), style="dim")
            self._spinner.update(text=doing)
            lines.append(self._spinner)
            if progress is not None:
                lines.append(_bar(progress))
        return Group(*lines)

    def _head(self) -> Text:
        return Text.assemble(
            (printable(self._job.subject), "bold"), (f"  job {self._job.id}", "dim")
        )

    def _line(self, event: EventView) -> Text:
        mark, style = "✔", "green"
        if event.state in (JobState.UNDOING, JobState.FAILED):
            mark, style = "✘", state_style(event.state)
        since = (event.at - self._job.created_at).total_seconds()
        return Text.assemble(
            (f"{mark} {event.state:<17}", style),
            (f"{seconds(since):>8}  ", "dim"),
            printable(event.detail),
        )


def _bar(progress: ProgressView) -> RenderableType:
    bar = ProgressBar(total=1.0, completed=progress.fraction, width=_BAR_WIDTH)
    line = Table.grid(padding=(0, 1))
    line.add_row(bar, f"{progress.fraction:4.0%}")
    return line


def _show_end(console: Console, job: JobView) -> None:
    took = seconds((job.updated_at - job.created_at).total_seconds())
    if job.failure is None:
        say(console, f"{job.subject}: {job.state} in {took}", state_style(job.state))
        return
    say(console, f"{job.subject}: {job.state} after {took}", state_style(job.state))
    for name, value in failure_facts(job.failure):
        say(console, f"{job.subject}: {name}: {value}", "bold" if name == "hint" else "")
    for line in job.guest_log or ():
        say(console, f"{job.subject}: guest log: {line}", "dim")
