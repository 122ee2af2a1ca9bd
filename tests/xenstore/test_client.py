"""The xenstore client against a real xenstored: calls, transactions, watches, loss and return."""

import asyncio
import contextlib
import errno
import os
import select
import socket
import threading
import tty
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from provisiond.errors import XenstoreUnavailable
from provisiond.xenstore import wire
from provisiond.xenstore.client import Health, Transaction, Xenstore, find_xenstore
from provisiond.xenstore.link import MAX_IN_FLIGHT, Link
from tests.xenstore.connect import QUICK, SOON, connected
from tests.xenstore.daemon import Xenstored
from tests.xenstore.wire import HEADER, Connection


async def fires(wake: asyncio.Event) -> None:
    async with asyncio.timeout(SOON):
        await wake.wait()
    wake.clear()


async def lost(xenstore: Xenstore) -> None:
    """Returns when the client has given its connection up."""
    async with asyncio.timeout(SOON):
        for _ in iter(lambda: xenstore.connected, False):
            await asyncio.sleep(0.02)


# ---------------------------------------------------------------- calls
async def test_what_is_written_is_read(xenstore: Xenstore) -> None:
    for value in (b"", b"x", b"a\0b\0\0", bytes(range(256)), b"y" * 2000):
        await xenstore.write("/tool/x", value)
        assert await xenstore.read("/tool/x") == value


async def test_a_refusal_is_an_oserror(xenstore: Xenstore) -> None:
    with pytest.raises(FileNotFoundError):
        await xenstore.read("/nothing/here")
    with pytest.raises(FileNotFoundError):
        await xenstore.set_permissions("/nothing/here", "n0")
    with pytest.raises(OSError, match="4096") as caught:
        await xenstore.write("/tool/x", bytes(4096))
    assert caught.value.errno == errno.E2BIG
    assert await xenstore.children("/") == ["tool"]


async def test_mkdir_leaves_the_value_of_what_is_there(xenstore: Xenstore) -> None:
    await xenstore.mkdir("/a/b")
    assert await xenstore.read("/a/b") == b""
    await xenstore.write("/a/b", b"kept")
    await xenstore.mkdir("/a/b")
    assert await xenstore.read("/a/b") == b"kept"


async def test_rm_may_be_asked_for_twice(xenstore: Xenstore) -> None:
    await xenstore.write("/a/b/c", b"1")
    for _ in range(2):
        await xenstore.rm("/a/b")
        await xenstore.rm("/never/was/there")
    assert await xenstore.children("/a") == await xenstore.children_if_any("/a") == []


async def test_permissions_are_the_guests_own(xenstored: Xenstored, xenstore: Xenstore) -> None:
    guest = xenstored.introduce(5, uuid="u-5")
    await xenstore.mkdir("/local/domain/5/data/key")
    await xenstore.set_permissions("/local/domain/5/data/key", "n0", "b5")
    assert await xenstore.permissions("/local/domain/5/data/key") == ("n0", "b5")
    guest.write("data/key", b"mine")
    await xenstore.set_permissions("/local/domain/5/data/key", "n0", "r5")
    with pytest.raises(PermissionError):
        guest.write("data/key", b"late")
    assert await xenstore.read("/local/domain/5/data/key") == b"mine"


async def test_more_children_than_a_reply_holds_are_all_listed(xenstore: Xenstore) -> None:
    names = {f"{number:036d}" for number in range(400)}  # 14,800 bytes
    await asyncio.gather(*(xenstore.mkdir(f"/many/{name}") for name in names))
    listed = await xenstore.children("/many")
    assert sorted(listed) == sorted(names)
    async with xenstore.transaction() as transaction:
        assert set(await transaction.children("/many")) == names


