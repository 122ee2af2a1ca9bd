"""What libvirt says of its domains. Every function blocks: it runs in a thread."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import libvirt

from provisiond.errors import DomainNotFound, DomainNotRunning
from provisiond.plan import is_job_id, plan_uuid
from provisiond.virt.xml import Disk, DomainXml, MadeBy, parse_domain

_R = TypeVar("_R")

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


@dataclass(frozen=True, slots=True)
class Domain:
    """A domain as libvirt lists it; `domid` is None while it is off."""

    name: str
    uuid: str
    state: str
    domid: int | None

    @property
    def is_paused(self) -> bool:
        """Somebody has paused it, or QEMU itself, which does so where a disk has no more room."""
        return self.state == _STATES[libvirt.VIR_DOMAIN_PAUSED]


@dataclass(frozen=True, slots=True)
class DomainDetails(Domain):
    """A domain with what its XML says: the live one while it runs.

    `made_by` is None unless provisiond has made this very domain.
    """

    disks: tuple[Disk, ...]
    macs: tuple[str, ...]
    made_by: MadeBy | None


def look_up(connection: Any, name_or_uuid: str) -> Any:
    """libvirt's own object of the domain; raises DomainNotFound."""
    # A name with a NUL is none, and libvirt-python takes it for a defect of its caller.
    asks = (connection.lookupByUUIDString, connection.lookupByName)
    for ask in asks if "\0" not in name_or_uuid else ():
        try:
            return ask(name_or_uuid)
        except libvirt.libvirtError as error:
            # INVALID_ARG: not the form of a UUID.
            if error.get_error_code() not in (
                libvirt.VIR_ERR_NO_DOMAIN,
                libvirt.VIR_ERR_INVALID_ARG,
            ):
                raise
    raise DomainNotFound(f"{name_or_uuid}: no domain has this name or UUID")


def find(connection: Any, name_or_uuid: str) -> Domain:
    """The domain with this name or UUID; raises DomainNotFound."""
    return _or_not_found(name_or_uuid, _describe, look_up(connection, name_or_uuid))


def find_running(connection: Any, name_or_uuid: str) -> tuple[Domain, DomainXml | None]:
    """The domain with this name or UUID and its live XML, None while it is off."""
    return _or_not_found(name_or_uuid, _describe_running, look_up(connection, name_or_uuid))


def list_details(connection: Any) -> list[DomainDetails]:
    """All domains of the host."""
    found = (_unless_gone(_detail, domain) for domain in connection.listAllDomains())
    return [domain for domain in found if domain is not None]


def details(connection: Any, name_or_uuid: str) -> DomainDetails:
    """The domain with this name or UUID; raises DomainNotFound."""
    return _or_not_found(name_or_uuid, _detail, look_up(connection, name_or_uuid))


def _or_not_found(name_or_uuid: str, ask: Callable[[Any], _R], domain: Any) -> _R:
    if (answer := _unless_gone(ask, domain)) is None:
        raise DomainNotFound(f"{name_or_uuid}: no domain has this name or UUID")
    return answer


def _unless_gone(ask: Callable[[Any], _R], domain: Any) -> _R | None:
    """What is asked of a domain; None where it vanished in between."""
    try:
        return ask(domain)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise


def _describe(domain: Any) -> Domain:
    state = domain.state()[0]
    domid = domain.ID()
    return Domain(
        name=domain.name(),
        uuid=domain.UUIDString(),
        state=_STATES.get(state, "unknown"),
        domid=None if domid < 0 else domid,
    )


def _describe_running(domain: Any) -> tuple[Domain, DomainXml | None]:
    known = _describe(domain)
    return known, None if known.domid is None else parse_domain(domain.XMLDesc(0))


def _detail(domain: Any) -> DomainDetails:
    known = _describe(domain)
    xml = parse_domain(domain.XMLDesc(0))
    return DomainDetails(
        name=known.name,
        uuid=known.uuid,
        state=known.state,
        domid=known.domid,
        disks=xml.disks,
        macs=xml.macs,
        made_by=made_here(xml),
    )


def made_here(xml: DomainXml) -> MadeBy | None:
    """Which job has made the domain; None for a copy of one, which has another UUID."""
    made_by = xml.made_by
    if made_by is None or not is_job_id(made_by.job_id) or xml.uuid != plan_uuid(made_by.job_id):
        return None
    return made_by


def sources_in_use(connection: Any) -> dict[Path, str]:
    """Every file and block device of every domain, as it runs and as it is kept; whose it is.

    By real paths: an operator's XML may come to a file through a symbolic link.
    """
    return {
        Path(os.path.realpath(path)): xml.name
        for domain in connection.listAllDomains()
        for xml in _unless_gone(_both_views, domain) or ()
        for disk in xml.disks
        for path in disk.chain
    }


def _both_views(domain: Any) -> list[DomainXml]:
    return [parse_domain(domain.XMLDesc(flags)) for flags in (0, libvirt.VIR_DOMAIN_XML_INACTIVE)]


def interface_addresses(
    connection: Any, uuid: str, source: Literal["lease", "agent"]
) -> dict[str, Any]:
    """libvirt's answer as it is; a guest's agent may say anything in it."""
    asked = {
        "lease": libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_LEASE,
        "agent": libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT,
    }[source]
    try:
        return look_up(connection, uuid).interfaceAddresses(asked, 0) or {}
    except DomainNotFound:
        return {}
    except libvirt.libvirtError:
        if not connection.isAlive():
            raise
        return {}


def read_live(domain: Any) -> DomainXml:
    """The live XML; raises DomainNotRunning."""
    if not domain.isActive():
        raise DomainNotRunning(f"{domain.name()}: the domain is off")
    return parse_domain(domain.XMLDesc(0))


def read_live_of(connection: Any, uuid: str) -> DomainXml:
    """The live XML; raises DomainNotFound or DomainNotRunning."""
    return read_live(look_up(connection, uuid))


def read_inactive(domain: Any) -> DomainXml:
    """The XML that the domain is started from the next time."""
    return parse_domain(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
