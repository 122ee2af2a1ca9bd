"""provisionctl: the operator's commands, each one call of the API and its answer shown."""

import asyncio
import json
import os
import shlex
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from pydantic import BaseModel
from typer.core import TyperGroup

from provisiond import __version__
from provisiond.api.client import ApiError, ProvisiondClient
from provisiond.api.messages import DomainList, ErrorReply, JobList, JobState, JobView
from provisiond.display import (
    new_console,
    say,
    show_check,
    show_domains,
    show_error,
    show_event,
    show_job,
    show_jobs,
)
from provisiond.doctor import Check, Level, examine
from provisiond.errors import DaemonUnreachable, ProvisionError, ReplyLost
from provisiond.guest_options import (
    Config,
    read_config,
    read_keys,
    read_secret,
    with_network,
    with_options,
    with_secret,
)
from provisiond.progress import follow
from provisiond.settings import DEFAULT_CONFIG, DEFAULT_SOCKET

_T = TypeVar("_T")

JOB_FAILED = NOT_READY = 1
REFUSED, UNREACHABLE, TROUBLE, CTRL_C, NO_READER = 3, 4, 5, 130, 141
_EXIT_CODES = """\b
Exit status:
  0    done; with --wait and watch JOB: the job succeeded
  1    the job failed; doctor: something is missing that provisiond needs
  2    wrong usage
  3    provisiond refused the request (HTTP 4xx)
  4    provisiond cannot be reached
  5    provisiond or the hypervisor is in trouble (HTTP 5xx)
  130  Ctrl-C; a job that was waited for goes on
  141  nobody reads the output any more (| head)

\b
With --json, stdout has one JSON document: the API's reply, or its error reply
(watch: one event a line). Wrong usage is always told on stderr.
"""
# An answer that comes later is of no use to somebody who has pressed the tab key.
_COMPLETION_SECONDS = 1.0
_AGAIN = "May be given again."


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
    epilog=_EXIT_CODES,
)


