"""The config ISO at a running domain. Every function blocks: it runs in a thread."""

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
from provisiond.virt.libvirt.domains import look_up, read_live
from provisiond.virt.xml import (
    DomainXml,
    build_scsi_cdrom,
    build_scsi_controller,
    build_xen_disk,
    free_targets,
    free_unit,
    parse_domain,
)

# What an attach fails with when another disk has taken the target or the address in the meantime.
_COLLISIONS = (
    libvirt.VIR_ERR_XML_ERROR,
    libvirt.VIR_ERR_OPERATION_FAILED,
    libvirt.VIR_ERR_INTERNAL_ERROR,
    libvirt.VIR_ERR_CONFIG_UNSUPPORTED,
)


def attach(connection: Any, uuid: str, iso: Path, wanted: str | None) -> str:
    """Attach the ISO, at `wanted` or at the best target that is free; return the real target."""
    domain = look_up(connection, uuid)
    live = read_live(domain)
    if (disk := live.disk_of(iso)) is not None:
        return disk.target
    inactive = parse_domain(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
    free = free_targets(live, inactive)
    for target in free if wanted is None else [t for t in free if t == wanted]:
        try:
            _attach_at(domain, iso, target)
        except libvirt.libvirtError as error:
            now = read_live(domain)
            if error.get_error_code() not in _COLLISIONS or not _is_taken(now, target):
                raise
        else:
            return _assigned_target(domain, iso)
    what = "every target it may take" if wanted is None else f"the target {wanted}"
    raise NoFreeTarget(f"{live.name}: {what} is taken by another disk, or is no hot-plug target")


def _attach_at(domain: Any, iso: Path, target: str) -> None:
    live = read_live(domain)
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
    live = read_live(domain)
    disk = live.disk_of(iso)
    if disk is None:
        raise HypervisorFailed(f"{live.name}: the attach returned, but the disk is not there")
    return disk.target


def detach(connection: Any, uuid: str, iso: Path) -> None:
    """Ask for the detach, unless the disk is absent already.

    libvirt matches on the target alone, so the source is looked at first.
    """
    try:
        domain = look_up(connection, uuid)
        live = read_live(domain)
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
        if domain.isActive() and read_live(domain).disk_of(iso) is not None:
            raise DiskStillAttached(f"{live.name}: {disk.target} is still attached: {error}") from (
                error
            )
