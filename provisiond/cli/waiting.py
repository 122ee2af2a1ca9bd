"""A job is asked for, and followed to its end."""

import re
import uuid
from typing import Annotated

import typer

from provisiond.api.client import ProvisiondClient
from provisiond.api.replies import JobState, JobView
from provisiond.cli.asking import CTRL_C, JOB_FAILED, provisiond, show_json
from provisiond.display import new_console, say
from provisiond.errors import ReplyLost
from provisiond.guest_options import Config
from provisiond.progress import follow


def submit(client: ProvisiondClient, request: Config) -> JobView:
    try:
        return client.submit(request)
    except ReplyLost as error:
        again = f"Ask again with --request-id {request['request_id']}: no second job comes of it."
        raise ReplyLost(error.message, hint=again) from error


def follow_to_end(client: ProvisiondClient, job: JobView, *, as_json: bool) -> None:
    """Follow the job to its end; leaves with 1 where it failed."""
    try:
        if as_json:
            for _ in client.job_events(job.id):
                pass
            job = client.job(job.id)
            show_json(job)
        else:
            job = follow(client, job, new_console())
    except KeyboardInterrupt:
        say(
            new_console(stderr=True),
            f"{job.subject}: job {job.id} goes on. To follow it: provisionctl watch {job.id}; "
            f"to cancel it: provisionctl cancel {job.id}",
        )
        raise typer.Exit(CTRL_C) from None
    if job.state is not JobState.SUCCEEDED:
        raise typer.Exit(JOB_FAILED)


# ---------------------------------------------------------------- for every command
RequestId = Annotated[
    str | None, typer.Option(metavar="ID", help="The same id gives the same job again.")
]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Return when the job is accepted.")]

_SIZE = re.compile(r"([1-9][0-9]{0,17})([KMGT]?)(?:iB)?")
_FACTORS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def new_request_id() -> str:
    """A request_id for somebody who gave none."""
    return uuid.uuid4().hex


def read_size(text: str, *, option: str) -> int:
    """The bytes of `20G` (GiB), `512M`, `1T` or a plain number; wrong usage where it is none."""
    found = _SIZE.fullmatch(text)
    if found is None:
        raise typer.BadParameter("is no size such as 20G, 512M or 1T", param_hint=option)
    return int(found[1]) * _FACTORS[found[2]]


def ask_for(ctx: typer.Context, request: Config, *, wait: bool, as_json: bool) -> None:
    """Ask for a job, and follow it to its end if that is wanted."""
    with provisiond(ctx, as_json=as_json) as client:
        job = submit(client, request)
        if wait:
            follow_to_end(client, job, as_json=as_json)
        elif as_json:
            show_json(job)
        else:
            say(new_console(), f"{job.subject}: job {job.id} {job.state}")
