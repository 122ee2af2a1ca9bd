"""A copy becomes a machine of its own, once; --reset makes an image of a machine again."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.guest.machine import (
    INSTANCE,
    LOG_FILE,
    MACS,
    NONCE,
    SECRET,
    STATE_FILE,
    Machine,
    Outcome,
    copy_with_libraries,
)
from tests.guest.machine import configuration as conf
from tests.guest.test_again import snapshot
from tests.guest.test_apply import FULL
from tests.guest.test_layouts import LAYOUTS, applied, files_of

CLONE = INSTANCE.replace("6", "7")
OTHER_NONCE = NONCE[::-1]
GOLDEN_ID = "0123456789abcdef0123456789abcdef\n"


def with_identity(machine: Machine) -> Machine:
    """The keys and the machine-id that every copy of this image has."""
    machine.path("/etc/ssh").mkdir(exist_ok=True)
    machine.run(
        "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/etc/ssh/ssh_host_ed25519_key"
    )
    machine.path("/etc/machine-id").unlink(missing_ok=True)
    machine.write("/etc/machine-id", GOLDEN_ID, mode=0o444)
    return machine


def identity_of(machine: Machine) -> tuple[str, ...]:
    return (
        machine.read("/etc/machine-id"),
        machine.read("/etc/ssh/ssh_host_ed25519_key.pub"),
        machine.read("/etc/ssh/ssh_host_ed25519_key"),
    )


def differ(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    return all(mine != yours for mine, yours in zip(one, other, strict=True))


def test_an_image_that_nobody_provisioned_gives_every_copy_its_own(system: Machine) -> None:
    golden = identity_of(with_identity(system))
    assert system.provision(conf()).status == 0
    own = identity_of(system)
    assert differ(golden, own)
    assert re.fullmatch(r"[0-9a-f]{32}\n", own[0])
    key = system.path("/etc/ssh/ssh_host_ed25519_key")
    assert key.stat().st_mode & 0o7777 == 0o600
    assert (
        system.run("ssh-keygen", "-y", "-f", "/etc/ssh/ssh_host_ed25519_key").split()[:2]
        == (own[1].split()[:2])
    )


def test_a_higher_generation_keeps_them_and_a_clone_does_not(system: Machine) -> None:
    with_identity(system)
    assert system.provision(conf()).status == 0
    own = identity_of(system)
    assert system.provision(conf(GENERATION="2", NONCE=OTHER_NONCE)).status == 0
    assert identity_of(system) == own
    assert system.provision(conf(INSTANCE=CLONE)).status == 0
    assert differ(own, identity_of(system))


def test_another_try_of_a_failed_one_keeps_them(system: Machine) -> None:
    with_identity(system)
    refuses = "#!/bin/sh\nread -r x\nexit 0\n"
    chpasswd = system.read_bytes("/usr/sbin/chpasswd")
    system.write("/usr/sbin/chpasswd", refuses, mode=0o755)
    failed = system.provision(conf(PASSWORD_HASH=SECRET))
    assert (failed.status, failed.failed_step) == (1, "verify")
    own = identity_of(system)
    system.write("/usr/sbin/chpasswd", chpasswd, mode=0o755)
    assert system.provision(conf(PASSWORD_HASH=SECRET)).status == 0
    assert identity_of(system) == own


def test_what_an_older_script_provisioned_keeps_them(system: Machine) -> None:
    """It wrote down which instance was applied, and nothing of an identity."""
    own = identity_of(with_identity(system))
    system.write(STATE_FILE, f"{INSTANCE} 1 {NONCE}\n", mode=0o600)
    assert system.provision(conf(GENERATION="2", NONCE=OTHER_NONCE)).status == 0
    assert identity_of(system) == own


def test_a_machine_that_can_make_no_new_keys_keeps_the_old_ones(system: Machine) -> None:
    """Its disk is full: a server that starts now must find keys."""
    system.path("/etc/ssh").mkdir()
    system.run("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", "/etc/ssh")
    golden = identity_of(with_identity(system))
    system.run("sh", "-c", "! cat /dev/zero >/etc/ssh/moduli")
    failed = system.provision(conf())
    assert (failed.status, failed.failed_step) == (1, "identity")
    assert "cannot make SSH host keys: " in failed.log
    assert "No space left on device" in failed.log
    assert identity_of(system) == golden
    names = {path.name for path in system.path("/etc/ssh").iterdir()}
    assert names == {"moduli", "ssh_host_ed25519_key", "ssh_host_ed25519_key.pub"}
    system.path("/etc/ssh/moduli").unlink()
    assert system.provision(conf()).status == 0
    assert differ(golden, identity_of(system))


def test_nobody_reaches_it_at_its_own_address_by_the_keys_of_the_image(system: Machine) -> None:
    golden = identity_of(with_identity(system))
    system.run("ip", "link", "del", "eth0")
    failed = system.provision(conf(IF0_MAC=MACS[0], IF0_ADDRESSES="10.0.0.5/24"))
    assert (failed.status, failed.failed_step) == (1, "network")
    assert differ(golden, identity_of(system))


def test_an_old_ssh_keygen_makes_the_kinds_that_it_knows(machine: Machine) -> None:
    """OpenSSH 5.3, of CentOS 6: no -A, no ECDSA, no Ed25519. A kind that it cannot make goes."""
    if machine.kind == "busybox":
        copy_with_libraries(Path("/usr/bin/ssh-keygen"), machine.path("/"))
    with_identity(machine)
    machine.run("cp", "/usr/bin/ssh-keygen", "/usr/bin/ssh-keygen.new")
    machine.write(
        "/usr/bin/ssh-keygen",
        "#!/bin/sh\n"
        'case " $* " in *" -A "*) echo "unknown option -- A" >&2 && exit 1 ;; esac\n'
        'case " $* " in *" -t e"*) echo "unknown key type $3" >&2 && exit 1 ;; esac\n'
        'exec ssh-keygen.new "$@"\n',
        mode=0o755,
    )
    outcome = machine.provision(conf())
    assert outcome.status == 0
    assert "some SSH host keys were not made: unknown key type ecdsa" in outcome.log
    names = sorted(path.name for path in machine.path("/etc/ssh").iterdir())
    assert names == ["ssh_host_rsa_key", "ssh_host_rsa_key.pub"]
    assert machine.run("ssh-keygen.new", "-lf", "/etc/ssh/ssh_host_rsa_key").endswith("(RSA)\n")


def test_others_may_read_a_public_key_and_the_server_gets_the_usual_umask(
    system: Machine,
) -> None:
    with_identity(system)
    system.write("/etc/init.d/ssh", '#!/bin/sh\necho "$1 $(umask)" >/run/ssh.said\n', mode=0o755)
    system.path("/etc/rc2.d").mkdir(exist_ok=True)
    system.path("/etc/rc2.d/S01ssh").symlink_to("../init.d/ssh")
    assert system.provision(conf()).status == 0
    assert system.read("/run/ssh.said") == "restart 0022\n"
    modes = {
        path.name.removeprefix("ssh_host_"): path.stat().st_mode & 0o7777
        for path in system.path("/etc/ssh").iterdir()
    }
    assert modes == {
        f"{kind}_key{end}": mode
        for kind in ("rsa", "ecdsa", "ed25519")
        for end, mode in (("", 0o600), (".pub", 0o644))
    }
    assert system.path("/var/lib/provision-guest/identity").stat().st_mode & 0o7777 == 0o600


def test_a_system_without_an_ssh_server_needs_no_keys(machine: Machine) -> None:
    machine.path("/etc/machine-id").unlink(missing_ok=True)
    machine.write("/etc/machine-id", GOLDEN_ID, mode=0o444)
    assert machine.provision(conf()).status == 0
    assert machine.read("/etc/machine-id") != GOLDEN_ID
    assert not machine.path("/etc/ssh").exists()


# ---------------------------------------------------------------- --reset
def run_alone(machine: Machine, *arguments: str) -> tuple[Outcome, str]:
    """The script without any disk: how it ended, and what it printed."""
    ended = subprocess.run(
        machine.script(*arguments), capture_output=True, text=True, check=False, timeout=60
    )
    print(ended.stdout, ended.stderr)
    return Outcome(ended.returncode, ended.stderr), ended.stdout


@pytest.mark.parametrize("shell", ["dash", "bash"])
def test_reset_takes_away_what_made_it_this_machine(
    make_machine: Callable[[str], Machine], shell: str
) -> None:
    system = make_machine(shell)
    with_identity(system)
    system.write("/root/.ssh/authorized_keys", "ssh-rsa AAAA admin\n")
    system.write("/var/lib/systemd/random-seed", b"seed")
    assert system.provision(FULL.replace("USER=ops", "USER=root")).status == 0
    assert run_alone(system, "--reset")[0].status == 0
    for gone in (STATE_FILE, "/var/lib/provision-guest/identity", LOG_FILE, "/etc/resolv.conf"):
        assert not system.path(gone).exists(), gone
    assert not system.path("/var/lib/systemd/random-seed").exists()
    assert list(system.path("/etc/ssh").glob("ssh_host_*")) == []
    assert list(system.path("/etc/systemd/network").glob("*provision*")) == []
    assert system.read("/etc/machine-id") == ""
    assert system.read("/etc/hosts") == "127.0.0.1 localhost\n10.9.9.9 a-line-of-the-customer\n"
    assert system.read("/root/.ssh/authorized_keys") == "ssh-rsa AAAA admin\n"
    assert f"root:{SECRET}:" in system.read("/etc/shadow"), "said in the README: passwords stay"


def test_after_reset_the_same_configuration_makes_a_machine_again(machine: Machine) -> None:
    assert machine.provision(conf()).status == 0
    assert run_alone(machine, "--reset")[0].status == 0
    again = machine.provision(conf())
    assert again.status == 0
    assert "everything was applied and read back" in again.log


@pytest.mark.parametrize(
    ("layout", "shell"), [("centos-7", "dash"), ("opensuse-leap", "bash"), ("alpine", "ash")]
)
def test_reset_gives_a_distribution_its_own_files_back(
    make_machine: Callable[[str], Machine], layout: str, shell: str
) -> None:
    machine = applied(make_machine, layout, shell)
    assert run_alone(machine, "--reset")[0].status == 0
    left = files_of(machine.path("/"))
    assert {left.pop("etc/hostname"), left.pop("etc/hosts").partition("\n")[0]} == {
        "web1\n",
        "127.0.0.1 localhost",
    }
    assert left == files_of(LAYOUTS / layout / "before")


def test_reset_tells_of_a_block_without_an_end_and_touches_nothing_of_it(system: Machine) -> None:
    begin = "# provision-guest: begin (this block is replaced at the next provisioning)\n"
    hosts = f"127.0.0.1 localhost\n{begin}10.1.1.1 precious\n"
    system.write("/etc/hosts", hosts)
    ended, _ = run_alone(system, "--reset")
    assert ended.status == 1
    assert "our block in /etc/hosts has no end" in ended.log
    assert system.read("/etc/hosts") == hosts


# ---------------------------------------------------------------- --check
def test_check_says_what_would_be_done_and_changes_nothing(machine: Machine) -> None:
    if machine.kind == "busybox":
        machine.path("/etc/network").mkdir()
    machine.write("/run/try.conf", FULL, mode=0o600)
    before = snapshot(machine), machine.run("ip", "addr"), machine.run("hostname")
    ended, said = run_alone(machine, "--check", "/run/try.conf")
    assert ended.status == 0
    for line in (
        "host name: web1",
        "now: ip addr replace 10.0.0.5/24 dev eth0",
        "now: ip -4 route replace 192.168.8.0/24 via 192.168.7.1 dev eth1",
        "name servers: 10.0.0.1 fd00::53",
        "time zone: Europe/Vienna",
        "ops: another password, 2 SSH keys",
    ):
        assert line in said.splitlines()
    owner = "systemd-networkd" if machine.kind == "system" else "interfaces"
    assert f"\nat boot: {owner}, as " in said
    assert SECRET not in said + ended.log
    assert (snapshot(machine), machine.run("ip", "addr"), machine.run("hostname")) == before


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (conf(IF0_MAC="52:54:00:00:00:99"), "there is no interface 52:54:00:00:00:99"),
        (conf(HOSTNAME="$(reboot)"), "line 5: the value of HOSTNAME is not acceptable"),
        (conf(USER="nobody-here"), "there is no user nobody-here"),
        ("", "FORMAT is missing"),
    ],
)
def test_check_refuses_what_would_fail(machine: Machine, text: str, reason: str) -> None:
    machine.write("/run/try.conf", text, mode=0o600)
    ended, _ = run_alone(machine, "--check", "/run/try.conf")
    assert ended.status == 1
    assert reason in ended.log
    assert not machine.path(LOG_FILE).exists()


def test_check_knows_what_is_applied(system: Machine) -> None:
    assert system.provision(conf(GENERATION="6")).status == 0
    for text, status, word in (
        (conf(GENERATION="6"), 0, "is applied already"),
        (conf(GENERATION="5", NONCE=OTHER_NONCE), 1, "is already applied (generation 6)"),
        (conf(GENERATION="7", IF0_MAC=MACS[0]), 0, "host name: web1"),
    ):
        system.write("/run/try.conf", text, mode=0o600)
        ended, said = run_alone(system, "--check", "/run/try.conf")
        assert (ended.status, word in said + ended.log) == (status, True)


# ---------------------------------------------------------------- once
def test_once_means_that_it_ends_when_a_configuration_was_applied(machine: Machine) -> None:
    machine.write("/etc/provision-guest.once", "")
    assert machine.provision(conf()).status == 0
    ended, _ = run_alone(machine)
    assert ended.status == 0
    assert "configured once: /etc/provision-guest.once" in ended.log
    assert not machine.path("/run/provision-guest.pid").exists()