async def test_a_list_that_changes_while_it_is_read_misses_none(xenstore: Xenstore) -> None:
    names = [f"{number:036d}" for number in range(400)]
    await asyncio.gather(*(xenstore.mkdir(f"/many/{name}") for name in names))
    listed = await xenstore.children("/many")
    leaving, staying = listed[:100], set(listed[100:])

    async def leave() -> None:
        for name in leaving:
            await xenstore.rm(f"/many/{name}")
            await asyncio.sleep(0.002)

    task = asyncio.create_task(leave())
    lists = 0
    while not task.done():
        listed = await xenstore.children("/many")
        assert len(listed) == len(set(listed))
        assert staying <= set(listed)
        lists += 1
    await task
    assert lists > 1


async def test_thousands_of_calls_at_once_are_answered(xenstore: Xenstore) -> None:
    count = 10 * MAX_IN_FLIGHT
    await asyncio.gather(*(xenstore.write(f"/n/{i % 50}", b"%d" % i) for i in range(count)))
    assert len(await xenstore.children("/n")) == 50


async def test_many_values_are_read_in_their_order_and_what_is_missing_is_none(
    xenstore: Xenstore,
) -> None:
    await asyncio.gather(*(xenstore.write(f"/n/{i}", b"%d" % i) for i in range(1, 400)))
    found = await xenstore.read_all(*(f"/n/{i}" for i in range(401)))
    assert found == [None, *(b"%d" % i for i in range(1, 400)), None]
    assert await xenstore.read_all() == []
    with pytest.raises(ValueError, match="no xenstore path"):
        await xenstore.read_all("/n/1", "/n/")


async def test_what_is_asked_for_at_once_goes_out_in_one_write(xenstored: Xenstored) -> None:
    """Over a relay whose sockets keep the bounds of each write; one that cannot be built is left
    out, and its caller told."""
    loop: Any = asyncio.get_running_loop()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs, Connection(xenstored.socket) as store:
        link = Link(on_event=lambda _: None, on_lost=lambda _: None)
        loop._make_socket_transport(ours, link)
        await asyncio.sleep(0)
        asked = [link.request(wire.READ, wire.path_payload("/")) for _ in range(2)]
        no_request = link.request(99, b"")
        asked.append(link.request(wire.READ, wire.path_payload("/")))
        sent = await asyncio.to_thread(theirs.recv, 1 << 16)
        store._socket.sendall(sent)
        answer = store._exactly(3 * HEADER.size)  # each with an empty value
        theirs.send(answer)
        assert [await reply for reply in asked] == [b""] * 3
        with pytest.raises(ValueError, match="99"):
            await no_request
        link.break_off("the test is over")
        await asyncio.sleep(0)


async def test_nodes_are_made_and_removed_at_once(xenstored: Xenstored, xenstore: Xenstore) -> None:
    await xenstore.write("/a/kept", b"kept")
    await xenstore.make_all(["/a/new", "/a/kept"], "n0", "r5")
    assert await xenstore.read_all("/a/new", "/a/kept") == [b"", b"kept"]
    for name in ("new", "kept"):
        assert xenstored.dom0.permissions(f"/a/{name}") == ["n0", "r5"]
    await xenstore.rm("/a/none", "/a/new", "/no/folder", "/a/kept")
    assert await xenstore.children("/a") == []


async def test_a_call_that_was_given_up_disturbs_no_other(xenstore: Xenstore) -> None:
    await xenstore.write("/a", b"1")
    for _ in range(3 * MAX_IN_FLIGHT):
        task = asyncio.create_task(xenstore.read("/a"))
        await asyncio.sleep(0)
        task.cancel()
    assert await xenstore.read("/a") == b"1"


# ---------------------------------------------------------------- transactions
async def test_a_transaction_is_seen_as_a_whole(xenstore: Xenstore) -> None:
    async with xenstore.transaction() as transaction:
        await transaction.write("/t/a", b"1")
        await transaction.write("/t/b", b"2")
        assert await transaction.read("/t/a") == b"1"
        with pytest.raises(FileNotFoundError):
            await xenstore.read("/t/a")
    assert sorted(await xenstore.children("/t")) == ["a", "b"]


async def test_a_transaction_that_fails_leaves_nothing(xenstore: Xenstore) -> None:
    async def work() -> None:
        async with xenstore.transaction() as transaction:
            await transaction.write("/t/a", b"1")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await work()
    with pytest.raises(FileNotFoundError):
        await xenstore.read("/t/a")