def main() -> None:
    """The command `provisionctl`."""
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
            help=f"provisiond's Unix socket; left out: {DEFAULT_SOCKET}.",
        ),
    ] = None,
    _show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Provision guests on this host through provisiond, and look at its jobs."""
    ctx.obj = socket


# ---------------------------------------------------------------- completion
def _complete_domain(ctx: typer.Context, incomplete: str) -> list[str]:
    found = _ask_quickly(ctx, lambda client: client.domains())
    return [one.name for one in found if one.name.startswith(incomplete) and _is_plain(one.name)]


def _complete_job(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    found = [
        job
        for job in _ask_quickly(ctx, lambda client: client.jobs())
        if job.id.startswith(incomplete) and not (ctx.info_name == "cancel" and job.state.ended)
    ]
    return [
        (job.id, f"{job.domain} {job.state}" if _is_plain(job.domain) else job.state)
        for job in found
    ]


def _is_plain(name: str) -> bool:
    """Whether a shell takes the name as it stands; another could be a command, or an escape."""
    return name == shlex.quote(name)


def _ask_quickly(ctx: typer.Context, question: Callable[[ProvisiondClient], list[_T]]) -> list[_T]:
    """For the tab key: whatever goes wrong, there is just nothing to propose."""
    socket = ctx.find_root().params.get("socket") or DEFAULT_SOCKET
    try:
        with ProvisiondClient(Path(socket), reply_seconds=_COMPLETION_SECONDS) as client:
            return question(client)
    except ProvisionError:
        return []


_Json = Annotated[bool, typer.Option("--json", help="Write JSON to stdout, errors too.")]
_JobId = Annotated[
    str,
    typer.Argument(
        metavar="JOB",
        autocompletion=_complete_job,
        help="The job's id, or its beginning (4 digits at least).",
    ),
]


# ---------------------------------------------------------------- provision
@app.command()
def provision(
    ctx: typer.Context,
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", autocompletion=_complete_domain, help="A running domain: name or UUID."
        ),
    ],
    *,
    ip: Annotated[str | None, typer.Option(metavar="CIDR", help="Such as 192.0.2.10/24.")] = None,
    gateway: Annotated[str | None, typer.Option(metavar="ADDRESS")] = None,
    mac: Annotated[
        str | None, typer.Option(metavar="MAC", help="The interface; left out: the first.")
    ] = None,
    hostname: Annotated[str | None, typer.Option(metavar="NAME")] = None,
    nameserver: Annotated[list[str] | None, typer.Option(metavar="ADDRESS", help=_AGAIN)] = None,
    search: Annotated[list[str] | None, typer.Option(metavar="DOMAIN", help=_AGAIN)] = None,
    user: Annotated[
        str | None, typer.Option(help="Whose password and keys; left out: root.")
    ] = None,
    password_stdin: Annotated[
        bool,
        typer.Option(
            "--password-stdin", help="Read it from stdin's first line; a terminal asks for it."
        ),
    ] = False,
    password_hash_stdin: Annotated[
        bool, typer.Option("--password-hash-stdin", help="The same, for a crypt(5) hash.")
    ] = False,
    ssh_key: Annotated[
        list[typer.FileText] | None,
        typer.Option(
            metavar="FILE", encoding="utf-8", help="Public keys, one a line. May be given again."
        ),
    ] = None,
    timezone: Annotated[str | None, typer.Option(metavar="ZONE")] = None,
    config: Annotated[
        typer.FileText | None,
        typer.Option(
            metavar="FILE",
            encoding="utf-8",
            help="The request's whole 'config' as JSON, '-' for stdin; options win over it.",
        ),
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="The ISO's disk target, such as sdb or xvdp.")
    ] = None,
    deadline: Annotated[
        int | None, typer.Option(metavar="SECONDS", help="Until the guest's verdict.")
    ] = None,
    request_id: Annotated[
        str | None, typer.Option(metavar="ID", help="The same id gives the same job again.")
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for the end and show the way.")
    ] = False,
    as_json: _Json = False,
) -> None:
    """Configure the guest of a running domain.

    No option takes a password: a command line can be read by every user of the host.
    """
    options = {
        "hostname": hostname,
        "nameservers": nameserver,
        "search": search,
        "user": user,
        "ssh_authorized_keys": read_keys(ssh_key or []),
        "timezone": timezone,
    }
    whole = with_options(read_config(config), options)
    whole = with_network(whole, ip=ip, gateway=gateway, mac=mac)
    if "hostname" not in whole:
        raise typer.BadParameter("a guest needs a name", param_hint="--hostname")
    secret = read_secret(clear=password_stdin, hashed=password_hash_stdin, config=config)
    request = {
        "request_id": request_id or uuid.uuid4().hex,
        "domain": name,
        "config": with_secret(whole, secret),
        "target": target,
        "deadline_seconds": deadline,
    }
    with _provisiond(ctx, as_json=as_json) as client:
        job = _submit(client, request)
        if wait:
            _wait(client, job, as_json=as_json)
        elif as_json:
            _show_json(job)
        else:
            say(new_console(), f"{job.domain}: job {job.id} {job.state}")


def _submit(client: ProvisiondClient, request: Config) -> JobView:
    try:
        return client.submit(request)
    except ReplyLost as error:
        again = f"Ask again with --request-id {request['request_id']}: no second job comes of it."
        raise ReplyLost(error.message, hint=again) from error


# ---------------------------------------------------------------- jobs
@app.command()
def jobs(
    ctx: typer.Context,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 20,
    as_json: _Json = False,
) -> None:
    """List the newest jobs, newest first."""
    with _provisiond(ctx, as_json=as_json) as client:
        found = client.jobs(limit)
        if as_json:
            _show_json(JobList(jobs=found))
        else:
            show_jobs(new_console(), found)


@app.command()
def show(ctx: typer.Context, job_id: _JobId, as_json: _Json = False) -> None:
    """Show a job: its history, why it failed, the proof of its clean end, the guest's log."""
    with _provisiond(ctx, as_json=as_json) as client:
        job = client.job(job_id)
        if as_json:
            _show_json(job)
        else:
            show_job(new_console(), job)


@app.command()
def watch(
    ctx: typer.Context,
    job_id: Annotated[
        str | None,
        typer.Argument(
            metavar="[JOB]", autocompletion=_complete_job, help="Left out: every job, until Ctrl-C."
        ),
    ] = None,
    as_json: _Json = False,
) -> None:
    """Follow a job from its start to its end, or all jobs from now on."""
    with _provisiond(ctx, as_json=as_json) as client:
        if job_id is not None and not as_json:
            _wait(client, client.job(job_id), as_json=False)
            return
        console, state = new_console(), None
        for event in client.events() if job_id is None else client.job_events(job_id):
            state = event.state
            if as_json:
                typer.echo(_json_text(event.model_dump(mode="json")))
            else:
                show_event(console, event)
        if state is JobState.FAILED:
            raise typer.Exit(JOB_FAILED)


