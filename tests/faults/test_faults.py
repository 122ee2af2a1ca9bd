"""What `make faults` does, at a few points of a scenario that needs no guest."""

from tests.faults.campaign import cut_at, record, scene
from tests.faults.cut import Point, points_of
from tests.faults.images import Import, Overlay
from tests.faults.scenario import UNKNOWN

LINK = "link disks/.#.part disks/web#.qcow#"
STORED = "fdatasync state/provisiond.sqlite-wal"


async def test_an_overlay_is_whole_or_absent_wherever_provisiond_is_killed() -> None:
    async with scene(Overlay) as scenario:
        points = await record(scenario)
        wanted = [Point(STORED, 1, "before"), Point(LINK, 1, "before"), Point(LINK, 1, "after")]
        assert set(wanted) <= set(points), points
        rows = [await cut_at(scenario, point) for point in wanted]
    assert [row.reached for row in rows] == [True, True, True]
    assert [row.problems for row in rows] == [(), (), ()]
    assert {row.outcome for row in rows} <= {"SUCCEEDED", UNKNOWN}
    assert rows[-1].outcome == "SUCCEEDED"


async def test_a_file_that_is_left_behind_is_seen() -> None:
    async with scene(Import) as scenario:
        (scenario.host.daemon.image_dir / "bases/.0123.part").touch()
        row = await cut_at(scenario, Point(STORED, 1, "after"))
    assert row.reached
    assert any(".0123.part" in problem for problem in row.problems)


async def test_a_call_that_never_comes_ends_nobody() -> None:
    async with scene(Overlay) as scenario:
        row = await cut_at(scenario, Point("unlink nothing", 1, "before"))
    assert (row.reached, row.outcome, row.problems) == (False, "SUCCEEDED", ())


def test_every_call_has_two_sides_and_a_row_of_libvirts_own_has_three() -> None:
    own, other = ["fsync state"] * 2, ["create ~qemu/a.new", "rename ~qemu/a.new ~qemu/a"]
    points = [str(point) for point in points_of([*own, *other, *own])]
    assert points == [
        "before fsync state",
        "after fsync state",
        "before fsync state (2)",
        "after fsync state (2)",
        "before create ~qemu/a.new",
        "after create ~qemu/a.new",
        "after rename ~qemu/a.new ~qemu/a",
        "before fsync state (3)",
        "after fsync state (3)",
        "before fsync state (4)",
        "after fsync state (4)",
    ]
