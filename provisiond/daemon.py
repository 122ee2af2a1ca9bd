"""The composition root: adapters, story, API and service manager, put together and served."""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from provisiond import __version__, systemd
from provisiond.api.limits import CallLimits, Traffic
from provisiond.api.replies import JobState
from provisiond.api.server import create_app
from provisiond.api.serving import Server
from provisiond.core_dump import forbid_core_dumps
from provisiond.disk.bases import Bases
from provisiond.disk.disks import Disks
from provisiond.disk.vhd import tapdisk_available
from provisiond.errors import (
    HypervisorUnavailable,
    NoGuestChannel,
)
from provisiond.garbage import collect_often
from provisiond.guest.channel import ChannelSignal
from provisiond.guest.xenstore import XenstoreSignal
from provisiond.inventory import Inventory
from provisiond.iso.image import destroy_iso, prepare_folder
from provisiond.job import Job
from provisiond.metrics import Metrics
from provisiond.only_one import only_one
from provisiond.plan import (
    CHANNEL_NAME,
    bases_folder,
    disks_folder,
    is_job_id,
    iso_folder,
    plan_job,
)
from provisiond.ports import GuestSignal
from provisiond.process import MIB
from provisiond.pruning import prune
from provisiond.settings import Settings
from provisiond.sockets import listening, reload_certificates
from provisiond.store import Store
from provisiond.story import Limits, Tools
from provisiond.supervisor import Supervisor
from provisiond.threads import Threads
from provisiond.virt.libvirt import Hypervisor
from provisiond.watchdog import Watchdog, workers_of
from provisiond.xenstore.client import Xenstore, find_xenstore
from provisiond.xenstore.domains import Domains
from provisiond.xenstore.lost_events import LostEvents

log = logging.getLogger(__name__)

_RECONNECT_SECONDS = 2.0
# A stuck libvirt call holds its thread, so there are more threads than calls that usually run.
_LIBVIRT_THREADS = 32
_ISO_THREADS = 2
# Making a small file is mostly qemu-img's own start: more at once are not faster.
_DISKS_AT_ONCE = 8
# Images that are read or written whole: more would only share the disk.
_IMAGES_AT_ONCE = 2
# libvirt's restart of a rebooting Xen domain takes some 5 s, and longer on a busy host.
_REBOOT_SECONDS = 60.0


async def serve(settings: Settings, *, hypervisor: type[Hypervisor] = Hypervisor) -> None:
    """Serve until SIGTERM or SIGINT; every job that has not ended is left to be resumed.

    `hypervisor` may be one that counts its calls, or that needs no host.

    Raises SettingsError, AlreadyRunning, StateUnusable or StateUnwritable where it cannot start,
    and StateUnusable where the state file is damaged while it runs.
    """
    forbid_core_dumps()
    stop = _stop_on_signal()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there are certificates to read again
    traffic = _traffic(settings)
    with only_one(settings), listening(settings) as listeners:
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload_certificates, listeners)
        uri = _hypervisor_uri(settings)
        prepare_folder(
            iso_folder(settings.runtime_dir),
            mode=_iso_folder_mode(uri),
            allow_disk=settings.allow_iso_on_disk,
        )
        xen = _Xen.opened() if uri.startswith("xen:") else None
        metrics = Metrics()
        host = hypervisor(uri, threads=_LIBVIRT_THREADS, xenstore=xen.xenstore if xen else None)
        tools = _put_together(settings, host, xen, metrics)
        async with _opened(tools):
            supervisor = Supervisor(
                tools,
                deadline_seconds=settings.deadline_seconds,
                max_unfinished=settings.max_jobs + settings.max_jobs_waiting,
            )
            app = create_app(
                supervisor=supervisor,
                store=tools.store,
                inventory=Inventory(tools, xen.xenstore if xen else None),
                hypervisor=tools.hypervisor,
                xenstore=xen.xenstore if xen else None,
                metrics=metrics,
                traffic=traffic,
            )
            await _destroy_left_isos(tools.store, settings)
            async with supervisor.running():
                server = Server(app, listeners, traffic)
                await _answer(server, supervisor, tools, xen, settings, until=stop)
            if tools.store.damage is not None:
                raise tools.store.damage


