"""Jobs, facts, domains, bases and disks in the shape in which they are answered."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime

from provisiond.api.replies import (
    AddressView,
    BaseView,
    DiskView,
    DomainDiskView,
    DomainView,
    EventView,
    FailureView,
    JobView,
    ProgressView,
    ProofView,
)
from provisiond.disk.bases import BaseState
from provisiond.inventory import DiskState, DomainState
from provisiond.job import Event, Job


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def view_job(
    job: Job,
    history: Sequence[Event] | None = None,
    progress: tuple[str, float] | None = None,
) -> JobView:
    """A job as it is shown; `progress` is what its long work is, and how far it is (0 to 1)."""
    attached_seconds = None
    if job.attached_at is not None and job.detached_at is not None:
        passed = job.detached_at - job.attached_at
        attached_seconds = round(passed, 3) if passed >= 0 else None  # the clock was set back
    shown = None
    if progress is not None:
        shown = ProgressView(doing=progress[0], fraction=progress[1])
    proof = None
    if job.proof is not None:
        proof = ProofView(**(asdict(job.proof) | {"at": _time(job.proof.at)}))
    return JobView(
        id=job.id,
        request_id=job.request_id,
        requested_by=job.requested_by,
        subject=job.subject,
        domain_uuid=job.domain_uuid,
        kind=job.kind,
        state=job.state,
        cancel_requested=job.cancel_requested,
        created_at=_time(job.created_at),
        updated_at=_time(job.updated_at),
        deadline_at=_time(job.deadline_at),
        generation=job.generation,
        target=job.target,
        disk=job.disk,
        progress=shown,
        iso_attached_seconds=attached_seconds,
        failure=None if job.failure is None else FailureView(**asdict(job.failure)),
        proof=proof,
        request=dict(job.request),
        guest_log=None if history is None else list(job.guest_log),
        history=None if history is None else [view_event(event) for event in history],
    )


def view_event(event: Event) -> EventView:
    """A fact as it is shown."""
    return EventView(**(asdict(event) | {"at": _time(event.at)}))


def view_base(state: BaseState, *, whole: bool) -> BaseView:
    """A golden base as it is shown; `whole` is what it was made of to the last package."""
    manifest = state.manifest
    made_of = manifest.made_of
    if made_of is not None and not whole:
        made_of = made_of.without_packages()
    return BaseView(
        name=manifest.name,
        path=str(state.path),
        format=manifest.format,
        virtual_size=manifest.virtual_size,
        file_size=manifest.file_size,
        sha256=manifest.sha256,
        source=manifest.source,
        parent=manifest.parent,
        imported_at=manifest.imported_at,
        immutable=state.immutable,
        changed=state.changed,
        overlays=list(state.overlays),
        made_of=made_of,
    )


def view_disk(state: DiskState) -> DiskView:
    """A disk as it is shown."""
    image = state.disk.image
    return DiskView(
        name=state.disk.name,
        path=str(image.path),
        format=image.format,
        virtual_size=image.virtual_size,
        file_size=image.file_size,
        base=state.disk.base,
        domain=state.domain,
    )


def view_domain(state: DomainState, *, job_id: str | None) -> DomainView:
    """A domain as it is shown; `job_id` is the job at work on it."""
    domain = state.domain
    return DomainView(
        name=domain.name,
        uuid=domain.uuid,
        state=domain.state,
        domid=domain.domid,
        job_id=job_id,
        made_here=domain.made_by is not None,
        addresses=[AddressView(**asdict(address)) for address in state.addresses],
        disks=[
            DomainDiskView(
                target=disk.target,
                source=None if disk.source is None else str(disk.source),
                format=disk.format,
                read_only=disk.read_only,
                name=state.names.get(disk.target),
            )
            for disk in domain.disks
        ],
    )
