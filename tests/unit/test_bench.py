"""The statistics of make bench, and whether its verdicts can be other than good."""

import pytest

from tests.bench.figures import Row, Spread, Target, percentile, table


def test_a_spread_tells_median_quartiles_and_p99() -> None:
    spread = Spread.of([float(value) for value in range(1000, 0, -1)])
    assert (spread.count, spread.median, spread.worst) == (1000, 500.5, 1000.0)
    assert spread.quartiles == (250.75, 750.25)
    assert spread.p99 == 990.0


def test_at_most_one_of_a_hundred_is_above_the_p99() -> None:
    for count in (1, 2, 99, 100, 101, 250):
        ordered = [float(value) for value in range(count)]
        found = percentile(ordered, 99)
        assert sum(value > found for value in ordered) <= count / 100


def test_one_value_is_its_own_spread() -> None:
    assert Spread.of([3.0]) == Spread(1, 3.0, (3.0, 3.0), 3.0, 3.0)


def test_what_was_not_measured_has_no_spread() -> None:
    with pytest.raises(ValueError, match="nothing was measured"):
        Spread.of([])


@pytest.mark.parametrize(
    ("target", "figure", "reached"),
    [
        (Target(5.0), 5.0, True),
        (Target(5.0), 5.1, False),
        (Target(10.0, "high"), 10.0, True),
        (Target(10.0, "high"), 9.9, False),
        (None, 1.0, None),
    ],
)
def test_a_missed_target_is_said_to_be_missed(
    target: Target | None, figure: float, *, reached: bool | None
) -> None:
    row = Row("group", "a figure", figure, "ms", target=target)
    assert row.reached is reached
    assert row.as_json()["reached"] is reached
    assert ("NOT reached" in table([row])) is (reached is False)


def test_the_table_has_target_and_result_in_one_line() -> None:
    row = Row("group", "a figure", 12.345, "ms", Spread.of([12.345]), Target(5.0), "busy machine")
    (line,) = (line for line in table([row]).splitlines() if line.startswith("a figure"))
    assert line.split() == [
        *("a", "figure", "12.3", "ms", "12.3", "–", "12.3", "12.3", "1", "≤", "5.00"),
        *("NOT", "reached;", "busy", "machine"),
    ]
