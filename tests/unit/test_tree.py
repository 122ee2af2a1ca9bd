"""The files on the ISO, read by those that will read them: the guest's script, and YAML."""

import base64
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from provisiond.api.guest_config import (
    MAX_INTERFACES,
    MAX_KEY_BYTES,
    MAX_KEYS_BYTES,
    MAX_ROUTES,
    GuestConfig,
)
from provisiond.iso.tree import VOLUME_LABEL, Identity, build_tree

NONCE = "0123456789abcdef0123456789abcdef"
UUID = "5f3a0f5e-2a6b-4d5c-9d8e-0f6a1c2b3d4e"
WHO = Identity(NONCE, UUID, 7)
MAC = "52:54:00:12:34:56"
HASH = "$6$saltsalt$" + "./aZ" * 21 + "xy"
SCRIPT = Path(__file__).resolve().parents[2] / "guest-agent" / "provision-guest"


def ssh_key(comment: str) -> str:
    name = b"ssh-ed25519"
    blob = struct.pack(">I", len(name)) + name + struct.pack(">I", 32) + bytes(range(32))
    return f"ssh-ed25519 {base64.b64encode(blob).decode()} {comment}"


MINIMUM = GuestConfig.model_validate(
    {"hostname": "web1", "ip": "192.0.2.10/24", "password_hash": HASH}
)
FULL = GuestConfig.model_validate(
    {
        "hostname": "web1.example.org",
        "interfaces": [
            {
                "mac": "52:54:00:00:00:01",
                "addresses": ["192.0.2.10/24", "2001:db8::10/64"],
                "gateway4": "192.0.2.1",
                "gateway6": "fe80::1",
                "mtu": 9000,
                "routes": [
                    {"to": "203.0.113.0/24", "via": "192.0.2.2", "metric": 50},
                    {"to": "2001:db8:1::/48", "via": "2001:db8::2"},
                ],
            },
            {"name": "eth1", "addresses": ["198.51.100.7/25"]},
        ],
        "nameservers": ["192.0.2.53", "2001:db8::53"],
        "search": ["example.org", "example.net"],
        "user": "operator",
        "password_hash": HASH,
        "ssh_authorized_keys": [ssh_key("me@box"), ssh_key("Jürgen = #1 'quoted' \\ $(id)")],
        "timezone": "Europe/Vienna",
    }
)


def conf_of(config: GuestConfig, *, first_mac: str | None = MAC) -> str:
    return build_tree(config, WHO, first_mac=first_mac)["provision.conf"].decode()


def yaml_of(config: GuestConfig, name: str, *, first_mac: str | None = MAC) -> Any:
    return yaml.safe_load(build_tree(config, WHO, first_mac=first_mac)[name])


# ---------------------------------------------------------------- provision.conf
def test_the_minimum_makes_these_lines() -> None:
    assert conf_of(MINIMUM).splitlines() == [
        "FORMAT=1",
        f"NONCE={NONCE}",
        f"INSTANCE={UUID}",
        "GENERATION=7",
        "HOSTNAME=web1",
        f"IF0_MAC={MAC}",
        "IF0_ADDRESSES=192.0.2.10/24",
        "USER=root",
        f"PASSWORD_HASH={HASH}",
    ]


def test_all_there_is_makes_these_lines() -> None:
    assert conf_of(FULL).splitlines() == [
        "FORMAT=1",
        f"NONCE={NONCE}",
        f"INSTANCE={UUID}",
        "GENERATION=7",
        "HOSTNAME=web1",
        "FQDN=web1.example.org",
        "IF0_MAC=52:54:00:00:00:01",
        "IF0_ADDRESSES=192.0.2.10/24 2001:db8::10/64",
        "IF0_GATEWAY4=192.0.2.1",
        "IF0_GATEWAY6=fe80::1",
        "IF0_MTU=9000",
        "IF0_ROUTES=203.0.113.0/24,192.0.2.2,50 2001:db8:1::/48,2001:db8::2,",
        "IF1_NAME=eth1",
        "IF1_ADDRESSES=198.51.100.7/25",
        "DNS=192.0.2.53 2001:db8::53",
        "SEARCH=example.org example.net",
        "USER=operator",
        f"PASSWORD_HASH={HASH}",
        f"SSH_KEY0={ssh_key('me@box')}",
        "SSH_KEY1=" + ssh_key("Jürgen = #1 'quoted' \\ $(id)"),
        "TIMEZONE=Europe/Vienna",
    ]


def test_a_domain_without_an_interface_leaves_the_choice_to_the_guest() -> None:
    lines = conf_of(MINIMUM, first_mac=None).splitlines()
    assert "IF0_ADDRESSES=192.0.2.10/24" in lines
    assert not [line for line in lines if line.startswith(("IF0_MAC", "IF0_NAME"))]


