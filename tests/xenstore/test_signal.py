"""The guest's word over a real xenstored: faults, hostile guests, reboots, and what is left.

What every GuestSignal promises is asked in tests/contract.
"""

import asyncio
import contextlib
import itertools
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from provisiond.errors import GuestLost, GuestRestarted, XenstoreUnavailable
from provisiond.guest.verdict import MAX_WORD, Done, Failed
from provisiond.guest.xenstore import XenstoreSignal
from provisiond.xenstore import wire
from provisiond.xenstore.client import Health, Xenstore
from provisiond.xenstore.domains import Domains
from provisiond.xenstore.lost_events import LostEvents
from tests.xenstore.connect import QUICK, SOON, connected, looked_for
from tests.xenstore.daemon import XenDomain, Xenstored
from tests.xenstore.test_domains import UUID, followed

NONCE = "0123456789abcdef0123456789abcdef"
OLD_NONCE = "f" * 32
KEY = "/local/domain/5/data/provisiond/verdict"


@dataclass
class Host:
    """What the daemon has one of, and its signals."""

    store: Xenstored
    guest: XenDomain
    xenstore: Xenstore
    domains: Domains
    lost_events: LostEvents

    @asynccontextmanager
    async def signal(
        self,
        *,
        uuid: str = UUID,
        nonce: str = NONCE,
        reboot_seconds: float = SOON,
        is_resumed: bool = False,
    ) -> AsyncIterator[XenstoreSignal]:
        signal = XenstoreSignal(
            nonce=nonce,
            uuid=uuid,
            xenstore=self.xenstore,
            domains=self.domains,
            lost_events=self.lost_events,
            reboot_seconds=reboot_seconds,
            expects_keys=is_resumed,
        )
        try:
            yield signal
        finally:
            await signal.close()


@asynccontextmanager
async def host_of(
    store: Xenstored, guest: XenDomain, *, health: Health = QUICK, look_again: float = 30.0
) -> AsyncIterator[Host]:
    async with (
        connected(store.socket, health=health) as xenstore,
        followed(xenstore) as domains,
        looked_for(xenstore, seconds=look_again) as lost_events,
    ):
        yield Host(store, guest, xenstore, domains, lost_events)


@pytest.fixture
async def host(xenstored: Xenstored) -> AsyncIterator[Host]:
    """With one guest, domain 5."""
    guest = xenstored.introduce(5, uuid=UUID)
    async with host_of(xenstored, guest) as host:
        yield host


@pytest.fixture
def guest(host: Host) -> XenDomain:
    return host.guest


@pytest.fixture
async def signal(host: Host) -> AsyncIterator[XenstoreSignal]:
    async with host.signal() as signal:
        await signal.listen()
        yield signal


async def verdict_of(signal: XenstoreSignal) -> object:
    async with asyncio.timeout(SOON):
        return await signal.verdict()


async def done_with(call: Callable[[], Awaitable[object]]) -> None:
    async with asyncio.timeout(SOON):
        await call()


def say(guest: XenDomain, word: str, *, key: str = "verdict") -> None:
    guest.write(f"data/provisiond/{key}", word.encode())


async def key_is_made(host: Host, domain: XenDomain) -> None:
    key = f"{domain.home}/data/provisiond/verdict"
    async with host.xenstore.watch(key) as wake:
        while True:
            wake.clear()
            with contextlib.suppress(FileNotFoundError, XenstoreUnavailable):
                if await host.xenstore.permissions(key) == ("n0", f"b{domain.domid}"):
                    return
            await wake.wait()


def tree(store: Xenstored, path: str) -> Iterator[str]:
    yield path
    for name in store.dom0.directory(path):
        yield from tree(store, f"{path}/{name}")


# ---------------------------------------------------------------- the keys
@pytest.mark.usefixtures("signal")
async def test_the_keys_are_dom0s_and_that_guests(host: Host) -> None:
    for key in ("verdict", "log"):
        path = f"/local/domain/5/data/provisiond/{key}"
        assert host.store.dom0.permissions(path) == ["n0", "b5"]
        assert host.store.dom0.read(path) == b""


async def test_another_guest_can_neither_write_nor_read_it(
    signal: XenstoreSignal, host: Host, guest: XenDomain
) -> None:
    other = await asyncio.to_thread(host.store.introduce, 6, uuid="other")
    for attempt in (
        lambda: other.write(KEY, f"{NONCE} done".encode()),
        lambda: other.read(KEY),
        lambda: other.rm(KEY),
    ):
        with pytest.raises(PermissionError):
            attempt()
    say(guest, f"{NONCE} failed x y")
    assert await verdict_of(signal) == Failed("x", "y")


