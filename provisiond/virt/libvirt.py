"""The hypervisor over libvirt: find domains, attach and detach the config ISO, always live only.

libvirt-python blocks, so every call runs in a thread; its events come from one daemon thread and
enter the event loop by `call_soon_threadsafe`. libvirt has one importer: this module.
"""

import asyncio
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar
from urllib.parse import urlsplit

import libvirt

from provisiond.errors import (
    DiskStillAttached,
    DomainNotFound,
    DomainNotRunning,
    HypervisorFailed,
    HypervisorUnavailable,
    NoFreeTarget,
)
from provisiond.threads import Threads, call_in_background
from provisiond.virt.vbd import await_connected, back_ends_of, free_loop, loops_of
from provisiond.virt.xml import (
    DomainXml,
    build_scsi_cdrom,
    build_scsi_controller,
    build_xen_disk,
    free_targets,
    free_unit,
    parse_domain,
)
from provisiond.xenstore.client import Xenstore

_P = ParamSpec("_P")
_R = TypeVar("_R")

log = logging.getLogger(__name__)

_STATES = {
    libvirt.VIR_DOMAIN_NOSTATE: "no state",
    libvirt.VIR_DOMAIN_RUNNING: "running",
    libvirt.VIR_DOMAIN_BLOCKED: "blocked",
    libvirt.VIR_DOMAIN_PAUSED: "paused",
    libvirt.VIR_DOMAIN_SHUTDOWN: "shutting down",
    libvirt.VIR_DOMAIN_SHUTOFF: "off",
    libvirt.VIR_DOMAIN_CRASHED: "crashed",
    libvirt.VIR_DOMAIN_PMSUSPENDED: "suspended",
}

# What an attach fails with when another disk has taken the target or the address in the meantime.
_COLLISIONS = (
    libvirt.VIR_ERR_XML_ERROR,
    libvirt.VIR_ERR_OPERATION_FAILED,
    libvirt.VIR_ERR_INTERNAL_ERROR,
    libvirt.VIR_ERR_CONFIG_UNSUPPORTED,
)
# How long a caller waits for libvirtd to take the connection: a healthy one needs milliseconds.
_OPEN_SECONDS = 5.0
# A libvirtd that hangs is given up after 5 s, three more tries and 5 s each: 20 s.
_KEEPALIVE_SECONDS = 5
_KEEPALIVE_TRIES = 3
# An event only wakes the wait for a detach early; the live XML is what counts.
_DETACH_POLL_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class Domain:
    """A domain as libvirt lists it; `domid` is None while it is off."""

    name: str
    uuid: str
    state: str
    domid: int | None


