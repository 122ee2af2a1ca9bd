"""Sizes as a person writes and reads them: 10G is typed, 10.0 GiB is shown, both are 10 * 2**30."""

import re
from fractions import Fraction

_UNITS = ("", "K", "M", "G", "T")
_WRITTEN = re.compile(r"([0-9]{1,20})([KMGT]?)", re.ASCII)


def parse_size(text: str) -> int:
    """The bytes that `text` stands for: a whole number, and K, M, G or T for powers of 1024.

    Raises ValueError with what is wrong. How large a size may be is not judged here.
    """
    written = _WRITTEN.fullmatch(text)
    if written is None:
        raise ValueError(f"{text!r} is no size: a whole number of bytes, or with K, M, G, T: 10G")
    number, unit = written.groups()
    return int(number) << 10 * _UNITS.index(unit)


def show_size(count: int) -> str:
    """`count` bytes as a person reads them: 10.0 GiB; below 1 KiB to the byte."""
    if count < 1024:
        return f"{count} B"
    power = 1
    while power < len(_UNITS) - 1 and _tenths(count, power) >= 10 * 1024:
        power += 1
    whole, tenth = divmod(_tenths(count, power), 10)
    return f"{whole}.{tenth} {_UNITS[power]}iB"


def _tenths(count: int, power: int) -> int:
    """Exactly: a float has no tenths of what is very large."""
    return round(Fraction(10 * count, 1024**power))