async def test_keys_that_the_guest_had_made_itself_become_dom0s(
    host: Host, guest: XenDomain
) -> None:
    folder = "/local/domain/5/data/provisiond"
    for key in ("log", "verdict"):
        say(guest, f"{OLD_NONCE} done", key=key)
        assert host.store.dom0.permissions(f"{folder}/{key}") == ["n5"]
    async with host.signal() as signal:
        await done_with(signal.listen)
        for key in ("log", "verdict"):
            assert host.store.dom0.permissions(f"{folder}/{key}") == ["n0", "b5"]
        say(guest, f"{NONCE} done")
        assert await verdict_of(signal) == Done()


async def test_done_after_the_cancel_is_refused_to_the_guest(
    signal: XenstoreSignal, guest: XenDomain
) -> None:
    assert await signal.cancel() is None
    with pytest.raises(PermissionError):
        say(guest, f"{NONCE} done")
    assert guest.read("data/provisiond/verdict") == b""


async def test_the_guest_is_refused_after_a_cancel_though_no_key_was_there(
    host: Host, guest: XenDomain
) -> None:
    """It was never listened to, as after a reboot: the guest could make the key itself."""
    async with host.signal() as signal:
        assert await signal.cancel() is None
        with pytest.raises(PermissionError):
            say(guest, f"{NONCE} done")


async def test_a_cancel_is_remembered_by_the_key_for_a_daemon_that_died(
    host: Host, guest: XenDomain
) -> None:
    async with host.signal() as first:
        await done_with(first.listen)
        assert await first.cancel() is None
    async with host.signal() as second:
        with pytest.raises(PermissionError):
            say(guest, f"{NONCE} done")
        assert await second.cancel() is None


async def test_closing_keeps_what_the_guest_has_said(host: Host, guest: XenDomain) -> None:
    """The daemon stops, the guest says done, the daemon starts."""
    async with host.signal() as first:
        await done_with(first.listen)
    say(guest, f"{NONCE} log one\n{NONCE} log two\n", key="log")
    say(guest, f"{NONCE} done")
    async with host.signal() as second:
        assert await verdict_of(second) == Done()
        assert second.log() == ("one", "two")


async def test_the_end_of_a_job_leaves_no_key_of_it(host: Host) -> None:
    before = set(tree(host.store, "/local/domain/5"))
    async with host.signal() as signal:
        await done_with(signal.listen)
        assert set(tree(host.store, "/local/domain/5")) > before
        for _ in range(2):
            await signal.end()
        assert set(tree(host.store, "/local/domain/5")) == before


async def test_the_end_of_a_job_leaves_the_guests_own_keys(host: Host, guest: XenDomain) -> None:
    say(guest, "hello 1.0", key="hello")
    async with host.signal() as signal:
        await done_with(signal.ready)
        await signal.end()
    assert guest.read("data/provisiond/hello") == b"hello 1.0"
    assert host.store.dom0.directory("/local/domain/5/data/provisiond") == ["hello"]


async def test_an_end_without_xenstored_or_domain_is_an_end(host: Host) -> None:
    async with host.signal() as first, host.signal(uuid="nobody") as second:
        await done_with(first.listen)
        await second.end()
        host.store.kill()
        await first.end()


# ---------------------------------------------------------------- events that are lost
@pytest.fixture
async def often(xenstored: Xenstored) -> AsyncIterator[Host]:
    """Looks for lost events several times a second."""
    guest = xenstored.introduce(5, uuid=UUID)
    async with host_of(xenstored, guest, look_again=0.2) as host:
        yield host


async def lose_events(host: Host, waiting: asyncio.Task[object]) -> None:
    """xenstored tells nothing more of the guest's keys, and the wait does not know it."""
    async with asyncio.timeout(SOON):
        for _ in iter(lambda: len(host.lost_events._waits) > 0, True):
            await asyncio.sleep(0.01)
    links = host.xenstore._links
    assert links is not None
    for token, watch in host.xenstore._watches.items():
        if not watch.path.startswith("@"):
            await links.watches.request(wire.UNWATCH, wire.watch_payload(watch.path, token))
    assert not waiting.done()


async def test_a_verdict_whose_event_is_lost_is_heard(often: Host) -> None:
    async with often.signal() as signal:
        waiting = asyncio.create_task(verdict_of(signal))
        await lose_events(often, waiting)
        await asyncio.to_thread(say, often.guest, f"{NONCE} log one", key="log")
        await asyncio.to_thread(say, often.guest, f"{NONCE} done")
        assert await waiting == Done()
        assert signal.log() == ("one",)


