"""provisionctl: the operator's commands, each one call of the API or one job, and what it shows.

asking.py      the client, the exit statuses, JSON
options.py     what several commands take
waiting.py     a job is asked for and followed
completion.py  what the tab key proposes
guests.py, jobs.py, domains.py, bases.py, disks.py, host.py    the commands, by noun
images.py      those that work on image files here, without a daemon: image_bake.py,
               image_build.py, image_verify.py
"""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from provisiond import __version__
from provisiond.cli import bases, disks, domains, guests, host, images, jobs
from provisiond.cli.asking import EXIT_CODES, NO_READER
from provisiond.core_dump import forbid_core_dumps
from provisiond.settings import DEFAULT_SOCKET


class _Commands(TyperGroup):
    """The commands; all end in one way where nobody reads their output any more (`| head`)."""

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            # What is left in the buffer goes nowhere, without a word at the interpreter's end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(NO_READER) from None
        return result


# No rich markup: what is shown may come from a guest. No pretty exceptions: those show locals.
app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EXIT_CODES,
)


def main() -> None:
    """The command `provisionctl`."""
    forbid_core_dumps()  # Ctrl-\ at the question for a password would write one
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character shows another in its place.
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    app(prog_name="provisionctl")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"provisionctl {__version__}")
        raise typer.Exit


@app.callback()
def _options_of_all(
    ctx: typer.Context,
    socket: Annotated[
        Path | None,
        typer.Option(
            envvar="PROVISIOND_SOCKET",
            metavar="FILE",
            help=f"provisiond's Unix socket; left out: {DEFAULT_SOCKET}.",
        ),
    ] = None,
    _show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Make, configure, look at and end the guests of this host, through provisiond."""
    ctx.obj = socket


for command in (
    guests.create,
    guests.provision,
    guests.destroy,
    jobs.jobs,
    jobs.show,
    jobs.watch,
    jobs.cancel,
    domains.domains,
    domains.ip,
    domains.ips,
    domains.ssh,
):
    app.command()(command)
app.add_typer(bases.app, name="base")
app.add_typer(disks.app, name="disk")
app.add_typer(images.app, name="image")
app.command()(host.doctor)
