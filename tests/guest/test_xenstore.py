"""What the script says on Xen, to a real xenstored: the same grammar, a key for each word."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from provisiond.guest.verdict import Done, Failed, Hello, LogLine, Word, parse_word
from tests.daemon.canary import found
from tests.daemon.canary import xenstore as everything
from tests.guest.conftest import MakeMachine
from tests.guest.machine import LOG_FILE, NONCE, SECRET, Machine, package
from tests.guest.machine import configuration as conf
from tests.guest.test_words import lines_of, port_of, waiting, words
from tests.xenstore.daemon import XenDomain, Xenstored
from tests.xenstore.wire import Connection
from tests.xenstore.xenbus import xenbus_of

KEYS = "/local/domain/5/data/provisiond"


@pytest.fixture
def guest(xenstored: Xenstored) -> XenDomain:
    return xenstored.introduce(5, uuid="6ec0bd7f-11c0-43da-975e-2a8ad9ebae0b")


@contextmanager
def asked(
    xenstored: Xenstored, machine: Machine, guest: XenDomain, *, access: str = "b"
) -> Iterator[None]:
    """The machine is the guest, and the host has made the keys of a job."""
    for key in ("verdict", "log"):
        xenstored.dom0.write(f"{KEYS}/{key}", b"")
        xenstored.dom0.set_permissions(f"{KEYS}/{key}", ["n0", f"{access}5"])
    with xenbus_of(machine, guest):
        yield


def word_in(xenstored: Xenstored, key: str) -> Word | None:
    return parse_word(xenstored.dom0.read(f"{KEYS}/{key}"), nonce=NONCE)


def log_of(xenstored: Xenstored) -> list[str]:
    """The lines of the log key, all of which must be words of this job."""
    said = words(xenstored.dom0.read(f"{KEYS}/log").splitlines())
    assert all(isinstance(word, LogLine) for word in said)
    return [word.text for word in said if isinstance(word, LogLine)]


def test_done_and_the_log_stand_in_their_keys(
    xenstored: Xenstored, guest: XenDomain, machine: Machine
) -> None:
    with asked(xenstored, machine, guest):
        assert machine.provision(conf()).status == 0
    assert word_in(xenstored, "verdict") == Done()
    said = log_of(xenstored)
    assert said[0] == "step config"
    assert said[-1] == "done: everything was applied and read back"
    assert xenstored.dom0.permissions(f"{KEYS}/verdict") == ["n0", "b5"]


def test_a_failure_brings_its_step_its_reason_and_the_log(
    xenstored: Xenstored, guest: XenDomain, machine: Machine
) -> None:
    with asked(xenstored, machine, guest):
        text = conf(TIMEZONE="Mars/Olympus", PASSWORD_HASH=SECRET)
        assert machine.provision(text).status == 1
    reason = "there is no /usr/share/zoneinfo/Mars/Olympus"
    assert word_in(xenstored, "verdict") == Failed("timezone", reason)
    assert log_of(xenstored)[-1] == f"timezone failed: {reason}"
    known = {f"xenstore {KEYS}/verdict": "timezone", f"xenstore {KEYS}/log": "step password"}
    assert found([SECRET], everything(xenstored.dom0), known=known) == []


def test_the_last_lines_of_a_long_log_win(
    xenstored: Xenstored, guest: XenDomain, machine: Machine
) -> None:
    """And what a tool says comes through as it is: nothing in it is a format or an escape."""
    odd = r"""100%s \n \\ \101 "'$HOME' `x` -e """
    noise = f"""#!/bin/sh\nread -r x\ncat <<'end'\n{odd}{"much " * 300}\nend\nexit 1\n"""
    machine.write("/usr/sbin/chpasswd", noise, mode=0o755)
    with asked(xenstored, machine, guest):
        assert machine.provision(conf(PASSWORD_HASH=SECRET)).status == 1
    assert 1000 < len(xenstored.dom0.read(f"{KEYS}/log")) <= 2000
    verdict = word_in(xenstored, "verdict")
    assert isinstance(verdict, Failed)
    assert verdict.step == "password"
    assert odd in verdict.message
    assert log_of(xenstored)[-1] == f"password failed: {verdict.message}".strip()


def test_a_verdict_that_nobody_asked_for_is_not_written(
    xenstored: Xenstored, guest: XenDomain, machine: Machine
) -> None:
    with xenbus_of(machine, guest):
        outcome = machine.provision(conf())
    assert outcome.status == 0
    assert xenstored.dom0.directory("/local/domain/5/data") == []
    assert "xenstore does not take the word: ENOENT" in machine.read(LOG_FILE)


