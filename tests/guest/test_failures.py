"""Every step that fails says so by its name, for a real reason, and nothing after it is done."""

import shutil
from collections.abc import Callable

import pytest

from tests.guest.machine import MACS, SECRET, STATE_FILE, Machine
from tests.guest.machine import configuration as conf
from tests.lab.initramfs import STEPS

ORDER = ("config", *STEPS)
TEXT = conf(
    IF0_MAC=MACS[0],
    IF0_ADDRESSES="10.0.0.5/24",
    IF0_GATEWAY4="10.0.0.1",
    DNS="10.0.0.1",
    PASSWORD_HASH=SECRET,
    SSH_KEY0="ssh-ed25519 AAAA one",
    TIMEZONE="Europe/Vienna",
)


def a_directory(machine: Machine, name: str) -> None:
    machine.path(name).unlink(missing_ok=True)
    machine.path(name).mkdir(parents=True)


def without_chpasswd(machine: Machine) -> None:
    machine.path("/usr/sbin/chpasswd").unlink()


def a_chpasswd_that_refuses(machine: Machine) -> None:
    machine.write("/usr/sbin/chpasswd", "#!/bin/sh\nread -r x\nexit 3\n", mode=0o755)


def a_chpasswd_that_lies(machine: Machine) -> None:
    machine.write("/usr/sbin/chpasswd", "#!/bin/sh\nread -r x\nexit 0\n", mode=0o755)


def a_link_out_of_home(machine: Machine) -> None:
    machine.path("/tmp/elsewhere").mkdir()
    machine.path("/root/.ssh").symlink_to("/tmp/elsewhere")


def keys_that_are_a_link(machine: Machine) -> None:
    machine.path("/root/.ssh").mkdir()
    machine.path("/root/.ssh/authorized_keys").symlink_to("/etc/shadow")


def a_block_without_an_end(machine: Machine) -> None:
    begin = "# provision-guest: begin (this block is replaced at the next provisioning)\n"
    machine.write("/etc/hosts", f"127.0.0.1 localhost\n{begin}10.1.1.1 precious\n")


def a_served_resolv_conf(machine: Machine) -> None:
    machine.write("/run/somebody/resolv.conf", "nameserver 10.3.3.3\n")
    machine.path("/etc/resolv.conf").symlink_to("/run/somebody/resolv.conf")


def a_network_directory_that_is_a_file(machine: Machine) -> None:
    folder = "/etc/systemd/network" if machine.kind == "system" else "/etc/network"
    shutil.rmtree(machine.path(folder), ignore_errors=True)
    machine.write(folder, "")


SABOTAGE: dict[str, tuple[str, Callable[[Machine], object], str]] = {
    "hostname is a directory": ("hostname", lambda m: a_directory(m, "/etc/hostname"), "directory"),
    "hosts is a directory": ("hosts", lambda m: a_directory(m, "/etc/hosts"), "is a directory"),
    "our block is damaged": ("hosts", a_block_without_an_end, "has no end"),
    "no interface": ("network", lambda m: m.run("ip", "link", "del", "eth0"), MACS[0]),
    "no place for the file": ("persist", a_network_directory_that_is_a_file, "cannot write"),
    "resolv.conf is a directory": (
        "dns",
        lambda m: a_directory(m, "/etc/resolv.conf"),
        "directory",
    ),
    "resolv.conf is served": ("dns", a_served_resolv_conf, "is a symbolic link"),
    "no chpasswd": ("password", without_chpasswd, "no command chpasswd"),
    "chpasswd refuses": ("password", a_chpasswd_that_refuses, "refused the hash for root"),
    ".ssh is a link": ("ssh-keys", a_link_out_of_home, "a link"),
    "the keys are a link": ("ssh-keys", keys_that_are_a_link, "a link"),
    ".ssh is a file": ("ssh-keys", lambda m: m.write("/root/.ssh", ""), "cannot write"),
    "no such zone": (
        "timezone",
        lambda m: m.path("/usr/share/zoneinfo/Europe/Vienna").unlink(),
        "/usr/share/zoneinfo/Europe/Vienna",
    ),
    "localtime is a directory": (
        "timezone",
        lambda m: a_directory(m, "/etc/localtime"),
        "directory",
    ),
    "no place for what it knows": (
        "identity",
        lambda m: m.write("/var/lib/provision-guest", ""),
        "cannot write",
    ),
    "the password was not set": ("verify", a_chpasswd_that_lies, "another password"),
}


