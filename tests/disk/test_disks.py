"""Disks over golden bases: every trap of qemu-img is closed, and the base stays as it is."""

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from provisiond.api.requests import DiskFormat
from provisiond.disk.bases import Bases
from provisiond.disk.disks import Disks
from provisiond.disk.folder import make_mutable
from provisiond.disk.qemu_img import read_chain
from provisiond.errors import (
    BaseChanged,
    BaseInUse,
    BaseNotFound,
    ChainTooDeep,
    DiskExists,
    DiskInUse,
    DiskNotFound,
    ImageBusy,
    ImageRefused,
    NoSpace,
    SizeTooSmall,
    VhdNeedsTapdisk,
)
from provisiond.plan import FilePlan, disks_folder, plan_disk
from provisiond.process import run
from tests.disk.blocks import Merged, merged
from tests.disk.images import MIB, holds, make_image, make_overlay, tool, write, writing_guest
from tests.disk.test_bases import bases_in, import_base, order_for

RAW, QCOW2, QCOW, VHD = DiskFormat.RAW, DiskFormat.QCOW2, DiskFormat.QCOW, DiskFormat.VHD


def disks_in(image_dir: Path, bases: Bases, *, reserve: int = 0, max_chain: int = 4) -> Disks:
    disks = Disks(bases, disks_folder(image_dir), reserve=reserve, max_chain=max_chain)
    disks.prepare()
    return disks


@pytest.fixture
async def bases(image_dir: Path) -> AsyncIterator[Bases]:
    bases = bases_in(image_dir)
    yield bases
    bases.close()


@pytest.fixture
async def disks(image_dir: Path, bases: Bases) -> AsyncIterator[Disks]:
    disks = disks_in(image_dir, bases)
    yield disks
    disks.close()


async def make_base(
    bases: Bases, image_dir: Path, *, name: str = "debian", disk_format: DiskFormat = QCOW2
) -> Path:
    """A base of 8 MiB, the first full of 0x5A."""
    source = make_image(image_dir.parent / f"{name}-source", disk_format=RAW)
    order = order_for(image_dir, source, name=name, disk_format=disk_format)
    return bases.path_of(await import_base(bases, order))


def plan_for(
    image_dir: Path, *, name: str = "web1", disk_format: DiskFormat = QCOW2, job: str = "0" * 32
) -> FilePlan:
    return plan_disk(job, name=name, disk_format=disk_format, image_dir=image_dir)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ---------------------------------------------------------------- overlays
@pytest.mark.parametrize(
    ("disk_format", "base_format"),
    [(QCOW2, RAW), (QCOW2, QCOW2), (QCOW2, QCOW), (QCOW2, VHD), (QCOW, RAW), (QCOW, QCOW2)],
)
async def test_a_guest_reads_the_base_through_its_overlay_and_keeps_what_it_writes(
    image_dir: Path, bases: Bases, disks: Disks, disk_format: DiskFormat, base_format: DiskFormat
) -> None:
    base = await make_base(bases, image_dir, disk_format=base_format)
    before = sha256(base)
    plan = plan_for(image_dir, disk_format=disk_format)
    await disks.admit_overlay(
        name="web1", base="debian", disk_format=disk_format, size=16 * MIB, by_tapdisk=False
    )
    assert names_in(plan.path.parent) == []
    chain = await disks.create_overlay(plan, base="debian", disk_format=disk_format, size=16 * MIB)
    await disks.settle(plan)
    assert [image.path for image in chain.images] == [plan.path, base]
    assert chain == await read_chain(plan.path, disk_format=disk_format)
    assert plan.path.stat().st_mode & 0o777 == 0o600
    assert names_in(plan.path.parent) == [plan.path.name]
    assert holds(plan.path, disk_format=disk_format, pattern=0x5A)
    write(plan.path, disk_format=disk_format, pattern=0x77, offset=12 * MIB)
    write(plan.path, disk_format=disk_format, pattern=0x77)
    assert holds(plan.path, disk_format=disk_format, pattern=0x77)
    assert sha256(base) == before
    await bases.verify_hash("debian", lambda _doing, _fraction: None)
    disk = await disks.find("web1")
    assert (disk.base, disk.image.virtual_size, disk.image.path) == (
        "debian",
        16 * MIB,
        plan.path,
    )
    assert await disks.list() == [disk]
    (state,) = await bases.list()
    assert state.overlays == ("web1",)


