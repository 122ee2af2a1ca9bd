"""A target that is wrong on purpose: whoever fuzzes it and finds nothing looks at nothing."""

from provisiond.guest.verdict import LogLine, parse_word
from tests.fuzz.targets import NONCE, Target


def check_no_log_line(untrusted: bytes) -> None:
    """There is no such promise."""
    assert not isinstance(parse_word(untrusted, nonce=NONCE), LogLine)


TARGETS = {"planted": Target("planted", check_no_log_line, longest=100, words=("log ",))}
