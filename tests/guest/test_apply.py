"""What a configuration says is what the machine has afterwards."""

import subprocess

import pytest

from tests.guest.conftest import MakeMachine
from tests.guest.machine import INSTANCE, LOG_FILE, MACS, NONCE, SECRET, STATE_FILE, Machine
from tests.guest.machine import configuration as conf

KEYS = ("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGJ one@example", "ssh-rsa AAAAB3NzaC1yc2E two words")

FULL = conf(
    FQDN="web1.example.org",
    IF0_MAC=MACS[0],
    IF0_ADDRESSES="10.0.0.5/24 10.0.0.6/24 fd00::5/64",
    IF0_GATEWAY4="10.0.0.1",
    IF0_GATEWAY6="fd00::1",
    IF0_MTU="1400",
    IF0_ROUTES="10.1.0.0/16,10.0.0.254,100 fd01::/64,fd00::fe, fd02::7/128,fd00::fe,",
    IF1_MAC=MACS[1],
    IF1_ADDRESSES="192.168.7.2/30",
    IF1_ROUTES="192.168.8.0/24,192.168.7.1, 192.168.9.7/32,192.168.7.1,",
    DNS="10.0.0.1 fd00::53",
    SEARCH="example.org lan",
    USER="ops",
    PASSWORD_HASH=SECRET,
    SSH_KEY0=KEYS[0],
    SSH_KEY1=KEYS[1],
    TIMEZONE="Europe/Vienna",
)


def shadow_field(machine: Machine, user: str) -> str:
    entries = (line.split(":") for line in machine.read("/etc/shadow").splitlines())
    return next(entry[1] for entry in entries if entry[0] == user)


def check_network(machine: Machine) -> None:
    assert machine.addresses("eth0") == ["10.0.0.5/24", "10.0.0.6/24", "fd00::5/64"]
    assert machine.routes("eth0") == [
        "10.1.0.0/16 via 10.0.0.254 metric 100",
        "default via 10.0.0.1",
    ] or machine.routes("eth0") == [
        "10.1.0.0/16 via 10.0.0.254 dev eth0 metric 100",
        "default via 10.0.0.1 dev eth0",
    ]
    found = [" ".join(route.split()[:3]) for route in machine.routes("eth0", "-6")]
    assert found == ["default via fd00::1", "fd01::/64 via fd00::fe", "fd02::7 via fd00::fe"]
    assert machine.mtu("eth0") == 1400
    assert machine.addresses("eth1") == ["192.168.7.2/30"]
    found = [" ".join(route.split()[:3]) for route in machine.routes("eth1")]
    assert found == ["192.168.8.0/24 via 192.168.7.1", "192.168.9.7 via 192.168.7.1"]


def test_a_host_name_alone_is_enough_and_changes_nothing_else(machine: Machine) -> None:
    machine.run("ip", "addr", "add", "10.9.9.1/24", "dev", "eth0")
    outcome = machine.provision(conf())
    assert outcome.status == 0
    assert machine.read("/etc/hostname") == "web1\n"
    assert machine.run("hostname") == "web1\n"
    assert "\n127.0.1.1 web1\n" in machine.read("/etc/hosts")
    assert machine.addresses("eth0") == ["10.9.9.1/24"]
    assert shadow_field(machine, "root") == "*"
    for absent in ("/etc/resolv.conf", "/etc/localtime", "/etc/network", "/root/.ssh"):
        assert not machine.path(absent).exists()


def test_everything_at_once(machine: Machine) -> None:
    outcome = machine.provision(FULL)
    assert outcome.status == 0
    check_network(machine)
    assert machine.read("/etc/hosts") == (
        "127.0.0.1 localhost\n"
        "10.9.9.9 a-line-of-the-customer\n"
        "# provision-guest: begin (this block is replaced at the next provisioning)\n"
        "127.0.1.1 web1.example.org web1\n"
        "# provision-guest: end\n"
    )
    assert machine.read("/etc/resolv.conf") == (
        "# Written by provision-guest; replaced at the next provisioning.\n"
        "search example.org lan\n"
        "nameserver 10.0.0.1\n"
        "nameserver fd00::53\n"
    )
    assert shadow_field(machine, "ops") == SECRET
    assert shadow_field(machine, "root") == "*"
    assert (
        machine.path("/etc/localtime").readlink().as_posix() == "/usr/share/zoneinfo/Europe/Vienna"
    )
    assert machine.read("/etc/timezone") == "Europe/Vienna\n"
    assert machine.read(STATE_FILE) == f"{INSTANCE} 1 {NONCE}\n"
    keys = machine.path("/home/ops/.ssh/authorized_keys")
    assert machine.read("/home/ops/.ssh/authorized_keys").splitlines()[1:-1] == list(KEYS)
    for path, mode in ((keys, 0o600), (keys.parent, 0o700)):
        status = path.stat()
        assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (mode, 1000, 1000)
    assert [entry.name for entry in keys.parent.iterdir()] == ["authorized_keys"]
    assert machine.path(LOG_FILE).stat().st_mode & 0o7777 == 0o600


