"""What the guest shall become, and every rule that it must pass.

The master's bytes become types here and in requests.py alone; what has passed is trusted by the
rest. Each refusal is raised at the field that is wrong, so that the reply can name it. No
message of a refusal repeats the value: it could be a secret put into the wrong field.
"""

import base64
import re
import struct
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
)
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
)

from provisiond.api.message import Message

Address = IPv4Address | IPv6Address
Cidr = IPv4Interface | IPv6Interface
Network = IPv4Network | IPv6Network

# With these the guest's file stays below 128 KiB, the most that its script reads.
MAX_INTERFACES = 16
MAX_ROUTES = 32
MAX_KEYS = 32
MAX_KEYS_BYTES = 48 * 1024
MAX_KEY_BYTES = 3072  # an RSA key of 16,384 bits, the longest that ssh-keygen makes, has 2,800
MAX_PASSWORD_BYTES = 511  # crypt(3) of libxcrypt refuses more, so nobody could log in with it

_LIMITED_BROADCAST = IPv4Address("255.255.255.255")
_IPV4_COMPATIBLE = IPv6Network("::/96")
_IPV4_MAPPED = IPv6Network("::ffff:0:0/96")
_PREFIX_LENGTH = re.compile(r"0|[1-9][0-9]{0,2}", re.ASCII)
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", re.ASCII)
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.ASCII)
_NIC_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,14}", re.ASCII)
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}", re.ASCII)
_ZONE = re.compile(r"[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9][A-Za-z0-9_+-]*){0,2}", re.ASCII)
_CRYPT = re.compile(r"\$(5|6|7|y|gy|2b|2y)\$[./A-Za-z0-9$=,]{8,480}", re.ASCII)
_KEY_TYPES = frozenset(
    {
        "ssh-ed25519",
        "ssh-rsa",
        "ecdsa-sha2-nistp256",
        "ecdsa-sha2-nistp384",
        "ecdsa-sha2-nistp521",
        "sk-ssh-ed25519@openssh.com",
        "sk-ecdsa-sha2-nistp256@openssh.com",
    }
)


# ---------------------------------------------------------------- one value
def _has_control(text: str) -> bool:
    return not all(character.isprintable() for character in text)


def printable(text: str) -> str:
    """`text`, refused where it has control characters."""
    if _has_control(text):
        raise ValueError("must not contain control characters")
    return text


def _host_name(text: str) -> str:
    """A host name by RFC 1123: one label, or a fully qualified name without the final dot."""
    name = text.lower() if text.isascii() else ""
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in name.split(".")):
        raise ValueError(
            "is no host name by RFC 1123: labels of 1 to 63 letters, digits and inner hyphens"
        )
    if name.rsplit(".", 1)[-1].isdigit():
        raise ValueError("looks like an address: the last label must not be a number")
    return name


def _mac(text: str) -> str:
    mac = text.lower().replace("-", ":")
    if not _MAC.fullmatch(mac):
        raise ValueError("is no MAC address: six pairs of hex digits, such as 52:54:00:12:34:56")
    if int(mac[:2], 16) & 1 or mac == "00:00:00:00:00:00":
        raise ValueError("is no MAC address of one interface: multicast or all zeros")
    return mac


def _nic_name(text: str) -> str:
    if not _NIC_NAME.fullmatch(text) or text == "lo":
        raise ValueError("is no interface name: up to 15 letters, digits, '.', '_', '-'; not lo")
    return text


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("must be a string")
    return value


def _cidr(value: object) -> Cidr:
    if isinstance(value, IPv4Interface | IPv6Interface):
        return value
    text = _without_zone(_text(value))
    if "/" not in text:
        raise ValueError("needs its prefix length: CIDR notation, such as 192.0.2.10/24")
    try:
        cidr = ip_interface(_with_prefix_length(text))
    except ValueError:
        raise ValueError("is no address in CIDR notation, such as 192.0.2.10/24") from None
    _usable(cidr.ip)
    if cidr.network.prefixlen == 0:
        raise ValueError("has the prefix length 0: no network holds every address")
    point_to_point = _is_point_to_point(cidr.network)
    if cidr.ip == cidr.network.network_address and not point_to_point:
        raise ValueError("is the address of the network itself, not of a host in it")
    if cidr.version == 4 and cidr.ip == cidr.network.broadcast_address and not point_to_point:
        raise ValueError("is the broadcast address of its network")
    return cidr