def test_a_clear_password_never_gets_into_a_tree() -> None:
    config = GuestConfig(hostname="web1", password=SecretStr("hunter2"))
    with pytest.raises(ValueError, match="clear password") as caught:
        build_tree(config, WHO, first_mac=MAC)
    assert "hunter2" not in str(caught.value)


def read_by_the_script(conf: bytes, folder: Path) -> tuple[str, dict[str, str]]:
    """What the guest's own functions find wrong, and the value that they read for each key."""
    text = SCRIPT.read_text()
    functions, start, _ = text.partition("\ncase $#:")  # from here on it works
    assert start
    (folder / "functions").write_text(functions)
    (folder / "provision.conf").write_bytes(conf)
    keys = [line.partition(b"=")[0].decode() for line in conf.splitlines()]
    program = (
        f". {folder}/functions; read_config {folder}/provision.conf; printf '%s\\n' \"$problem\";"
        'for key; do value_of "$key"; printf \'%s\\n\' "$value"; done'
    )
    said = subprocess.run(
        ["sh", "-c", program, "sh", *keys], stdout=subprocess.PIPE, timeout=60, check=True
    ).stdout.decode()
    problem, *values = said.removesuffix("\n").split("\n")
    return problem, dict(zip(keys, values, strict=True))


@pytest.mark.parametrize("config", [MINIMUM, FULL])
def test_the_guests_script_reads_what_was_written(config: GuestConfig, tmp_path: Path) -> None:
    conf = build_tree(config, WHO, first_mac=MAC)["provision.conf"]
    problem, values = read_by_the_script(conf, tmp_path)
    assert problem == ""
    written = dict(line.split("=", 1) for line in conf.decode().splitlines())
    assert values == written


def test_the_guests_script_reads_the_largest_configuration_that_is_taken(tmp_path: Path) -> None:
    long = "2001:db8:ffff:ffff:ffff:ffff:ffff:"  # with four digits more, the longest address
    nic = {
        "addresses": [f"{long}{number:x}/112" for number in range(0xFF00, 0xFF10)],
        "gateway6": None,
        "mtu": 65535,
    }
    count, longest = MAX_KEYS_BYTES // MAX_KEY_BYTES, MAX_KEY_BYTES - len(ssh_key(""))
    config = GuestConfig.model_validate(
        {
            "hostname": ".".join(["a" * 61] * 4),
            "interfaces": [
                nic
                | {
                    "mac": f"52:54:00:00:00:{number:02x}",
                    "routes": [
                        {
                            "to": f"{long}fff0/124",
                            "via": f"{long}ffff",
                            "metric": 2**32 - 1 - (number * MAX_ROUTES + count),
                        }
                        for count in range(MAX_ROUTES)
                    ],
                }
                for number in range(MAX_INTERFACES)
            ],
            "nameservers": [f"{long}{number:x}" for number in range(0xFF00, 0xFF08)],
            "search": [".".join(["b" * 63, "c" * 63, "d" * 63, "e" * 61])] * 16,
            "user": "u" * 32,
            "password_hash": "$6$" + "x" * 480,
            "ssh_authorized_keys": [ssh_key("k" * longest)] * count,
            "timezone": "E/" + "V" * 62,
        }
    )
    conf = build_tree(config, Identity(NONCE, UUID, 2**53), first_mac=None)["provision.conf"]
    problem, values = read_by_the_script(conf, tmp_path)
    assert problem == ""
    assert values == dict(line.split("=", 1) for line in conf.decode().splitlines())


# What a master may try; most of it is refused at the door, and the rest must stay on its line.
HOSTILE = st.text(
    st.sampled_from("\n\r\t\0\x0b\x1b\x85\u2028\ufeff =#'\"\\$`;&|%:{}[]-.,/aA0é🙂"), max_size=12
)
FIELDS = [
    *("hostname", "ip", "gateway", "user", "timezone", "password_hash"),
    *("nameservers", "search", "ssh_authorized_keys"),
]


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=200)
@given(field=st.sampled_from(FIELDS), text=HOSTILE, right_start=st.booleans())
def test_no_value_can_add_a_line(field: str, text: str, right_start: bool) -> None:
    starts = {
        "hostname": "web1",
        "ip": "fe80::1%",
        "gateway": "192.0.2.1",
        "user": "root",
        "timezone": "Europe/Vienna",
        "password_hash": HASH,
        "nameservers": "fe80::1%",
        "search": "example.org",
        "ssh_authorized_keys": ssh_key("me"),
    }
    value = starts[field] + text if right_start else text
    lists = ("nameservers", "search", "ssh_authorized_keys")
    asked: dict[str, Any] = {"hostname": "web1", "ip": "192.0.2.10/24"}
    asked[field] = [value] if field in lists else value + ("/64" if field == "ip" else "")
    try:
        config = GuestConfig.model_validate(asked)
    except ValidationError:
        return  # refused: test_messages.py says why
    lines = conf_of(config).split("\n")
    keys = {
        *("FORMAT", "NONCE", "INSTANCE", "GENERATION", "HOSTNAME", "FQDN", "IF0_MAC"),
        *("IF0_ADDRESSES", "IF0_GATEWAY4", "DNS", "SEARCH", "USER", "PASSWORD_HASH", "SSH_KEY0"),
        *("TIMEZONE", ""),
    }
    assert {line.partition("=")[0] for line in lines} <= keys
    assert len({line.partition("=")[0] for line in lines}) == len(lines)
    for name in ("user-data", "meta-data", "network-config"):
        assert isinstance(yaml_of(config, name), dict)