async def test_a_transaction_is_done_again_when_another_was_quicker(xenstore: Xenstore) -> None:
    await xenstore.write("/count", b"0")

    async def count(transaction: Transaction) -> None:
        await transaction.write("/count", b"%d" % (int(await transaction.read("/count")) + 1))

    await asyncio.gather(*(xenstore.in_transaction(count) for _ in range(20)))
    assert await xenstore.read("/count") == b"20"


async def test_a_conflict_is_told_to_who_did_not_ask_for_another_try(xenstore: Xenstore) -> None:
    async def work() -> None:
        async with xenstore.transaction() as transaction:
            await transaction.write("/count", b"1")
            await xenstore.write("/count", b"2")

    with pytest.raises(BlockingIOError):
        await work()
    assert await xenstore.read("/count") == b"2"


# ---------------------------------------------------------------- watches
async def test_a_watch_fires_at_once_and_at_every_change(xenstore: Xenstore) -> None:
    async with xenstore.watch("/w") as wake:
        await fires(wake)
        for path in ("/w", "/w/child", "/w/child/of/it"):
            await xenstore.write(path, b"x")
            await fires(wake)
        await xenstore.rm("/w")
        await fires(wake)


async def test_many_changes_wake_once(xenstore: Xenstore) -> None:
    async with xenstore.watch("/w") as wake, xenstore.watch("/other") as other:
        await fires(wake)
        await fires(other)
        await asyncio.gather(*(xenstore.write("/w/x", b"%d" % i) for i in range(500)))
        await xenstore.write("/other", b"")  # what fires after all of these
        await fires(other)
        await fires(wake)
        await xenstore.write("/other", b"")
        await fires(other)
        assert not wake.is_set()


async def test_a_watch_that_has_ended_wakes_nobody(xenstore: Xenstore) -> None:
    async with xenstore.watch("/w") as wake:
        await fires(wake)
    async with xenstore.watch("/w") as second:
        await fires(second)
        await xenstore.write("/w", b"")
        await fires(second)
    assert not wake.is_set()


async def test_two_watches_may_share_one_wake(xenstore: Xenstore) -> None:
    async with xenstore.watch("/a") as wake, xenstore.watch("/b", wake=wake):
        for path in ("/a", "/b"):
            wake.clear()
            await xenstore.write(path, b"")
            await fires(wake)


async def test_one_watch_of_many_paths_fires_for_each_and_ends_for_all(xenstore: Xenstore) -> None:
    async with xenstore.watch("/a", "/b") as wake:
        await fires(wake)
        await xenstore.children("/")  # an answer: what fires at once has fired
        for path in ("/a", "/b"):
            wake.clear()
            await xenstore.write(path, b"")
            await fires(wake)
    assert xenstore._watches == {}
    async with xenstore.watch("/a", "/b") as second:
        await fires(second)
        await xenstore.write("/a", b"")
        await fires(second)
    assert not wake.is_set()


async def test_domains_that_come_and_go_are_told(xenstored: Xenstored, xenstore: Xenstore) -> None:
    async with xenstore.watch("@introduceDomain") as came, xenstore.watch("@releaseDomain") as went:
        await fires(came)
        await fires(went)
        guest = await asyncio.to_thread(xenstored.introduce, 5, uuid="u-5")
        await fires(came)
        await asyncio.to_thread(guest.shut_down)
        await fires(went)


async def test_a_thousand_watches_fire_each_for_its_own(xenstore: Xenstore) -> None:
    async def watch(number: int) -> None:
        async with xenstore.watch(f"/w/{number}") as wake:
            while True:
                wake.clear()
                with contextlib.suppress(FileNotFoundError):
                    if await xenstore.read(f"/w/{number}") == b"done":
                        return
                await wake.wait()

    async with asyncio.timeout(SOON), asyncio.TaskGroup() as tasks:
        for number in range(1000):
            tasks.create_task(watch(number))
        for number in range(1000):
            await xenstore.write(f"/w/{number}", b"done")


