"""The xenstored of the tests is the real one: it denies, counts, forgets and dies as on a host."""

import errno
import os
import select
import signal
import socket
import subprocess
import sys

import pytest

from tests.lab.initramfs import PROJECT
from tests.xenstore.daemon import XenDomain, Xenstored
from tests.xenstore.wire import HEADER, Connection, Request

KEY = "/local/domain/5/data/key"


@pytest.fixture
def guest(xenstored: Xenstored) -> XenDomain:
    return xenstored.introduce(5, uuid="6ec0bd7f-11c0-43da-975e-2a8ad9ebae0b")


def make_key(xenstored: Xenstored, *entries: str) -> None:
    xenstored.dom0.write(KEY, b"")
    xenstored.dom0.set_permissions(KEY, entries)


def test_a_guest_reads_and_writes_by_relative_paths(xenstored: Xenstored, guest: XenDomain) -> None:
    guest.write("data/word", b"\x00\xff any bytes \n")
    assert guest.read("data/word") == b"\x00\xff any bytes \n"
    assert xenstored.dom0.read("/local/domain/5/data/word") == b"\x00\xff any bytes \n"
    assert guest.read("domid") == b"5"
    assert guest.read("vm") == b"/vm/6ec0bd7f-11c0-43da-975e-2a8ad9ebae0b"


def test_what_a_guest_writes_is_its_own(xenstored: Xenstored, guest: XenDomain) -> None:
    guest.write("data/word", b"")
    assert xenstored.dom0.permissions("/local/domain/5/data/word") == ["n5"]
    assert xenstored.dom0.permissions("/local/domain/5") == ["n0", "r5"]


@pytest.mark.parametrize("path", ["key", "name", "control/key", "/tool/key", "/vm/key"])
def test_a_guest_may_write_where_libxl_lets_it_only(guest: XenDomain, path: str) -> None:
    with pytest.raises(PermissionError) as denied:
        guest.write(path, b"")
    assert denied.value.errno == errno.EACCES
    for writable in ("data/key", "feature/hotplug/vbd", "attr/key", "control/shutdown"):
        guest.write(writable, b"1")


def test_a_guest_cannot_touch_the_key_of_another(xenstored: Xenstored, guest: XenDomain) -> None:
    other = xenstored.introduce(6, uuid="other")
    make_key(xenstored, "n0", "b5")
    for attempt in (
        lambda: other.write(KEY, b""),
        lambda: other.read(KEY),
        lambda: other.rm(KEY),
    ):
        with pytest.raises(PermissionError):
            attempt()
    guest.write("data/key", b"mine")
    assert xenstored.dom0.read(KEY) == b"mine"


def test_a_guest_cannot_change_the_owner(xenstored: Xenstored, guest: XenDomain) -> None:
    make_key(xenstored, "n0", "b5")
    with guest.connect() as connection, pytest.raises(PermissionError):
        connection.set_permissions("data/key", ["n5"])


def test_the_guest_has_lost_once_dom0_has_closed_the_key(
    xenstored: Xenstored, guest: XenDomain
) -> None:
    make_key(xenstored, "n0", "b5")
    guest.write("data/key", b"in time")
    xenstored.dom0.set_permissions(KEY, ["n0", "r5"])
    with pytest.raises(PermissionError):
        guest.write("data/key", b"too late")
    assert xenstored.dom0.read(KEY) == b"in time"


def test_a_node_of_a_guest_has_2048_bytes_at_most(xenstored: Xenstored, guest: XenDomain) -> None:
    """Xen 4.17 counts permissions and children's names as well: 2,007 bytes are left here."""
    make_key(xenstored, "n0", "b5")
    guest.write("data/key", b"x" * 2000)
    assert guest.read("data/key") == b"x" * 2000
    with pytest.raises(OSError, match="ENOSPC"):
        guest.write("data/key", b"x" * 2049)


