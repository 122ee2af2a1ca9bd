"""The files of distributions that are not at hand: trees from before and after, whole.

`before` is laid over a machine, `config` applied, and what then stands in the folders of `after` is
compared with it, byte by byte. What Debian has a real program for is also given to that.
"""

from pathlib import Path

import pytest

from tests.guest.conftest import MakeMachine
from tests.guest.machine import MACS, Machine, package
from tests.guest.machine import configuration as conf
from tests.guest.test_apply import FULL, check_network
from tests.guest.test_persist import with_ifup

LAYOUTS = Path(__file__).with_name("layouts")
# Every folder or file that a program which configures the network reads.
NETWORK_FILES = (
    *("etc/cloud", "etc/netplan", "etc/network", "etc/NetworkManager", "etc/sysconfig"),
    *("etc/resolv.conf", "etc/hostname", "etc/hosts"),
)
OWNERS = {
    "alpine": "ifupdown",
    "centos-7": "ifcfg",
    "debian-cloud": "ifupdown",
    "opensuse-leap": "wicked",
    "ubuntu": "netplan",
}


def lay_over(machine: Machine, layout: str) -> None:
    """The files and links of `before`, in the machine; nothing else there is enabled."""
    if OWNERS[layout] == "ifupdown":
        with_ifup(machine)
    elif machine.kind == "system":
        machine.disable("systemd-networkd.service")
    before = LAYOUTS / layout / "before"
    for path in sorted(before.rglob("*")):
        name = f"/{path.relative_to(before)}"
        if path.is_symlink():
            machine.path(name).parent.mkdir(parents=True, exist_ok=True)
            machine.path(name).symlink_to(path.readlink())
        elif path.is_file():
            machine.write(name, path.read_bytes())
    if layout == "ubuntu":
        with_netplan(machine)


def with_netplan(machine: Machine) -> None:
    """Debian's generator, which runs at boot; `netplan generate` is that and no more here."""
    libraries = [package("libnetplan0"), package("libyaml-0-2")]
    for library in (path for tree in libraries for path in tree.rglob("lib*.so.*")):
        machine.write(f"/usr/lib/netplan-test/{library.name}", library.read_bytes())
    (generate,) = package("netplan.io").glob("usr/libexec/netplan/generate")
    machine.write("/usr/libexec/netplan/generate", generate.read_bytes(), mode=0o755)
    libraries_at = "LD_LIBRARY_PATH=/usr/lib/netplan-test"
    machine.write(
        "/usr/sbin/netplan",
        f'#!/bin/sh\n[ "$*" = generate ] && {libraries_at} exec /usr/libexec/netplan/generate\n',
        mode=0o755,
    )


def files_of(root: Path) -> dict[str, str]:
    """The network's files below this root, and what is in them."""
    found = {}
    for name in NETWORK_FILES:
        top = Path(f"{root}/{name}")
        for path in sorted([top, *top.rglob("*")]):
            if path.is_file():
                found[str(path.relative_to(root))] = path.read_text()
    return found


def expected_of(layout: str) -> dict[str, str]:
    return files_of(LAYOUTS / layout / "after")


def applied(make_machine: MakeMachine, layout: str, shell: str) -> Machine:
    machine = make_machine(shell)
    lay_over(machine, layout)
    outcome = machine.provision((LAYOUTS / layout / "config/provision.conf").read_text())
    assert outcome.status == 0
    assert f"the network is configured by {OWNERS[layout]} at boot: " in outcome.log
    return machine


@pytest.mark.parametrize(
    ("layout", "shell"),
    [
        *(("alpine", "ash"), ("centos-7", "bash"), ("opensuse-leap", "bash")),
        *(("ubuntu", "dash"), ("debian-cloud", "dash")),
    ],
)
def test_the_files_are_those_of_the_distribution(
    make_machine: MakeMachine, layout: str, shell: str
) -> None:
    machine = applied(make_machine, layout, shell)
    assert files_of(machine.path("/")) == expected_of(layout)
    check_network(machine)


def test_what_took_the_place_of_another_file_gives_it_back(make_machine: MakeMachine) -> None:
    machine = applied(make_machine, "centos-7", "bash")
    fewer = conf(IF0_MAC=MACS[1], IF0_ADDRESSES="10.0.0.7/24", GENERATION="2")
    assert machine.provision(fewer).status == 0
    folder = machine.path("/etc/sysconfig/network-scripts")
    assert sorted(path.name for path in folder.iterdir()) == [
        "ifcfg-eth0",
        "ifcfg-eth1",
        "ifcfg-lo",
    ]
    before = LAYOUTS / "centos-7/before/etc/sysconfig/network-scripts/ifcfg-eth0"
    assert (folder / "ifcfg-eth0").read_bytes() == before.read_bytes()


