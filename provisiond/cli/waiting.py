"""A job is asked for, and followed to its end."""

import uuid
from typing import Any

import typer

from provisiond.api.client import ProvisiondClient
from provisiond.api.replies import JobState, JobView
from provisiond.api.requests import JobKind
from provisiond.cli.asking import CTRL_C, JOB_FAILED, show_json
from provisiond.cli.options import JobOptions
from provisiond.display import new_console, say
from provisiond.errors import ReplyLost
from provisiond.progress import follow


def ask_for_job(
    client: ProvisiondClient,
    kind: JobKind,
    request: dict[str, Any],
    options: JobOptions,
    *,
    wait: bool,
) -> JobView:
    """Have a job done; what is None in `request` is left to the daemon.

    Returns the job as it was accepted, or with `wait` as it succeeded; leaves with 1 where it
    failed.
    """
    request_id = options.request_id or uuid.uuid4().hex
    whole = {"kind": kind, "request_id": request_id, "deadline_seconds": options.deadline} | request
    try:
        job = client.submit({key: value for key, value in whole.items() if value is not None})
    except ReplyLost as error:
        again = f"Ask again with --request-id {request_id}: no second job comes of it."
        raise ReplyLost(error.message, hint=again) from error
    if wait:
        return follow_to_end(client, job, as_json=options.as_json)
    if options.as_json:
        show_json(job)
    else:
        say(new_console(), f"{job.subject}: job {job.id} {job.state}")
    return job


def follow_to_end(client: ProvisiondClient, job: JobView, *, as_json: bool) -> JobView:
    """Follow the job to its end and return it; leaves with 1 where it failed."""
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
    return job