async def _answer(
    server: Server,
    supervisor: Supervisor,
    tools: Tools,
    xen: "_Xen | None",
    settings: Settings,
    *,
    until: asyncio.Event,
) -> None:
    """Answer requests, and keep the connections to the outside, until the event is set."""
    async with asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(server.serve(), name="http")
        keeping = [
            tasks.create_task(_keep_connected(tools.hypervisor), name="libvirt"),
            tasks.create_task(_watchdog(tools, supervisor).watch(), name="watchdog"),
            tasks.create_task(prune(tools.store, settings), name="prune"),
            tasks.create_task(_stop_on_damage(tools.store, until), name="damage"),
            tasks.create_task(_collect(server, tools), name="garbage"),
        ]
        if xen:
            keeping += [
                tasks.create_task(xen.xenstore.stay_connected(), name="xenstore"),
                tasks.create_task(xen.domains.follow(), name="domains"),
                tasks.create_task(xen.lost_events.look_for(), name="lost events"),
            ]
        systemd.notify("READY=1")
        for address in server.addresses:
            log.info("provisiond %s serves on %s", __version__, address)
        await until.wait()
        systemd.notify("STOPPING=1")
        log.info("stopping; %d unfinished jobs stay resumable", supervisor.unfinished)
        await tools.store.stop_following()
        server.stop()
        await serving
        for task in keeping:
            task.cancel()


def _traffic(settings: Settings) -> Traffic:
    return Traffic(
        CallLimits(
            requests_per_second=settings.requests_per_second,
            max_requests=settings.max_requests,
            max_connections=settings.max_connections,
            request_seconds=settings.request_seconds,
        )
    )


def set_up_logging(level: str) -> None:
    """Log to the journal or to stderr; libraries only from warnings on."""
    logging.basicConfig(level=logging.WARNING, handlers=[systemd.log_handler()], force=True)
    # It warns of whatever a stranger sends that is no request, each time.
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    logging.getLogger("provisiond").setLevel(level.upper())
    # Who changed what is recorded whatever else is.
    logging.getLogger("provisiond.audit").setLevel(logging.INFO)


# ---------------------------------------------------------------- adapters
def _put_together(
    settings: Settings, hypervisor: Hypervisor, xen: "_Xen | None", metrics: Metrics
) -> Tools:
    """What the stories work with; nothing of it is open yet."""
    # Images name each other by real paths, and libvirt has them so: every path is a real one.
    image_dir = Path(os.path.realpath(settings.image_dir))
    bases, disks = _folders_of_images(settings, image_dir)
    return Tools(
        store=Store(settings.state_dir / "provisiond.sqlite"),
        hypervisor=hypervisor,
        bases=bases,
        disks=disks,
        iso_threads=Threads(size=_ISO_THREADS, name="iso"),
        runtime_dir=settings.runtime_dir,
        image_dir=image_dir,
        template_dir=settings.template_dir,
        limits=Limits(
            ready=settings.ready_seconds,
            attach=settings.attach_seconds,
            detach=settings.detach_seconds,
        ),
        slots=asyncio.Semaphore(settings.max_jobs),
        disk_slots=asyncio.Semaphore(_DISKS_AT_ONCE),
        image_slots=asyncio.Semaphore(_IMAGES_AT_ONCE),
        by_tapdisk=xen is not None and tapdisk_available(),
        open_signal=partial(_open_signal, hypervisor, xen, settings.runtime_dir),
        observe=metrics.observe,
    )


def _folders_of_images(settings: Settings, image_dir: Path) -> tuple[Bases, Disks]:
    reserve = settings.reserve_mib * MIB
    bases = Bases(
        bases_folder(image_dir),
        disks=disks_folder(image_dir),
        reserve=reserve,
        max_chain=settings.max_chain,
        private=[Path(os.path.realpath(settings.runtime_dir))],  # the config ISOs are there
    )
    disks = Disks(bases, disks_folder(image_dir), reserve=reserve, max_chain=settings.max_chain)
    return bases, disks


