"""Jobs become tasks: one a subject, a bounded number at once, resumed at start."""

import asyncio
import hashlib
import hmac
import logging
import secrets
import time
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from pydantic import SecretStr

from provisiond.admission import Admission, Subject, refuse_standing
from provisiond.api.guest_config import GuestConfig
from provisiond.api.requests import JobKind, ProvisionRequest, Request
from provisiond.base_jobs import ImportingBase, VerifyingBase
from provisiond.clock import boot_time
from provisiond.data_disk import AttachingDisk, DetachingDisk
from provisiond.destroy import Destroying
from provisiond.errors import (
    JobEnded,
    JobNotFound,
    ProvisionError,
    RequestConflict,
    ShuttingDown,
    StateUnusable,
    TooManyJobs,
    Unforeseen,
)
from provisiond.job import Job
from provisiond.overlay_job import CreatingOverlay
from provisiond.password import hash_password
from provisiond.provision import Provisioning
from provisiond.store import Fact, Standing
from provisiond.story import Story, Tools, journal_fields, pauses

log = logging.getLogger(__name__)

_REMEMBERED_REQUESTS = 10_000
# Reading or writing a whole image takes as long as the disk takes.
_IMAGE_DEADLINE_SECONDS = 86400.0

_STORIES: Mapping[JobKind, Callable[[Job, Tools], Story]] = {
    JobKind.DESTROY: Destroying,
    JobKind.ATTACH_DISK: AttachingDisk,
    JobKind.DETACH_DISK: DetachingDisk,
    JobKind.CREATE_OVERLAY: CreatingOverlay,
    JobKind.IMPORT_BASE: ImportingBase,
    JobKind.VERIFY_BASE: VerifyingBase,
}


class Supervisor:
    """Accepts requests, runs their stories, cancels them; leaves them resumable when it ends."""

    def __init__(self, tools: Tools, *, deadline_seconds: float, max_unfinished: int) -> None:
        self._tools = tools
        self._deadline_seconds = deadline_seconds
        self._max_unfinished = max_unfinished
        self._stories: dict[str, Story] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._running: set[asyncio.Task[None]] = set()
        self._accepting = 0  # requests that are just being stored
        self._requests = _RequestMemory()
        self._admission = Admission(tools)

    @property
    def unfinished(self) -> int:
        """How many jobs have not ended."""
        return len(self._stories)

    @property
    def full(self) -> bool:
        """As many jobs are unfinished, or are being stored, as may be: the next one is refused."""
        return len(self._stories) + self._accepting >= self._max_unfinished

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Resume what was left, then take requests until the block ends."""
        left = await self._tools.store.unfinished()
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            for job in left:
                log.info("%s: resumed in %s", job.subject, job.state, extra=journal_fields(job))
                self._start(_story_of(job, None, self._tools))
            try:
                yield
            finally:
                self._tasks = None
                for task in self._running:
                    task.cancel()

    # ------------------------------------------------------------ requests
    async def submit(self, request: Request, *, by: str) -> tuple[Job, bool]:
        """The job of this request, and whether it is new; `by` is who asks.

        Raises RequestConflict, TooManyJobs, ShuttingDown, HypervisorUnavailable, or what admission
        refuses; then nothing was done.
        """
        if (known := await self._known(request)) is not None:
            return known, False
        job_id = uuid.uuid4().hex
        try:
            subject = await self._admission.admit(request, job_id=job_id)
            config = await _with_hash(request)
            job = await self._accept(request, subject, job_id, by=by)
        except ProvisionError:
            if (known := await self._known(request)) is None:
                raise
            return known, False  # the same request was accepted while this one was looked at
        if job.id != job_id:
            return job, False
        self._start(_story_of(job, config, self._tools, channel=subject.channel))
        await _let_begin()
        return job, True

    async def _accept(self, request: Request, subject: Subject, job_id: str, *, by: str) -> Job:
        """Store the request's job, unless it stands there already; no other comes in between."""
        if self._tasks is None:
            raise ShuttingDown("provisiond is stopping")
        if self.full:
            raise TooManyJobs(f"{self._max_unfinished} jobs are unfinished, which is the limit")

        def decide(standing: Standing) -> Job:
            if standing.of_request is not None:
                return self._same(request, standing.of_request)
            refuse_standing(subject, at_work=standing.at_work, with_disk=standing.with_disk)
            self._requests.remember(job_id, request)  # before anybody can find the job
            last = standing.last_generation
            return replace(job, generation=_generation(request, subject, job.created_at, last=last))

        job = self._new_job(request, subject, job_id, by=by)
        self._accepting += 1
        try:
            return await self._tools.store.insert(job, f"request accepted from {by}", decide)
        finally:
            self._accepting -= 1

    async def cancel(self, job_id: str, *, by: str) -> Job:
        """Cancel a job for `by`.

        It ends as FAILED (cancelled) unless it cannot fail any more when it hears.

        Raises JobNotFound, or JobEnded where it has ended, or can only succeed by now.
        """
        job = await self._tools.store.find(job_id)
        if job is None:
            raise JobNotFound(f"no job has the id {job_id}")
        story = self._stories.get(job_id)
        if story is None or not job.may_fail:
            raise JobEnded(f"{job.subject}: job {job.id} is {job.state} and cannot be cancelled")
        fact = Fact(job.state, f"cancel asked for by {by}", at=time.time())
        await self._tools.store.request_cancel(story.job, fact)
        story.cancel()
        return replace(story.job, cancel_requested=True)

    def job_at_work_on(self, domain_uuid: str) -> str | None:
        """The id of the unfinished job of this domain."""
        return next(
            (s.job.id for s in self._stories.values() if s.job.domain_uuid == domain_uuid), None
        )

    def progress_of(self, job_id: str) -> tuple[str, float] | None:
        """What a job's long work is, and how far it has come (0 to 1)."""
        story = self._stories.get(job_id)
        return None if story is None else story.progress

    async def _known(self, request: Request) -> Job | None:
        job = await self._tools.store.find_request(request.request_id)
        return None if job is None else self._same(request, job)

    def _same(self, request: Request, job: Job) -> Job:
        """The job of its request_id, where that was the same request."""
        if job.request != request.public() or not self._requests.matches(job.id, request):
            raise RequestConflict(
                f"request_id {request.request_id} is known with another body (job {job.id})"
            )
        return job

    def _new_job(self, request: Request, subject: Subject, job_id: str, *, by: str) -> Job:
        """Its generation is known when it is stored."""
        now, since_boot = time.time(), boot_time()
        default = self._deadline_seconds
        if request.kind in (JobKind.IMPORT_BASE, JobKind.VERIFY_BASE):
            default = _IMAGE_DEADLINE_SECONDS
        seconds = request.deadline_seconds or default
        return Job(
            id=job_id,
            kind=request.kind,
            request_id=request.request_id,
            subject=subject.name,
            works_on=subject.works_on,
            domain_uuid=subject.domain_uuid,
            generation=0,
            request=request.public(),
            requested_by=by,
            created_at=now,
            updated_at=now,
            deadline_at=now + seconds,
            deadline_boot=replace(since_boot, seconds=since_boot.seconds + seconds),
            disk=subject.disk,
            disk_name=subject.disk_name,
            removes=subject.removes,
        )

    # ------------------------------------------------------------ tasks
    def _start(self, story: Story) -> None:
        if self._tasks is None:
            raise ShuttingDown("provisiond is stopping")
        self._stories[story.job.id] = story
        task = self._tasks.create_task(self._run(story), name=f"job {story.job.id}")
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _run(self, story: Story) -> None:
        """A story is never dropped before its job has ended, whatever it raises."""
        bring_on: Callable[[], Awaitable[None]] = story.run
        try:
            for pause in pauses():
                try:
                    await bring_on()
                    return
                except StateUnusable:
                    return  # the store has said so: the daemon ends, and this job is as stored
                except Exception as error:
                    subject, fields = story.job.subject, journal_fields(story.job)
                    log.exception("%s: unforeseen error", subject, extra=fields)
                    bring_on = partial(
                        story.give_up, Unforeseen(f"{subject}: {type(error).__name__}")
                    )
                await asyncio.sleep(pause)
        finally:
            del self._stories[story.job.id]
            await story.close()


