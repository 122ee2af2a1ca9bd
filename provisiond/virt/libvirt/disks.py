"""Disks of a domain, attached and detached: the config ISO, data disks. Every function blocks.

A domain has two descriptions, of what runs and of what it is started from the next time; a disk
is attached to each of them by a call of its own, since controllers and addresses may differ.
"""

from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import libvirt

from provisiond.errors import (
    DiskStillAttached,
    DomainNotFound,
    DomainNotRunning,
    HypervisorFailed,
    NoFreeTarget,
)
from provisiond.virt.disk_xml import (
    DataDisk,
    build_data_disk,
    build_detached,
    bus_of,
    data_targets,
    needs_device_model,
)
from provisiond.virt.libvirt.domains import look_up, read_inactive, read_live
from provisiond.virt.xml import (
    Disk,
    DomainXml,
    build_scsi_cdrom,
    build_scsi_controller,
    build_xen_disk,
    free_targets,
    free_unit,
)

_LIVE = libvirt.VIR_DOMAIN_AFFECT_LIVE
_KEPT = libvirt.VIR_DOMAIN_AFFECT_CONFIG

# What an attach fails with when another disk has taken the target or the address in the meantime.
_COLLISIONS = (
    libvirt.VIR_ERR_XML_ERROR,
    libvirt.VIR_ERR_OPERATION_FAILED,
    libvirt.VIR_ERR_INTERNAL_ERROR,
    libvirt.VIR_ERR_CONFIG_UNSUPPORTED,
)


# ---------------------------------------------------------------- the config ISO
def attach_iso(connection: Any, uuid: str, iso: Path, wanted: str | None) -> str:
    """Attach the ISO, at `wanted` or at the best target that is free; return the real target."""
    domain = look_up(connection, uuid)
    live = read_live(domain)
    if (disk := live.disk_of(iso)) is not None:
        return disk.target
    free = free_targets(live, read_inactive(domain))
    targets = free if wanted is None else [target for target in free if target == wanted]

    def build(target: str) -> str:
        if live.is_xen:
            return build_xen_disk(iso, target)
        controller, unit = _scsi_address(domain, _LIVE)
        return build_scsi_cdrom(iso, target, controller=controller, unit=unit)

    _attach_at_first(domain, iso, targets, build, wanted=wanted, scope=_LIVE)
    return _assigned_target(domain, iso, _LIVE)


class Left(Enum):
    """What libvirt knows of a disk after a detach was asked for."""

    UNKNOWN = "it knew of no such disk"
    GONE = "the disk is gone"
    THERE = "the disk is still there"


def detach_iso(connection: Any, uuid: str, iso: Path) -> Left:
    """Ask for the detach, and look what is left."""
    try:
        domain = look_up(connection, uuid)
    except DomainNotFound:
        return Left.UNKNOWN
    if (disk := _disk_at(domain, iso, _LIVE)) is None:
        return Left.UNKNOWN
    if disk.bus == "xen":
        xml = build_xen_disk(iso, disk.target)
    else:
        place = {"controller": disk.controller or 0, "unit": disk.unit or 0}
        xml = build_scsi_cdrom(iso, disk.target, **place)
    _detach(domain, disk, xml, _LIVE)
    return Left.GONE if _disk_at(domain, iso, _LIVE) is None else Left.THERE


# ---------------------------------------------------------------- data disks
def attach_data_disk(
    connection: Any, uuid: str, disk: DataDisk, wanted: str | None, *, persistent: bool
) -> str:
    """Attach the disk to what runs, and with `persistent` to what is kept; its real target.

    Where it stands in one of them already, it gets the same target in the other.
    """
    domain = look_up(connection, uuid)
    running = bool(domain.isActive())
    if not running and not persistent:
        raise DomainNotRunning(
            f"{domain.name()}: the domain is off",
            hint="Start it first, or attach the disk for its next start (persistent).",
        )
    views = {_LIVE: read_live(domain)} if running else {}
    views[_KEPT] = read_inactive(domain)
    found = {scope: view.disk_of(disk.source) for scope, view in views.items()}
    known = next((one.target for one in found.values() if one is not None), None)
    targets = data_targets(wanted, *views.values()) if known is None else [known]
    for scope in [_LIVE] * running + [_KEPT] * persistent:
        if found[scope] is None:
            wanted = _attach_data_at(domain, disk, targets, wanted=wanted, scope=scope)
            targets = [wanted]
    return _assigned_target(domain, disk.source, _LIVE if running else _KEPT)


