"""What `make faults` does, at a few points of scenarios that need no guest."""

from tests.daemon.images import raw_image
from tests.faults.breakpoint import Point, points_of
from tests.faults.campaign import record, scene
from tests.faults.disk_full import fill_at, full_points_of
from tests.faults.images import Import, Overlay
from tests.faults.kill import kill_at
from tests.faults.power_cut import cut_power_at, power_points_of
from tests.faults.scenario import UNKNOWN, unexplained
from tests.faults.volumes import IMAGES_MIB

LINK = "link disks/.#.part disks/web#.qcow#"
STORED = "fdatasync state/provisiond.sqlite-wal"
WRITTEN = "write state/provisiond.sqlite-wal"
BASES = "fsync images/bases"
CREATE = "exec qemu-img create"


class LargeImport(Import):
    """Of two copies there is no room for the second."""

    async def prepare(self) -> None:
        raw_image(self.source, mib=IMAGES_MIB // 2, data_mib=IMAGES_MIB // 2)


async def test_an_overlay_is_whole_or_absent_wherever_provisiond_is_killed() -> None:
    async with scene(Overlay) as scenario:
        points = list(points_of(await record(scenario)))
        wanted = [Point(STORED, 1, "before"), Point(LINK, 1, "before"), Point(LINK, 1, "after")]
        assert set(wanted) <= set(points), points
        rows = [await kill_at(scenario, point) for point in wanted]
    assert [row.reached for row in rows] == [True, True, True]
    assert [row.problems for row in rows] == [(), (), ()]
    assert {row.outcome for row in rows} <= {"SUCCEEDED", UNKNOWN}
    assert rows[-1].outcome == "SUCCEEDED"


async def test_what_provisiond_has_said_outlives_a_power_cut() -> None:
    async with scene(Import, on_volumes=True) as scenario:
        points = list(power_points_of(await record(scenario)))
        wanted = [Point(STORED, 1, "before"), Point(BASES, 1, "before"), Point(STORED, 3, "after")]
        assert set(wanted) <= set(points), points
        rows = [await cut_power_at(scenario, point) for point in wanted]
    assert [row.reached for row in rows] == [True, True, True]
    assert [row.problems for row in rows] == [(), (), ()]
    assert [row.outcome for row in rows] == [UNKNOWN, "SUCCEEDED", "SUCCEEDED"]


async def test_what_nobody_synced_is_lost_in_a_power_cut() -> None:
    async with scene(Overlay, on_volumes=True) as scenario:
        unsynced = scenario.host.daemon.image_dir / "bases/.0123.part"
        unsynced.write_bytes(b"half")
        row = await cut_power_at(scenario, Point(STORED, 1, "before"))
        assert not unsynced.exists()
    assert (row.reached, row.problems) == (True, ())


async def test_a_full_disk_is_named_and_harms_nothing() -> None:
    async with scene(Overlay, on_volumes=True) as scenario:
        calls = await record(scenario)
        refused, failed = Point(WRITTEN, 1, "before"), Point(CREATE, 1, "before")
        assert refused in list(full_points_of(calls, "state"))
        assert failed in list(full_points_of(calls, "images"))
        rows = [
            await fill_at(scenario, refused, place="state"),
            await fill_at(scenario, failed, place="images"),
        ]
    assert [row.problems for row in rows] == [(), ()]
    assert [row.outcome for row in rows] == [f"{UNKNOWN}: state_unwritable", "FAILED no_space"]


async def test_an_import_that_goes_on_needs_no_room_for_the_half_it_had() -> None:
    async with scene(LargeImport, on_volumes=True) as scenario:
        row = await kill_at(scenario, Point("fsync bases/.#.part", 1, "before"))
    assert (row.reached, row.outcome, row.problems) == (True, "SUCCEEDED", ())


async def test_a_file_that_is_left_behind_is_seen() -> None:
    async with scene(Import) as scenario:
        (scenario.host.daemon.image_dir / "bases/.0123.part").touch()
        row = await kill_at(scenario, Point(STORED, 1, "after"))
    assert row.reached
    assert any(".0123.part" in problem for problem in row.problems)


async def test_a_call_that_never_comes_ends_nobody() -> None:
    async with scene(Overlay) as scenario:
        row = await kill_at(scenario, Point("unlink nothing", 1, "before"))
    assert (row.reached, row.outcome, row.problems) == (False, "SUCCEEDED", ())


def test_a_failure_that_nobody_foresaw_is_a_problem() -> None:
    failures = (
        {"code": "no_space", "hint": "Make room."},
        {"code": "no_space", "hint": ""},
        {"code": "internal_error", "hint": "Report it with provisiond's log."},
    )
    assert unexplained({"failure": None}) == []
    assert [len(unexplained({"failure": failure})) for failure in failures] == [0, 1, 1]


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
