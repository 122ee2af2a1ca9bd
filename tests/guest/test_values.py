"""Values are data: taken literally or refused, never executed, never half written."""

from collections.abc import Callable

import pytest

from tests.guest.machine import MACS, STATE_FILE, Machine, Outcome
from tests.guest.machine import configuration as conf

HOSTILE = (
    "$(touch /pwned)",
    "`touch /pwned`",
    "x; touch /pwned",
    "x' ; touch /pwned ; '",
    'x" ; touch /pwned ; "',
    "x|touch /pwned",
    "x && touch /pwned",
    "-rf",
    "../../etc/passwd",
    "*",
    "ünïcode",
    "\\",
    "%s%n",
    "x\ntouch /pwned",
    "x\nEXEC=touch /pwned",
    "a" * 65536,
)
# Every key that has a small alphabet, with what else the configuration then needs.
KEYS = (
    "HOSTNAME",
    "FQDN",
    "IF0_MAC",
    "IF0_NAME",
    "IF0_ADDRESSES",
    "IF0_GATEWAY4",
    "IF0_GATEWAY6",
    "IF0_MTU",
    "IF0_ROUTES",
    "DNS",
    "SEARCH",
    "TIMEZONE",
    "USER",
    "PASSWORD_HASH",
    "SSH_KEY0",
    "INSTANCE",
    "GENERATION",
    "FORMAT",
)


def refused(machine: Machine, outcome: Outcome, *, step: str = "config") -> bool:
    """The run ended at this step with nothing changed, and nothing was executed."""
    pwned = [
        root for root in ("", "/root", "/run", "/tmp") if machine.path(f"{root}/pwned").exists()
    ]
    return (
        (outcome.status, outcome.failed_step) == (1, step)
        and not pwned
        and machine.read("/etc/hostname") == "golden\n"
        and not machine.path(STATE_FILE).exists()
    )


def test_a_hostile_value_is_refused_before_anything_is_changed(machine: Machine) -> None:
    for key in KEYS:
        for value in HOSTILE:
            outcome = machine.provision(conf({key: value}))
            assert refused(machine, outcome), (key, value)
            assert value not in outcome.log or value in {"*", "\\", "-rf"}, "a value in the log"


def test_hostile_comments_and_search_names(machine: Machine) -> None:
    """A key's comment is free text; it is written as it is."""
    prefix = "ssh-ed25519 AAAA "
    comments = [value for value in HOSTILE if len(value) < 100 and "\n" not in value]
    keys = {f"SSH_KEY{number}": prefix + text for number, text in enumerate(comments)}
    assert machine.provision(conf(keys)).status == 0
    written = machine.read("/root/.ssh/authorized_keys").splitlines()[1:-1]
    assert written == [prefix + text for text in comments]
    assert not machine.path("/pwned").exists()
    assert not machine.path("/root/pwned").exists()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (conf() + "EXEC=/bin/sh\n", "line 6: EXEC is not a known key"),
        (conf() + "PATH=/tmp\n", "line 6: PATH is not a known key"),
        (conf() + "IF0_SCRIPT=x\n", "line 6: IF0_SCRIPT is not a known key"),
        (conf() + "IF16_MAC=52:54:00:00:00:01\n", "line 6: the value of IF16_MAC"),
        (conf() + "IF1_NAME=eth0\n", "line 6: the value of IF1_NAME"),
        (conf() + "SSH_KEY32=ssh-rsa A\n", "line 6: SSH_KEY32 is not a known key"),
        (conf() + "#comment\n\nno equals sign but a secret\n", "line 8 has no ="),
        (conf() + "USER=root\nUSER=ops\n", "line 7: USER is there twice"),
        (conf(USER="ro\tot"), "control characters"),
        (conf(USER="root\r"), "control characters"),
        (conf(SSH_KEY0="ssh-rsa A \x1b]0;title\x07"), "control characters"),
        (conf(USER="root\0x"), "control characters"),
        (conf().replace("GENERATION=1\n", ""), "GENERATION is missing"),
        (conf().replace("INSTANCE=", "#"), "INSTANCE is missing"),
        (conf(GENERATION="9999999999999999999"), "the value of GENERATION"),
        (conf() + "#" * 131072 + "\n", "larger than 128 KiB"),
        (conf(FORMAT="2"), "the value of FORMAT"),
        ("", "FORMAT is missing"),
    ],
)
@pytest.mark.parametrize("shell", ["dash", "ash"])
def test_what_is_no_configuration_is_refused_with_the_line(
    make_machine: Callable[[str], Machine], shell: str, text: str, reason: str
) -> None:
    machine = make_machine(shell)
    outcome = machine.provision(text)
    assert refused(machine, outcome)
    assert reason in outcome.log
    assert "a secret" not in outcome.log


def test_a_file_of_the_largest_size_is_taken(machine: Machine) -> None:
    """Thirty-two long keys, sixteen interfaces would still be far below 128 KiB."""
    keys = {f"SSH_KEY{number}": f"ssh-rsa {'A' * 3900} key {number}" for number in range(32)}
    text = conf(keys)
    text += "#" * (131071 - len(text)) + "\n"
    assert machine.provision(text).status == 0
    assert len(machine.read("/root/.ssh/authorized_keys")) > 32 * 3900


def test_no_newline_at_the_end_and_utf8_comments(machine: Machine) -> None:
    text = conf(SSH_KEY0="ssh-ed25519 AAAA jürgen@büro ☃").removesuffix("\n")
    assert machine.provision(text).status == 0
    assert "jürgen@büro ☃\n" in machine.read("/root/.ssh/authorized_keys")


def test_a_network_that_ip_refuses_is_not_written_for_the_next_boot(machine: Machine) -> None:
    """The alphabet is right, the address is none: ip is asked before any file is written."""
    text = conf(IF0_MAC=MACS[0], IF0_ADDRESSES="999.0.0.5/24")
    outcome = machine.provision(text)
    assert (outcome.status, outcome.failed_step) == (1, "network")
    assert not machine.path("/etc/systemd/network/05-provision-0.network").exists()
    assert not machine.path("/etc/network/interfaces").exists()
