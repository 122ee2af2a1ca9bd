"""Whether a request may become a job: what it works on is there, fit, and nobody else's just now.

Nothing is changed here. Each refusal says what the operator has to do first.
"""

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path

from provisiond.api.replies import JobState
from provisiond.api.requests import (
    AttachDiskRequest,
    CreateOverlayRequest,
    DestroyRequest,
    DetachDiskRequest,
    ImportBaseRequest,
    ProvisionRequest,
    Request,
    VerifyBaseRequest,
)
from provisiond.base_jobs import order_of
from provisiond.data_disk import name_of_new
from provisiond.disk.disks import refuse_held
from provisiond.errors import (
    Busy,
    DiskInUse,
    DiskNotFound,
    DiskStillAttached,
    DomainExists,
    DomainNotRunning,
    NoFreeTarget,
    NoGuestChannel,
    NotMadeHere,
    ProvisionError,
)
from provisiond.job import Job
from provisiond.plan import CHANNEL_NAME, iso_folder, plan_uuid
from provisiond.store import Store
from provisiond.story import Tools
from provisiond.virt.disk_xml import refuse_misread
from provisiond.virt.libvirt import Domain
from provisiond.virt.template import read_template
from provisiond.virt.xml import DomainXml, free_targets


@dataclass(frozen=True, slots=True)
class Subject:
    """What a job works on; `works_on` is the key under which it is alone.

    `disk_name` is the disk that it makes, attaches or takes away, `disk` its file in the last case;
    `removes` are the names of those that a destroy removes. `channel` is the socket of a running
    guest's virtio channel.
    """

    name: str
    works_on: str
    domain_uuid: str | None = None
    disk_name: str | None = None
    disk: str | None = None
    removes: tuple[str, ...] = ()
    channel: Path | None = None
    ends_domain: bool = False
    """The domain's end is what a cancelled job may be waiting for, so it does not wait for that."""

    @classmethod
    def of(cls, domain: Domain) -> "Subject":
        """A domain that exists."""
        return cls(domain.name, f"domain {domain.name}", domain.uuid)