@pytest.mark.parametrize("base_format", [RAW, VHD])
async def test_a_vhd_overlay_is_made_where_tapdisk_opens_it(
    image_dir: Path, bases: Bases, disks: Disks, base_format: DiskFormat
) -> None:
    base = await make_base(bases, image_dir, disk_format=base_format)
    plan = plan_for(image_dir, disk_format=VHD)
    with pytest.raises(VhdNeedsTapdisk, match="QEMU would open it, and read zeros"):
        await disks.admit_overlay(
            name="web1", base="debian", disk_format=VHD, size=None, by_tapdisk=False
        )
    await disks.admit_overlay(
        name="web1", base="debian", disk_format=VHD, size=None, by_tapdisk=True
    )
    for _ in range(2):
        chain = await disks.create_overlay(plan, base="debian", disk_format=VHD, size=None)
        assert [image.path for image in chain.images] == [plan.path, base]
    await disks.settle(plan)
    if base_format is VHD:
        with merged(Merged(plan.path, base)) as disk:
            assert disk.read(512, at=0) == b"\x5a" * 512
    found = await disks.find("web1")
    assert (found.base, found.image.virtual_size) == ("debian", 8 * MIB)
    with pytest.raises(BaseInUse):
        await bases.remove("debian", in_use={})


async def test_an_overlay_without_a_size_has_its_bases(
    image_dir: Path, bases: Bases, disks: Disks
) -> None:
    await make_base(bases, image_dir)
    chain = await disks.create_overlay(
        plan_for(image_dir), base="debian", disk_format=QCOW2, size=None
    )
    assert chain.top.virtual_size == 8 * MIB


async def test_an_overlay_over_a_base_that_stands_on_another_reads_them_all(
    tmp_path: Path, image_dir: Path, bases: Bases, disks: Disks
) -> None:
    lower = await make_base(bases, image_dir)
    layer = make_overlay(tmp_path / "layer", lower)
    write(layer, disk_format=QCOW2, pattern=0x22, offset=4 * MIB)
    order = order_for(image_dir, layer, name="web", source_format=QCOW2, parent="debian")
    await import_base(bases, order)
    plan = plan_for(image_dir)
    chain = await disks.create_overlay(plan, base="web", disk_format=QCOW2, size=None)
    assert chain.depth == 3
    assert holds(plan.path, disk_format=QCOW2, pattern=0x5A)
    assert holds(plan.path, disk_format=QCOW2, pattern=0x22, offset=4 * MIB)
    shallow = disks_in(image_dir, bases, max_chain=2)
    with pytest.raises(ChainTooDeep, match="top of 3 images, and 2 may be"):
        await shallow.admit_overlay(
            name="web2", base="web", disk_format=QCOW2, size=None, by_tapdisk=False
        )
    shallow.close()


# ---------------------------------------------------------------- traps
async def test_a_file_that_exists_is_never_overwritten(
    image_dir: Path, bases: Bases, disks: Disks
) -> None:
    await make_base(bases, image_dir)
    plan = plan_for(image_dir)
    plan.path.write_bytes(b"somebody's data")
    with pytest.raises(DiskExists):
        await disks.admit_overlay(
            name="web1", base="debian", disk_format=QCOW2, size=None, by_tapdisk=False
        )
    with pytest.raises(DiskExists):
        await disks.create_overlay(plan, base="debian", disk_format=QCOW2, size=None)
    await disks.take_back(plan, made=False)
    assert plan.path.read_bytes() == b"somebody's data"
    with pytest.raises(DiskExists):  # a disk has one name, whatever its format is
        await disks.admit_overlay(
            name="web1", base="debian", disk_format=QCOW, size=None, by_tapdisk=False
        )
    assert names_in(plan.path.parent) == ["web1.qcow2"]