def test_a_guest_has_a_quota_of_nodes(guest: XenDomain) -> None:
    made: list[str] = []

    def fill() -> None:
        with guest.connect() as connection:
            while len(made) < 2000:
                path = f"data/{len(made) // 100}/{len(made)}"
                connection.write(path, b"")
                made.append(path)

    with pytest.raises(OSError, match="ENOSPC"):
        fill()
    assert 900 < len(made) < 1000
    guest.rm("data/0")
    guest.write("data/again", b"")


def test_a_watch_fires_at_once_and_when_the_other_side_writes(
    xenstored: Xenstored, guest: XenDomain
) -> None:
    with guest.connect() as connection, Connection(xenstored.socket) as dom0:
        dom0.watch("/local/domain/5/data", "host")
        connection.watch("data", "guest")
        assert dom0.event() == ("/local/domain/5/data", "host")
        assert connection.event() == ("data", "guest")
        connection.write("data/a", b"")
        assert dom0.event() == ("/local/domain/5/data/a", "host")
        assert connection.event() == ("data/a", "guest")
        dom0.write("/local/domain/5/data/b", b"")
        dom0.set_permissions("/local/domain/5/data/b", ["n0", "r5"])
        assert connection.event() == ("data/b", "guest")


def test_domains_come_and_go_with_their_events(xenstored: Xenstored, guest: XenDomain) -> None:
    with Connection(xenstored.socket) as dom0:
        for name in ("@introduceDomain", "@releaseDomain"):
            dom0.watch(name, "")
            assert dom0.event() == (name, "")
        xenstored.introduce(7, uuid="seventh")
        assert dom0.event() == ("@introduceDomain", "")
        assert dom0.directory("/local/domain") == ["5", "7"]
        guest.shut_down()
        assert [dom0.event(), dom0.event()] == [("@releaseDomain", "")] * 2
        assert dom0.directory("/local/domain") == ["7"]
        assert dom0.directory("/vm") == ["seventh"]
    with pytest.raises(FileNotFoundError):
        guest.read("domid")


def test_a_guest_that_dies_takes_its_connection_along(guest: XenDomain) -> None:
    with guest.connect() as connection:
        connection.write("data/word", b"")
        guest.shut_down()
        with pytest.raises(ConnectionError):
            connection.write("data/word", b"")


def test_a_domid_can_be_used_again(xenstored: Xenstored, guest: XenDomain) -> None:
    guest.write("data/word", b"")
    guest.shut_down()
    again = xenstored.introduce(5, uuid=guest.uuid)
    with pytest.raises(FileNotFoundError):
        again.read("data/word")


def test_a_killed_xenstored_comes_back_empty(xenstored: Xenstored, guest: XenDomain) -> None:
    with Connection(xenstored.socket) as dom0:
        xenstored.kill()
        with pytest.raises(ConnectionError):
            dom0.directory("/local/domain")
    with pytest.raises(ConnectionRefusedError):
        Connection(xenstored.socket)
    xenstored.start()
    with pytest.raises(FileNotFoundError):
        xenstored.dom0.directory("/local/domain")
    assert xenstored.introduce(5, uuid=guest.uuid).read("domid") == b"5"


def test_a_stopped_xenstored_answers_when_it_goes_on(xenstored: Xenstored) -> None:
    xenstored.dom0.write("/word", b"value")
    xenstored.stop()
    with socket.socket(socket.AF_UNIX) as dom0:
        dom0.connect(str(xenstored.socket))
        dom0.sendall(HEADER.pack(Request.READ, 0, 0, 6) + b"/word\0")
        assert select.select([dom0], [], [], 0)[0] == []
        xenstored.resume()
        assert dom0.recv(HEADER.size + 5, socket.MSG_WAITALL)[HEADER.size :] == b"value"


