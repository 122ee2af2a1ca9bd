"""Each golden image, from its first boot to a second one, as the table at the end shows it."""

import json
import re
import subprocess
import time
from pathlib import Path

import pytest
from pydantic import SecretStr

from provisiond.api.guest_config import GuestConfig
from provisiond.guest.verdict import Done
from provisiond.iso.image import build_image
from provisiond.iso.tree import Identity, build_tree
from provisiond.password import hash_password
from tests.guest.machine import INSTANCE, LOG_FILE, MACS, NONCE, STATE_FILE
from tests.systems.conftest import NewRow
from tests.systems.golden import SYSTEMS, USER, StartUp, System
from tests.systems.machine import Boot, installed

PATIENCE = 120  # seconds, for a busy machine; what is waited for comes in a few
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGJQUWd5a3h1d2R0c3JxcG9ubWxramloZ2ZlZGNi one@example"
ZONE = "Europe/Vienna"
ADDRESSES = {
    "eth0": {"10.0.0.5/24", "10.0.0.6/24", "fd00::5/64"},
    "eth1": {"192.168.7.2/30"},
}
ROUTES = {
    "eth0": {
        ("default", "10.0.0.1"),
        ("10.1.0.0/16", "10.0.0.254"),
        ("default", "fd00::1"),
        ("fd01::/64", "fd00::fe"),
    },
    "eth1": {("192.168.8.0/24", "192.168.7.1")},
}
MTU = {"eth0": 1400, "eth1": 1500}
SERVERS = ["10.0.0.1", "fd00::53"]

# The images are made first, where the cache has none.
pytestmark = pytest.mark.timeout(1800)


def config(system: System, password_hash: SecretStr) -> GuestConfig:
    return GuestConfig.model_validate(
        {
            "hostname": "web1.example.org",
            "interfaces": [
                {
                    **({"name": nic} if system.cards_by_name else {"mac": mac}),
                    "addresses": sorted(ADDRESSES[nic]),
                    "mtu": MTU[nic] if MTU[nic] != 1500 else None,
                    "gateway4": gateway_of(nic, "."),
                    "gateway6": gateway_of(nic, ":"),
                    "routes": [
                        {"to": to, "via": via} for to, via in sorted(ROUTES[nic]) if to != "default"
                    ],
                }
                for nic, mac in zip(ADDRESSES, MACS, strict=True)
            ],
            "nameservers": SERVERS,
            "search": ["example.org"],
            "user": USER,
            "password_hash": password_hash,
            "ssh_authorized_keys": [KEY],
            "timezone": ZONE,
        }
    )


def gateway_of(nic: str, mark: str) -> str | None:
    found = [via for to, via in ROUTES[nic] if to == "default" and mark in via]
    return found[0] if found else None


def write_iso(path: Path, system: System, password_hash: SecretStr) -> Path:
    """The ISO that provisiond itself would write."""
    identity = Identity(nonce=NONCE, instance=INSTANCE, generation=1)
    tree = build_tree(config(system, password_hash), identity, first_mac=MACS[0])
    path.write_bytes(build_image(tree))
    return path


@pytest.mark.parametrize("system", SYSTEMS, ids=[system.name for system in SYSTEMS])
def test_a_late_disk_configures_it_and_the_next_boot_needs_no_disk(
    system: System, golden: dict[str, Path], tmp_path: Path, new_row: NewRow
) -> None:
    row = new_row(system.init, system.network)
    password_hash = hash_password(SecretStr("correct horse"))
    iso = write_iso(tmp_path / "config.iso", system, password_hash)
    with installed(system, golden[system.name]) as machine:
        with machine.booted() as boot:  # the boot has ended, and there is no disk yet
            row.booted = boot.seconds
            assert boot.hardware.hello(within=PATIENCE).version
            assert "provision-guest" not in boot.run("ls", "/var/lib").split()
            image = identity_of(boot)
            started = time.monotonic()
            with boot.hardware.disk(boot.container, iso):
                assert boot.hardware.verdict(NONCE, within=PATIENCE) == Done()
            row.configured = time.monotonic() - started
            check_settings(boot, password_hash)
            check_network(boot, system)
            own = identity_of(boot)
            assert not own & image
            boot.power_off()
        with machine.booted() as boot:
            check_settings(boot, password_hash)
            eventually(boot, system)
            row.second_boot = boot.seconds
            with boot.hardware.disk(boot.container, iso):
                assert boot.hardware.verdict(NONCE, within=PATIENCE) == Done()
            assert identity_of(boot) == own
            log = boot.read(LOG_FILE)
            assert log.count("done: everything was applied and read back") == 1
            assert log.count("this configuration is applied already") == 1
            check_network(boot, system)
            check_control(boot, system.start_up)
            boot.power_off()
    row.passed = True


