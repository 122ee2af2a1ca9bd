"""What is answered: jobs, their history, what the host has, errors. Never a secret."""

from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

from provisiond.api.image_manifest import ImageManifest
from provisiond.api.message import Message
from provisiond.api.requests import DiskFormat, JobKind


class JobState(StrEnum):
    """A state is a fact that was stored. The first eight are the story of provision.py, in its
    order; the other kinds of job have facts of their own (job.py)."""

    ACCEPTED = "ACCEPTED"
    DISKS_CREATED = "DISKS_CREATED"
    DOMAIN_STARTED = "DOMAIN_STARTED"
    ISO_WRITTEN = "ISO_WRITTEN"
    ISO_ATTACHED = "ISO_ATTACHED"
    GUEST_CONFIGURED = "GUEST_CONFIGURED"
    ISO_DETACHED = "ISO_DETACHED"
    SUCCEEDED = "SUCCEEDED"
    DISK_ATTACHED = "DISK_ATTACHED"
    DISK_DETACHED = "DISK_DETACHED"
    DOMAIN_REMOVED = "DOMAIN_REMOVED"
    IMAGE_WRITTEN = "IMAGE_WRITTEN"
    UNDOING = "UNDOING"
    FAILED = "FAILED"

    @property
    def ended(self) -> bool:
        """Nothing follows this state."""
        return self in (JobState.SUCCEEDED, JobState.FAILED)


class FailureView(Message):
    """Why a job failed: a stable code, what happened, what to do, and the guest's step if it has
    one."""

    code: str
    message: str
    hint: str
    step: str | None = None


class ProofView(Message):
    """That nothing of the config is left, or that nothing has a data disk any more.

    Each field is what was looked at; null is what does not apply to a data disk.
    `iso_overwritten_and_unlinked` is false where there was no file to overwrite.
    """

    disk_absent_from_live_xml: bool
    back_end_absent: bool
    """On Xen: no back end of any domain, and no loop device, has the file. QEMU has neither."""
    iso_overwritten_and_unlinked: bool | None
    iso_file_absent: bool | None
    at: datetime


class EventView(Message):
    """One fact of one job. `seq` grows over all jobs and is the id of the server-sent event."""

    seq: int
    job_id: str
    subject: str
    at: datetime
    state: JobState
    detail: str


class ProgressView(Message):
    """How far long work has come: `doing` is such as "converting", `fraction` from 0 to 1."""

    doing: str
    fraction: float


class JobView(Message):
    """A job, never with a secret. `history` and `guest_log` are left out of a list of jobs.

    `subject` is the name of what it works on: a domain, a base, or a disk that has no domain yet.
    `target` is the disk target that was really assigned, `disk` the file of the disk that the job
    has made or works on.
    """

    id: str
    kind: JobKind
    request_id: str
    requested_by: str
    subject: str
    domain_uuid: str | None
    state: JobState
    cancel_requested: bool
    created_at: datetime
    updated_at: datetime
    deadline_at: datetime
    generation: int
    target: str | None
    disk: str | None
    progress: ProgressView | None
    iso_attached_seconds: float | None
    failure: FailureView | None
    proof: ProofView | None
    request: dict[str, Any]
    guest_log: list[str] | None = None
    history: list[EventView] | None = None


class JobList(Message):
    """GET /v1/jobs: newest first."""

    jobs: list[JobView]


# Who tells an address, the most trusted first: a job of ours that configured the guest, the guest's
# tools in xenstore, a DHCP lease of libvirt's, the guest agent.
AddressSource = Literal["job", "xenstore", "lease", "agent"]


class AddressView(Message):
    """An address of a guest, the MAC of its interface where that is known, and who says so."""

    address: str
    mac: str | None
    source: AddressSource


class DomainDiskView(Message):
    """A disk of a domain, as libvirt has it. `name` is the disk's where provisiond made it."""

    target: str
    source: str | None
    format: str | None
    read_only: bool
    name: str | None


class DomainView(Message):
    """A domain of the host. `domid` is None while it is off; `job_id` is the job at work on it.

    `made_here`: provisiond has made it, and removes it with its disk when asked to. `addresses` has
    the best source first.
    """

    name: str
    uuid: str
    state: str
    domid: int | None
    job_id: str | None
    made_here: bool
    addresses: list[AddressView]
    disks: list[DomainDiskView]


class DomainList(Message):
    """GET /v1/domains, by name."""

    domains: list[DomainView]


class BaseView(Message):
    """A golden base. `changed` says how it differs from its manifest, None where it does not (its
    size and time are compared; a verify_base job compares its hash). `overlays` stand on it."""

    name: str
    path: str
    format: DiskFormat
    virtual_size: int
    file_size: int
    sha256: str
    source: str
    parent: str | None
    imported_at: datetime
    immutable: bool
    changed: str | None
    overlays: list[str]
    made_of: ImageManifest | None = None
    """What the image was made of, where its maker said so; in a list without the packages."""


class BaseList(Message):
    """GET /v1/bases, by name."""

    bases: list[BaseView]


class DiskView(Message):
    """A disk that provisiond made: `base` is what it stands on, `domain` the domain that has it."""

    name: str
    path: str
    format: DiskFormat
    virtual_size: int
    file_size: int
    base: str | None
    domain: str | None


class DiskList(Message):
    """GET /v1/disks, by name."""

    disks: list[DiskView]


class HealthView(Message):
    """GET /healthz: 200 while provisiond can take work; 503 while libvirt cannot be reached, the
    state file cannot be written, or as many jobs wait as may."""

    ok: bool
    version: str
    hypervisor: str
    hypervisor_connected: bool
    xenstore_connected: bool | None
    """None where no guest answers over xenstore: on a host without Xen."""
    state_trouble: str | None = None
    """Why no fact can be stored now: a full disk, say. None while they can."""
    jobs_unfinished: int


class FieldError(Message):
    """One refused field: its path, such as config.interfaces[0].gateway4, and the reason."""

    field: str
    message: str


class ErrorReply(Message):
    """Every error reply (application/problem+json, RFC 9457, with code, hint and the fields)."""

    type: str = "about:blank"
    title: str
    status: int
    code: str
    message: str
    hint: str
    fields: list[FieldError] = []
