"""The network at the next boot: one renderer, a file of ours alone, and never somebody else's."""

from pathlib import Path

import pytest

from tests.guest.conftest import MakeMachine
from tests.guest.machine import MACS, Machine, package
from tests.guest.machine import configuration as conf
from tests.guest.test_apply import FULL, check_network

FIRST_LINE = "# Written by provision-guest; replaced at the next provisioning.\n"
NETWORKD = {
    "05-provision-0.network": """\
[Match]
MACAddress=52:54:00:00:00:01
Type=ether

[Link]
MTUBytes=1400

[Network]
DHCP=no
IPv6AcceptRA=no
Address=10.0.0.5/24
Address=10.0.0.6/24
Address=fd00::5/64
DNS=10.0.0.1
DNS=fd00::53
Domains=example.org
Domains=lan

[Route]
Destination=0.0.0.0/0
Gateway=10.0.0.1

[Route]
Destination=::/0
Gateway=fd00::1

[Route]
Destination=10.1.0.0/16
Gateway=10.0.0.254
Metric=100

[Route]
Destination=fd01::/64
Gateway=fd00::fe

[Route]
Destination=fd02::7/128
Gateway=fd00::fe
""",
    "05-provision-1.network": """\
[Match]
MACAddress=52:54:00:00:00:02
Type=ether

[Network]
DHCP=no
IPv6AcceptRA=no
Address=192.168.7.2/30

[Route]
Destination=192.168.8.0/24
Gateway=192.168.7.1

[Route]
Destination=192.168.9.7/32
Gateway=192.168.7.1
""",
}
KEYFILES = {
    "provision-0.nmconnection": """\
[connection]
id=provision-0
type=ethernet
autoconnect-priority=999

[ethernet]
mac-address=52:54:00:00:00:01
mtu=1400

[ipv4]
method=manual
address1=10.0.0.5/24
address2=10.0.0.6/24
gateway=10.0.0.1
route1=10.1.0.0/16,10.0.0.254,100
dns=10.0.0.1;
dns-search=example.org;lan;

[ipv6]
method=manual
address1=fd00::5/64
gateway=fd00::1
route1=fd01::/64,fd00::fe
route2=fd02::7/128,fd00::fe
dns=fd00::53;
dns-search=example.org;lan;
""",
    "provision-1.nmconnection": """\
[connection]
id=provision-1
type=ethernet
autoconnect-priority=999

[ethernet]
mac-address=52:54:00:00:00:02

[ipv4]
method=manual
address1=192.168.7.2/30
route1=192.168.8.0/24,192.168.7.1
route2=192.168.9.7/32,192.168.7.1

[ipv6]
method=link-local
""",
}
INTERFACES = """
auto eth0
iface eth0 inet manual
    up echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_ra || true
    up ip link set dev eth0 down
    up ip addr flush dev eth0 || ip addr flush dev eth0
    up ip link set dev eth0 mtu 1400
    up ip link set dev eth0 up
    up ip addr replace 10.0.0.5/24 dev eth0
    up ip addr replace 10.0.0.6/24 dev eth0
    up ip addr replace fd00::5/64 dev eth0
    up ip -4 route replace 0.0.0.0/0 via 10.0.0.1 dev eth0
    up ip -4 route replace 10.1.0.0/16 via 10.0.0.254 dev eth0 metric 100
    up ip -6 route replace ::/0 via fd00::1 dev eth0
    up ip -6 route replace fd01::/64 via fd00::fe dev eth0
    up ip -6 route replace fd02::7/128 via fd00::fe dev eth0
    down ip link set dev eth0 down

auto eth1
iface eth1 inet manual
    up echo 0 >/proc/sys/net/ipv6/conf/eth1/accept_ra || true
    up ip link set dev eth1 down
    up ip addr flush dev eth1 || ip addr flush dev eth1
    up ip link set dev eth1 up
    up ip addr replace 192.168.7.2/30 dev eth1
    up ip -4 route replace 192.168.8.0/24 via 192.168.7.1 dev eth1
    up ip -4 route replace 192.168.9.7/32 via 192.168.7.1 dev eth1
    down ip link set dev eth1 down
"""