class _RequestMemory:
    """Tells whether a request's secrets are those its job was accepted with.

    Keyed with a random key, in memory only: nothing that could be tried against a list of passwords
    is ever stored. After a restart only the public part of a request is compared.
    """

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._digests: OrderedDict[str, bytes] = OrderedDict()

    def remember(self, job_id: str, request: Request) -> None:
        self._digests[job_id] = self._digest(request)
        if len(self._digests) > _REMEMBERED_REQUESTS:
            self._digests.popitem(last=False)

    def matches(self, job_id: str, request: Request) -> bool:
        known = self._digests.get(job_id)
        return known is None or hmac.compare_digest(known, self._digest(request))

    def _digest(self, request: Request) -> bytes:
        found = hmac.new(self._key, digestmod=hashlib.sha256)
        for secret in _secrets_of(request):
            value = b"" if secret is None else secret.get_secret_value().encode()
            found.update(len(value).to_bytes(4, "big") + value)
        return found.digest()


def _secrets_of(request: Request) -> tuple[SecretStr | None, ...]:
    if not isinstance(request, ProvisionRequest):
        return ()
    return request.config.password, request.config.password_hash


def _generation(request: Request, subject: Subject, now: float, *, last: int) -> int:
    if not isinstance(request, ProvisionRequest) or subject.domain_uuid is None:
        return 0
    # The clock's seconds, so that a guest which comes from another host has a lower one.
    return request.generation or max(last + 1, int(now))


async def _with_hash(request: Request) -> GuestConfig | None:
    """The configuration that a request has, with its clear password replaced by the hash."""
    if not isinstance(request, ProvisionRequest):
        return None
    if request.config.password is None:
        return request.config
    hashed = await asyncio.to_thread(hash_password, request.config.password)
    return request.config.with_password_hash(hashed)


async def _let_begin() -> None:
    """Let a story take its first steps, ahead of the reply: to make that takes some 2 ms.

    They are its own task's, and the one in which it listens to its guest.
    """
    for _task in range(2):
        await asyncio.sleep(0)


def _story_of(
    job: Job, config: GuestConfig | None, tools: Tools, *, channel: Path | None = None
) -> Story:
    if job.kind is JobKind.PROVISION:
        return Provisioning(job, config, tools, channel=channel)
    return _STORIES[job.kind](job, tools)
