"""What a clock that is set changes, and what it does not."""

from dataclasses import replace

from provisiond.clock import BootTime, WallClock, boot_time
from tests.unit.test_store import job_of

NOW = 1_800_000_000.0
DAY = 86400.0
YEARS = 70 * 365 * DAY


def test_the_time_since_boot_goes_on_under_one_id() -> None:
    first, second = boot_time(), boot_time()
    assert first.boot_id == second.boot_id
    assert 0 < first.seconds <= second.seconds


# ---------------------------------------------------------------- deadlines
def test_a_wall_clock_that_is_set_moves_no_deadline_of_the_same_boot() -> None:
    job = replace(job_of(1, created_at=NOW), deadline_at=NOW + 600)
    job = replace(job, deadline_boot=BootTime("a", 1600.0))
    for wall in (NOW, NOW - YEARS, NOW + YEARS, 0.0):
        assert job.seconds_left(wall=wall, boot=BootTime("a", 1100.0)) == 500.0


def test_after_a_boot_the_wall_clock_is_believed_but_gives_no_more_than_there_was() -> None:
    job = replace(job_of(1, created_at=NOW), deadline_at=NOW + 600)
    for known in (None, BootTime("before", 1600.0)):
        job = replace(job, deadline_boot=known)
        boot = BootTime("after", 5.0)
        assert job.seconds_left(wall=NOW + 100, boot=boot) == 500.0
        assert job.seconds_left(wall=NOW + YEARS, boot=boot) < 0
        assert job.seconds_left(wall=NOW - DAY, boot=boot) == 600.0
        assert job.seconds_left(wall=0.0, boot=boot) == 600.0


# ---------------------------------------------------------------- the removal of what is old
def test_the_date_is_reliable_once_it_has_gone_on_for_a_day() -> None:
    clock = WallClock(wall=NOW, boot=100.0)
    assert not clock.is_reliable(wall=NOW, boot=100.0)
    assert not clock.is_reliable(wall=NOW + DAY - 1, boot=100.0 + DAY - 1)
    assert clock.is_reliable(wall=NOW + DAY, boot=100.0 + DAY)


def test_a_clock_that_is_set_has_to_go_on_for_another_day_and_again_when_it_is_set_right() -> None:
    clock = WallClock(wall=NOW, boot=0.0)
    for number, jump in enumerate((YEARS, 0.0, -YEARS, 0.0), start=1):
        boot = number * 10 * DAY
        assert not clock.is_reliable(wall=NOW + jump + boot, boot=boot)
        boot += DAY - 1
        assert not clock.is_reliable(wall=NOW + jump + boot, boot=boot)
        assert clock.is_reliable(wall=NOW + jump + boot + 1, boot=boot + 1)


def test_a_clock_that_is_corrected_a_little_stays_reliable() -> None:
    clock = WallClock(wall=NOW, boot=0.0)
    for hour in range(24, 1000):
        reliable = clock.is_reliable(wall=NOW + hour * 3601, boot=hour * 3600.0)
        assert reliable