# ---------------------------------------------------------------- loss and return
async def test_calls_fail_at_once_while_xenstored_is_away(xenstored: Xenstored) -> None:
    async with connected(xenstored.socket) as xenstore:
        xenstored.kill()
        with pytest.raises(XenstoreUnavailable):
            await xenstore.read("/")
        assert not xenstore.connected
        with pytest.raises(XenstoreUnavailable):
            await xenstore.children("/")
        xenstored.start()
        async with asyncio.timeout(SOON):
            await xenstore.available()
        assert await xenstore.children("/") == ["tool"]  # which xenstored makes itself


async def test_it_waits_for_a_xenstored_that_is_not_there_yet(tmp_path: Path) -> None:
    xenstore = Xenstore(tmp_path / "socket", health=QUICK)
    task = asyncio.create_task(xenstore.stay_connected())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await xenstore.available()
    with pytest.raises(XenstoreUnavailable, match="No such file"):
        await xenstore.read("/")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_thousand_watches_are_set_again_after_a_restart(xenstored: Xenstored) -> None:
    async with connected(xenstored.socket) as xenstore, contextlib.AsyncExitStack() as stack:
        wakes = [
            await stack.enter_async_context(xenstore.watch(f"/w/{number}"))
            for number in range(1000)
        ]
        for wake in wakes:
            await fires(wake)
        xenstored.kill()
        xenstored.start()
        for wake in wakes:  # at once: whatever happened meanwhile is read again
            await fires(wake)
        for number, wake in enumerate(wakes):
            await xenstore.write(f"/w/{number}", b"")
            await fires(wake)


async def test_a_watch_may_begin_and_end_while_xenstored_is_away(xenstored: Xenstored) -> None:
    async with connected(xenstored.socket) as xenstore:
        async with contextlib.AsyncExitStack() as old:
            await old.enter_async_context(xenstore.watch("/old"))
            xenstored.kill()
            with pytest.raises(XenstoreUnavailable):
                await xenstore.read("/")
        async with xenstore.watch("/new") as wake:
            assert not wake.is_set()
            xenstored.start()
            await fires(wake)
            async with asyncio.timeout(SOON):
                await xenstore.available()
            await xenstore.write("/new", b"")
            await fires(wake)


async def test_a_xenstored_that_hangs_is_noticed_and_its_return_as_well(
    xenstored: Xenstored,
) -> None:
    async with connected(xenstored.socket) as xenstore, xenstore.watch("/w") as wake:
        await fires(wake)
        xenstored.stop()
        with pytest.raises(XenstoreUnavailable, match="does not answer"):
            async with asyncio.timeout(SOON):
                await xenstore.read("/")
        with pytest.raises(XenstoreUnavailable):
            await xenstore.read("/")
        xenstored.resume()
        async with asyncio.timeout(SOON):
            await xenstore.available()
        await fires(wake)
        await xenstore.write("/w", b"")
        await fires(wake)


async def test_a_xenstored_that_hangs_is_noticed_though_nobody_asks(xenstored: Xenstored) -> None:
    async with connected(xenstored.socket) as xenstore:
        xenstored.stop()
        await lost(xenstore)
        xenstored.resume()
        async with asyncio.timeout(SOON):
            await xenstore.available()


async def test_a_hang_that_is_short_breaks_no_call(xenstored: Xenstored) -> None:
    async with connected(xenstored.socket, health=Health()) as xenstore:
        xenstored.stop()
        reading = asyncio.create_task(xenstore.children("/"))
        await asyncio.sleep(0.3)
        assert not reading.done()
        xenstored.resume()
        async with asyncio.timeout(SOON):
            assert await reading == ["tool"]


async def test_every_call_that_was_under_way_fails_when_xenstored_dies(
    xenstored: Xenstored,
) -> None:
    async with connected(xenstored.socket, health=Health()) as xenstore:
        xenstored.stop()
        calls = [asyncio.create_task(xenstore.read("/")) for _ in range(4 * MAX_IN_FLIGHT)]
        await asyncio.sleep(0)
        xenstored.kill()
        async with asyncio.timeout(SOON):
            ends = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(end) for end in ends} == {XenstoreUnavailable}


