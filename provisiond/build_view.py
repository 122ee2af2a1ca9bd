"""What provisionctl shows of a build: for a person, for a pipe, and as JSON."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from provisiond.display import say, seconds
from provisiond.images.phases import Phase
from provisiond.images.steps import Result
from provisiond.terminal import printable


class LiveBuild:
    """On a terminal: the phases that ended, each with its time, and the last line of this one."""

    def __init__(self, console: Console) -> None:
        self._ended: list[Text] = []
        self._phase: Phase | None = None
        self._line = ""
        self._began = 0.0
        self._spinner = Spinner(
            "dots" if console.encoding.startswith("utf") else "line", style="cyan"
        )
        self._live = Live(console=console, get_renderable=self.render, refresh_per_second=10)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """The view is on the terminal while the block lasts."""
        with self._live:
            yield

    def began(self, phase: Phase) -> None:
        """The phase begins."""
        self._phase, self._line, self._began = phase, "", time.monotonic()

    def said(self, _phase: Phase, line: str) -> None:
        """The line is the one that is shown."""
        self._line = line

    def ended(self, phase: Phase, *, seconds: float, result: Result) -> None:
        """The phase gets its tick."""
        self._end(Text(f"✔ {phase:<10}", style="green"), seconds, _told(result))

    def failed(self, phase: Phase, *, seconds: float) -> None:
        """The phase gets its cross, and its last line stays."""
        self._end(Text(f"✘ {phase:<10}", style="red"), seconds, self._line)

    def _end(self, line: Text, took: float, told: str) -> None:
        line.append(f"{seconds(took):>8}  ", style="dim").append(printable(told), style="default")
        self._ended = [*self._ended, line]
        self._phase = None

    def render(self) -> RenderableType:
        """The view as it is now."""
        phase, lines = self._phase, list[RenderableType](self._ended)
        if phase is not None:
            doing = Text(f"{phase:<10}").append(
                f"{seconds(time.monotonic() - self._began):>8}  ", style="dim"
            )
            doing.append(printable(self._line))
            doing.no_wrap, doing.overflow = True, "ellipsis"
            self._spinner.update(text=doing)
            lines.append(self._spinner)
        return Group(*lines)


class PlainBuild:
    """In a pipe: one line a fact, and every line of the tools after its phase's name."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Nothing is drawn."""
        yield

    def began(self, phase: Phase) -> None:
        """The phase begins."""
        say(self._console, f"{phase}: begins")

    def said(self, phase: Phase, line: str) -> None:
        """A line of a tool's."""
        say(self._console, f"{phase}: | {line}")

    def ended(self, phase: Phase, *, seconds: float, result: Result) -> None:
        """The phase ended well."""
        say(self._console, f"{phase}: ended in {seconds:.1f} s {_told(result)}".rstrip())

    def failed(self, phase: Phase, *, seconds: float) -> None:
        """The phase did not end well."""
        say(self._console, f"{phase}: failed after {seconds:.1f} s")


class SilentBuild:
    """With --json: nothing is shown but the document at the end."""

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Nothing is drawn."""
        yield

    def began(self, phase: Phase) -> None:
        """Nothing."""

    def said(self, phase: Phase, line: str) -> None:
        """Nothing."""

    def ended(self, phase: Phase, *, seconds: float, result: Result) -> None:
        """Nothing."""

    def failed(self, phase: Phase, *, seconds: float) -> None:
        """Nothing."""


def _told(result: Result) -> str:
    """A result in a line: `name=value` each; what is long is cut."""
    return " ".join(
        f"{name}={_short(value)}" for name, value in result.items() if value is not None
    )


def _short(value: str | int | float | None) -> str:
    text = value if isinstance(value, str) and " " not in value else json.dumps(value)
    return text if len(text) <= 64 else f"{text[:16]}…"
