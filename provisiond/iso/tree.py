"""What stands on the config ISO: a request's configuration as the files that a guest reads.

`provision.conf` is for our own script: whitelisted `KEY=value` lines that POSIX sh reads without
eval. The three NoCloud files say the same to a tool that knows NoCloud; they are JSON, which is
YAML. Pure.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from provisiond.api.guest_config import GuestConfig, Interface

VOLUME_LABEL = "PROVISION"

_README = """\
This disk configures this machine once. The host attached it while the machine was running; it is
read-only, is never mounted again after it was read, and the host detaches and destroys it as soon
as the machine has reported that it is configured.

provision.conf   read by /usr/sbin/provision-guest, a plain shell script that you can read; one
                 KEY=value a line, taken literally, nothing on this disk is ever executed
meta-data, user-data, network-config
                 the same for tools that know NoCloud (network-config is version 2)

The password stands here as its crypt(5) hash only.
"""


@dataclass(frozen=True, slots=True)
class Identity:
    """Which job, domain and generation a configuration belongs to; the guest compares all three."""

    nonce: str
    instance: str
    generation: int


def build_tree(
    config: GuestConfig, identity: Identity, *, first_mac: str | None
) -> dict[str, bytes]:
    """The files on the ISO, name to content; the same arguments give the same bytes.

    `first_mac` is the MAC of the domain's first interface: an interface that the request names
    neither by MAC nor by name is that one. The clear password must have been replaced by its hash
    before.
    """
    if config.password is not None:
        raise ValueError("a clear password must never reach the ISO")
    interfaces = [_with_selector(nic, first_mac) for nic in config.all_interfaces()]
    tree = {
        "provision.conf": _provision_conf(config, identity, interfaces),
        "README.TXT": _README.encode(),
        "meta-data": _json(_meta_data(config, identity)),
        "user-data": b"#cloud-config\n" + _json(_user_data(config)),
    }
    if interfaces:  # an empty one would take the guest's DHCP away
        tree["network-config"] = _json(_network_config(config, interfaces))
    return tree


def _with_selector(nic: Interface, first_mac: str | None) -> Interface:
    if nic.mac is None and nic.name is None and first_mac is not None:
        return nic.model_copy(update={"mac": first_mac})
    return nic


# ---------------------------------------------------------------- for provision-guest
def _provision_conf(config: GuestConfig, identity: Identity, interfaces: list[Interface]) -> bytes:
    short, _, suffix = config.hostname.partition(".")
    pairs: list[tuple[str, object]] = [
        ("FORMAT", 1),
        ("NONCE", identity.nonce),
        ("INSTANCE", identity.instance),
        ("GENERATION", identity.generation),
        ("HOSTNAME", short),
        ("FQDN", config.hostname if suffix else None),
    ]
    for number, nic in enumerate(interfaces):
        pairs += [(f"IF{number}_{key}", value) for key, value in _interface_pairs(nic)]
    pairs += [
        ("DNS", " ".join(map(str, config.nameservers))),
        ("SEARCH", " ".join(config.search)),
        ("USER", config.user),
    ]
    if config.password_hash is not None:
        pairs.append(("PASSWORD_HASH", config.password_hash.get_secret_value()))
    pairs += [(f"SSH_KEY{number}", key) for number, key in enumerate(config.ssh_authorized_keys)]
    pairs.append(("TIMEZONE", config.timezone))
    lines = [f"{key}={value}\n" for key, value in pairs if value is not None and value != ""]
    return "".join(lines).encode()


def _interface_pairs(nic: Interface) -> list[tuple[str, object]]:
    routes = [f"{r.to},{r.via},{'' if r.metric is None else r.metric}" for r in nic.routes]
    return [
        ("MAC", nic.mac),
        ("NAME", nic.name),
        ("ADDRESSES", " ".join(map(str, nic.addresses))),
        ("GATEWAY4", nic.gateway4),
        ("GATEWAY6", nic.gateway6),
        ("MTU", nic.mtu),
        ("ROUTES", " ".join(routes)),
    ]


# ---------------------------------------------------------------- for NoCloud
def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def _meta_data(config: GuestConfig, identity: Identity) -> dict[str, Any]:
    return {
        "instance-id": f"{identity.instance}-{identity.generation}",
        "local-hostname": config.hostname,
    }


def _user_data(config: GuestConfig) -> dict[str, Any]:
    short, _, suffix = config.hostname.partition(".")
    data: dict[str, Any] = {"hostname": short, "preserve_hostname": False}
    if suffix:
        data["fqdn"] = config.hostname
    user: dict[str, Any] = {"name": config.user}
    if config.password_hash is not None:
        hashed = config.password_hash.get_secret_value()
        user["lock_passwd"] = False
        data["ssh_pwauth"] = True
        # `users: hashed_passwd` is ignored for a user that exists; chpasswd is not.
        data["chpasswd"] = {
            "expire": False,
            "users": [{"name": config.user, "password": hashed, "type": "hash"}],
        }
    if config.ssh_authorized_keys:
        user["ssh_authorized_keys"] = list(config.ssh_authorized_keys)
    data["disable_root"] = config.user != "root"
    data["users"] = [user]
    if config.timezone is not None:
        data["timezone"] = config.timezone
    return data


def _network_config(config: GuestConfig, interfaces: list[Interface]) -> dict[str, Any]:
    ethernets: dict[str, Any] = {}
    for number, nic in enumerate(interfaces):
        # The key of one found by MAC only has to be unique: longer than any interface's name.
        ethernets[nic.name or f"provisioned-nic-{number}"] = _ethernet(config, nic)
    return {"version": 2, "ethernets": ethernets}


def _ethernet(config: GuestConfig, nic: Interface) -> dict[str, Any]:
    entry: dict[str, Any] = {}
    if nic.name is None:
        entry["match"] = {"macaddress": nic.mac} if nic.mac else {"name": "e*"}
    entry["dhcp4"] = entry["dhcp6"] = False
    entry["addresses"] = [str(address) for address in nic.addresses]
    routes: list[dict[str, Any]] = []
    if nic.gateway4 is not None:
        routes.append({"to": "0.0.0.0/0", "via": str(nic.gateway4)})
    if nic.gateway6 is not None:
        routes.append({"to": "::/0", "via": str(nic.gateway6)})
    for route in nic.routes:
        metric = {} if route.metric is None else {"metric": route.metric}
        routes.append({"to": str(route.to), "via": str(route.via), **metric})
    if routes:
        entry["routes"] = routes
    if nic.mtu is not None:
        entry["mtu"] = nic.mtu
    if config.nameservers or config.search:
        entry["nameservers"] = {
            "addresses": [str(server) for server in config.nameservers],
            "search": list(config.search),
        }
    return entry