async def test_what_cannot_be_an_overlay_is_refused_before_anything_is_written(
    image_dir: Path, bases: Bases, disks: Disks
) -> None:
    path = await make_base(bases, image_dir)
    await make_base(bases, image_dir, name="windows", disk_format=VHD)

    async def admit(
        base: str = "debian", disk_format: DiskFormat = QCOW2, size: int | None = None
    ) -> None:
        await disks.admit_overlay(
            name="web1", base=base, disk_format=disk_format, size=size, by_tapdisk=True
        )

    with pytest.raises(BaseNotFound, match="absent: no base has this name"):
        await admit(base="absent")
    with pytest.raises(SizeTooSmall, match="web1: 4194304 bytes are less than its base's 8388608"):
        await admit(size=4 * MIB)
    with pytest.raises(ImageRefused, match="a raw disk stands on no base"):
        await admit(disk_format=RAW)
    with pytest.raises(ImageRefused, match="a VHD cannot stand on a base that is qcow2"):
        await admit(disk_format=VHD)
    with pytest.raises(ImageRefused, match="qcow cannot say that its base is a VHD"):
        await admit(base="windows", disk_format=QCOW)
    await admit(base="windows")
    make_mutable(path)
    with path.open("r+b"), pytest.raises(ImageBusy):
        await admit()
    os.truncate(path, path.stat().st_size - 65536)  # of which qemu-img info says nothing
    with pytest.raises(BaseChanged, match="bytes instead of"):
        await admit()
    assert names_in(disks_folder(image_dir)) == []


async def test_a_base_that_is_written_to_after_its_overlays_is_seen(
    image_dir: Path, bases: Bases, disks: Disks
) -> None:
    path = await make_base(bases, image_dir)
    plan = plan_for(image_dir)
    await disks.create_overlay(plan, base="debian", disk_format=QCOW2, size=None)
    make_mutable(path)
    write(path, disk_format=QCOW2, pattern=0x66)  # mode 0444 does not stop root
    assert "No errors" in tool("qemu-img", "check", plan.path)
    with pytest.raises(BaseChanged, match="was written to after its import"):
        await disks.create_overlay(
            plan_for(image_dir, name="web2"), base="debian", disk_format=QCOW2, size=None
        )


async def test_no_guest_and_no_qemu_img_changes_a_base(
    image_dir: Path, bases: Bases, disks: Disks
) -> None:
    path = await make_base(bases, image_dir)
    before = sha256(path)
    plan = plan_for(image_dir)
    await disks.create_overlay(plan, base="debian", disk_format=QCOW2, size=None)
    write(plan.path, disk_format=QCOW2, pattern=0x66)
    for argv in (
        ["qemu-img", "commit", plan.path],
        ["qemu-img", "resize", path, "16M"],
        ["qemu-io", "-f", "qcow2", "-c", "write 0 512", path],
        ["rm", "-f", path],
    ):
        assert (await run([str(word) for word in argv], check=False)).returncode != 0
    assert sha256(path) == before
    assert (await bases.look_at("debian")).changed is None


async def test_nothing_is_written_where_there_is_no_room(image_dir: Path, bases: Bases) -> None:
    await make_base(bases, image_dir)
    state = os.statvfs(image_dir)
    disks = disks_in(image_dir, bases, reserve=state.f_bavail * state.f_frsize)
    with pytest.raises(NoSpace):
        await disks.admit_overlay(
            name="web1", base="debian", disk_format=QCOW2, size=None, by_tapdisk=False
        )
    with pytest.raises(NoSpace):
        await disks.admit_blank(name="web1")
    plan = plan_for(image_dir)
    with pytest.raises(NoSpace):
        await disks.create_overlay(plan, base="debian", disk_format=QCOW2, size=None)
    with pytest.raises(NoSpace):
        await disks.create_blank(plan, disk_format=QCOW2, size=MIB)
    assert names_in(disks_folder(image_dir)) == []
    disks.close()