@pytest.mark.parametrize(
    ("path", "value"), [("data/provisiond/hello", b"hello 1.2"), ("feature/hotplug/vbd", b"1")]
)
async def test_a_sign_of_readiness_whose_event_is_lost_is_seen(
    often: Host, path: str, value: bytes
) -> None:
    async with often.signal() as signal:
        waiting: asyncio.Task[object] = asyncio.create_task(signal.ready())
        await lose_events(often, waiting)
        await asyncio.to_thread(often.guest.write, path, value)
        async with asyncio.timeout(SOON):
            assert await waiting


async def test_a_key_that_goes_without_an_event_is_made_again(often: Host) -> None:
    async with often.signal() as signal:
        waiting = asyncio.create_task(verdict_of(signal))
        await lose_events(often, waiting)
        await asyncio.to_thread(often.guest.rm, "data/provisiond")
        async with asyncio.timeout(SOON):
            while True:
                with contextlib.suppress(FileNotFoundError):
                    if await often.xenstore.permissions(KEY) == ("n0", "b5"):
                        break
                await asyncio.sleep(0.01)
        await asyncio.to_thread(say, often.guest, f"{NONCE} done")
        assert await waiting == Done()


async def test_a_domain_that_goes_without_an_event_is_lost(often: Host) -> None:
    """Its home is kept alive by another, so that the domid stays in the list."""
    async with often.signal(reboot_seconds=0.3) as signal:
        waiting = asyncio.create_task(verdict_of(signal))
        await lose_events(often, waiting)
        often.store.dom0.rm("/local/domain/5")
        often.store.dom0.write("/local/domain/5/another", b"")
        with pytest.raises(GuestLost, match="no domain"):
            await waiting


# ---------------------------------------------------------------- readiness
async def test_a_guest_that_takes_hot_attached_disks_is_ready(
    signal: XenstoreSignal, guest: XenDomain
) -> None:
    guest.write("feature/hotplug/vbd", b"0")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await signal.ready()
    guest.write("feature/hotplug/vbd", b"1")
    async with asyncio.timeout(SOON):
        assert await signal.ready() == "guest shows feature/hotplug/vbd"


@pytest.mark.parametrize("junk", [b"", b"hello", b"hello \xff", b"hello " + b"9" * 1500])
async def test_a_hello_that_is_none_is_no_sign(
    signal: XenstoreSignal, guest: XenDomain, junk: bytes
) -> None:
    guest.write("data/provisiond/hello", junk)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await signal.ready()
    say(guest, "hello 1.2", key="hello")
    async with asyncio.timeout(SOON):
        assert await signal.ready() == "guest script 1.2 said hello"


# ---------------------------------------------------------------- hostile guests
@pytest.mark.parametrize(
    "junk",
    [
        bytes(range(256)) * 7,
        b"\xff\xfe" * 900,
        b"\n" * 1900,
        b"\0",
        f"{OLD_NONCE} done".encode(),
        f"{NONCE} done\n{NONCE} done".encode(),
        f"{NONCE}\0done".encode(),
        f"x{NONCE} done".encode(),
        f"{NONCE} done ".encode() + b"\xff",
    ],
    ids=lambda junk: repr(junk[:12]),
)
async def test_garbage_is_no_verdict_and_no_log(
    signal: XenstoreSignal, guest: XenDomain, junk: bytes
) -> None:
    guest.write("data/provisiond/log", junk)
    guest.write("data/provisiond/verdict", junk)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await signal.verdict()
    assert all(line.isprintable() for line in signal.log())
    say(guest, f"{NONCE} failed a b")
    assert await verdict_of(signal) == Failed("a", "b")


async def test_a_verdict_may_be_of_the_greatest_length(
    signal: XenstoreSignal, guest: XenDomain
) -> None:
    longest = f"{NONCE} failed step ".ljust(1990, "x")
    say(guest, longest)
    verdict = await verdict_of(signal)
    assert isinstance(verdict, Failed)
    assert verdict.message == "x" * 1000
    with pytest.raises(OSError, match="ENOSPC"):  # the guest's quota holds it below that
        say(guest, "y" * (MAX_WORD + 1))


async def test_a_guest_that_removes_its_keys_gets_them_again(
    signal: XenstoreSignal, guest: XenDomain
) -> None:
    for path in ("data/provisiond/verdict", "data/provisiond", "data/provisiond/log"):
        waiting = asyncio.create_task(signal.verdict())
        async with asyncio.timeout(SOON):
            guest.rm(path)
            while True:
                with contextlib.suppress(FileNotFoundError):
                    if guest.read("data/provisiond/verdict") == b"":
                        break
                await asyncio.sleep(0.01)
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting
    say(guest, f"{NONCE} done")
    assert await verdict_of(signal) == Done()