def test_of_all_that_netplan_makes_ours_comes_first(make_machine: MakeMachine) -> None:
    """systemd-networkd takes the first file that matches; netplan's generator made these."""
    machine = applied(make_machine, "ubuntu", "dash")
    made = sorted(machine.path("/run/systemd/network").glob("*.network"))
    for mac, nic, addresses in (
        (MACS[0], "eth0", ["10.0.0.5/24", "10.0.0.6/24", "fd00::5/64"]),
        (MACS[1], "eth1", ["192.168.7.2/30"]),
    ):
        matching = [
            text
            for text in (path.read_text() for path in made)
            if mac in text.partition("[Network]")[0] or f"\nName={nic}\n" in text
        ]
        assert len(matching) == 2, "the other one is the image's own"
        lines = matching[0].splitlines()
        assert [line[8:] for line in lines if line.startswith("Address=")] == addresses
        assert "IPv6AcceptRA=no" in lines
        assert not [line for line in lines if line.startswith("DHCP=")]


def test_netplan_for_network_manager_outranks_its_other_profiles(make_machine: MakeMachine) -> None:
    machine = make_machine("dash")
    lay_over(machine, "ubuntu")
    machine.enable("NetworkManager.service")
    everything = "network: {version: 2, renderer: NetworkManager}\n"
    machine.write("/etc/netplan/01-network-manager-all.yaml", everything, mode=0o600)
    assert machine.provision(FULL).status == 0
    folder = machine.path("/run/NetworkManager/system-connections")
    ours = (folder / "netplan-0-provision-0.nmconnection").read_text()
    assert "autoconnect-priority=999" in ours
    assert "address1=10.0.0.5/24" in ours
    second = (folder / "netplan-0-provision-1.nmconnection").read_text()
    assert "method=link-local" in second.partition("[ipv6]")[2]
    assert "autoconnect-priority" not in (folder / "netplan-eth0.nmconnection").read_text()


@pytest.mark.parametrize(
    ("layout", "file"),
    [
        ("centos-7", "/etc/sysconfig/network-scripts/ifcfg-eth0"),
        ("opensuse-leap", "/etc/sysconfig/network/config"),
        ("opensuse-leap", "/etc/sysconfig/network/ifcfg-eth0"),
    ],
)
def test_a_shell_that_sources_a_file_of_ours_executes_nothing(
    make_machine: MakeMachine, layout: str, file: str
) -> None:
    """The oddest names that may pass, read as the distributions' own scripts read them."""
    machine = make_machine("bash")
    lay_over(machine, layout)
    odd = "a.-x -n --help . .. -"
    text = conf(IF0_MAC=MACS[0], IF0_ADDRESSES="10.0.0.5/24 fd00::5/64", DNS="::", SEARCH=odd)
    assert machine.provision(text).status == 0
    shown = machine.run("env", "-i", "PATH=/nowhere", "/bin/dash", "-c", f"set -eu; . {file}; set")
    values = [line for line in shown.splitlines() if odd in line]
    assert values in ([], [f"DOMAIN='{odd}'"], [f"NETCONFIG_DNS_STATIC_SEARCHLIST='{odd}'"])
    assert (values == []) == file.endswith("network/ifcfg-eth0")


@pytest.mark.parametrize("name", ["ifupdown", "ifupdown-ng"])
def test_every_ifup_of_debian_brings_the_network_back(system: Machine, name: str) -> None:
    with_ifup(system)
    tree = package(name)
    program = next(path for path in (tree / "sbin/ifup", tree / "usr/sbin/ifup") if path.exists())
    system.write("/usr/sbin/ifup", program.read_bytes(), mode=0o755)
    for folder in (tree / "usr/libexec").glob("ifupdown-ng"):
        for part in folder.iterdir():
            system.write(f"/usr/libexec/ifupdown-ng/{part.name}", part.read_bytes(), mode=0o755)
    assert system.provision(FULL).status == 0
    for scripts in ("if-pre-up.d", "if-up.d", "if-down.d", "if-post-down.d"):
        system.path(f"/etc/network/{scripts}").mkdir(parents=True, exist_ok=True)
    for nic in ("eth0", "eth1"):
        system.run("ip", "link", "set", "dev", nic, "down")
        system.run("sh", "-c", f"ip addr flush dev {nic} || ip addr flush dev {nic}")
    system.run("mkdir", "-p", "/run/network")
    system.run("ifup", "-a")
    check_network(system)