# ---------------------------------------------------------------- interrupted
async def test_an_overlay_may_be_asked_for_twice(
    image_dir: Path, bases: Bases, disks: Disks
) -> None:
    await make_base(bases, image_dir)
    plan = plan_for(image_dir)
    first = await disks.create_overlay(plan, base="debian", disk_format=QCOW2, size=None)
    inode = plan.path.stat().st_ino
    write(plan.path, disk_format=QCOW2, pattern=0x42)
    again = await disks.create_overlay(plan, base="debian", disk_format=QCOW2, size=None)
    assert again.top.path == first.top.path
    assert plan.path.stat().st_ino == inode
    assert holds(plan.path, disk_format=QCOW2, pattern=0x42)


INTERRUPTED = """
import asyncio, os, signal, sys
from pathlib import Path
from tests.disk.test_disks import QCOW2, bases_in, disks_in, plan_for

image_dir, calls = Path(sys.argv[1]), int(sys.argv[2])
made = 0

def count(event, args):
    # Before each call that changes the folder, or starts a program, the power can go.
    global made
    made += event in ("os.link", "os.remove", "subprocess.Popen") or (
        event == "open" and str(image_dir) in str(args[0])
    )
    if made == calls:
        made += 1  # os.kill is an event too
        os.kill(os.getpid(), signal.SIGKILL)

async def main():
    disks = disks_in(image_dir, bases_in(image_dir))
    sys.addaudithook(count)
    plan = plan_for(image_dir)
    await disks.create_overlay(plan, base="debian", disk_format=QCOW2, size=None)
    await disks.settle(plan)
asyncio.run(main())
"""


@pytest.mark.parametrize("goes_on", [True, False], ids=["resumed", "undone"])
async def test_a_kill_at_any_call_leaves_a_disk_or_nothing(
    image_dir: Path, bases: Bases, disks: Disks, *, goes_on: bool
) -> None:
    await make_base(bases, image_dir)
    plan = plan_for(image_dir)
    killed = 0
    while True:
        argv = [sys.executable, "-c", INTERRUPTED, str(image_dir), str(killed + 1)]
        finished = await asyncio.to_thread(subprocess.run, argv, check=False)
        if finished.returncode == 0:
            break
        assert finished.returncode == -signal.SIGKILL
        killed += 1
        if goes_on and (plan.part.exists() or not plan.path.exists()):
            await disks.create_overlay(plan, base="debian", disk_format=QCOW2, size=None)
            await disks.settle(plan)
            assert holds(plan.path, disk_format=QCOW2, pattern=0x5A)
        # The fact is stored before `settle`, so the job knows what it has made after it.
        made = not plan.part.exists() and plan.path.exists()
        await disks.take_back(plan, made=made)
        assert names_in(plan.path.parent) == []
    assert killed > 8


async def test_a_creation_that_is_cancelled_at_any_moment_can_be_taken_back(
    image_dir: Path, bases: Bases, disks: Disks
) -> None:
    await make_base(bases, image_dir)
    plan = plan_for(image_dir)
    loop = asyncio.get_running_loop()
    started = loop.time()
    await disks.create_overlay(plan, base="debian", disk_format=QCOW2, size=None)
    took = loop.time() - started
    await disks.take_back(plan, made=False)
    for step in range(20):
        task = asyncio.create_task(
            disks.create_overlay(plan, base="debian", disk_format=QCOW2, size=None)
        )
        await asyncio.sleep(took * step / 20)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled() or task.exception() is None
        await disks.take_back(plan, made=False)
        assert names_in(plan.path.parent) == []
    await bases.remove("debian", in_use={})


# ---------------------------------------------------------------- blank disks
@pytest.mark.parametrize("disk_format", DiskFormat)
async def test_a_blank_disk_has_the_size_that_was_asked_for_and_takes_no_room(
    image_dir: Path, disks: Disks, disk_format: DiskFormat
) -> None:
    plan, size = plan_for(image_dir, disk_format=disk_format), 100 * MIB + 512
    await disks.admit_blank(name="web1")
    for _ in range(2):
        image = await disks.create_blank(plan, disk_format=disk_format, size=size)
        assert (image.path, image.virtual_size, image.backing) == (plan.path, size, None)
        assert image.file_size < MIB
    await disks.settle(plan)
    with pytest.raises(DiskExists):
        await disks.admit_blank(name="web1")
    assert holds(plan.path, disk_format=disk_format, pattern=0)
    assert (await disks.find("web1")).base is None
    await disks.remove("web1", in_use={})
    assert names_in(plan.path.parent) == []