def test_a_verdict_after_the_cancel_is_refused_and_logged(
    xenstored: Xenstored, guest: XenDomain, machine: Machine
) -> None:
    with asked(xenstored, machine, guest, access="r"):
        machine.provision(conf())
    assert xenstored.dom0.read(f"{KEYS}/verdict") == b""
    assert "xenstore does not take the word: EACCES" in machine.read(LOG_FILE)


def test_a_machine_whose_xenstored_is_gone_is_configured_all_the_same(
    xenstored: Xenstored, guest: XenDomain, machine: Machine
) -> None:
    with asked(xenstored, machine, guest):
        xenstored.kill()
        assert machine.provision(conf()).status == 0
    assert "xenstore does not take the word: no answer" in machine.read(LOG_FILE)


def test_it_says_hello_while_it_waits(
    xenstored: Xenstored, guest: XenDomain, machine: Machine
) -> None:
    with Connection(xenstored.socket) as dom0, xenbus_of(machine, guest):
        dom0.watch(f"{KEYS}/hello", "")
        dom0.event()  # the one that comes at once
        with waiting(machine):
            dom0.event()
            version = machine.run(*machine.script_inside("--version")).strip()
            assert word_in(xenstored, "hello") == Hello(version)
            pid = machine.read("/run/provision-guest.pid").strip()
            machine.run("sh", "-c", f"kill -TERM {pid}")


def test_xenfs_serves_where_the_device_is_missing(
    xenstored: Xenstored, guest: XenDomain, make_machine: MakeMachine
) -> None:
    """Old kernels have it there alone; /proc is a folder here, as a machine cannot add to proc."""
    machine = make_machine("dash")
    machine.run("sh", "-c", "mount -t tmpfs xenfs /proc && mkdir /proc/xen /proc/self")
    xenstored.dom0.write(f"{KEYS}/verdict", b"")
    with xenbus_of(machine, guest, device="/proc/xen/xenbus"):
        machine.provision(conf())
    assert xenstored.dom0.read(f"{KEYS}/verdict").startswith(NONCE.encode())


def test_the_virtio_port_is_preferred(
    xenstored: Xenstored, guest: XenDomain, system: Machine
) -> None:
    with asked(xenstored, system, guest), port_of(system) as reader:
        assert system.provision(conf()).status == 0
        assert set(words(lines_of(reader))) == {Done()}
    assert xenstored.dom0.read(f"{KEYS}/verdict") == b""


def test_the_tool_of_the_distribution_writes_where_there_is_one(
    xenstored: Xenstored, guest: XenDomain, system: Machine
) -> None:
    install_xenstore_write(system)
    odd = r"\101 \\ %s"
    system.write("/usr/sbin/chpasswd", f"#!/bin/sh\ncat <<'end'\n{odd}\nend\nexit 1\n", mode=0o755)
    with asked(xenstored, system, guest):
        assert system.provision(conf(PASSWORD_HASH=SECRET)).status == 1
    verdict = word_in(xenstored, "verdict")
    assert isinstance(verdict, Failed)
    assert odd in verdict.message
    assert odd in log_of(xenstored)[-1]
    assert system.read("/run/used").split() == [
        "data/provisiond/log",
        "data/provisiond/verdict",
    ]


def test_a_tool_that_is_refused_leaves_the_reason_to_the_script(
    xenstored: Xenstored, guest: XenDomain, system: Machine
) -> None:
    install_xenstore_write(system)
    with asked(xenstored, system, guest, access="r"):
        system.provision(conf())
    assert "data/provisiond/verdict" in system.read("/run/used")
    assert "xenstore does not take the word: EACCES" in system.read(LOG_FILE)


def test_a_reader_without_an_answer_can_be_ended(guest: XenDomain, system: Machine) -> None:
    """As every request of the script is: of the device of the tests this is not self-evident."""
    with xenbus_of(system, guest):
        system.run("sh", "-c", "timeout 1 dd bs=16 count=1 </dev/xen/xenbus; test $? -eq 124")
        assert system.provision(conf()).status == 0


def install_xenstore_write(machine: Machine) -> None:
    """Debian's own, behind a line that keeps account of what it is used for."""
    tool = package("xenstore-utils") / "usr/bin/xenstore-write"
    machine.write("/usr/bin/xenstore-write.real", tool.read_bytes(), mode=0o755)
    for name in ("libxenstore4", "libxentoolcore1"):
        (library,) = package(name).glob("usr/lib/*/libxen*.so.[0-9]")
        machine.write(f"/usr/lib/{library.name}", library.read_bytes())
    machine.write(
        "/usr/bin/xenstore-write",
        '#!/bin/sh\necho "$1" >>/run/used\nexec xenstore-write.real "$@"\n',
        mode=0o755,
    )
