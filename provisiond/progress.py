"""Waiting for a job: a live view on a terminal, one line a fact in a pipe."""

from datetime import UTC, datetime

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from provisiond.api.client import ProvisiondClient
from provisiond.api.messages import EventView, JobState, JobView
from provisiond.display import failure_facts, printable, say, seconds, show_event, state_style

# What provisiond does once a fact is stored: the next line of the story (provision.py).
_DOING = {
    JobState.ACCEPTED: "waiting for its turn",
    JobState.DISKS_CREATED: "starting the domain",
    JobState.DOMAIN_STARTED: "writing the config ISO",
    JobState.ISO_WRITTEN: "waiting for the guest, then attaching the ISO",
    JobState.ISO_ATTACHED: "the guest configures itself",
    JobState.GUEST_CONFIGURED: "detaching the config ISO",
    JobState.ISO_DETACHED: "destroying the config ISO",
    JobState.UNDOING: "undoing",
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
    with Live(console=console, get_renderable=view.render, refresh_per_second=10) as live:
        for event in client.job_events(job.id):
            view.add(event)
            live.refresh()


class LiveView:
    """The facts so far, each with a tick, and what is being done now."""

    def __init__(self, job: JobView, *, spinner: str) -> None:
        self._job = job
        self._events: list[EventView] = []
        self._spinner = Spinner(spinner, style="cyan")

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
            doing = Text(f"{_DOING[state]} ").append(seconds(elapsed), style="dim")
            self._spinner.update(text=doing)
            lines.append(self._spinner)
        return Group(*lines)

    def _head(self) -> Text:
        return Text.assemble(
            (printable(self._job.domain), "bold"), (f"  job {self._job.id}", "dim")
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


def _show_end(console: Console, job: JobView) -> None:
    took = seconds((job.updated_at - job.created_at).total_seconds())
    if job.failure is None:
        say(console, f"{job.domain}: {job.state} in {took}", state_style(job.state))
        return
    say(console, f"{job.domain}: {job.state} after {took}", state_style(job.state))
    for name, value in failure_facts(job.failure):
        say(console, f"{job.domain}: {name}: {value}", "bold" if name == "hint" else "")
    for line in job.guest_log or ():
        say(console, f"{job.domain}: guest log: {line}", "dim")