def _is_point_to_point(network: Network) -> bool:
    """A network of one or two addresses, where each is a host's (RFC 3021, RFC 6164)."""
    return network.prefixlen >= network.max_prefixlen - 1


def _is_no_host(address: Address, network: Network) -> bool:
    """IPv4 only: an IPv6 network's first address is any of its routers (RFC 4291, 2.6.1)."""
    if network.version == 6 or _is_point_to_point(network):
        return False
    return address in (network.network_address, network.broadcast_address)


def _without_zone(text: str) -> str:
    """Refuse a zone (%…): ipaddress takes any character there, line feeds too, and prints them."""
    if "%" in text:
        raise ValueError("must not carry a zone (%)")
    return text


def _with_prefix_length(text: str) -> str:
    """Refuse the masks that ipaddress takes for a prefix length."""
    if not _PREFIX_LENGTH.fullmatch(text.partition("/")[2]):
        raise ValueError("is no prefix length")
    return text


def _is_ipv4_in_ipv6(address: Address) -> bool:
    """Whether tools print it in another notation than ipaddress does (RFC 4291, 2.5.5)."""
    return address.version == 6 and (address in _IPV4_COMPATIBLE or address in _IPV4_MAPPED)


def _usable(address: Address) -> Address:
    if address.is_unspecified or address.is_multicast or address.is_loopback:
        raise ValueError("cannot be a host's address: unspecified, multicast or loopback")
    if _is_ipv4_in_ipv6(address):
        raise ValueError("cannot be a host's address: an IPv4 address in IPv6 notation")
    if address == _LIMITED_BROADCAST:
        raise ValueError("cannot be a host's address: it is everybody's (limited broadcast)")
    return address


def _address(value: object) -> Address:
    if isinstance(value, IPv4Address | IPv6Address):
        return value
    try:
        return _usable(ip_address(_without_zone(_text(value))))
    except ValueError as refusal:
        known = str(refusal).startswith(("must", "cannot"))
        raise ValueError(str(refusal) if known else "is no IP address") from None


def _destination(value: object) -> Network:
    if isinstance(value, IPv4Network | IPv6Network):
        return value
    text = _without_zone(_text(value))
    try:
        network = ip_network(_with_prefix_length(text))
    except ValueError:
        raise ValueError(
            "is no network in CIDR notation (with no bits set behind the prefix), "
            "such as 198.51.100.0/24"
        ) from None
    if network.prefixlen == 0:
        raise ValueError("is the default route, which gateway4 and gateway6 make")
    if network.prefixlen >= 96 and _is_ipv4_in_ipv6(network.network_address):
        raise ValueError("is an IPv4 network in IPv6 notation")
    return network


def _zone(text: str) -> str:
    if len(text) > 64 or not _ZONE.fullmatch(text):
        raise ValueError("is no time zone name, such as Europe/Vienna")
    return text


def _user(text: str) -> str:
    if not _USER.fullmatch(text):
        raise ValueError("is no user name: lower-case letters, digits, '_', '-', at most 32")
    return text


def _password(secret: SecretStr) -> SecretStr:
    text = secret.get_secret_value()
    if _has_control(text):  # lone surrogates too, which have no bytes
        raise ValueError("must not contain control characters")
    if not 1 <= len(text.encode()) <= MAX_PASSWORD_BYTES:
        raise ValueError(f"must have 1 to {MAX_PASSWORD_BYTES} bytes")
    return secret


def _password_hash(secret: SecretStr) -> SecretStr:
    if not _CRYPT.fullmatch(secret.get_secret_value()):
        raise ValueError(
            "is no crypt(5) hash that is taken: $6$ (sha512crypt), $5$, $y$, $gy$, $7$, $2b$, $2y$"
        )
    return secret