def test_what_was_on_an_interface_before_goes(machine: Machine) -> None:
    for command in (
        "ip link set dev eth0 up",
        "ip addr add 10.0.0.99/24 dev eth0",
        "ip addr add fd00::99/64 dev eth0",
        "ip route add default via 10.0.0.254 dev eth0 metric 7",
        "ip -6 route add fd09::/64 via fd00::9 dev eth0",
    ):
        machine.run(*command.split())
    text = conf(IF0_MAC=MACS[0], IF0_ADDRESSES="10.0.0.5/24", IF0_GATEWAY4="10.0.0.1")
    assert machine.provision(text).status == 0
    assert machine.addresses("eth0") == ["10.0.0.5/24"]
    assert [route.split()[2] for route in machine.routes("eth0")] == ["10.0.0.1"]
    assert machine.routes("eth0", "-6") == []


def test_an_interface_is_found_by_name_or_as_the_first_one(machine: Machine) -> None:
    assert machine.provision(conf(IF0_NAME="eth1", IF0_ADDRESSES="10.0.0.5/24")).status == 0
    assert machine.addresses("eth1") == ["10.0.0.5/24"]
    second = conf(IF0_ADDRESSES="10.0.0.6/24", GENERATION="2")
    assert machine.provision(second).status == 0
    assert machine.addresses("eth0") == ["10.0.0.6/24"]


def test_lines_of_others_stay_and_ours_are_replaced(machine: Machine) -> None:
    ssh = machine.path("/root/.ssh")
    ssh.mkdir(mode=0o755)
    (ssh / "authorized_keys").write_text("ssh-rsa AAAA admin\n# a comment, no newline at the end")
    assert machine.provision(conf(SSH_KEY0=KEYS[0])).status == 0
    second = conf(SSH_KEY0=KEYS[1], GENERATION="2", HOSTNAME="web2")
    assert machine.provision(second).status == 0
    assert machine.read("/root/.ssh/authorized_keys") == (
        "ssh-rsa AAAA admin\n# a comment, no newline at the end\n"
        "# provision-guest: begin (this block is replaced at the next provisioning)\n"
        f"{KEYS[1]}\n# provision-guest: end\n"
    )
    hosts = machine.read("/etc/hosts")
    assert "web1" not in hosts
    assert hosts.startswith(
        "127.0.0.1 localhost\n10.9.9.9 a-line-of-the-customer\n# provision-guest: begin"
    )


def test_keys_that_the_next_configuration_does_not_have_go(machine: Machine) -> None:
    assert machine.provision(conf(SSH_KEY0=KEYS[0])).status == 0
    assert machine.provision(conf(GENERATION="2")).status == 0
    assert KEYS[0] not in machine.read("/root/.ssh/authorized_keys")


def test_a_dangling_resolv_conf_is_replaced(machine: Machine) -> None:
    machine.path("/etc/resolv.conf").symlink_to("/run/nobody/resolv.conf")
    assert machine.provision(conf(DNS="10.0.0.1")).status == 0
    assert machine.read("/etc/resolv.conf").endswith("nameserver 10.0.0.1\n")


def test_search_names_alone_leave_the_name_servers(machine: Machine) -> None:
    machine.write("/etc/resolv.conf", "search old\nnameserver 10.7.7.7\noptions rotate\n")
    assert machine.provision(conf(SEARCH="lan")).status == 0
    assert machine.read("/etc/resolv.conf").splitlines()[1:] == [
        "search lan",
        "nameserver 10.7.7.7",
    ]


@pytest.mark.parametrize(
    ("pid_file", "other"),
    [
        ("/var/run/udhcpc.{nic}.pid", "eth0"),
        ("/var/run/dhclient-{nic}.pid", "br-eth1"),
        ("/var/run/dhclient6.{nic}.pid", "br.eth1"),
        ("/var/run/dhcpcd/{nic}.pid", "eth10"),
        ("/var/run/dhcpcd/{nic}-4.pid", "eth10"),
    ],
)
def test_a_dhcp_client_of_the_interface_is_ended_and_another_goes_on(
    make_machine: MakeMachine, pid_file: str, other: str
) -> None:
    """It would bring its address back when it renews its lease.

    A real client writes its number where each of them does; the other interface's name is alike.
    """
    machine = make_machine("ash")
    machine.run("mkdir", "-p", "/var/run/dhcpcd", "/etc/network")
    if other != "eth0":
        machine.run("ip", "link", "add", other, "type", "veth", "peer", "name", "peer2")
    clients = {}
    for nic in ("eth1", other):
        machine.run("ip", "link", "set", "dev", nic, "up")
        path = pid_file.format(nic=nic)
        argv = machine.argv("udhcpc", "-f", "-i", nic, "-p", path, "-s", "/bin/true")
        client = clients[nic] = subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        # It says so once it has written the file.
        assert client.stdout is not None
        assert "started" in client.stdout.readline(), "udhcpc ended by itself"
        assert int(machine.read(path))
    try:
        assert machine.provision(conf(IF0_MAC=MACS[1], IF0_ADDRESSES="10.0.0.5/24")).status == 0
        clients["eth1"].wait(timeout=30)
        assert clients[other].poll() is None
    finally:
        for client in clients.values():
            client.kill()
            client.wait()
            assert client.stdout is not None
            client.stdout.close()