@app.command()
def cancel(ctx: typer.Context, job_id: _JobId, as_json: _Json = False) -> None:
    """Cancel a job: everything is undone, unless its guest is configured first."""
    with _provisiond(ctx, as_json=as_json) as client:
        job = client.cancel(job_id)
        if as_json:
            _show_json(job)
        else:
            say(new_console(), f"{job.domain}: job {job.id} {job.state}, cancel requested")


@app.command()
def domains(ctx: typer.Context, as_json: _Json = False) -> None:
    """List the domains of this host, and the job at work on each."""
    with _provisiond(ctx, as_json=as_json) as client:
        found = client.domains()
        if as_json:
            _show_json(DomainList(domains=found))
        else:
            show_domains(new_console(), found)


@app.command()
def doctor(
    ctx: typer.Context,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help=f"Settings; left out: {DEFAULT_CONFIG}.")
    ] = None,
    kernel: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A kernel that is booted to prove KVM.")
    ] = None,
    as_json: _Json = False,
) -> None:
    """Check whether this host has what provisiond needs, and say what to do where not."""
    console, checks = new_console(), list[Check]()

    async def run_checks() -> None:
        async for check in examine(config=config, address=ctx.obj, kernel=kernel):
            checks.append(check)
            if not as_json:
                show_check(console, check)

    asyncio.run(run_checks())
    if as_json:
        typer.echo(_json_text({"checks": [asdict(check) for check in checks]}, indent=2))
    if any(check.level is Level.FAIL for check in checks):
        raise typer.Exit(NOT_READY)


def _wait(client: ProvisiondClient, job: JobView, *, as_json: bool) -> None:
    """Follow the job to its end; leaves with 1 where it failed."""
    try:
        if as_json:
            for _ in client.job_events(job.id):
                pass
            job = client.job(job.id)
            _show_json(job)
        else:
            job = follow(client, job, new_console())
    except KeyboardInterrupt:
        say(
            new_console(stderr=True),
            f"{job.domain}: job {job.id} goes on. To follow it: provisionctl watch {job.id}; "
            f"to cancel it: provisionctl cancel {job.id}",
        )
        raise typer.Exit(CTRL_C) from None
    if job.state is not JobState.SUCCEEDED:
        raise typer.Exit(JOB_FAILED)


# ---------------------------------------------------------------- talking to provisiond
@contextmanager
def _provisiond(ctx: typer.Context, *, as_json: bool) -> Iterator[ProvisiondClient]:
    """A client for one command; errors are shown and become the exit status."""
    try:
        with ProvisiondClient(ctx.obj or DEFAULT_SOCKET) as client:
            yield client
    except ProvisionError as error:
        reply = error.reply if isinstance(error, ApiError) else _as_reply(error)
        if as_json:
            _show_json(reply)
        else:
            show_error(new_console(stderr=True), reply)
        raise typer.Exit(exit_status(error)) from None


def exit_status(error: ProvisionError) -> int:
    """The exit status that stands for an error, as --help has it."""
    if isinstance(error, DaemonUnreachable):
        return UNREACHABLE
    if isinstance(error, ApiError) and error.status < HTTPStatus.INTERNAL_SERVER_ERROR:
        return REFUSED
    return TROUBLE


def _as_reply(error: ProvisionError) -> ErrorReply:
    """An error of this side in the shape that the daemon's errors have."""
    status = (
        HTTPStatus.SERVICE_UNAVAILABLE
        if isinstance(error, DaemonUnreachable)
        else HTTPStatus.BAD_GATEWAY
    )
    return ErrorReply(
        title=status.phrase,
        status=status.value,
        code=error.code,
        message=error.message,
        hint=error.hint,
    )


def _show_json(message: BaseModel) -> None:
    typer.echo(_json_text(message.model_dump(mode="json"), indent=2))


def _json_text(value: object, indent: int | None = None) -> str:
    """JSON in which every character that a terminal could obey is an escape."""
    return json.dumps(value, indent=indent).replace("\x7f", "\\u007f")


if __name__ == "__main__":
    main()