@asynccontextmanager
async def _opened(tools: Tools) -> AsyncIterator[None]:
    """Folders made, the state file open, libvirt connected where it is there; closed at the end."""
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(tools.iso_threads.close)
        stack.callback(tools.bases.close)
        stack.callback(tools.disks.close)
        tools.bases.prepare()
        tools.disks.prepare()
        stack.push_async_callback(tools.store.close)
        await tools.store.open()
        stack.push_async_callback(tools.hypervisor.close)
        try:
            await tools.hypervisor.connect()
        except HypervisorUnavailable as error:
            log.warning("%s; provisiond tries again by itself", error)
        yield


async def _destroy_left_isos(store: Store, settings: Settings) -> None:
    """Destroy ISOs of jobs that the state file does not know as unfinished: it was exchanged."""
    jobs = {job.id for job in await store.unfinished()}
    for path in sorted(iso_folder(settings.runtime_dir).iterdir()):
        job_id = path.name.partition(".")[0]
        if job_id not in jobs and is_job_id(job_id):
            await asyncio.to_thread(destroy_iso, plan_job(job_id, runtime_dir=settings.runtime_dir))
            log.warning("%s: destroyed, no unfinished job has it", path)


@dataclass(frozen=True, slots=True)
class _Xen:
    """What only a Xen host has."""

    xenstore: Xenstore
    domains: Domains
    lost_events: LostEvents

    @classmethod
    def opened(cls) -> "_Xen":
        xenstore = Xenstore(find_xenstore())
        return cls(xenstore, Domains(xenstore), LostEvents(xenstore))


def _open_signal(
    hypervisor: Hypervisor, xen: _Xen | None, runtime_dir: Path, job: Job, channel: Path | None
) -> GuestSignal:
    if job.domain_uuid is None:
        raise ValueError(f"job {job.id} has no guest")
    uuid = job.domain_uuid
    nonce = plan_job(job.id, runtime_dir=runtime_dir).nonce
    if xen is not None:
        return XenstoreSignal(
            nonce=nonce,
            uuid=uuid,
            xenstore=xen.xenstore,
            domains=xen.domains,
            lost_events=xen.lost_events,
            reboot_seconds=_REBOOT_SECONDS,
            expects_keys=job.has_reached(JobState.ISO_ATTACHED),
        )

    async def find_socket() -> Path:
        path = (await hypervisor.live_xml(uuid)).channel(CHANNEL_NAME)
        if path is None:
            raise NoGuestChannel(f"{job.subject}: the domain has no virtio channel {CHANNEL_NAME}")
        return path

    return ChannelSignal(nonce=nonce, find_socket=find_socket, seen=channel)


def _hypervisor_uri(settings: Settings) -> str:
    if settings.libvirt_uri != "auto":
        return settings.libvirt_uri
    capabilities = Path("/proc/xen/capabilities")
    in_dom0 = capabilities.exists() and "control_d" in capabilities.read_text()
    return "xen:///system" if in_dom0 else "qemu:///system"


def _iso_folder_mode(uri: str) -> int:
    """libvirtd runs QEMU as a user of its own, which has to pass through the folder to its ISO.

    The ISOs themselves are 0600 in either case; libvirtd gives one to that user at the attach.
    """
    address = urlsplit(uri)
    driver, _, _transport = address.scheme.partition("+")
    return 0o711 if (driver, address.path) == ("qemu", "/system") else 0o700


async def _keep_connected(hypervisor: Hypervisor) -> None:
    while True:
        await asyncio.sleep(_RECONNECT_SECONDS)
        if not hypervisor.connected:
            with contextlib.suppress(HypervisorUnavailable):
                await hypervisor.connect()


async def _stop_on_damage(store: Store, stop: asyncio.Event) -> None:
    """No fact can be stored any more, so nothing may be done."""
    await store.damaged()
    stop.set()


async def _collect(server: Server, tools: Tools) -> None:
    """A connection that has ended leaves garbage, and so may a step of a job."""
    await collect_often(lambda: (server.ended, tools.store.last_seq))


def _watchdog(tools: Tools, supervisor: Supervisor) -> Watchdog:
    return Watchdog(
        workers_of(tools), tools.hypervisor.threads, unfinished=lambda: supervisor.unfinished
    )


# ---------------------------------------------------------------- signals
def _stop_on_signal() -> asyncio.Event:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop
