"""A configuration is applied once: the instance, the generation and the nonce decide."""

import pytest

from tests.guest.machine import INSTANCE, NONCE, STATE_FILE, Machine, Outcome
from tests.guest.machine import configuration as conf

OTHER_NONCE = NONCE[::-1]


def applied(outcome: Outcome) -> bool:
    return outcome.status == 0 and "everything was applied and read back" in outcome.log


def snapshot(machine: Machine) -> list[tuple[str, bytes]]:
    names = ("etc", "root/.ssh", "home", "var/lib/provision-guest")
    paths = (path for name in names for path in machine.path(f"/{name}").rglob("*"))
    files = (path for path in paths if path.is_file() and not path.is_symlink())
    return sorted((str(path), path.read_bytes()) for path in files)


def test_the_same_configuration_is_not_applied_twice_but_is_done(machine: Machine) -> None:
    text = conf(SSH_KEY0="ssh-ed25519 AAAA one")
    assert applied(machine.provision(text))
    machine.write("/etc/hostname", "changed-by-the-customer\n")
    second = machine.provision(text)
    assert second.status == 0
    assert not applied(second)
    assert machine.read("/etc/hostname") == "changed-by-the-customer\n"


def test_applying_everything_again_gives_the_same_files(system: Machine) -> None:
    text = conf(SSH_KEY0="ssh-ed25519 AAAA one", DNS="10.0.0.1", IF0_ADDRESSES="10.0.0.5/24")
    assert applied(system.provision(text))
    before = snapshot(system)
    # As after a reset before the last step: the state was never written.
    system.path(STATE_FILE).unlink()
    assert applied(system.provision(text))
    assert snapshot(system) == before


@pytest.mark.parametrize("generation", ["6", "5", "0"])
def test_an_older_generation_is_refused(machine: Machine, generation: str) -> None:
    assert applied(machine.provision(conf(GENERATION="6")))
    outcome = machine.provision(conf(GENERATION=generation, NONCE=OTHER_NONCE, HOSTNAME="replayed"))
    assert (outcome.status, outcome.failed_step) == (1, "config")
    assert f"generation {generation} is already applied" in outcome.log
    assert machine.read("/etc/hostname") == "web1\n"


@pytest.mark.parametrize(("old", "new"), [("9", "10"), ("9007199254740991", "9007199254740992")])
def test_a_newer_generation_is_applied(machine: Machine, old: str, new: str) -> None:
    assert applied(machine.provision(conf(GENERATION=old)))
    assert applied(machine.provision(conf(GENERATION=new, NONCE=OTHER_NONCE, HOSTNAME="web2")))
    assert machine.read(STATE_FILE) == f"{INSTANCE} {new} {OTHER_NONCE}\n"


def test_a_clone_is_another_machine(machine: Machine) -> None:
    assert applied(machine.provision(conf(GENERATION="6")))
    clone = conf(INSTANCE=INSTANCE.replace("6", "7"), GENERATION="1", HOSTNAME="clone")
    assert applied(machine.provision(clone))
    assert machine.read("/etc/hostname") == "clone\n"


def test_a_failed_configuration_may_be_tried_again(machine: Machine) -> None:
    text = conf(TIMEZONE="Europe/Vienna", USER="nobody-here")
    outcome = machine.provision(text)
    assert (outcome.status, outcome.failed_step) == (1, "ssh-keys")
    assert not machine.path(STATE_FILE).exists()
    assert applied(machine.provision(conf(TIMEZONE="Europe/Vienna")))