# ---------------------------------------------------------------- when they leave
async def test_a_disk_that_somebody_has_stays(
    tmp_path: Path, image_dir: Path, bases: Bases, disks: Disks
) -> None:
    await make_base(bases, image_dir)
    plan = plan_for(image_dir)
    await disks.create_overlay(plan, base="debian", disk_format=QCOW2, size=None)
    await disks.settle(plan)
    with pytest.raises(DiskInUse, match="the domain web1 has it"):
        await disks.remove("web1", in_use={plan.path: "web1"})
    with plan.path.open("r+b"), pytest.raises(ImageBusy, match="is open for writing"):
        await disks.remove("web1", in_use={})
    upper = make_overlay(disks_folder(image_dir) / "by-hand.qcow2", plan.path)
    with pytest.raises(DiskInUse, match=f"{upper} stands on it"):
        await disks.remove("web1", in_use={})
    upper.unlink()
    await disks.remove("web1", in_use={tmp_path / "elsewhere": "web2"})
    with pytest.raises(DiskNotFound):
        await disks.remove("web1", in_use={})
    with pytest.raises(DiskNotFound):
        await disks.find("web1")


async def test_a_damaged_disk_can_be_removed(image_dir: Path, disks: Disks) -> None:
    (disks_folder(image_dir) / "web1.qcow2").write_bytes(b"nothing")
    with pytest.raises(ImageRefused):
        await disks.find("web1")
    await disks.remove("web1", in_use={})
    assert names_in(disks_folder(image_dir)) == []


async def test_of_two_disks_made_at_once_under_one_name_only_one_is_made(
    image_dir: Path, disks: Disks
) -> None:
    plans = {
        disk_format: plan_for(image_dir, disk_format=disk_format, job=job * 32)
        for disk_format, job in ((RAW, "0"), (QCOW2, "1"), (QCOW, "2"), (VHD, "3"))
    }
    made = await asyncio.gather(
        *(disks.create_blank(plan, disk_format=f, size=MIB) for f, plan in plans.items()),
        return_exceptions=True,
    )
    assert sorted(type(one).__name__ for one in made) == ["DiskExists"] * 3 + ["DiskImage"]
    for plan in plans.values():
        await disks.take_back(plan, made=False)
    assert names_in(disks_folder(image_dir)) == []


async def test_a_disk_is_listed_while_its_guest_writes(
    image_dir: Path, bases: Bases, disks: Disks, caplog: pytest.LogCaptureFixture
) -> None:
    await make_base(bases, image_dir)
    plan = plan_for(image_dir)
    await disks.create_overlay(plan, base="debian", disk_format=QCOW2, size=None)
    (plan.path.parent / "broken.qcow2").write_bytes(b"nothing")
    (plan.path.parent / "notes.txt").write_text("an operator's")
    async with writing_guest(plan.path, disk_format=QCOW2):
        assert [disk.name for disk in await disks.list()] == ["web1"]
    assert "broken.qcow2: has no qcow2 header" in caplog.text


async def test_many_overlays_at_once_stand_on_one_base(
    image_dir: Path, bases: Bases, disks: Disks
) -> None:
    path = await make_base(bases, image_dir)
    before = sha256(path)
    plans = [plan_for(image_dir, name=f"web{number}", job=f"{number:032x}") for number in range(40)]
    async with asyncio.TaskGroup() as tasks:
        for plan in plans:
            tasks.create_task(
                disks.create_overlay(plan, base="debian", disk_format=QCOW2, size=None)
            )
    for plan in plans:
        await disks.settle(plan)
    for plan in plans[::8]:
        write(plan.path, disk_format=QCOW2, pattern=0x99)
    assert len(await disks.list()) == len(plans)
    assert sha256(path) == before
    (state,) = await bases.list()
    assert len(state.overlays) == len(plans)