async def test_what_was_asked_in_the_turn_in_which_xenstored_was_lost_fails(
    xenstored: Xenstored,
) -> None:
    """Nothing of it has been sent."""
    async with connected(xenstored.socket, health=Health()) as xenstore:
        reading = asyncio.create_task(xenstore.read_all(*["/"] * 1000))
        await asyncio.sleep(0)
        xenstore._calls.break_off("cut")
        with pytest.raises(XenstoreUnavailable, match="cut"):
            await reading
        async with asyncio.timeout(SOON):
            await xenstore.available()
        assert await xenstore.read("/") == b""


# ---------------------------------------------------------------- places, xenbus
def test_the_environment_says_where_xenstored_is() -> None:
    assert find_xenstore({"XENSTORED_PATH": "/x/socket"}) == Path("/x/socket")
    assert find_xenstore({}).parts[-1] in ("socket", "xenbus")


class Device:
    """A character device as xenbus is one: a terminal in raw mode, joined to xenstored's socket."""

    def __init__(self, address: Path) -> None:
        self._ours, self._theirs = os.openpty()
        tty.setraw(self._theirs)
        self.path = Path(os.ttyname(self._theirs))
        self._store = socket.socket(socket.AF_UNIX)
        self._store.connect(str(address))
        self._wake, self._ended = os.pipe()
        self._thread = threading.Thread(target=self._pump)
        self._thread.start()

    def _pump(self) -> None:
        ends = {self._ours: self._store.fileno(), self._store.fileno(): self._ours}
        while True:
            ready, _, _ = select.select([self._wake, *ends], [], [])
            if self._wake in ready:
                return
            for end in ready:
                data = os.read(end, 4096)
                if not data:
                    return
                while data:
                    data = data[os.write(ends[end], data) :]

    def close(self) -> None:
        os.close(self._ended)
        self._thread.join()
        for end in (self._ours, self._theirs, self._wake):
            os.close(end)
        self._store.close()


@pytest.fixture
def device(xenstored: Xenstored) -> Iterator[Device]:
    device = Device(xenstored.socket)
    yield device
    device.close()


async def test_a_device_serves_where_there_is_no_socket(device: Device) -> None:
    async with connected(device.path) as xenstore, xenstore.watch("/w") as wake:
        await fires(wake)
        await asyncio.gather(*(xenstore.write(f"/w/{i}", bytes(2000)) for i in range(600)))
        await fires(wake)
        assert len(await xenstore.children("/w")) == 600
        assert await xenstore.read("/w/599") == bytes(2000)


async def test_transactions_that_were_given_up_leave_none_open(xenstored: Xenstored) -> None:
    """Shown as a guest, which may have some ten open at once."""
    device = Device(xenstored.introduce(5, uuid="u-5").socket)

    async def begin(guest: Xenstore) -> None:
        async with guest.transaction():
            await asyncio.get_running_loop().create_future()

    async with connected(device.path) as guest:
        for turns in range(40):  # given up before its start is answered, or after
            task = asyncio.create_task(begin(guest))
            for _ in range(turns % 4):
                await asyncio.sleep(0)
            if turns % 2:
                await guest.read("data")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        async with guest.transaction() as transaction:
            await transaction.write("data/x", b"1")
    device.close()


async def test_a_device_that_goes_is_noticed(xenstored: Xenstored) -> None:
    device = Device(xenstored.socket)
    async with connected(device.path) as xenstore:
        reading = asyncio.create_task(xenstore.read("/"))
        assert await reading == b""
        device.close()
        await lost(xenstore)


async def test_a_file_that_is_no_device_is_refused(tmp_path: Path) -> None:
    (tmp_path / "xenbus").write_bytes(b"")
    xenstore = Xenstore(tmp_path / "xenbus", health=QUICK)
    task = asyncio.create_task(xenstore.stay_connected())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await xenstore.available()
    assert not xenstore.connected
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