async def test_a_guest_that_floods_starves_nobody(host: Host, guest: XenDomain) -> None:
    """It writes without a pause, until it is refused; another guest is heard in the meantime."""
    quiet = await asyncio.to_thread(host.store.introduce, 6, uuid="quiet")
    is_loud = threading.Event()

    def flood() -> None:
        with guest.connect() as connection:
            for written in itertools.count():
                if written == 1000:
                    is_loud.set()
                connection.write("data/provisiond/log", f"{NONCE} log x\n".encode() * 40)
                connection.write("data/provisiond/verdict", b"x" * 1800)

    async with host.signal() as loud, host.signal(uuid="quiet") as other:
        await done_with(loud.listen)
        await done_with(other.listen)
        hearing = asyncio.create_task(loud.verdict())
        flooding = asyncio.create_task(asyncio.to_thread(flood))
        await asyncio.to_thread(is_loud.wait, SOON)
        await asyncio.to_thread(say, quiet, f"{NONCE} done")
        assert await verdict_of(other) == Done()
        assert not flooding.done()
        assert not hearing.done()
        async with asyncio.timeout(SOON):
            assert await loud.cancel() is None
        with pytest.raises(PermissionError):
            await flooding
        with pytest.raises(GuestLost):
            await hearing


# ---------------------------------------------------------------- reboots, deaths
async def test_a_wait_moves_with_a_guest_that_is_rebooted(
    signal: XenstoreSignal, host: Host, guest: XenDomain
) -> None:
    watches = len(host.xenstore._watches)
    waiting = asyncio.create_task(signal.verdict())
    await asyncio.to_thread(guest.shut_down)
    again = await asyncio.to_thread(host.store.introduce, 6, uuid=UUID)
    with pytest.raises(GuestRestarted, match="domain 6"):  # its disks are gone: attach again
        async with asyncio.timeout(SOON):
            await waiting
    assert host.store.dom0.permissions(f"{again.home}/data/provisiond/verdict") == ["n0", "b6"]
    assert len(host.xenstore._watches) == watches
    say(again, f"{NONCE} done")
    assert await verdict_of(signal) == Done()


async def test_a_wait_moves_when_the_new_domain_comes_before_the_old_one_goes(
    signal: XenstoreSignal, host: Host, guest: XenDomain
) -> None:
    again = await asyncio.to_thread(host.store.introduce, 6, uuid=UUID)
    with pytest.raises(GuestRestarted):
        await verdict_of(signal)
    await asyncio.to_thread(guest.shut_down)
    say(again, f"{NONCE} done")
    assert await verdict_of(signal) == Done()


async def test_a_reboot_while_the_daemon_was_down_is_told(host: Host, guest: XenDomain) -> None:
    async with host.signal() as before:
        await done_with(before.listen)
    async with host.signal(is_resumed=True) as resumed:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await resumed.verdict()
    await asyncio.to_thread(guest.shut_down)
    again = await asyncio.to_thread(host.store.introduce, 6, uuid=UUID)
    async with host.signal(is_resumed=True) as resumed:
        await done_with(resumed.listen)
        with pytest.raises(GuestRestarted, match="domain 6"):
            await verdict_of(resumed)
        say(again, f"{NONCE} done")
        assert await verdict_of(resumed) == Done()


async def test_a_hello_before_the_reboot_is_no_sign_after_it(
    signal: XenstoreSignal, host: Host, guest: XenDomain
) -> None:
    say(guest, "hello 1.0", key="hello")
    await done_with(signal.ready)
    await asyncio.to_thread(guest.shut_down)
    again = await asyncio.to_thread(host.store.introduce, 6, uuid=UUID)
    with pytest.raises(GuestRestarted):
        await verdict_of(signal)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await signal.ready()
    say(again, "hello 2.0", key="hello")
    async with asyncio.timeout(SOON):
        assert "2.0" in await signal.ready()


async def test_a_guest_is_lost_when_no_domain_comes_back(host: Host, guest: XenDomain) -> None:
    async with host.signal(reboot_seconds=0.3) as signal:
        await done_with(signal.listen)
        await asyncio.to_thread(guest.shut_down)
        with pytest.raises(GuestLost, match="no domain"):
            await verdict_of(signal)


