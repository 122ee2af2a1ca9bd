"""How much a caller may ask, counted with a clock of the test's."""

import pytest

from provisiond.api.limits import CallLimits, Traffic
from provisiond.errors import Overloaded, TooManyRequests


def traffic(*, rate: float = 2.0, at_once: int = 2) -> Traffic:
    return Traffic(
        CallLimits(
            requests_per_second=rate, max_requests=at_once, max_connections=2, request_seconds=1
        )
    )


def allowed(found: Traffic, *, now: float, caller: str = "a") -> int:
    """How many requests of many are allowed at this time."""
    count = 0
    for _ in range(100):
        try:
            found.take_turn(caller, now=now)
        except TooManyRequests:
            continue
        count += 1
    return count


def test_a_quiet_caller_may_burst_and_then_has_its_rate() -> None:
    found = traffic()
    assert allowed(found, now=0.0) == 20
    assert allowed(found, now=0.4) == 0
    assert allowed(found, now=0.5) == 1
    assert allowed(found, now=3.5) == 6
    assert allowed(found, now=1000.0) == 20


def test_whoever_is_refused_hears_when_it_is_not() -> None:
    found = traffic()
    assert allowed(found, now=0.0) == 20
    with pytest.raises(TooManyRequests) as refused:
        found.take_turn("a", now=0.2)
    assert refused.value.retry_after == pytest.approx(0.3)
    found.take_turn("a", now=0.2 + refused.value.retry_after + 0.001)


def test_one_caller_takes_nothing_from_another() -> None:
    found = traffic()
    assert allowed(found, now=0.0, caller="a") == 20
    assert allowed(found, now=0.0, caller="b") == 20


def test_less_than_one_request_a_second_is_a_rate_too() -> None:
    found = traffic(rate=0.01)
    assert allowed(found, now=0.0) == 1
    assert allowed(found, now=99.0) == 0
    assert allowed(found, now=101.0) == 1


def test_many_callers_are_not_remembered_for_ever() -> None:
    found = traffic()
    for number in range(20_000):
        found.take_turn(str(number), now=0.0)
    assert allowed(found, now=0.0, caller="0") == 20  # forgotten, so it is as new
    assert allowed(found, now=0.0, caller="19999") == 19


def test_requests_at_once_are_bounded_and_ended_ones_make_room() -> None:
    found = traffic()
    with found.request("a"):
        with (
            found.request("a"),
            found.request("b"),
            pytest.raises(Overloaded),
            found.request("a"),
        ):
            pass
        with found.request("a"):
            pass


def test_connections_at_once_are_bounded_and_refused_ones_are_not_counted() -> None:
    found = traffic()
    assert [found.connect("a") for _ in range(4)] == [True, True, False, False]
    assert found.connect("b")
    found.disconnect("a")
    assert [found.connect("a") for _ in range(2)] == [True, False]