def test_the_next_client_of_a_guest_finds_nothing_of_the_last(guest: XenDomain) -> None:
    """As the guest's kernel: watches and transactions end with the file that made them."""
    for _ in range(20):  # more than the quota of transactions
        with guest.connect() as connection:
            connection.watch("data", "old")
            number = int(connection.request(Request.TRANSACTION_START, b"\0").rstrip(b"\0"))
            connection.write("data/never", b"", transaction=number)
    with guest.connect() as connection:
        connection.write("data/word", b"")
        with pytest.raises(FileNotFoundError):
            connection.read("data/never")
        assert connection._events == []


def test_half_a_request_of_a_client_that_goes_is_no_request(guest: XenDomain) -> None:
    for size in (1, HEADER.size, HEADER.size + 3):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(guest.socket))
            message = HEADER.pack(Request.WRITE, 0, 0, 11) + b"data/word\0x"
            client.sendall(message[:size])
    with pytest.raises(FileNotFoundError):
        guest.read("data/word")


def test_a_request_that_no_kernel_would_send_ends_the_connection(guest: XenDomain) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(guest.socket))
        client.sendall(HEADER.pack(Request.READ, 0, 0, 4097))
        assert client.recv(1) == b""
    assert guest.read("domid") == b"5"


def test_a_flood_of_requests_is_answered_in_order(guest: XenDomain) -> None:
    """Far more than the rings and the sockets hold, so every side has to wait for the others."""
    guest.write("data/big", b"x" * 2000)
    request = b"data/big\0"
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(guest.socket))
        asked = [HEADER.pack(Request.READ, n, 0, len(request)) + request for n in range(2000)]
        child = os.fork()
        if child == 0:
            client.sendall(b"".join(asked))
            os._exit(0)
        for number in range(2000):
            header = HEADER.unpack(client.recv(HEADER.size, socket.MSG_WAITALL))
            assert header == (Request.READ, number, 0, 2000)
            assert client.recv(2000, socket.MSG_WAITALL) == b"x" * 2000
        assert os.waitpid(child, 0)[1] == 0


def test_a_client_that_goes_without_reading_harms_nobody(guest: XenDomain) -> None:
    guest.write("data/big", b"x" * 2000)
    request = b"data/big\0"
    for _ in range(5):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(guest.socket))
            client.setblocking(False)
            asked = HEADER.pack(Request.READ, 1, 0, len(request)) + request
            while select.select([], [client], [], 0)[1]:
                try:
                    client.send(asked * 50)
                except BlockingIOError:
                    break
    assert guest.read("domid") == b"5"


def test_a_hundred_guests_are_a_hundred_guests(xenstored: Xenstored) -> None:
    guests = xenstored.introduce_all({domid: f"uuid{domid}" for domid in range(1, 101)})
    connections = [guest.connect() for guest in guests]
    try:
        for guest, connection in zip(guests, connections, strict=True):
            connection.write("data/word", b"%d" % guest.domid)
        for guest, connection in zip(guests, connections, strict=True):
            assert connection.read("domid") == connection.read("data/word")
            assert xenstored.dom0.read(f"{guest.home}/data/word") == b"%d" % guest.domid
    finally:
        for connection in connections:
            connection.close()


@pytest.mark.parametrize("stopped", [False, True])
def test_it_dies_with_a_test_run_that_is_killed(*, stopped: bool) -> None:
    code = (
        "import shutil, sys, signal\n"
        "from tests.xenstore.daemon import Xenstored\n"
        "with Xenstored() as store:\n"
        "    shutil.rmtree(store.folder)\n"  # nobody else would, after the kill
        f"    store.stop() if {stopped} else None\n"
        "    print(store._running.pid, flush=True)\n"
        "    signal.pause()\n"
    )
    argv = [sys.executable, "-c", code]
    with subprocess.Popen(argv, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        xenstored = os.pidfd_open(int(run.stdout.readline()))
        try:
            run.send_signal(signal.SIGKILL)
            run.wait()
            assert select.select([xenstored], [], [], 30)[0], "it has outlived the test run"
        finally:
            os.close(xenstored)