class Admission:
    """Looks at what requests name; holds nothing of its own."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools

    async def admit(self, request: Request, *, job_id: str) -> Subject:
        """What the job `job_id` would work on; raises what stands in its way."""
        match request:
            case ProvisionRequest(create=None):
                return await self._running_guest(request)
            case ProvisionRequest():
                return await self._new_guest(request, job_id)
            case DestroyRequest():
                return await self._guest_to_destroy(request)
            case AttachDiskRequest():
                return await self._disk_to_attach(request, job_id)
            case DetachDiskRequest():
                return await self._disk_to_detach(request)
            case CreateOverlayRequest():
                return await self._new_overlay(request)
            case ImportBaseRequest():
                return await self._new_base(request, job_id)
            case VerifyBaseRequest():
                base = await self._tools.bases.find(request.base)
                return await self._idle(Subject(base.name, f"base {base.name}"))
        raise ValueError(f"{request.kind}: no such kind of job")

    async def refuse_busy(self, subject: Subject) -> None:
        """Refuse what another job is at work on now: Busy, DiskInUse."""
        store, name = self._tools.store, subject.disk_name
        at_work = await store.unfinished_on(subject.works_on, subject.domain_uuid)
        with_disk = None if name is None else await store.unfinished_with_disk(name)
        refuse_standing(subject, at_work=at_work, with_disk=with_disk)

    async def _idle(self, subject: Subject) -> Subject:
        await self.refuse_busy(subject)
        return subject

    # ------------------------------------------------------------ guests
    async def _running_guest(self, request: ProvisionRequest) -> Subject:
        domain, live = await self._tools.hypervisor.find_running(request.domain)
        subject = Subject.of(domain)
        _refuse_stopped(domain)
        try:
            if live is not None:
                self._refuse_unfit(live, target=request.target)
        except ProvisionError:  # what another job is at work on looks unfit because of that
            await self.refuse_busy(subject)
            # That job may have ended meanwhile, and with it what has stood there.
            live = await self._tools.hypervisor.live_xml(domain.uuid)
            self._refuse_unfit(live, target=request.target)
        return replace(subject, channel=None if live is None else live.channel(CHANNEL_NAME))

    def _refuse_unfit(self, live: DomainXml, *, target: str | None) -> None:
        _refuse_mute(live)
        self._refuse_left_iso(live)
        if target is not None and target not in free_targets(live):
            raise NoFreeTarget(
                f"{live.name}: the target {target} is taken, or is none that the config ISO may "
                "take there",
                hint="Leave target out, and provisiond picks a free one.",
            )

    async def _new_guest(self, request: ProvisionRequest, job_id: str) -> Subject:
        name, create = request.domain, request.create
        if create is None:
            raise ValueError("no new guest is asked for")
        subject = await self._idle(Subject(name, f"domain {name}", plan_uuid(job_id)))
        if any(domain.name == name for domain in await self._tools.hypervisor.domains()):
            raise DomainExists(f"{name}: a domain has this name already")
        await self._tools.disks.admit_overlay(
            name=name,
            base=create.base,
            disk_format=create.format,
            size=create.size,
            by_tapdisk=self._tools.by_tapdisk,
        )
        await asyncio.to_thread(read_template, self._tools.template_dir, create.template)
        return replace(subject, disk_name=name)

    async def _guest_to_destroy(self, request: DestroyRequest) -> Subject:
        domain = await self._tools.hypervisor.details(request.domain)
        end = replace(Subject.of(domain), works_on=f"end of domain {domain.name}", ends_domain=True)
        subject = await self._idle(end)
        if domain.made_by is None and not request.force:
            raise NotMadeHere(f"{domain.name}: provisiond has not made this domain")
        removes = [] if domain.made_by is None else [domain.made_by.disk]
        if request.remove_data:
            in_use = await self._tools.hypervisor.sources_in_use()
            removes += [path for path, name in in_use.items() if name == domain.name]
        ours = dict.fromkeys(path.stem for path in removes if self._tools.disks.is_ours(path))
        return replace(subject, removes=tuple(ours))

    # ------------------------------------------------------------ data disks
    async def _disk_to_attach(self, request: AttachDiskRequest, job_id: str) -> Subject:
        tools = self._tools
        domain = await tools.hypervisor.find(request.domain)
        if not (request.persistent and domain.domid is None):
            _refuse_stopped(domain)
        subject = await self._idle(Subject.of(domain))
        if request.disk is None:
            name = name_of_new(request, domain.name, job_id=job_id)
            await tools.disks.admit_blank(name=name)
            return replace(subject, disk_name=name)
        chain = await tools.disks.read_chain(request.disk)
        refuse_misread(chain, is_xen=tools.hypervisor.is_xen)
        path = chain.top.path
        refuse_held(request.disk, path, in_use=await tools.hypervisor.sources_in_use())
        return await self._idle(replace(subject, disk_name=request.disk))

    async def _disk_to_detach(self, request: DetachDiskRequest) -> Subject:
        domain = await self._tools.hypervisor.details(request.domain)
        subject = await self._idle(Subject.of(domain))
        disk = next((one for one in domain.disks if one.target == request.target), None)
        if disk is None:
            raise DiskNotFound(f"{domain.name}: has no disk {request.target}")
        if domain.domid is None and not (request.persistent or request.remove):
            raise DomainNotRunning(
                f"{domain.name}: the domain is {domain.state}",
                hint="Detach the disk for its next start (persistent), or start it first.",
            )
        if disk.source is None or not self._tools.disks.is_ours(disk.source):
            raise NotMadeHere(
                f"{domain.name}: {disk.target} is no disk that provisiond has made",
                hint=f"Detach it yourself: virsh detach-disk {domain.name} {disk.target}",
            )
        if domain.made_by is not None and domain.made_by.disk == disk.source:
            raise DiskInUse(
                f"{domain.name}: {disk.target} is what the domain was made with",
                hint="It goes with its domain: provisionctl destroy.",
            )
        return await self._idle(replace(subject, disk_name=disk.source.stem, disk=str(disk.source)))

    # ------------------------------------------------------------ images
    async def _new_overlay(self, request: CreateOverlayRequest) -> Subject:
        subject = await self._idle(
            Subject(request.name, f"disk {request.name}", disk_name=request.name)
        )
        await self._tools.disks.admit_overlay(
            name=request.name,
            base=request.base,
            disk_format=request.format,
            size=request.size,
            by_tapdisk=self._tools.by_tapdisk,
        )
        return subject

    async def _new_base(self, request: ImportBaseRequest, job_id: str) -> Subject:
        subject = await self._idle(Subject(request.name, f"base {request.name}"))
        await self._tools.bases.admit_import(
            order_of(request, job_id=job_id, image_dir=self._tools.image_dir)
        )
        return subject

    def _refuse_left_iso(self, live: DomainXml) -> None:
        """Refuse where another config ISO is attached: the guest might read that one."""
        folder = iso_folder(self._tools.runtime_dir)
        for disk in live.disks:
            if disk.source is not None and disk.source.parent == folder:
                raise DiskStillAttached(
                    f"{live.name}: the config ISO of an unknown job is attached as {disk.target}",
                    hint=f"Take it away: virsh detach-disk {live.name} {disk.target} --live",
                )


def refuse_standing(subject: Subject, *, at_work: Job | None, with_disk: Job | None) -> None:
    """Refuse what these two unfinished jobs are in the way of: Busy, DiskInUse.

    One works on the same, the other has the same disk. To be asked once more when no other job can
    be accepted in between.
    """
    on_its_way_back = at_work is not None and (
        at_work.cancel_requested or at_work.state is JobState.UNDOING
    )
    if at_work is not None and not (subject.ends_domain and on_its_way_back):
        raise Busy(f"{subject.name}: job {at_work.id} is at work on it ({at_work.state})")
    if subject.disk_name is not None:
        _refuse_claimed(subject.disk_name, by=with_disk)


async def refuse_claimed(store: Store, disk: str) -> None:
    """Raises DiskInUse where a job makes, attaches, takes away or removes the disk of this name."""
    _refuse_claimed(disk, by=await store.unfinished_with_disk(disk))


def _refuse_claimed(disk: str, *, by: Job | None) -> None:
    if by is not None:
        raise DiskInUse(f"{disk}: job {by.id} has it ({by.state})")


def _refuse_stopped(domain: Domain) -> None:
    if domain.domid is None:
        raise DomainNotRunning(f"{domain.name}: the domain is {domain.state}")
    if domain.is_paused:
        hint = "Resume it, then ask again: a paused guest cannot answer."
        raise DomainNotRunning(f"{domain.name}: the domain is paused", hint=hint)


def _refuse_mute(live: DomainXml) -> None:
    """Refuse a domain whose guest has no way to say done. A Xen guest has xenstore."""
    if not live.is_xen and live.channel(CHANNEL_NAME) is None:
        raise NoGuestChannel(f"{live.name}: the domain has no virtio channel {CHANNEL_NAME}")