def _ssh_key(text: str) -> str:
    """One public key as ssh-keygen prints it: type, base64, comment; no options in front."""
    line = printable(text.strip())
    parts = line.split(None, 2)
    if len(parts) < 2 or parts[0] not in _KEY_TYPES:
        raise ValueError("is no OpenSSH public key: type, base64 and comment on one line")
    try:
        blob = base64.b64decode(parts[1], validate=True)
        (length,) = struct.unpack_from(">I", blob)
    except (ValueError, struct.error):  # binascii.Error is a ValueError
        raise ValueError("is no OpenSSH public key: its base64 part is damaged") from None
    if blob[4 : 4 + length] != parts[0].encode() or len(blob) <= 4 + length:
        raise ValueError("is no OpenSSH public key: its inner type is not the one it names")
    if len(line.encode()) > MAX_KEY_BYTES:
        raise ValueError(f"is longer than {MAX_KEY_BYTES} bytes")
    return " ".join(parts)


Mac = Annotated[str, AfterValidator(_mac)]
HostName = Annotated[str, AfterValidator(_host_name)]
AddressField = Annotated[Address, BeforeValidator(_address)]


# ---------------------------------------------------------------- the configuration
class Route(Message):
    """A static route: `to` a network `via` a gateway, with an optional metric."""

    to: Annotated[Network, BeforeValidator(_destination)]
    via: AddressField
    metric: Annotated[int, Field(ge=0, le=2**32 - 1)] | None = None

    @field_validator("via")
    @classmethod
    def _same_family(cls, via: Address, info: ValidationInfo) -> Address:
        to = info.data.get("to")
        if to is not None and to.version != via.version:
            raise ValueError("must be of the same IP version as 'to'")
        return via


class Interface(Message):
    """One network interface, found in the guest by `mac` or by `name`.

    With neither, it is the domain's first interface; that is allowed for a single interface only.
    """

    mac: Mac | None = None
    name: Annotated[str, AfterValidator(_nic_name)] | None = None
    addresses: Annotated[
        list[Annotated[Cidr, BeforeValidator(_cidr)]], Field(min_length=1, max_length=16)
    ]
    gateway4: AddressField | None = None
    gateway6: AddressField | None = None
    mtu: Annotated[int, Field(ge=576, le=65535)] | None = None
    routes: Annotated[list[Route], Field(max_length=MAX_ROUTES)] = []

    @field_validator("name")
    @classmethod
    def _mac_or_name(cls, name: str | None, info: ValidationInfo) -> str | None:
        if name is not None and info.data.get("mac") is not None:
            raise ValueError("must be absent where 'mac' is given: one of them finds the interface")
        return name

    @field_validator("addresses")
    @classmethod
    def _no_address_twice(cls, addresses: list[Cidr]) -> list[Cidr]:
        if len({cidr.ip for cidr in addresses}) != len(addresses):
            raise ValueError("names one address twice")
        return addresses

    @field_validator("gateway4", "gateway6")
    @classmethod
    def _gateway_in_subnet(cls, gateway: Address | None, info: ValidationInfo) -> Address | None:
        if gateway is None:
            return None
        version = 4 if info.field_name == "gateway4" else 6
        if gateway.version != version:
            raise ValueError(f"must be an IPv{version} address")
        _reachable(gateway, info.data.get("addresses"))
        return gateway

    @field_validator("mtu")
    @classmethod
    def _mtu_carries_ipv6(cls, mtu: int | None, info: ValidationInfo) -> int | None:
        has_ipv6 = any(cidr.version == 6 for cidr in info.data.get("addresses") or [])
        if mtu is not None and mtu < 1280 and has_ipv6:
            raise ValueError("must be at least 1280 on an interface with an IPv6 address")
        return mtu

    @field_validator("routes")
    @classmethod
    def _routes_in_subnet(cls, routes: list[Route], info: ValidationInfo) -> list[Route]:
        for route in routes:
            _reachable(route.via, info.data.get("addresses"))
        return routes


