"""Domains defined, started and removed; each may be asked for twice. Every function blocks."""

from typing import Any

import libvirt

from provisiond.errors import DomainExists, DomainNotFound, TemplateUnusable
from provisiond.virt.libvirt.domains import look_up
from provisiond.virt.xml import parse_domain

# How libvirt says that it understands the XML, and cannot make this domain of it.
_UNUSABLE = (
    libvirt.VIR_ERR_XML_ERROR,
    libvirt.VIR_ERR_XML_DETAIL,
    libvirt.VIR_ERR_XML_INVALID_SCHEMA,
    libvirt.VIR_ERR_CONFIG_UNSUPPORTED,
    libvirt.VIR_ERR_INVALID_ARG,
    libvirt.VIR_ERR_OS_TYPE,
    libvirt.VIR_ERR_NO_SOURCE,
    libvirt.VIR_ERR_NO_TARGET,
)

# What belongs to a domain besides its XML. The QEMU driver wants all of these named; libxl knows
# the first alone, and refuses (INVALID_ARG) a flag that it does not know.
_UNDEFINE_FLAGS = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM,
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE,
)


def define(connection: Any, xml: str) -> None:
    """Define the domain, unless one of its UUID exists already: that one is left as it is."""
    wanted = parse_domain(xml)
    if _exists(connection, wanted.uuid):
        return
    _refuse_name_of_another(connection, wanted.name)
    try:
        connection.defineXML(xml)
    except libvirt.libvirtError as error:
        if not connection.isAlive():
            raise
        _refuse_name_of_another(connection, wanted.name)  # defined by somebody in between
        if error.get_error_code() in _UNUSABLE:
            raise TemplateUnusable(
                f"{wanted.name}: libvirt cannot make a domain of the template: {error}",
                hint="Correct the template; virt-install and virsh define say the same of it.",
            ) from error
        raise


def _exists(connection: Any, uuid: str) -> bool:
    try:
        look_up(connection, uuid)
    except DomainNotFound:
        return False
    return True


def _refuse_name_of_another(connection: Any, name: str) -> None:
    if name in (domain.name() for domain in connection.listAllDomains()):
        raise DomainExists(f"{name}: a domain has this name already")


def start(connection: Any, uuid: str) -> None:
    """Start the domain, unless it runs."""
    domain = look_up(connection, uuid)
    if domain.isActive():
        return
    try:
        domain.create()
    except libvirt.libvirtError:
        if not connection.isAlive() or not domain.isActive():  # else: by somebody in between
            raise


def remove(connection: Any, uuid: str) -> bool:
    """End the domain, without asking the guest, and forget it; False where there was none.

    To be asked again until it says so: a domain may be started or defined in between.
    """
    try:
        domain = look_up(connection, uuid)
        if domain.isActive():
            _destroy(domain)
        if domain.isPersistent():
            _undefine(domain)
    except DomainNotFound:
        return False
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:  # it is gone; or was, for a moment
            raise
    return True


def _destroy(domain: Any) -> None:
    try:
        domain.destroy()
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_OPERATION_INVALID:  # it ended by itself
            raise


def _undefine(domain: Any) -> None:
    for flags in _UNDEFINE_FLAGS:
        try:
            domain.undefineFlags(flags)
        except libvirt.libvirtError as error:
            if (
                error.get_error_code() != libvirt.VIR_ERR_INVALID_ARG
                or flags == _UNDEFINE_FLAGS[-1]
            ):
                raise
        else:
            return
