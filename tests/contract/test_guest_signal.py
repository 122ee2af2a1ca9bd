"""What `provisiond.ports.GuestSignal` promises, asked of every adapter there is.

A further adapter adds its guest's end to `ENDS`.
"""

import asyncio
import tracemalloc
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from provisiond.errors import GuestLost
from provisiond.guest.channel import ChannelSignal
from provisiond.guest.verdict import MAX_WORD, Done, Failed
from provisiond.ports import GuestSignal
from tests.contract.guest_ends import NONCE, ChannelGuest, GuestEnd, XenstoreGuest

SOON = 10.0  # seconds; far more than any of this takes
ENDS: list[Callable[[Path], GuestEnd]] = [ChannelGuest, XenstoreGuest]
OTHER = "f" * 32


@pytest.fixture(params=ENDS)
async def guest(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[GuestEnd]:
    end: GuestEnd = request.param(tmp_path)
    yield end
    await end.close()


@pytest.fixture
async def signal(guest: GuestEnd) -> AsyncIterator[GuestSignal]:
    signal = guest.signal()
    yield signal
    await signal.close()


async def verdict_of(signal: GuestSignal) -> object:
    async with asyncio.timeout(SOON):
        return await signal.verdict()


# ---------------------------------------------------------------- words
async def test_hello_is_the_sign_of_readiness(guest: GuestEnd, signal: GuestSignal) -> None:
    await signal.listen()
    guest.say("hello 0.1.0")
    async with asyncio.timeout(SOON):
        assert "0.1.0" in await signal.ready()


async def test_a_guest_that_says_nothing_is_not_ready(signal: GuestSignal) -> None:
    await signal.listen()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await signal.ready()


async def test_a_guest_that_has_answered_was_ready(guest: GuestEnd, signal: GuestSignal) -> None:
    guest.say(f"{NONCE} done")
    async with asyncio.timeout(SOON):
        assert await signal.ready()
    assert await verdict_of(signal) == Done()


async def test_done_is_the_verdict_however_often_it_is_asked_for(
    guest: GuestEnd, signal: GuestSignal
) -> None:
    await signal.listen()
    guest.say("hello 0.1.0", f"{NONCE} done")
    assert await verdict_of(signal) == Done()
    assert await verdict_of(signal) == Done()


async def test_failed_is_the_verdict_with_its_step(guest: GuestEnd, signal: GuestSignal) -> None:
    guest.say(f"{NONCE} failed network eth0 has no address")
    assert await verdict_of(signal) == Failed("network", "eth0 has no address")


async def test_the_verdict_that_was_heard_counts(guest: GuestEnd, signal: GuestSignal) -> None:
    guest.say(f"{NONCE} failed verify no")
    assert await verdict_of(signal) == Failed("verify", "no")
    guest.say(f"{NONCE} done")
    assert await verdict_of(signal) == Failed("verify", "no")
    assert await signal.cancel() == Failed("verify", "no")


async def test_what_was_said_before_listening_is_heard(
    guest: GuestEnd, signal: GuestSignal
) -> None:
    guest.say("hello 0.1.0", f"{NONCE} log early", f"{NONCE} done")
    await signal.listen()
    assert await verdict_of(signal) == Done()
    assert signal.log() == ("early",)


async def test_listening_may_be_asked_for_twice(guest: GuestEnd, signal: GuestSignal) -> None:
    await signal.listen()
    await signal.listen()
    guest.say(f"{NONCE} done")
    assert await verdict_of(signal) == Done()


async def test_an_interrupted_wait_loses_no_word(guest: GuestEnd, signal: GuestSignal) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await signal.verdict()
    guest.say(f"{NONCE} done")
    assert await verdict_of(signal) == Done()


# ---------------------------------------------------------------- what does not count
async def test_another_jobs_word_counts_for_nothing(guest: GuestEnd, signal: GuestSignal) -> None:
    guest.say(f"{OTHER} log stale", f"{OTHER} done", f"{OTHER} failed x y", f"{NONCE} failed a b")
    assert await verdict_of(signal) == Failed("a", "b")
    assert signal.log() == ()


@pytest.mark.parametrize(
    "junk", ["", " ", "done", NONCE, f"{NONCE} don", "\x00\x1b[2J", "é" * 500, "x" * 2000]
)
async def test_junk_counts_for_nothing(guest: GuestEnd, signal: GuestSignal, junk: str) -> None:
    guest.say(junk, f"{NONCE} done")
    assert await verdict_of(signal) == Done()


# ---------------------------------------------------------------- the log
async def test_the_log_comes_in_its_order(guest: GuestEnd, signal: GuestSignal) -> None:
    guest.say(*(f"{NONCE} log line {number}" for number in range(5)), f"{NONCE} done")
    await verdict_of(signal)
    assert signal.log() == tuple(f"line {number}" for number in range(5))


async def test_the_log_is_bounded_and_keeps_its_end(guest: GuestEnd, signal: GuestSignal) -> None:
    guest.say(*(f"{NONCE} log {number} {'x' * 1900}" for number in range(1000)), f"{NONCE} done")
    await verdict_of(signal)
    assert signal.log()[-1].startswith("999 ")
    assert sum(map(len, signal.log())) <= 400_000
    assert all(line.isprintable() for line in signal.log())


# ---------------------------------------------------------------- cancel
async def test_done_before_the_cancel_wins(guest: GuestEnd, signal: GuestSignal) -> None:
    guest.say("hello 0.1.0", f"{NONCE} log x", f"{NONCE} done")
    await signal.listen()
    assert await signal.cancel() == Done()


async def test_done_before_the_cancel_wins_without_having_listened(
    guest: GuestEnd, signal: GuestSignal
) -> None:
    """After a crash the first thing that is asked may be the cancel."""
    guest.say(f"{NONCE} done")
    assert await signal.cancel() == Done()


async def test_done_after_the_cancel_does_not_count(guest: GuestEnd, signal: GuestSignal) -> None:
    await signal.listen()
    assert await signal.cancel() is None
    guest.say(f"{NONCE} done")
    with pytest.raises(GuestLost):
        await verdict_of(signal)
    assert await signal.cancel() is None


async def test_a_cancel_takes_a_second_at_most(signal: GuestSignal) -> None:
    await signal.listen()
    async with asyncio.timeout(1.0):
        assert await signal.cancel() is None


async def test_a_cancel_never_fails(guest: GuestEnd, signal: GuestSignal) -> None:
    await signal.listen()
    guest.die()
    assert await signal.cancel() is None
    assert await guest.signal().cancel() is None


async def test_the_verdict_that_was_heard_stands_after_the_guests_end(
    guest: GuestEnd, signal: GuestSignal
) -> None:
    guest.say(f"{NONCE} done")
    assert await verdict_of(signal) == Done()
    guest.die()
    assert await verdict_of(signal) == await signal.cancel() == Done()


# ---------------------------------------------------------------- ends
async def test_a_guest_that_dies_is_lost(guest: GuestEnd, signal: GuestSignal) -> None:
    await signal.listen()
    waiting = asyncio.create_task(signal.verdict())
    await asyncio.sleep(0)  # it waits
    guest.die()
    with pytest.raises(GuestLost):
        async with asyncio.timeout(SOON):
            await waiting


async def test_a_guest_that_is_dead_cannot_be_listened_to(
    guest: GuestEnd, signal: GuestSignal
) -> None:
    guest.die()
    for call in (signal.listen, signal.ready, signal.verdict):
        with pytest.raises(GuestLost):
            await call()


async def test_a_daemon_that_was_started_anew_hears_the_word_said_again(guest: GuestEnd) -> None:
    first = guest.signal()
    guest.say("hello 0.1.0", f"{NONCE} done")
    assert await verdict_of(first) == Done()
    await first.close()  # killed before the verdict was stored
    second = guest.signal()
    await second.listen()
    guest.say(f"{NONCE} done")
    assert await verdict_of(second) == Done()
    await second.close()


async def test_the_next_job_on_the_same_guest_hears_only_its_own(guest: GuestEnd) -> None:
    first = guest.signal()
    guest.say(f"{NONCE} done")
    assert await verdict_of(first) == Done()
    await first.close()
    second = guest.signal(nonce=OTHER)
    guest.say(f"{NONCE} done", f"{OTHER} failed a b")
    assert await verdict_of(second) == Failed("a", "b")
    await second.close()


async def test_closing_may_be_asked_for_twice_and_at_any_time(guest: GuestEnd) -> None:
    never_used = guest.signal()
    await never_used.close()
    await never_used.close()
    used = guest.signal()
    await used.listen()
    await used.close()
    await used.close()
    with pytest.raises(GuestLost):
        await verdict_of(used)


# ---------------------------------------------------------------- over a stream of bytes
@pytest.fixture
async def channel(tmp_path: Path) -> AsyncIterator[ChannelGuest]:
    end = ChannelGuest(tmp_path)
    yield end
    await end.close()


@pytest.mark.parametrize("size", [1, 7, 2048])
async def test_a_word_may_come_in_pieces(channel: ChannelGuest, size: int) -> None:
    said = f"hello 0.1.0\n{NONCE} log one\n{NONCE} done\n".encode()
    for start in range(0, len(said), size):
        channel.write(said[start : start + size])
    signal = channel.signal()
    assert await verdict_of(signal) == Done()
    assert signal.log() == ("one",)
    await signal.close()


@pytest.mark.parametrize("length", [MAX_WORD + 1, 4096, 5000, 8192, 8193, 100_000])
@pytest.mark.parametrize("end", ["\n", f"{NONCE} failed a b\n"])
async def test_no_part_of_an_over_long_line_counts(
    channel: ChannelGuest, length: int, end: str
) -> None:
    signal = channel.signal()
    assert isinstance(signal, ChannelSignal)
    waiting = asyncio.create_task(signal.verdict())
    channel.write(b"x" * length)
    await asyncio.sleep(0.05)  # so that what has come is looked at before the line ends
    channel.write(end.encode())
    channel.say(f"{NONCE} done")
    async with asyncio.timeout(SOON):
        assert await waiting == Done()
    await signal.close()


async def test_a_line_without_an_end_takes_no_memory(channel: ChannelGuest) -> None:
    signal = channel.signal()
    tracemalloc.start()
    waiting = asyncio.create_task(signal.verdict())
    piece = b"x" * 65536
    for _ in range(160):  # 10 MiB, the same bytes again and again
        channel.write(piece)
    channel.write(f"\n{NONCE} done\n".encode())
    async with asyncio.timeout(SOON):
        assert await waiting == Done()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20
    await signal.close()


def flood(channel: ChannelGuest) -> None:
    """Some 90 MB that the guest says without waiting for anything."""
    for _ in range(2000):
        channel.write(f"{NONCE} log x\n".encode() * 1000)


async def test_a_word_that_a_killed_daemon_had_read_is_heard_when_it_is_said_again(
    channel: ChannelGuest,
) -> None:
    asking = asyncio.create_task(channel.signal().cancel())
    await asyncio.sleep(1.0)  # the script says it every 2 s
    channel.say(f"{NONCE} done")
    assert await asking == Done()


async def test_a_guest_that_nobody_reads_is_held_back(channel: ChannelGuest) -> None:
    signal = channel.signal()
    await signal.listen()
    flood(channel)
    await asyncio.sleep(0.3)  # time to send far more, if it were taken
    assert 0 < channel.sent < 2**21
    await signal.close()


async def test_a_flood_is_heard_at_its_pace_and_others_have_their_turn(
    channel: ChannelGuest,
) -> None:
    signal = channel.signal()
    loop = asyncio.get_running_loop()
    began = loop.time()
    waiting = asyncio.create_task(signal.verdict())
    for first in range(0, 200_000, 1000):
        channel.say(*(f"{NONCE} log {number}" for number in range(first, first + 1000)))
    for _ in range(20_000):  # in each of them a word could be heard
        await asyncio.sleep(0)
    assert 200 < int(signal.log()[-1]) <= 1000 + 50 * (loop.time() - began)
    assert not waiting.done()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    async with asyncio.timeout(1.0):
        assert await signal.cancel() is None
    assert len(signal.log()) <= 200