@pytest.mark.parametrize("name", SABOTAGE)
@pytest.mark.parametrize("shell", ["dash", "ash"])
def test_the_step_that_fails_is_named(
    make_machine: Callable[[str], Machine], shell: str, name: str
) -> None:
    machine = make_machine(shell)
    step, damage, reason = SABOTAGE[name]
    damage(machine)
    outcome = machine.provision(TEXT)
    assert (outcome.status, outcome.failed_step) == (1, step)
    assert reason in outcome.log
    started = [line.split()[-1] for line in outcome.log.splitlines() if ": step " in line]
    assert started == list(ORDER[: ORDER.index(step) + 1])
    assert not machine.path(STATE_FILE).exists()


def test_a_link_is_never_followed_to_another_file(machine: Machine) -> None:
    keys_that_are_a_link(machine)
    shadow = machine.read("/etc/shadow")
    assert machine.provision(conf(SSH_KEY0="ssh-ed25519 AAAA one")).status == 1
    assert machine.read("/etc/shadow") == shadow
    names = [path.name for path in machine.path("/root/.ssh").iterdir()]
    assert names == ["authorized_keys"]


def test_a_user_who_is_not_there_is_not_made(machine: Machine) -> None:
    passwd = machine.read("/etc/passwd")
    outcome = machine.provision(conf(USER="nobody-here", PASSWORD_HASH=SECRET))
    assert (outcome.status, outcome.failed_step) == (1, "password")
    assert "there is no user nobody-here" in outcome.log
    assert machine.read("/etc/passwd") == passwd


def test_the_address_of_another_machine_is_found_out(system: Machine) -> None:
    """Duplicate address detection is real here: the other end of the link has the address."""
    for line in (
        "echo 1 >/proc/sys/net/ipv6/conf/eth0/accept_dad",
        "ip addr add fd00::5/64 dev peer0 nodad",
    ):
        system.run("sh", "-c", line)
    outcome = system.provision(conf(IF0_MAC=MACS[0], IF0_ADDRESSES="fd00::5/64"))
    assert (outcome.status, outcome.failed_step) == (1, "verify")
    assert "another machine has an IPv6 address of eth0" in outcome.log


@pytest.mark.parametrize(
    "change",
    ["printf '\\n' >>/etc/hosts", "printf web >/etc/hosts", "rm /etc/hosts"],
    ids=["an empty line more", "less of it", "gone"],
)
def test_a_file_that_another_program_changes_meanwhile_is_found_out(
    machine: Machine, change: str
) -> None:
    program = f"#!/bin/sh\nread -r x\n{change}\n"
    machine.write("/usr/sbin/chpasswd", program, mode=0o755)
    machine.write("/etc/hosts", "\n127.0.0.1 localhost\n")
    outcome = machine.provision(conf(PASSWORD_HASH=SECRET))
    assert (outcome.status, outcome.failed_step) == (1, "verify")
    assert "/etc/hosts was changed" in outcome.log


def test_an_address_too_many_is_found_out(system: Machine) -> None:
    """One that another program adds while the configuration is applied."""
    program = "#!/bin/sh\nread -r x\nip addr add 10.0.0.77/24 dev eth0\n"
    system.write("/usr/sbin/chpasswd", program, mode=0o755)
    text = conf(IF0_MAC=MACS[0], IF0_ADDRESSES="10.0.0.5/24 10.0.0.6/24", PASSWORD_HASH=SECRET)
    outcome = system.provision(text)
    assert (outcome.status, outcome.failed_step) == (1, "verify")
    assert "eth0 has other addresses: 10.0.0.5/24 10.0.0.6/24 10.0.0.77/24" in outcome.log


def test_a_link_that_lies_where_a_part_is_written_is_not_followed(machine: Machine) -> None:
    """A run that was killed leaves a part; files have their own modes, whatever it had."""
    machine.write("/etc/others", "theirs\n")
    for name in ("/etc/hostname", "/etc/timezone"):
        machine.path(f"{name}.provision-part").symlink_to("others")
    machine.write(f"{STATE_FILE}.provision-part", "half of", mode=0o666)
    assert machine.provision(conf(TIMEZONE="Europe/Vienna")).status == 0
    assert machine.read("/etc/others") == "theirs\n"
    assert machine.read("/etc/hostname") == "web1\n"
    for name, mode in (("/etc/hostname", 0o644), ("/etc/timezone", 0o644), (STATE_FILE, 0o600)):
        assert machine.path(name).stat().st_mode & 0o7777 == mode