# ---------------------------------------------------------------- NoCloud
def test_the_minimum_reads_as_this_nocloud() -> None:
    assert yaml_of(MINIMUM, "meta-data") == {
        "instance-id": f"{UUID}-7",
        "local-hostname": "web1",
    }
    assert yaml_of(MINIMUM, "user-data") == {
        "hostname": "web1",
        "preserve_hostname": False,
        "ssh_pwauth": True,
        "chpasswd": {
            "expire": False,
            "users": [{"name": "root", "password": HASH, "type": "hash"}],
        },
        "disable_root": False,
        "users": [{"name": "root", "lock_passwd": False}],
    }
    assert yaml_of(MINIMUM, "network-config") == {
        "version": 2,
        "ethernets": {
            "provisioned-nic-0": {
                "match": {"macaddress": MAC},
                "dhcp4": False,
                "dhcp6": False,
                "addresses": ["192.0.2.10/24"],
            }
        },
    }


def test_all_there_is_reads_as_this_nocloud() -> None:
    assert yaml_of(FULL, "user-data") == {
        "hostname": "web1",
        "fqdn": "web1.example.org",
        "preserve_hostname": False,
        "ssh_pwauth": True,
        "chpasswd": {
            "expire": False,
            "users": [{"name": "operator", "password": HASH, "type": "hash"}],
        },
        "disable_root": True,
        "users": [
            {
                "name": "operator",
                "lock_passwd": False,
                "ssh_authorized_keys": FULL.ssh_authorized_keys,
            }
        ],
        "timezone": "Europe/Vienna",
    }
    servers = {
        "addresses": ["192.0.2.53", "2001:db8::53"],
        "search": ["example.org", "example.net"],
    }
    assert yaml_of(FULL, "network-config")["ethernets"] == {
        "provisioned-nic-0": {
            "match": {"macaddress": "52:54:00:00:00:01"},
            "dhcp4": False,
            "dhcp6": False,
            "addresses": ["192.0.2.10/24", "2001:db8::10/64"],
            "routes": [
                {"to": "0.0.0.0/0", "via": "192.0.2.1"},
                {"to": "::/0", "via": "fe80::1"},
                {"to": "203.0.113.0/24", "via": "192.0.2.2", "metric": 50},
                {"to": "2001:db8:1::/48", "via": "2001:db8::2"},
            ],
            "mtu": 9000,
            "nameservers": servers,
        },
        "eth1": {
            "dhcp4": False,
            "dhcp6": False,
            "addresses": ["198.51.100.7/25"],
            "nameservers": servers,
        },
    }


def test_cloud_inits_user_data_starts_with_its_mark() -> None:
    tree = build_tree(MINIMUM, WHO, first_mac=MAC)
    assert tree["user-data"].startswith(b"#cloud-config\n")
    assert list(tree) == [
        *("provision.conf", "README.TXT", "meta-data", "user-data", "network-config")
    ]
    assert VOLUME_LABEL == "PROVISION"


def test_without_interfaces_the_guests_network_is_not_spoken_of() -> None:
    config = GuestConfig(hostname="web1", password_hash=SecretStr(HASH))
    tree = build_tree(config, WHO, first_mac=MAC)
    assert "network-config" not in tree
    assert b"IF0" not in tree["provision.conf"]


def test_no_name_of_an_interface_hides_another_interface() -> None:
    names = ["nic1", "nic0", "provisioned-nic"]
    interfaces: list[dict[str, object]] = [
        {"name": name, "addresses": [f"192.0.2.{number}/24"]}
        for number, name in enumerate(names, 1)
    ]
    interfaces.insert(1, {"mac": MAC, "addresses": ["198.51.100.7/24"]})
    config = GuestConfig.model_validate({"hostname": "web1", "interfaces": interfaces})
    assert len(yaml_of(config, "network-config")["ethernets"]) == len(interfaces)


def test_the_same_arguments_give_the_same_bytes() -> None:
    trees = [build_tree(FULL, WHO, first_mac=MAC) for _ in range(2)]
    assert trees[0] == trees[1]
