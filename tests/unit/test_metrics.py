"""What Prometheus reads: every kind of job by itself, and times as long as images take."""

from dataclasses import replace

from provisiond.api.replies import JobState
from provisiond.api.requests import JobKind
from provisiond.job import Failure, Job, advance
from provisiond.metrics import Metrics


def job_of(kind: JobKind) -> Job:
    return Job(
        id="0" * 32,
        kind=kind,
        request_id="r",
        subject="any",
        works_on="any",
        domain_uuid=None,
        generation=0,
        request={},
        created_at=0.0,
        updated_at=0.0,
        deadline_at=600.0,
    )


def lines_of(metrics: Metrics) -> list[str]:
    return metrics.render(unfinished=0, connected=True).decode().splitlines()


async def test_the_jobs_that_have_ended_are_counted_by_kind_and_outcome() -> None:
    metrics = Metrics()
    destroy, verify = job_of(JobKind.DESTROY), job_of(JobKind.VERIFY_BASE)
    failed = advance(
        destroy, JobState.FAILED, at=1.0, failure=Failure("cancelled", "destroy cancelled", "Ask.")
    )
    metrics.observe(destroy, failed)
    for _ in range(2):
        metrics.observe(verify, advance(verify, JobState.SUCCEEDED, at=1.0))
    ended = [line for line in lines_of(metrics) if line.startswith("provisiond_jobs_ended_total")]
    assert sorted(ended) == [
        'provisiond_jobs_ended_total{kind="destroy",outcome="cancelled"} 1.0',
        'provisiond_jobs_ended_total{kind="verify_base",outcome="succeeded"} 2.0',
    ]


async def test_a_phase_of_hours_is_told_from_one_of_minutes() -> None:
    metrics = Metrics()
    accepted = job_of(JobKind.IMPORT_BASE)
    written = advance(accepted, JobState.IMAGE_WRITTEN, at=2 * 3600.0)
    metrics.observe(accepted, written)
    metrics.observe(accepted, replace(written, updated_at=1000.0))
    of_import = (
        'provisiond_phase_seconds_bucket{kind="import_base",le="%s",state="IMAGE_WRITTEN"} %s'
    )
    for le, count in (("600.0", "0.0"), ("1800.0", "1.0"), ("3600.0", "1.0"), ("14400.0", "2.0")):
        assert of_import % (le, count) in lines_of(metrics)
