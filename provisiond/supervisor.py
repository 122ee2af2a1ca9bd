"""Jobs become tasks: one a domain, a bounded number at once, resumed at start."""

import asyncio
import hashlib
import hmac
import logging
import secrets
import time
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

from provisiond.api.messages import GuestConfig, ProvisionRequest
from provisiond.errors import (
    DiskStillAttached,
    DomainBusy,
    DomainNotRunning,
    JobEnded,
    JobNotFound,
    NoFreeTarget,
    NoGuestChannel,
    RequestConflict,
    ShuttingDown,
    TooManyJobs,
    Unforeseen,
)
from provisiond.job import Job
from provisiond.password import hash_password
from provisiond.plan import CHANNEL_NAME, iso_folder
from provisiond.provision import Provisioning, Tools, pauses
from provisiond.virt.libvirt import Domain
from provisiond.virt.xml import DomainXml, free_targets

log = logging.getLogger(__name__)

_REMEMBERED_REQUESTS = 10_000


class Supervisor:
    """Accepts requests, runs their stories, cancels them; leaves them resumable when it ends."""

    def __init__(self, tools: Tools, *, deadline_seconds: float, max_unfinished: int) -> None:
        self._tools = tools
        self._deadline_seconds = deadline_seconds
        self._max_unfinished = max_unfinished
        self._stories: dict[str, Provisioning] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._running: set[asyncio.Task[None]] = set()
        self._submitting = asyncio.Lock()
        self._requests = _RequestMemory()

    @property
    def unfinished(self) -> int:
        """How many jobs have not ended."""
        return len(self._stories)

    @property
    def full(self) -> bool:
        """As many jobs are unfinished as may be: the next one is refused."""
        return len(self._stories) >= self._max_unfinished

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Resume what was left, then take requests until the block ends."""
        left = await self._tools.store.unfinished()
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            for job in left:
                log.info("%s: resumed in %s", job.domain, job.state, extra=_fields(job))
                self._start(job, None)
            try:
                yield
            finally:
                self._tasks = None
                for task in self._running:
                    task.cancel()

    # ------------------------------------------------------------ requests
    async def submit(self, request: ProvisionRequest) -> tuple[Job, bool]:
        """The job of this request, and whether it is new.

        Raises RequestConflict, DomainNotFound, DomainNotRunning, DomainBusy, NoGuestChannel,
        NoFreeTarget, TooManyJobs, ShuttingDown or HypervisorUnavailable; then nothing was done.
        """
        if (known := await self._known(request)) is not None:
            return known, False
        try:
            domain = await self._usable_domain(request)
        except (DomainBusy, DiskStillAttached, NoFreeTarget):
            if (known := await self._known(request)) is None:
                raise
            return known, False  # the same request was accepted while this one was looked at
        config = await self._with_hash(request.config)
        async with self._submitting:
            if (known := await self._known(request)) is not None:
                return known, False
            if self.full:
                raise TooManyJobs(f"{len(self._stories)} jobs are unfinished, which is the limit")
            job = await self._new_job(request, domain)
            if self._tasks is None:
                raise ShuttingDown("provisiond is stopping")
            self._requests.remember(job.id, request)
            await self._tools.store.insert(job, "request accepted")
            self._start(job, config)
        return job, True

    async def cancel(self, job_id: str) -> Job:
        """Cancel a job; it ends as FAILED (cancelled) unless its guest was first.

        Raises JobNotFound, or JobEnded where it has ended or its guest is configured.
        """
        job = await self._tools.store.find(job_id)
        if job is None:
            raise JobNotFound(f"no job has the id {job_id}")
        story = self._stories.get(job_id)
        if story is None or job.guest_has_won:
            raise JobEnded(f"{job.domain}: job {job.id} is {job.state} and cannot be cancelled")
        await self._tools.store.request_cancel(job_id)
        story.cancel()
        return replace(story.job, cancel_requested=True)

    def job_at_work_on(self, domain_uuid: str) -> str | None:
        """The id of the unfinished job of this domain."""
        return next(
            (s.job.id for s in self._stories.values() if s.job.domain_uuid == domain_uuid), None
        )

    async def _known(self, request: ProvisionRequest) -> Job | None:
        job = await self._tools.store.find_request(request.request_id)
        if job is not None:
            same = job.request == request.public() and self._requests.matches(job.id, request)
            if not same:
                raise RequestConflict(
                    f"request_id {request.request_id} is known with another body (job {job.id})"
                )
        return job

    async def _usable_domain(self, request: ProvisionRequest) -> Domain:
        domain = await self._tools.hypervisor.find(request.domain)
        if domain.domid is None:
            raise DomainNotRunning(f"{domain.name}: the domain is {domain.state}")
        if domain.state == "paused":
            hint = "Resume it, then ask again: a paused guest cannot answer."
            raise DomainNotRunning(f"{domain.name}: the domain is paused", hint=hint)
        if (busy := await self._tools.store.unfinished_of(domain.uuid)) is not None:
            raise DomainBusy(f"{domain.name}: job {busy.id} is at work on it ({busy.state})")
        live = await self._tools.hypervisor.live_xml(domain.uuid)
        _refuse_mute(live)
        self._refuse_left_iso(live)
        if request.target is not None and request.target not in free_targets(live):
            raise NoFreeTarget(
                f"{domain.name}: the target {request.target} is taken, or is none that the config "
                "ISO may take there",
                hint="Leave target out, and provisiond picks a free one.",
            )
        return domain

    def _refuse_left_iso(self, live: DomainXml) -> None:
        """Refuse where another config ISO is attached: the guest might read that one."""
        folder = iso_folder(self._tools.runtime_dir)
        for disk in live.disks:
            if disk.source is not None and disk.source.parent == folder:
                raise DiskStillAttached(
                    f"{live.name}: the config ISO of an unknown job is attached as {disk.target}",
                    hint=f"Take it away: virsh detach-disk {live.name} {disk.target} --live",
                )

    async def _with_hash(self, config: GuestConfig) -> GuestConfig:
        if config.password is None:
            return config
        hashed = await asyncio.to_thread(hash_password, config.password)
        return config.with_password_hash(hashed)

    async def _new_job(self, request: ProvisionRequest, domain: Domain) -> Job:
        now = time.time()
        last = await self._tools.store.last_generation(domain.uuid)
        return Job(
            id=uuid.uuid4().hex,
            request_id=request.request_id,
            domain=domain.name,
            domain_uuid=domain.uuid,
            # The clock's seconds, so that a guest which comes from another host has a lower one.
            generation=request.generation or max(last + 1, int(now)),
            request=request.public(),
            created_at=now,
            updated_at=now,
            deadline_at=now + (request.deadline_seconds or self._deadline_seconds),
        )

    # ------------------------------------------------------------ tasks
    def _start(self, job: Job, config: GuestConfig | None) -> None:
        if self._tasks is None:
            raise ShuttingDown("provisiond is stopping")
        story = Provisioning(job, config, self._tools)
        self._stories[job.id] = story
        task = self._tasks.create_task(self._run(story), name=f"job {job.id}")
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _run(self, story: Provisioning) -> None:
        """A story is never dropped before its job has ended, whatever it raises."""
        bring_on: Callable[[], Awaitable[None]] = story.run
        try:
            for pause in pauses():
                try:
                    await bring_on()
                    return
                except Exception as error:
                    domain, fields = story.job.domain, _fields(story.job)
                    log.exception("%s: unforeseen error", domain, extra=fields)
                    bring_on = partial(
                        story.give_up, Unforeseen(f"{domain}: {type(error).__name__}")
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

    def remember(self, job_id: str, request: ProvisionRequest) -> None:
        self._digests[job_id] = self._digest(request)
        if len(self._digests) > _REMEMBERED_REQUESTS:
            self._digests.popitem(last=False)

    def matches(self, job_id: str, request: ProvisionRequest) -> bool:
        known = self._digests.get(job_id)
        return known is None or hmac.compare_digest(known, self._digest(request))

    def _digest(self, request: ProvisionRequest) -> bytes:
        found = hmac.new(self._key, digestmod=hashlib.sha256)
        for secret in (request.config.password, request.config.password_hash):
            value = b"" if secret is None else secret.get_secret_value().encode()
            found.update(len(value).to_bytes(4, "big") + value)
        return found.digest()


def _refuse_mute(live: DomainXml) -> None:
    """Refuse a domain whose guest has no way to say done. A Xen guest has xenstore."""
    if not live.is_xen and live.channel(CHANNEL_NAME) is None:
        raise NoGuestChannel(f"{live.name}: the domain has no virtio channel {CHANNEL_NAME}")


def _fields(job: Job) -> dict[str, str]:
    return {"JOB_ID": job.id, "DOMAIN": job.domain}