def files_in(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def with_ifup(machine: Machine) -> Machine:
    """The renderer is busybox's ifup: nothing else is enabled."""
    if machine.kind == "system":
        machine.disable("systemd-networkd.service")
        ifup = (package("busybox-static") / "bin/busybox").read_bytes()
        machine.write("/usr/local/bin/busybox", ifup, mode=0o755)
        machine.write(
            "/usr/sbin/ifup", '#!/bin/sh\nexec /usr/local/bin/busybox ifup "$@"\n', mode=0o755
        )
    return machine


@pytest.mark.parametrize("shell", ["dash", "bash"])
def test_systemd_networkd(make_machine: MakeMachine, shell: str) -> None:
    machine = make_machine(shell)
    others = machine.path("/etc/systemd/network")
    before = {name: (others / name).read_text() for name in files_in(others)}
    assert machine.provision(FULL).status == 0
    ours = {name: FIRST_LINE + text for name, text in NETWORKD.items()}
    assert files_in(others) == before | ours
    assert {(others / name).stat().st_mode & 0o7777 for name in ours} == {0o644}


@pytest.mark.parametrize("shell", ["dash", "bash"])
def test_network_manager(make_machine: MakeMachine, shell: str) -> None:
    machine = make_machine(shell)
    machine.disable("systemd-networkd.service")
    machine.enable("NetworkManager.service")
    folder = "/etc/NetworkManager/system-connections"
    machine.write(f"{folder}/customer.nmconnection", "[connection]\nid=customer\n", mode=0o600)
    outcome = machine.provision(FULL)
    assert outcome.status == 0
    found = files_in(machine.path(folder))
    assert found.pop("customer.nmconnection") == "[connection]\nid=customer\n"
    assert found == {name: FIRST_LINE + text for name, text in KEYFILES.items()}
    modes = {path.stat().st_mode & 0o7777 for path in machine.path(folder).iterdir()}
    assert modes == {0o600}
    assert not machine.path("/etc/resolv.conf").exists(), "it is NetworkManager's"


def test_an_interface_by_name_is_matched_by_name(system: Machine) -> None:
    text = conf(IF0_NAME="eth1", IF0_ADDRESSES="10.0.0.5/24")
    assert system.provision(text).status == 0
    written = system.read("/etc/systemd/network/05-provision-0.network")
    assert "[Match]\nName=eth1\n\n" in written


def test_ifupdown_reads_our_file_from_its_directory(machine: Machine) -> None:
    with_ifup(machine)
    main = "auto lo\niface lo inet loopback\nsource /etc/network/interfaces.d/*\n"
    machine.write("/etc/network/interfaces", main)
    assert machine.provision(FULL).status == 0
    assert machine.read("/etc/network/interfaces") == main
    assert machine.read("/etc/network/interfaces.d/provision") == FIRST_LINE + INTERFACES


def test_ifup_brings_the_same_network_back_after_a_boot(machine: Machine) -> None:
    with_ifup(machine)
    assert machine.provision(FULL).status == 0
    text = machine.read("/etc/network/interfaces")
    assert text == FIRST_LINE + "auto lo\niface lo inet loopback\n" + INTERFACES
    for name in ("if-pre-up.d", "if-up.d"):  # this ifup runs what stands there
        machine.run("mkdir", "-p", f"/etc/network/{name}", "/var/run")
    for nic in ("lo", "eth0", "eth1"):
        machine.run("ip", "link", "set", "dev", nic, "down")
        flush = f"ip addr flush dev {nic}"
        machine.run("sh", "-c", f"{flush} || {flush}")
    machine.run("ip", "link", "set", "dev", "eth0", "mtu", "1500")
    assert machine.addresses("eth0") == []
    machine.run("ifup", "-a")
    check_network(machine)


def test_an_interfaces_file_of_somebody_else_is_not_touched(machine: Machine) -> None:
    with_ifup(machine)
    main = "auto eth0\niface eth0 inet dhcp\n"
    machine.write("/etc/network/interfaces", main)
    outcome = machine.provision(FULL)
    assert (outcome.status, outcome.failed_step) == (1, "persist")
    assert "/etc/network/interfaces is not ours" in outcome.log
    assert machine.read("/etc/network/interfaces") == main


def test_an_interface_is_never_configured_twice(machine: Machine) -> None:
    with_ifup(machine)
    main = "source /etc/network/interfaces.d/*\n"
    machine.write("/etc/network/interfaces", main)
    machine.write("/etc/network/interfaces.d/cloud", "iface eth0 inet dhcp\n")
    outcome = machine.provision(FULL)
    assert (outcome.status, outcome.failed_step) == (1, "persist")
    assert "/etc/network/interfaces.d/cloud" in outcome.log
    assert not machine.path("/etc/network/interfaces.d/provision").exists()


def test_a_system_without_any_renderer_is_told_so(system: Machine) -> None:
    system.disable("systemd-networkd.service")
    outcome = system.provision(FULL)
    assert (outcome.status, outcome.failed_step) == (1, "persist")
    assert "there is no ifup" in outcome.log


def test_files_for_interfaces_that_are_gone_are_removed(system: Machine) -> None:
    assert system.provision(FULL).status == 0
    fewer = conf(IF0_MAC=MACS[1], IF0_ADDRESSES="10.0.0.7/24", GENERATION="2")
    assert system.provision(fewer).status == 0
    ours = [name for name in files_in(system.path("/etc/systemd/network")) if "provision" in name]
    assert ours == ["05-provision-0.network"]
