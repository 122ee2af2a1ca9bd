"""Calls in threads: their answers, their errors, and that none is ever abandoned."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from provisiond.threads import Threads, call_in_background

SOON = 10.0  # seconds; far more than any of this takes


@pytest.fixture
def threads() -> Iterator[Threads]:
    threads = Threads(size=2, name="test")
    yield threads
    threads.close()


class Call:
    """A blocking call that the test lets go on."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.go_on = threading.Event()
        self.ended = False

    def __call__(self) -> str:
        self.started.set()
        assert self.go_on.wait(SOON)
        self.ended = True
        return "answer"


async def started(call: Call) -> None:
    assert await asyncio.to_thread(call.started.wait, SOON)


async def test_the_answer_and_the_error_come_back(threads: Threads) -> None:
    assert await threads.call(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await threads.call(divmod, 7, 0)


async def test_the_thread_has_the_adapters_name(threads: Threads) -> None:
    name = await threads.call(lambda: threading.current_thread().name)
    assert name.startswith("test")


async def test_it_is_known_for_how_long_calls_have_held_one_thread_and_all(
    threads: Threads,
) -> None:
    assert (threads.longest_call(), threads.all_held()) == (0, 0)
    first, second = Call(), Call()
    one = asyncio.create_task(threads.call(first))
    await started(first)
    assert threads.longest_call() > 0
    assert threads.all_held() == 0
    two = asyncio.create_task(threads.call(second))
    await started(second)
    assert threads.longest_call() > threads.all_held() > 0
    first.go_on.set()
    await one
    assert threads.longest_call() > threads.all_held() == 0
    second.go_on.set()
    await two
    assert (threads.longest_call(), threads.all_held()) == (0, 0)


async def test_the_loop_goes_on_while_a_call_blocks(threads: Threads) -> None:
    call = Call()
    task = asyncio.create_task(threads.call(call))
    await started(call)
    assert await threads.call(lambda: "meanwhile") == "meanwhile"
    call.go_on.set()
    assert await task == "answer"


async def test_a_cancelled_caller_waits_for_its_call(threads: Threads) -> None:
    call = Call()
    task = asyncio.create_task(threads.call(call))
    await started(call)
    task.cancel()
    done, _ = await asyncio.wait([task], timeout=0.05)
    assert not done
    call.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert call.ended


async def test_a_caller_cancelled_again_and_again_still_waits(threads: Threads) -> None:
    """The phase's time is over, then the job's, then the daemon stops."""
    call = Call()
    task = asyncio.create_task(threads.call(call))
    await started(call)
    for _ in range(3):
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=0.05)
        assert not done, "the call was abandoned"
    call.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert call.ended


async def test_a_time_limit_ends_as_one_after_the_call_has_ended(threads: Threads) -> None:
    call = Call()
    asyncio.get_running_loop().call_later(0.1, call.go_on.set)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await threads.call(call)
    assert call.ended


async def test_an_error_that_nobody_waits_for_is_not_logged(
    threads: Threads, caplog: pytest.LogCaptureFixture
) -> None:
    call = Call()

    def fail() -> None:
        call()
        raise OSError("nobody asked")

    task = asyncio.create_task(threads.call(fail))
    await started(call)
    task.cancel()
    call.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    del task
    assert not caplog.records


async def test_no_more_calls_run_at_once_than_there_are_threads(threads: Threads) -> None:
    calls = [Call() for _ in range(3)]
    tasks = [asyncio.create_task(threads.call(call)) for call in calls]
    await started(calls[0])
    await started(calls[1])
    assert not calls[2].started.is_set()
    for call in calls:
        call.go_on.set()
    assert await asyncio.gather(*tasks) == ["answer"] * 3


async def test_a_call_in_the_background_gives_its_answer_or_its_error() -> None:
    assert await call_in_background(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await call_in_background(divmod, 7, 0)


async def test_nobody_waits_for_a_call_in_the_background() -> None:
    call = Call()
    answer = call_in_background(call)
    await started(call)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await asyncio.shield(answer)
    assert not call.ended
    call.go_on.set()
    assert await answer == "answer"


def test_a_call_in_the_background_does_not_keep_the_process_from_its_end() -> None:
    program = (
        "import asyncio, threading\n"
        "from provisiond.threads import call_in_background\n"
        "async def main():\n"
        "    call_in_background(threading.Event().wait)\n"
        "asyncio.run(main())\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0
