"""A guest's addresses: what a job of ours has configured, and what others tell, best source first.

The order is that of how much a source is worth: our own job's record; what the guest's tools write
to xenstore; libvirt's DHCP leases; the guest agent. What a guest says is bounded and parsed before
anybody sees it. Addresses that nobody could use from another host are left out: loopback,
link-local, multicast, unspecified, an IPv4 address in IPv6 notation.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface
from typing import Any, Literal, get_args

from provisiond.api.guest_config import MAX_INTERFACES
from provisiond.api.replies import AddressSource
from provisiond.plan import plan_keys
from provisiond.xenstore.client import Xenstore

MAX_ADDRESSES = 64  # of one guest and one source
_MAX_LENGTH = 45  # of an IPv6 address as text; a MAC has 17
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.ASCII)
_NUMBER = re.compile(r"0|[1-9][0-9]{0,2}", re.ASCII)
_ETH = re.compile(r"eth(0|[1-9][0-9]{0,2})", re.ASCII)
_FAMILIES = ("ipv4", "ipv6")


@dataclass(frozen=True, slots=True)
class GuestAddress:
    """An address in its canonical form, the MAC of its interface where that is known, its source.

    A MAC is in lower case, with colons.
    """

    address: str
    mac: str | None
    source: AddressSource


def gather_addresses(*found: Iterable[GuestAddress]) -> tuple[GuestAddress, ...]:
    """All of them, best source first; one that several sources tell is the best one's."""
    ranks = {source: rank for rank, source in enumerate(get_args(AddressSource))}
    best: dict[str, GuestAddress] = {}
    for address in sorted((one for some in found for one in some), key=lambda a: ranks[a.source]):
        best.setdefault(address.address, address)
    return tuple(best.values())


# ---------------------------------------------------------------- our own job
def request_addresses(request: Mapping[str, Any]) -> list[GuestAddress]:
    """The addresses that a stored request of a job asks for; none where it configures no guest."""
    config = request.get("config") or {}
    created_mac = (request.get("create") or {}).get("mac")
    texts = [(config["ip"], created_mac)] if config.get("ip") else []
    interfaces = config.get("interfaces") or []
    for interface in interfaces:
        # One that is found neither by MAC nor by name is the only one, which `create` made.
        is_first = not interface.get("mac") and not interface.get("name")
        mac = created_mac if is_first else interface.get("mac")
        texts += [(cidr, mac) for cidr in interface["addresses"]]
    return list(_usable(((str(ip_interface(cidr).ip), mac) for cidr, mac in texts), "job"))


# ---------------------------------------------------------------- xenstore
async def read_xenstore_addresses(xenstore: Xenstore, *, domid: int) -> list[GuestAddress]:
    """What the tools in a Xen guest tell below its `attr`; nothing where it tells nothing.

    Raises XenstoreUnavailable.
    """
    home = plan_keys(domid).home
    untrusted = {}
    for path in await _list_paths(xenstore, home):
        try:
            untrusted[path] = await xenstore.read(f"{home}/{path}")
        except FileNotFoundError:
            pass  # the guest has removed it, or is gone
    return parse_xenstore_addresses(untrusted)


def parse_xenstore_addresses(untrusted: Mapping[str, bytes]) -> list[GuestAddress]:
    """The addresses in these values, by their path below the domain's home, in the paths' order.

    xenstore-paths.pandoc has `attr/vif/<n>/ipv4/<m>` and `ipv6`; older tools write `attr/eth<n>/ip`
    and `attr/eth<n>/ipv6/<m>/addr`.
    """
    texts: list[tuple[str, str | None]] = []
    for path, value in untrusted.items():
        match path.split("/"):
            case ["attr", "vif", number, family, _] if family in _FAMILIES:
                mac = untrusted.get(_mac_path(number), b"")
                texts.append((_text(value), _text(mac)))
            case ["attr", _, "ip"] | ["attr", _, "ipv6", _, "addr"]:
                texts.append((_text(value), None))
    return list(_usable(texts, "xenstore"))


async def _list_paths(xenstore: Xenstore, home: str) -> list[str]:
    """The paths to read, at most so many; each part of each is one that we know, or a number."""
    paths = []
    for number in await _numbers(xenstore, f"{home}/attr/vif"):
        inside = [
            f"attr/vif/{number}/{family}/{index}"
            for family in _FAMILIES
            for index in await _numbers(xenstore, f"{home}/attr/vif/{number}/{family}")
        ]
        paths += [_mac_path(number), *inside] if inside else []
    for name in sorted(await xenstore.children_if_any(f"{home}/attr")):
        if not _ETH.fullmatch(name):
            continue
        inside = await _numbers(xenstore, f"{home}/attr/{name}/ipv6")
        paths += [f"attr/{name}/ip", *(f"attr/{name}/ipv6/{index}/addr" for index in inside)]
        if len(paths) >= MAX_ADDRESSES:
            break
    return paths[:MAX_ADDRESSES]


def _mac_path(number: str) -> str:
    return f"device/vif/{number}/mac"


async def _numbers(xenstore: Xenstore, path: str) -> list[str]:
    names = [name for name in await xenstore.children_if_any(path) if _NUMBER.fullmatch(name)]
    return sorted(names, key=int)[:MAX_INTERFACES]


def _text(untrusted: bytes) -> str:
    return untrusted[: _MAX_LENGTH + 1].decode("ascii", errors="replace")


# ---------------------------------------------------------------- libvirt
def libvirt_addresses(
    untrusted: Mapping[str, Any], *, source: Literal["lease", "agent"]
) -> list[GuestAddress]:
    """What libvirt's `interfaceAddresses` has returned; with the agent, the guest has written it.

    Its form: `{"vnet0": {"addrs": [{"addr": "192.0.2.5", …}], "hwaddr": "52:54:…"}}`, where
    `addrs` may be None.
    """
    texts = (
        (str(entry.get("addr", "")), str(interface.get("hwaddr") or ""))
        for interface in untrusted.values()
        for entry in interface.get("addrs") or []
    )
    return list(_usable(texts, source))


# ---------------------------------------------------------------- one address
def _usable(
    untrusted: Iterable[tuple[str, str | None]], source: AddressSource
) -> Iterator[GuestAddress]:
    """Those of the first MAX_ADDRESSES pairs of address and MAC that are usable ones."""
    for _, (text, mac) in zip(range(MAX_ADDRESSES), untrusted, strict=False):
        address = _parse_address(text)
        if address is not None:
            yield GuestAddress(address, _parse_mac(mac), source)


def _parse_address(untrusted: str) -> str | None:
    if len(untrusted) > _MAX_LENGTH or "%" in untrusted:  # ipaddress takes anything for a zone
        return None
    try:
        address = ip_address(untrusted)
    except ValueError:
        return None
    useless = (
        address.is_loopback
        or address.is_link_local
        or address.is_multicast
        or address.is_unspecified
        or (address.version == 4 and address.is_reserved)
        or (address.version == 6 and address.ipv4_mapped is not None)
    )
    return None if useless else str(address)


def _parse_mac(untrusted: str | None) -> str | None:
    mac = (untrusted or "").lower()
    return mac if _MAC.fullmatch(mac) else None
