"""Every error: a code of its own, what happened, and what to do next."""

import inspect
import re

import pytest

from provisiond import errors
from provisiond.errors import GuestFailed, ProvisionError, TooManyRequests

CLASSES = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, ProvisionError)
]


def make(kind: type[ProvisionError]) -> ProvisionError:
    if kind is GuestFailed:
        return GuestFailed("web1: it happened", step="network")
    if kind is TooManyRequests:
        return TooManyRequests("web1: it happened", retry_after=1.0)
    return kind("web1: it happened")


@pytest.mark.parametrize("kind", CLASSES)
def test_an_error_says_what_happened_and_what_to_do_next(kind: type[ProvisionError]) -> None:
    error = make(kind)
    assert str(error) == error.message == "web1: it happened"
    assert error.hint.endswith((".", "?"))
    assert error.hint[0].isupper() or error.hint.startswith("provisionctl")
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", kind.code)
    assert kind.__doc__


def test_every_error_has_a_code_and_a_hint_of_its_own() -> None:
    assert len(CLASSES) > 20
    assert len({kind.code for kind in CLASSES}) == len(CLASSES)
    assert all("code" in vars(kind) and "default_hint" in vars(kind) for kind in CLASSES)


def test_a_hint_may_be_better_than_the_usual_one() -> None:
    assert ProvisionError("x", hint="Do this.").hint == "Do this."