class Hypervisor:
    """A libvirt connection, reopened by itself after libvirtd's loss; one more for each change."""

    def __init__(self, uri: str, *, threads: int, xenstore: Xenstore | None = None) -> None:
        """`xenstore` is needed where the domains are Xen's."""
        self.uri = uri
        self._xenstore = xenstore
        self.connected = False
        self._threads = Threads(size=threads, name="libvirt")
        self._connection: Any = None
        self._opening: asyncio.Future[Any] | None = None
        self._loop = asyncio.get_running_loop()
        # Set, and replaced, at any device or lifecycle event: a hint to read again, never a fact.
        self._hint = asyncio.Event()

    # ------------------------------------------------------------ connection
    async def connect(self) -> None:
        """Open the connection now; raises HypervisorUnavailable."""
        await self._open_connection()

    async def close(self) -> None:
        """Close the connection; domains go on running."""
        self.connected = False
        await self._threads.call(_close, self._connection)
        self._connection = None
        self._threads.close()

    async def _open_connection(self) -> Any:
        """The connection, opened where there is none; raises HypervisorUnavailable.

        A libvirtd that hangs takes a connection and never answers on it. So all callers wait for
        one and the same attempt, none of them for long, and it does not hold up the daemon's end.
        """
        if not self.connected:
            if self._opening is None:
                self._opening = call_in_background(self._open, self._connection)
                self._opening.add_done_callback(self._opened)
            await self._soon(self._opening)
        return self._connection

    async def _soon(self, opening: asyncio.Future[Any]) -> Any:
        try:
            async with asyncio.timeout(_OPEN_SECONDS):
                return await asyncio.shield(opening)
        except TimeoutError:
            raise HypervisorUnavailable(
                f"cannot open {self.uri}: no answer within {_OPEN_SECONDS:g} s",
                hint="Look whether libvirtd hangs; provisiond reconnects by itself.",
            ) from None

    def _open(self, lost: Any) -> Any:
        _start_event_thread()
        _close(lost)
        connection = _connect(self.uri)
        try:
            connection.registerCloseCallback(self._closed, None)
            for event in (
                libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED,
                libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE,
            ):
                connection.domainEventRegisterAny(None, event, self._event, None)
        except libvirt.libvirtError as error:
            raise HypervisorUnavailable(f"cannot open {self.uri}: {error}") from error
        return connection

    def _opened(self, opening: asyncio.Future[Any]) -> None:
        self._opening = None
        if not opening.cancelled() and opening.exception() is None:
            self._connection = opening.result()
            self.connected = True
            log.info("connected to %s", self.uri)

    def _closed(self, connection: Any, reason: int, _opaque: Any) -> None:
        self._loop.call_soon_threadsafe(self._lose, connection, f"reason {reason}")

    def _lose(self, connection: Any, why: str) -> None:
        """Take note that a connection is dead; a later one may be at work already."""
        if connection is self._connection and self.connected:
            self.connected = False
            log.warning("the connection to %s was lost (%s)", self.uri, why)

    def _event(self, *_details: Any) -> None:
        self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._hint.set()
        self._hint = asyncio.Event()

    async def _call(
        self, function: Callable[Concatenate[Any, _P], _R], *args: _P.args, **kwargs: _P.kwargs
    ) -> _R:
        """Run a function of this module on the connection; translate what libvirt raises."""
        return await self._call_on(await self._open_connection(), function, *args, **kwargs)

    async def _call_apart(
        self, function: Callable[Concatenate[Any, _P], _R], *args: _P.args, **kwargs: _P.kwargs
    ) -> _R:
        """`_call` on a connection of its own: for a call that waits for the domain's QEMU.

        A QEMU that hangs never answers, and libvirtd works on five calls of one connection at most
        (max_client_requests in libvirtd.conf): all other domains would wait behind those. The
        driver inside this process has no such bound, and registers anew whenever it is opened.
        """
        shared = await self._open_connection()
        if urlsplit(self.uri).path == "/embed":
            return await self._call_on(shared, function, *args, **kwargs)
        connection = await self._soon(call_in_background(_connect, self.uri))
        try:
            return await self._call_on(connection, function, *args, **kwargs)
        finally:
            await self._threads.call(_close, connection)

    async def _call_on(
        self,
        connection: Any,
        function: Callable[Concatenate[Any, _P], _R],
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> _R:
        try:
            return await self._threads.call(function, connection, *args, **kwargs)
        except libvirt.libvirtError as error:
            # Whatever the error says: on a dead connection it speaks of the connection.
            if await self._threads.call(_is_alive, connection):
                if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:  # it went in between
                    raise DomainNotFound(str(error)) from error
                raise HypervisorFailed(str(error)) from error
            self._lose(connection, str(error))
            raise HypervisorUnavailable(f"{self.uri}: {error}") from error

    # ------------------------------------------------------------ reading
    async def domains(self) -> list[Domain]:
        """All domains of the host, by name."""
        return sorted(await self._call(_list_domains), key=lambda domain: domain.name)

    async def find(self, name_or_uuid: str) -> Domain:
        """The domain with this name or UUID; raises DomainNotFound."""
        return await self._call(_find, name_or_uuid)

    async def live_xml(self, uuid: str) -> DomainXml:
        """The live XML of a running domain; raises DomainNotFound or DomainNotRunning."""
        return await self._call(_read_live_of, uuid)

    async def has_disk(self, uuid: str, source: Path) -> bool:
        """Whether `source` is attached; a domain that is off or gone has no disk attached."""
        try:
            return (await self.live_xml(uuid)).disk_of(source) is not None
        except (DomainNotFound, DomainNotRunning):
            return False

    # ------------------------------------------------------------ attach, detach
    async def attach(self, uuid: str, *, iso: Path, target: str | None) -> str:
        """Attach `iso` read-only, at `target` or at the best that is free; return the real target.

        Attached already: returns its target. Raises NoFreeTarget, HypervisorFailed.
        """
        return await self._call_apart(_attach, uuid, iso, target)

    async def is_connected(self, uuid: str, iso: Path) -> bool:
        """Wait until the guest's driver has the disk; False where the disk is gone instead.

        Xen's attach returns before that. A QEMU guest's disk is a part of its machine at once.
        """
        live = await self.live_xml(uuid)
        disk = live.disk_of(iso)
        if disk is None or live.domid is None:
            return False
        if self._xenstore is None:
            return True
        return await await_connected(self._xenstore, domid=live.domid, target=disk.target)

    async def detach(self, uuid: str, *, iso: Path) -> str | None:
        """Detach `iso` and wait until nothing has it: not the live XML, no back end.

        Returns at once where that is so. A loop device that was left over `iso` is freed, and
        returned. The caller's time limit ends the wait. Raises DiskStillAttached where libvirt
        refuses.
        """
        hint = self._hint
        await self._call_apart(_detach, uuid, iso)
        while await self.has_disk(uuid, iso) or await self._back_ends(iso):
            try:
                async with asyncio.timeout(_DETACH_POLL_SECONDS):
                    await hint.wait()
            except TimeoutError:
                pass  # no event came: it is read again all the same
            hint = self._hint
        return self._free_loops(iso)

    async def prove_absence(self, uuid: str, *, iso: Path) -> None:
        """Look once more, after the file was unlinked; DiskStillAttached says where it still is."""
        if await self.has_disk(uuid, iso):
            raise DiskStillAttached(f"{iso.name} was attached again: it stands in the live XML")
        holders = [*await self._back_ends(iso), *self._loops(iso)]
        if holders:
            raise DiskStillAttached(f"{iso.name} is still held by {', '.join(holders)}")

    async def _back_ends(self, iso: Path) -> list[str]:
        return [] if self._xenstore is None else await back_ends_of(self._xenstore, iso)

    def _loops(self, iso: Path) -> list[str]:
        return [] if self._xenstore is None else list(loops_of(iso))

    def _free_loops(self, iso: Path) -> str | None:
        names = self._loops(iso)
        for name in names:
            try:
                free_loop(name)
            except OSError as error:
                raise DiskStillAttached(f"{name} still has {iso.name}: {error.strerror}") from error
        return ", ".join(names) or None


# ---------------------------------------------------------------- in a thread
_event_thread_lock = threading.Lock()
_event_thread: threading.Thread | None = None


def _start_event_thread() -> None:
    """Start libvirt's event loop, once a process and before the first open."""
    global _event_thread  # noqa: PLW0603 - libvirt's event loop is global itself
    with _event_thread_lock:
        if _event_thread is None:
            # Errors are raised; libvirt would print them to stderr as well.
            libvirt.registerErrorHandler(lambda _opaque, _error: None, None)
            libvirt.virEventRegisterDefaultImpl()
            _event_thread = threading.Thread(target=_run_events, name="libvirt-events", daemon=True)
            _event_thread.start()


def _run_events() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()


def _connect(uri: str) -> Any:
    """A connection that libvirt itself closes when libvirtd does not answer on it any more."""
    try:
        connection = libvirt.open(uri)
        try:
            connection.setKeepAlive(_KEEPALIVE_SECONDS, _KEEPALIVE_TRIES)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:  # a driver in this process
                raise
    except libvirt.libvirtError as error:
        raise HypervisorUnavailable(f"cannot open {uri}: {error}") from error
    return connection


def _is_alive(connection: Any) -> bool:
    try:
        return bool(connection.isAlive())
    except libvirt.libvirtError:
        return False


def _close(connection: Any) -> None:
    """Let go of a connection, also of one that is dead or that never was."""
    if connection is not None:
        with suppress(libvirt.libvirtError):
            connection.close()


def _look_up(connection: Any, name_or_uuid: str) -> Any:
    for look_up in (connection.lookupByUUIDString, connection.lookupByName):
        try:
            return look_up(name_or_uuid)
        except libvirt.libvirtError as error:
            # INVALID_ARG: not the form of a UUID.
            if error.get_error_code() not in (
                libvirt.VIR_ERR_NO_DOMAIN,
                libvirt.VIR_ERR_INVALID_ARG,
            ):
                raise
    raise DomainNotFound(f"{name_or_uuid}: no domain has this name or UUID")


def _list_domains(connection: Any) -> list[Domain]:
    found = map(_describe, connection.listAllDomains())
    return [domain for domain in found if domain is not None]


def _find(connection: Any, name_or_uuid: str) -> Domain:
    domain = _describe(_look_up(connection, name_or_uuid))
    if domain is None:
        raise DomainNotFound(f"{name_or_uuid}: no domain has this name or UUID")
    return domain


def _describe(domain: Any) -> Domain | None:
    """What libvirt says of a domain; None where it vanished in between."""
    try:
        state = domain.state()[0]
        domid = domain.ID()
        return Domain(
            name=domain.name(),
            uuid=domain.UUIDString(),
            state=_STATES.get(state, "unknown"),
            domid=None if domid < 0 else domid,
        )
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise


def _read_live(domain: Any) -> DomainXml:
    if not domain.isActive():
        raise DomainNotRunning(f"{domain.name()}: the domain is off")
    return parse_domain(domain.XMLDesc(0))


def _read_live_of(connection: Any, uuid: str) -> DomainXml:
    return _read_live(_look_up(connection, uuid))


def _attach(connection: Any, uuid: str, iso: Path, wanted: str | None) -> str:
    domain = _look_up(connection, uuid)
    live = _read_live(domain)
    if (disk := live.disk_of(iso)) is not None:
        return disk.target
    inactive = parse_domain(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
    free = free_targets(live, inactive)
    for target in free if wanted is None else [t for t in free if t == wanted]:
        try:
            _attach_at(domain, iso, target)
        except libvirt.libvirtError as error:
            now = _read_live(domain)
            if error.get_error_code() not in _COLLISIONS or not _is_taken(now, target):
                raise
        else:
            return _assigned_target(domain, iso)
    what = "every target it may take" if wanted is None else f"the target {wanted}"
    raise NoFreeTarget(f"{live.name}: {what} is taken by another disk, or is no hot-plug target")


def _attach_at(domain: Any, iso: Path, target: str) -> None:
    live = _read_live(domain)
    if live.is_xen:
        xml = build_xen_disk(iso, target)
    else:
        controller = live.virtio_scsi
        if controller is None:
            controller = live.next_scsi_index
            domain.attachDeviceFlags(
                build_scsi_controller(controller), libvirt.VIR_DOMAIN_AFFECT_LIVE
            )
        unit = free_unit(live, controller)
        xml = build_scsi_cdrom(iso, target, controller=controller, unit=unit)
    domain.attachDeviceFlags(xml, libvirt.VIR_DOMAIN_AFFECT_LIVE)


def _is_taken(live: DomainXml, target: str) -> bool:
    return any(disk.target == target for disk in live.disks)


def _assigned_target(domain: Any, iso: Path) -> str:
    live = _read_live(domain)
    disk = live.disk_of(iso)
    if disk is None:
        raise HypervisorFailed(f"{live.name}: the attach returned, but the disk is not there")
    return disk.target


def _detach(connection: Any, uuid: str, iso: Path) -> None:
    """Ask for the detach, unless the disk is absent already.

    libvirt matches on the target alone, so the source is looked at first.
    """
    try:
        domain = _look_up(connection, uuid)
        live = _read_live(domain)
    except (DomainNotFound, DomainNotRunning):
        return
    disk = live.disk_of(iso)
    if disk is None:
        return
    if live.is_xen:
        xml = build_xen_disk(iso, disk.target)
    else:
        xml = build_scsi_cdrom(
            iso, disk.target, controller=disk.controller or 0, unit=disk.unit or 0
        )
    try:
        domain.detachDeviceFlags(xml, libvirt.VIR_DOMAIN_AFFECT_LIVE)
    except libvirt.libvirtError as error:
        if not connection.isAlive():
            raise
        if domain.isActive() and _read_live(domain).disk_of(iso) is not None:
            raise DiskStillAttached(f"{live.name}: {disk.target} is still attached: {error}") from (
                error
            )