def check_control(boot: Boot, start_up: StartUp) -> None:
    """An operator's own words for the service do what they say."""
    if not start_up.status:
        return  # rc.local has none
    assert boot.succeeds(start_up.status)
    assert boot.succeeds(start_up.stop)
    assert not boot.succeeds(start_up.status)
    assert not boot.succeeds("grep -l 'sbin/provision[-]guest' /proc/[0-9]*/cmdline")
    assert boot.succeeds(start_up.start)
    boot.hardware.hello(within=PATIENCE)
    assert boot.succeeds(start_up.status)


def identity_of(boot: Boot) -> set[str]:
    """What no two machines may share: the public host keys, the machine-id."""
    machine_id = "[ ! -s /etc/machine-id ] || cat /etc/machine-id"
    said = boot.run("sh", "-c", f"cat /etc/ssh/ssh_host_*.pub; {machine_id}")
    lines = set(said.splitlines())
    assert len(lines) >= 3
    return lines


def check_settings(boot: Boot, password_hash: SecretStr) -> None:
    assert boot.run("hostname") == "web1\n"
    assert boot.read("/etc/hostname") == "web1\n"
    assert "\n127.0.1.1 web1.example.org web1\n" in boot.read("/etc/hosts")
    entries = dict(line.split(":")[:2] for line in boot.read("/etc/shadow").splitlines())
    assert entries[USER] == password_hash.get_secret_value()
    assert f"\n{KEY}\n" in boot.read(f"/home/{USER}/.ssh/authorized_keys")
    assert boot.run("readlink", "/etc/localtime") == f"/usr/share/zoneinfo/{ZONE}\n"
    assert boot.read(STATE_FILE) == f"{INSTANCE} 1 {NONCE}\n"


def check_network(boot: Boot, system: System) -> None:
    """What was asked for and nothing else, from one owner; and the street answers."""
    for nic, addresses in ADDRESSES.items():
        (link,) = json.loads(boot.run("ip", "-json", "addr", "show", "dev", nic))
        found = {
            f"{info['local']}/{info['prefixlen']}"
            for info in link["addr_info"]
            if info["scope"] == "global" and not info.get("tentative")
        }
        assert (nic, found, link["mtu"]) == (nic, addresses, MTU[nic])
        assert (nic, routes_through(boot, nic)) == (nic, ROUTES[nic])
    servers = re.findall(r"^nameserver (\S+)$", boot.read(system.resolv_conf), re.MULTILINE)
    assert servers == SERVERS
    names = boot.run("find", "/etc", "-name", "*provision*", "-type", "f").split()
    assert sorted(names) == sorted(f"/{name}" for name in expected_files(system))
    for address in ("10.0.0.1", "fd00::1", "192.168.7.1"):
        boot.run("ping", "-c", "1", "-W", "10", address)


def routes_through(boot: Boot, nic: str) -> set[tuple[str, str]]:
    return {
        (route["dst"], route["gateway"])
        for family in ("-4", "-6")
        for route in json.loads(boot.run("ip", "-json", family, "route", "show", "dev", nic))
        if "gateway" in route
    }


def expected_files(system: System) -> list[str]:
    start_up = system.start_up.path
    return [*system.ours, *([start_up] if "provision" in start_up else [])]


def eventually(boot: Boot, system: System) -> None:
    """The owner of the network works beside the boot: a login can come before the last address."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            check_network(boot, system)
        except (AssertionError, subprocess.CalledProcessError):
            if time.monotonic() > until:
                raise
            time.sleep(0.2)
        else:
            return
