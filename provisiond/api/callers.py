"""Who calls, and what that caller may do. Pure.

A caller on the Unix socket is who the kernel says (unix(7), SO_PEERCRED), one over TLS who the
client's certificate says.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

_READS = ("GET", "HEAD")


class Role(StrEnum):
    """What a caller may do: an operator everything, a viewer reads, nobody nothing."""

    OPERATOR = "operator"
    VIEWER = "viewer"
    NOBODY = "nobody"

    def may(self, method: str) -> bool:
        """Whether the role allows a request of this HTTP method."""
        return self is Role.OPERATOR or (self is Role.VIEWER and method in _READS)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who has opened a connection. `name` is under what a caller is recorded, `detail` what else
    is known of this connection."""

    name: str
    role: Role
    detail: str = ""

    @property
    def counted_as(self) -> str:
        """Under what its requests and connections are limited: all without a role are one caller,
        since a local user may have thousands of user ids (subuid(5))."""
        return str(Role.NOBODY) if self.role is Role.NOBODY else self.name


@dataclass(frozen=True, slots=True)
class LocalRoles:
    """Whose processes may do what, by their numeric groups. Root is an operator."""

    operators: int
    viewers: int | None = None


@dataclass(frozen=True, slots=True)
class RemoteRoles:
    """What the names in clients' certificates may do."""

    operators: Collection[str] = ()
    viewers: Collection[str] = ()


def local_caller(
    *, pid: int, uid: int, user: str | None, groups: Collection[int], roles: LocalRoles
) -> Caller:
    """A process of this host; `groups` are all that it is in, `user` its name where it has one."""
    role = Role.NOBODY
    if uid == 0 or roles.operators in groups:
        role = Role.OPERATOR
    elif roles.viewers is not None and roles.viewers in groups:
        role = Role.VIEWER
    return Caller(f"unix:{uid if user is None else user}", role, f"uid {uid}, pid {pid}")


def remote_caller(certificate: Mapping[str, Any], *, address: str, roles: RemoteRoles) -> Caller:
    """The holder of a verified certificate, in the form of ssl.SSLSocket.getpeercert().

    Its names are the DNS names it is for (RFC 6125); the common name counts where there are none.
    Of several the one with a role is the caller's.
    """
    names = names_of(certificate)
    for role, allowed in ((Role.OPERATOR, roles.operators), (Role.VIEWER, roles.viewers)):
        for name in names:
            if name in allowed:
                return Caller(f"tls:{name}", role, address)
    return Caller(f"tls:{names[0] if names else 'without a name'}", Role.NOBODY, address)


def names_of(certificate: Mapping[str, Any]) -> list[str]:
    """The names that a certificate is for, printable, in its order."""
    found = [value for kind, value in certificate.get("subjectAltName", ()) if kind == "DNS"]
    if not found:
        attributes = (pair for part in certificate.get("subject", ()) for pair in part)
        found = [value for name, value in attributes if name == "commonName"]
    return [name for name in found if name.isprintable()]