async def test_every_reboot_has_its_whole_time(host: Host, guest: XenDomain) -> None:
    reboot_seconds = 2.0
    async with host.signal(reboot_seconds=reboot_seconds) as signal:
        await done_with(signal.listen)
        for domid in (6, 7, 8):
            waiting = asyncio.create_task(signal.verdict())
            await asyncio.to_thread(guest.shut_down)
            await asyncio.sleep(0.6 * reboot_seconds)  # the time itself is what is tested
            assert not waiting.done()
            guest = await asyncio.to_thread(host.store.introduce, domid, uuid=UUID)
            with pytest.raises(GuestRestarted):
                async with asyncio.timeout(SOON):
                    await waiting


@pytest.mark.parametrize("vm", [None, b"/vm/another", b""], ids=repr)
async def test_no_key_is_made_for_a_vm_that_is_not_ours_any_more(
    host: Host, guest: XenDomain, vm: bytes | None
) -> None:
    """The domain has gone, or its domid is another's, and nobody has told us yet."""
    async with host.signal(reboot_seconds=0.3) as signal:
        await done_with(signal.listen)
        if vm is None:
            host.store.dom0.rm("/local/domain/5/vm")
        else:
            host.store.dom0.write("/local/domain/5/vm", vm)
        guest.rm("data/provisiond")
        with pytest.raises(GuestLost):
            await verdict_of(signal)
        assert host.store.dom0.directory("/local/domain/5/data") == []


async def test_nothing_is_made_under_a_dead_domain(host: Host, guest: XenDomain) -> None:
    async with host.signal(reboot_seconds=0.3) as signal:
        await done_with(signal.listen)
        await asyncio.to_thread(guest.shut_down)
        with pytest.raises(GuestLost):
            await verdict_of(signal)
        assert await signal.cancel() is None
        await signal.end()
        homes = host.store.dom0.directory("/local/domain")
        assert "5" not in homes


# ---------------------------------------------------------------- xenstored in trouble
async def test_a_thousand_waits_outlive_a_xenstored_that_is_killed(xenstored: Xenstored) -> None:
    """Its store is lost with it, so all keys are made again, once the domains are back.

    A hundred guests speak for themselves. The others' words are put there by dom0: xenstored takes
    ten times as long for every request when it serves a thousand guests.
    """
    speaking = {domid: f"vm-{domid}" for domid in range(1, 101)}
    silent = {domid: f"vm-{domid}" for domid in range(101, 1001)}

    def make_domains() -> list[XenDomain]:
        built = xenstored.build_all(silent)
        return [*xenstored.introduce_all(speaking), *built]

    def speak(domains: list[XenDomain]) -> None:
        for domain in domains[: len(speaking)]:
            say(domain, f"{NONCE} done")
        for domain in domains[len(speaking) :]:
            key = f"{domain.home}/data/provisiond/verdict"
            xenstored.dom0.write(key, f"{NONCE} done".encode())

    guests = make_domains()
    async with (
        host_of(xenstored, guests[0], health=Health()) as host,
        contextlib.AsyncExitStack() as stack,
    ):
        signals = [
            await stack.enter_async_context(host.signal(uuid=guest.uuid, reboot_seconds=300))
            for guest in guests
        ]
        await asyncio.gather(*(signal.listen() for signal in signals))
        waits = [asyncio.create_task(signal.verdict()) for signal in signals]
        xenstored.kill()
        xenstored.start()
        again = make_domains()
        for domain in again:
            await key_is_made(host, domain)
        await asyncio.to_thread(speak, again)
        assert set(await asyncio.gather(*waits)) == {Done()}


async def test_a_wait_outlives_a_xenstored_that_hangs(
    signal: XenstoreSignal, host: Host, guest: XenDomain
) -> None:
    waiting = asyncio.create_task(signal.verdict())
    host.store.stop()
    async with asyncio.timeout(SOON):
        for _ in iter(lambda: host.xenstore.connected, False):
            await asyncio.sleep(0.02)
    assert not waiting.done()
    host.store.resume()
    await asyncio.to_thread(say, guest, f"{NONCE} done")
    async with asyncio.timeout(SOON):
        assert await waiting == Done()


async def test_a_cancel_waits_for_a_xenstored_that_hangs_and_finds_who_was_first(
    signal: XenstoreSignal, host: Host, guest: XenDomain
) -> None:
    say(guest, f"{NONCE} done")
    host.store.stop()
    cancelling = asyncio.create_task(signal.cancel())
    async with asyncio.timeout(SOON):
        for _ in iter(lambda: host.xenstore.connected, False):
            await asyncio.sleep(0.02)
    assert not cancelling.done()
    host.store.resume()
    async with asyncio.timeout(SOON):
        assert await cancelling == Done()