def _reachable(gateway: Address, addresses: list[Cidr] | None) -> None:
    """Refuse a gateway that the interface cannot reach directly; link-local IPv6 always can."""
    if addresses is None:  # the addresses themselves were refused; one error is enough
        return
    if any(cidr.ip == gateway for cidr in addresses):
        raise ValueError("is the guest's own address")
    if any(_is_no_host(gateway, cidr.network) for cidr in addresses):
        raise ValueError("is the address of the network itself or its broadcast address")
    if gateway.version == 6 and gateway.is_link_local:
        return
    if not any(c.version == gateway.version and gateway in c.network for c in addresses):
        raise ValueError("is outside the subnet of every address of this interface")


def _gateways(interfaces: list[Interface]) -> tuple[list[Address | None], list[Address | None]]:
    return [nic.gateway4 for nic in interfaces], [nic.gateway6 for nic in interfaces]


class GuestConfig(Message):
    """What the guest shall become. `hostname`, `ip` and `password` are enough.

    `ip` (with `gateway`) is the short form of one interface; `interfaces` is the long one.
    """

    hostname: HostName
    ip: Annotated[Cidr, BeforeValidator(_cidr)] | None = None
    gateway: AddressField | None = None
    interfaces: Annotated[list[Interface], Field(max_length=MAX_INTERFACES)] = []
    nameservers: Annotated[list[AddressField], Field(max_length=8)] = []
    search: Annotated[list[HostName], Field(max_length=16)] = []
    user: Annotated[str, AfterValidator(_user)] = "root"
    password: Annotated[SecretStr, AfterValidator(_password)] | None = None
    password_hash: Annotated[SecretStr, AfterValidator(_password_hash)] | None = None
    ssh_authorized_keys: Annotated[
        list[Annotated[str, AfterValidator(_ssh_key)]], Field(max_length=MAX_KEYS)
    ] = []
    timezone: Annotated[str, AfterValidator(_zone)] | None = None

    @field_validator("gateway")
    @classmethod
    def _gateway_of_ip(cls, gateway: Address | None, info: ValidationInfo) -> Address | None:
        if gateway is not None:
            ip = info.data.get("ip")
            if ip is None:
                raise ValueError("goes with 'ip'; an interface has gateway4 and gateway6")
            _reachable(gateway, [ip])
        return gateway

    @field_validator("interfaces")
    @classmethod
    def _interfaces_told_apart(cls, value: list[Interface], info: ValidationInfo) -> Any:
        if value and info.data.get("ip") is not None:
            raise ValueError("must be absent where 'ip' is given: one of the two forms")
        selectors = [nic.mac or nic.name for nic in value]
        if len(value) > 1 and None in selectors:
            raise ValueError("each need a 'mac' or a 'name' where there are several")
        if len(set(selectors)) != len(selectors):
            raise ValueError("names one interface twice")
        if any(sum(gateway is not None for gateway in of) > 1 for of in _gateways(value)):
            raise ValueError("have more than one gateway4 or gateway6: there is one default route")
        routes = [(route.to, route.metric) for nic in value for route in nic.routes]
        if len(set(routes)) != len(routes):
            raise ValueError("have two routes to one network with one metric")
        return value

    @field_validator("ssh_authorized_keys")
    @classmethod
    def _keys_fit(cls, keys: list[str]) -> list[str]:
        if sum(len(key.encode()) for key in keys) > MAX_KEYS_BYTES:
            raise ValueError(f"have more than {MAX_KEYS_BYTES} bytes together")
        return keys

    @field_validator("password_hash")
    @classmethod
    def _one_password(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if value is not None and info.data.get("password") is not None:
            raise ValueError("must be absent where 'password' is given")
        return value

    def all_interfaces(self) -> list[Interface]:
        """The interfaces in their long form, whichever form the request used."""
        if self.ip is None:
            return self.interfaces
        gateway4 = self.gateway if isinstance(self.gateway, IPv4Address) else None
        gateway6 = self.gateway if isinstance(self.gateway, IPv6Address) else None
        return [Interface(addresses=[self.ip], gateway4=gateway4, gateway6=gateway6)]

    def with_password_hash(self, password_hash: SecretStr) -> Self:
        """The same configuration with the clear password replaced by its hash."""
        return self.model_copy(update={"password": None, "password_hash": password_hash})
