"""Sizes as they are typed and as they are shown."""

from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from provisiond.sizes import parse_size, show_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("1K", 1024),
        ("512M", 512 * 2**20),
        ("10G", 10 * 2**30),
        ("1T", 2**40),
        ("010G", 10 * 2**30),
    ],
)
def test_a_unit_is_a_power_of_1024(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "G", "1.5G", "10GB", "10g", "-1G", "+1", " 1", "1_000", "٣G", "1G\n", "9" * 21]
)
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no size: .* 10G$"):
        parse_size(text)


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (196_616, "192.0 KiB"),
        (2**20 - 1, "1.0 MiB"),
        (10 * 2**30, "10.0 GiB"),
        (3 * 2**40 // 2, "1.5 TiB"),
        (2**50, "1024.0 TiB"),
    ],
)
def test_a_size_is_shown_as_a_person_reads_it(count: int, shown: str) -> None:
    assert show_size(count) == shown


@given(st.text() | st.from_regex(r"[0-9]{1,25}[KMGTkb]?\n?"))
def test_whatever_is_typed_is_a_size_or_refused_in_words(text: str) -> None:
    try:
        size = parse_size(text)
    except ValueError as refusal:
        said = str(refusal)
    else:
        assert 0 <= size < 10**20 * 2**40
        return
    assert said.startswith(repr(text))
    assert said.isprintable()


@given(st.integers(0, 2**60), st.sampled_from("KMGT"))
@example(295255260832273120, "G")
def test_what_was_typed_is_shown_in_the_same_unit_or_a_larger_one(count: int, unit: str) -> None:
    number, shown_unit = show_size(parse_size(f"{count}{unit}")).split()
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    if count:
        assert units.index(shown_unit) >= units.index(f"{unit}iB")
    scale = 1024 ** (units.index(shown_unit) - units.index("B"))
    typed = count * 1024 ** units.index(f"{unit}iB")
    assert abs(Fraction(number) * scale - typed) <= Fraction(scale, 20)
