"""provisionctl jobs, show, watch, cancel."""

from typing import Annotated

import typer

from provisiond.api.replies import JobList, JobState
from provisiond.cli.asking import JOB_FAILED, json_text, provisiond, show_json
from provisiond.cli.completion import complete_job
from provisiond.cli.options import Json
from provisiond.cli.waiting import follow_to_end
from provisiond.display import new_console, say, show_event, show_job, show_jobs

JobId = Annotated[
    str,
    typer.Argument(
        metavar="JOB",
        autocompletion=complete_job,
        help="The job's id, or its beginning (4 digits at least).",
    ),
]


def jobs(
    ctx: typer.Context,
    limit: Annotated[
        int, typer.Option(min=1, max=1000, metavar="NUMBER", help="At most so many.")
    ] = 20,
    as_json: Json = False,
) -> None:
    """List the newest jobs, newest first."""
    with provisiond(ctx, as_json=as_json) as client:
        found = client.jobs(limit)
        if as_json:
            show_json(JobList(jobs=found))
        else:
            show_jobs(new_console(), found)


def show(ctx: typer.Context, job_id: JobId, as_json: Json = False) -> None:
    """Show a job: history, failure, proof, the guest's log."""
    with provisiond(ctx, as_json=as_json) as client:
        job = client.job(job_id)
        if as_json:
            show_json(job)
        else:
            show_job(new_console(), job)


def watch(
    ctx: typer.Context,
    job_id: Annotated[
        str | None,
        typer.Argument(
            metavar="JOB", autocompletion=complete_job, help="Left out: every job, until Ctrl-C."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Follow a job to its end, or all jobs from now on."""
    with provisiond(ctx, as_json=as_json) as client:
        if job_id is not None and not as_json:
            follow_to_end(client, client.job(job_id), as_json=False)
            return
        console, state = new_console(), None
        for event in client.events() if job_id is None else client.job_events(job_id):
            state = event.state
            if as_json:
                typer.echo(json_text(event.model_dump(mode="json")))
            else:
                show_event(console, event)
        if state is JobState.FAILED:
            raise typer.Exit(JOB_FAILED)


def cancel(ctx: typer.Context, job_id: JobId, as_json: Json = False) -> None:
    """Cancel a job: what it made is undone.

    Unless it is over first: a guest that is configured by then has won.
    """
    with provisiond(ctx, as_json=as_json) as client:
        job = client.cancel(job_id)
        if as_json:
            show_json(job)
        else:
            say(new_console(), f"{job.subject}: job {job.id} {job.state}, cancel requested")