def _attach_data_at(
    domain: Any, disk: DataDisk, targets: Sequence[str], *, wanted: str | None, scope: int
) -> str:
    is_xen = _read(domain, scope).is_xen

    def build(target: str) -> str:
        address = None if bus_of(target) != "scsi" else _scsi_address(domain, scope)
        return build_data_disk(disk, target, is_xen=is_xen, address=address)

    try:
        return _attach_at_first(domain, disk.source, targets, build, wanted=wanted, scope=scope)
    except libvirt.libvirtError as error:
        # libxl's errors are all alike, and what is wrong stands in a log of its own.
        if not (is_xen and scope == _LIVE and needs_device_model(disk.chain)):
            raise
        if error.get_error_code() != libvirt.VIR_ERR_INTERNAL_ERROR:
            raise
        raise HypervisorFailed(
            f"{domain.name()}: the disk cannot be attached: {error}. A disk that is not raw needs "
            "a device model (a QEMU of the domain's own), which a PV guest may not have",
            hint="Use a raw disk; or give the guest a disk that is not raw before it starts.",
        ) from error


def detach_data_disk(connection: Any, uuid: str, source: Path, *, kept: bool) -> None:
    """Ask for the detach from what is kept, or else from what runs."""
    try:
        domain = look_up(connection, uuid)
    except DomainNotFound:
        return
    scope = _KEPT if kept else _LIVE
    if (disk := _disk_at(domain, source, scope)) is not None:
        _detach(domain, disk, build_detached(disk), scope)


def find_data_disk(connection: Any, uuid: str, source: Path, *, persistent: bool) -> str | None:
    """Where the disk stands: in the live XML or, asked with `persistent`, in the inactive one."""
    try:
        domain = look_up(connection, uuid)
    except DomainNotFound:
        return None
    for scope in [_LIVE] + [_KEPT] * persistent:
        if (disk := _disk_at(domain, source, scope)) is not None:
            return f"at {disk.target} in the {'live' if scope == _LIVE else 'inactive'} XML"
    return None


# ---------------------------------------------------------------- both
def is_unknown(connection: Any, uuid: str, source: Path) -> bool:
    """Whether the domain has no such disk, and no call is at work that may yet attach it."""
    domain = look_up(connection, uuid)
    if domain.jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE:
        return False
    return _disk_at(domain, source, _LIVE) is None


def _read(domain: Any, scope: int) -> DomainXml:
    return read_live(domain) if scope == _LIVE else read_inactive(domain)


def _disk_at(domain: Any, source: Path, scope: int) -> Disk | None:
    """The disk that has this source. A domain that has ended has no live one, a gone one none."""
    try:
        return _read(domain, scope).disk_of(source)
    except DomainNotRunning:
        return None
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise


def _attach_at_first(
    domain: Any,
    source: Path,
    targets: Sequence[str],
    build: Callable[[str], str],
    *,
    wanted: str | None,
    scope: int,
) -> str:
    """Attach at the first of the targets that nobody else takes in the meantime.

    libvirt goes on with what it was asked for by a provisiond that was killed: then the disk is
    there when this call's turn comes, and is not attached a second time.
    """
    for target in targets:
        try:
            domain.attachDeviceFlags(build(target), scope)
        except libvirt.libvirtError as error:
            if error.get_error_code() not in _COLLISIONS:
                raise
            view = _read(domain, scope)
            if (disk := view.disk_of(source)) is not None:
                return disk.target
            if target not in (disk.target for disk in view.disks):
                raise
        else:
            return target
    what = "every target it may take" if wanted is None else f"the target {wanted}"
    raise NoFreeTarget(
        f"{domain.name()}: {what} is taken by another disk, or is no hot-plug target"
    )


def _scsi_address(domain: Any, scope: int) -> tuple[int, int]:
    """A free controller and unit; guests have no driver for the one that libvirt would add."""
    view = _read(domain, scope)
    controller = view.virtio_scsi
    if controller is None:
        controller = view.next_scsi_index
        domain.attachDeviceFlags(build_scsi_controller(controller), scope)
    return controller, free_unit(view, controller)


def _assigned_target(domain: Any, source: Path, scope: int) -> str:
    view = _read(domain, scope)
    disk = view.disk_of(source)
    if disk is None:
        raise HypervisorFailed(f"{view.name}: the attach returned, but the disk is not there")
    return disk.target


def _detach(domain: Any, disk: Disk, xml: str, scope: int) -> None:
    """Ask for the detach; raises DiskStillAttached where libvirt refuses.

    libvirt matches on the target alone: whoever calls has found the disk by its source.
    """
    try:
        domain.detachDeviceFlags(xml, scope)
    except libvirt.libvirtError as error:
        if not domain.connect().isAlive():
            raise
        if disk.source is not None and _disk_at(domain, disk.source, scope) is not None:
            raise DiskStillAttached(
                f"{domain.name()}: {disk.target} is still attached: {error}"
            ) from error
