"""Golden bases: how they come in, that they never change, and when they may leave."""

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from provisiond.api.requests import DiskFormat
from provisiond.disk import base_import
from provisiond.disk.bases import Bases
from provisiond.disk.chain import DiskChain
from provisiond.disk.folder import is_immutable, make_mutable
from provisiond.disk.manifest import BaseOrder, Manifest
from provisiond.errors import (
    BaseChanged,
    BaseExists,
    BaseInUse,
    BaseNotFound,
    ChainTooDeep,
    ImageBusy,
    ImageNotFound,
    ImageRefused,
    NoSpace,
)
from provisiond.plan import bases_folder, disks_folder, plan_base
from tests.disk.hostile import HOSTILE, Hostile
from tests.disk.images import MIB, holds, make_image, make_overlay, tool, write

RAW, QCOW2, QCOW, VHD = DiskFormat.RAW, DiskFormat.QCOW2, DiskFormat.QCOW, DiskFormat.VHD


def bases_in(image_dir: Path, *, reserve: int = 0, max_chain: int = 4) -> Bases:
    bases = Bases(
        bases_folder(image_dir),
        disks=disks_folder(image_dir),
        reserve=reserve,
        max_chain=max_chain,
    )
    bases.prepare()
    return bases


@pytest.fixture
async def bases(image_dir: Path) -> AsyncIterator[Bases]:
    bases = bases_in(image_dir)
    yield bases
    bases.close()


def order_for(
    image_dir: Path,
    source: Path,
    *,
    name: str = "debian",
    source_format: DiskFormat = RAW,
    disk_format: DiskFormat = QCOW2,
    parent: str | None = None,
    job: str | None = None,
) -> BaseOrder:
    """An order whose job's id is made of the name."""
    job_id = job or hashlib.md5(name.encode(), usedforsecurity=False).hexdigest()
    plan = plan_base(job_id, name=name, disk_format=disk_format, image_dir=image_dir)
    return BaseOrder(job_id, name, source, source_format, disk_format, parent, plan)


def silent(_doing: str, _fraction: float) -> None:
    """Progress that nobody looks at."""


async def import_base(bases: Bases, order: BaseOrder) -> Manifest:
    await bases.admit_import(order)
    await bases.write_image(order, silent)
    return await bases.register(order)


async def chain_of(bases: Bases, name: str) -> DiskChain:
    """A base, verified, and all that it stands on."""
    async with bases.hold(name) as chain:
        return chain


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ---------------------------------------------------------------- how they come in
@pytest.mark.parametrize("source_format", DiskFormat)
@pytest.mark.parametrize("disk_format", DiskFormat)
async def test_an_image_becomes_a_base_of_the_format_that_was_asked_for(
    tmp_path: Path,
    image_dir: Path,
    bases: Bases,
    source_format: DiskFormat,
    disk_format: DiskFormat,
) -> None:
    source = make_image(tmp_path / "source", disk_format=source_format)
    before = sha256(source)
    order = order_for(image_dir, source, source_format=source_format, disk_format=disk_format)
    manifest = await import_base(bases, order)
    path = bases.path_of(manifest)
    assert path == order.plan.image.path
    assert names_in(path.parent) == sorted(["debian.json", path.name])
    assert holds(path, disk_format=disk_format, pattern=0x5A)
    assert manifest.sha256 == sha256(path)
    assert (manifest.virtual_size, manifest.file_size) == (8 * MIB, path.stat().st_size)
    assert manifest.checked is (disk_format in (QCOW2, VHD))
    assert path.stat().st_mode & 0o777 == 0o444
    assert is_immutable(path)
    assert sha256(source) == before
    chain = await chain_of(bases, "debian")
    assert (chain.depth, chain.top.path, chain.top.virtual_size) == (1, path, 8 * MIB)
    await bases.verify_hash("debian", silent)
    (state,) = await bases.list()
    assert state.manifest == await bases.find("debian") == manifest
    assert (state.changed, state.immutable, state.overlays) == (None, True, ())


async def test_a_base_may_stand_on_another_and_then_holds_only_what_differs(
    tmp_path: Path, image_dir: Path, bases: Bases
) -> None:
    source = make_image(tmp_path / "source", disk_format=RAW, size=32 * MIB)
    write(source, disk_format=RAW, pattern=0x11, size=16 * MIB)
    lower = bases.path_of(await import_base(bases, order_for(image_dir, source)))
    layer = make_overlay(tmp_path / "layer", lower)
    write(layer, disk_format=QCOW2, pattern=0x22, offset=MIB)
    order = order_for(image_dir, layer, name="web", source_format=QCOW2, parent="debian")
    upper = bases.path_of(await import_base(bases, order))
    assert upper.stat().st_size < 3 * MIB
    assert holds(upper, disk_format=QCOW2, pattern=0x11)
    assert holds(upper, disk_format=QCOW2, pattern=0x22, offset=MIB)
    chain = await chain_of(bases, "web")
    assert [image.path for image in chain.images] == [upper, lower]
    states = {state.manifest.name: state for state in await bases.list()}
    assert states["debian"].overlays == ("web",)
    assert (states["web"].manifest.parent, states["web"].overlays) == ("debian", ())


async def test_progress_is_told_for_each_part_of_the_work(
    tmp_path: Path, image_dir: Path, bases: Bases
) -> None:
    source = make_image(tmp_path / "source", disk_format=RAW, size=16 * MIB)
    write(source, disk_format=RAW, pattern=7, size=16 * MIB)
    told: list[tuple[str, float]] = []
    order = order_for(image_dir, source)
    await bases.write_image(order, lambda doing, fraction: told.append((doing, fraction)))
    assert list(dict.fromkeys(doing for doing, _ in told)) == ["checking", "converting", "hashing"]
    for doing in ("converting", "hashing"):
        fractions = [fraction for one, fraction in told if one == doing]
        assert fractions == sorted(fractions)
        assert fractions[-1] == 1.0
        assert len(fractions) > 2
    await bases.take_back(order.plan)


# ---------------------------------------------------------------- what does not come in
@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda hostile: hostile.name.replace(" ", "-"))
async def test_a_hostile_image_leaves_nothing_of_itself_or_of_what_it_was_after(
    tmp_path: Path, image_dir: Path, bases: Bases, hostile: Hostile
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"only for root\n".ljust(1024, b"!"))
    source = tmp_path / "source"
    hostile.make(source, secret)
    order = order_for(image_dir, source, source_format=hostile.disk_format)
    with pytest.raises(ImageRefused, match=hostile.reason):
        await bases.admit_import(order)
    with pytest.raises(ImageRefused, match=hostile.reason):
        await bases.write_image(order, silent)
    assert [path for path in image_dir.rglob("*") if path.is_file()] == []


async def test_a_damaged_image_is_refused_before_it_is_copied(
    tmp_path: Path, image_dir: Path, bases: Bases
) -> None:
    source = make_image(tmp_path / "source", disk_format=QCOW2)
    os.truncate(source, source.stat().st_size - 512 * 1024)
    order = order_for(image_dir, source, source_format=QCOW2)
    with pytest.raises(ImageRefused, match="is damaged"):
        await bases.write_image(order, silent)
    assert not order.plan.image.part.exists()


async def test_a_vhd_of_which_qemu_sees_only_a_part_is_refused(
    tmp_path: Path, image_dir: Path, bases: Bases
) -> None:
    source = make_image(tmp_path / "source", disk_format=VHD, size=8 * MIB + 512)
    content = bytearray(source.read_bytes())
    for at in (0, len(content) - 512):  # as Virtual PC, whose disks QEMU measures in cylinders
        footer = content[at : at + 512]
        footer[28:32] = b"vpc "
        footer[56:60] = bytes([0, 200, 4, 17])
        footer[64:68] = bytes(4)
        footer[64:68] = (~sum(footer) & 0xFFFFFFFF).to_bytes(4, "big")
        content[at : at + 512] = footer
    source.write_bytes(content)
    order = order_for(image_dir, source, source_format=VHD)
    with pytest.raises(ImageRefused, match="has 8389120 bytes, of which QEMU sees 6963200"):
        await bases.write_image(order, silent)
    assert not order.plan.image.part.exists()


async def test_what_was_looked_at_is_what_becomes_the_base_whatever_takes_its_place(
    tmp_path: Path, image_dir: Path, bases: Bases
) -> None:
    secret = make_image(tmp_path / "secret", disk_format=RAW, pattern=0x66)
    (tmp_path / "uploads").mkdir()
    (tmp_path / "others").mkdir()
    source = make_image(tmp_path / "uploads/source", disk_format=QCOW2)
    make_overlay(tmp_path / "others/source", secret, base_format=RAW)
    order = order_for(image_dir, source, source_format=QCOW2, disk_format=RAW)

    def exchange(doing: str, _fraction: float) -> None:
        if doing == "checking":  # it has been looked at, and no tool has opened it yet
            (tmp_path / "uploads").rename(tmp_path / "away")
            (tmp_path / "others").rename(tmp_path / "uploads")

    await bases.write_image(order, exchange)
    assert holds(bases.path_of(await bases.register(order)), disk_format=RAW, pattern=0x5A)


async def test_an_errors_message_speaks_of_the_source_as_it_was_asked_for(
    tmp_path: Path, image_dir: Path, bases: Bases
) -> None:
    source = make_image(tmp_path / "source", disk_format=RAW)
    order = order_for(image_dir, source, source_format=QCOW2)
    for ask in (bases.admit_import(order), bases.write_image(order, silent)):
        with pytest.raises(ImageRefused, match=f"^{source}: ") as refusal:
            await ask
        assert "/proc" not in str(refusal.value)


async def test_what_is_private_is_never_a_base(tmp_path: Path, image_dir: Path) -> None:
    (tmp_path / "run").mkdir()
    iso = make_image(tmp_path / "run/config.iso", disk_format=RAW)
    (tmp_path / "link").symlink_to(iso)
    disks = disks_folder(image_dir)
    bases = Bases(
        bases_folder(image_dir), disks=disks, reserve=0, max_chain=4, private=[tmp_path / "run"]
    )
    bases.prepare()
    for source in (iso, tmp_path / "link"):
        order = order_for(image_dir, source)
        for ask in (bases.admit_import(order), bases.write_image(order, silent)):
            with pytest.raises(ImageRefused, match="provisiond's own"):
                await ask
    bases.close()


async def test_a_raw_base_never_looks_like_another_format(
    tmp_path: Path, image_dir: Path, bases: Bases
) -> None:
    inner = make_image(tmp_path / "inner", disk_format=QCOW2)
    source = tmp_path / "source"
    tool("qemu-img", "convert", "-f", "raw", "-O", "qcow2", inner, source)
    order = order_for(image_dir, source, source_format=QCOW2, disk_format=RAW)
    with pytest.raises(ImageRefused, match="qcow2"):
        await bases.write_image(order, silent)


async def test_a_source_that_somebody_writes_to_is_busy(
    tmp_path: Path, image_dir: Path, bases: Bases
) -> None:
    source = make_image(tmp_path / "source", disk_format=RAW)
    order = order_for(image_dir, source)
    with source.open("r+b"), pytest.raises(ImageBusy):
        await bases.admit_import(order)
    await bases.admit_import(order)


async def test_a_source_that_changes_while_it_is_read_is_not_imported(
    tmp_path: Path, image_dir: Path, bases: Bases
) -> None:
    source = make_image(tmp_path / "source", disk_format=RAW, size=64 * MIB)
    write(source, disk_format=RAW, pattern=3, size=64 * MIB)
    order = order_for(image_dir, source)

    def write_once(doing: str, _fraction: float) -> None:
        if doing == "converting":
            with source.open("r+b") as file:
                file.write(b"changed")

    with pytest.raises(ImageBusy, match="was changed while it was read"):
        await bases.write_image(order, write_once)
    await bases.take_back(order.plan)
    assert names_in(bases_folder(image_dir)) == []


async def test_what_cannot_be_imported_is_refused_by_its_reason(
    tmp_path: Path, image_dir: Path, bases: Bases
) -> None:
    source = make_image(tmp_path / "source", disk_format=RAW)
    with pytest.raises(ImageNotFound):
        await bases.admit_import(order_for(image_dir, tmp_path / "absent"))
    with pytest.raises(BaseNotFound):
        await bases.admit_import(order_for(image_dir, source, parent="absent"))
    lower = bases.path_of(await import_base(bases, order_for(image_dir, source)))
    with pytest.raises(BaseExists):
        await bases.admit_import(order_for(image_dir, source, job="f" * 32, disk_format=RAW))
    layer = make_overlay(tmp_path / "layer", lower)
    for disk_format in (RAW, VHD):
        order = order_for(
            image_dir,
            layer,
            name="web",
            source_format=QCOW2,
            disk_format=disk_format,
            parent="debian",
        )
        with pytest.raises(ImageRefused, match=f"a base that is {disk_format} has no parent"):
            await bases.admit_import(order)


async def test_a_base_leaves_room_in_its_chain_for_an_overlay(
    tmp_path: Path, image_dir: Path
) -> None:
    bases = bases_in(image_dir, max_chain=3)
    top = bases.path_of(
        await import_base(
            bases, order_for(image_dir, make_image(tmp_path / "s", disk_format=RAW), name="b0")
        )
    )
    for number, refused in ((1, False), (2, True)):
        layer = make_overlay(tmp_path / f"layer{number}", top)
        order = order_for(
            image_dir, layer, name=f"b{number}", source_format=QCOW2, parent=f"b{number - 1}"
        )
        if refused:
            with pytest.raises(ChainTooDeep, match="top of 4 images, and 3 may be"):
                await import_base(bases, order)
        else:
            top = bases.path_of(await import_base(bases, order))
    bases.close()


async def test_nothing_is_written_where_there_is_no_room(tmp_path: Path, image_dir: Path) -> None:
    state = os.statvfs(image_dir)
    bases = bases_in(image_dir, reserve=state.f_bavail * state.f_frsize)
    order = order_for(image_dir, make_image(tmp_path / "source", disk_format=RAW))
    with pytest.raises(NoSpace, match="are wanted"):
        await bases.write_image(order, silent)
    assert names_in(bases_folder(image_dir)) == []
    bases.close()


async def test_the_same_name_in_two_formats_is_one_base(
    tmp_path: Path, image_dir: Path, bases: Bases
) -> None:
    source = make_image(tmp_path / "source", disk_format=RAW)
    first = order_for(image_dir, source, job="1" * 32)
    second = order_for(image_dir, source, job="2" * 32, disk_format=RAW)
    for order in (first, second):
        await bases.write_image(order, silent)
    await bases.register(first)
    with pytest.raises(BaseExists):
        await bases.register(second)
    await bases.take_back(second.plan)
    assert names_in(bases_folder(image_dir)) == ["debian.json", "debian.qcow2"]
    await bases.verify_hash("debian", silent)


# ---------------------------------------------------------------- interrupted
async def test_both_steps_may_be_asked_for_twice(
    tmp_path: Path, image_dir: Path, bases: Bases
) -> None:
    order = order_for(image_dir, make_image(tmp_path / "source", disk_format=RAW))
    await bases.write_image(order, silent)
    written = sha256(order.plan.image.part), order.plan.image.part.stat().st_ino
    await bases.write_image(order, silent)
    assert written == (sha256(order.plan.image.part), order.plan.image.part.stat().st_ino)
    first = await bases.register(order)
    await bases.write_image(order, silent)
    assert await bases.register(order) == first
    assert names_in(bases_folder(image_dir)) == ["debian.json", "debian.qcow2"]


async def test_a_copy_that_is_cancelled_half_way_leaves_nothing(
    tmp_path: Path, image_dir: Path, bases: Bases
) -> None:
    source = make_image(tmp_path / "source", disk_format=RAW, size=256 * MIB, pattern=None)
    write(source, disk_format=RAW, pattern=1, size=256 * MIB)
    order = order_for(image_dir, source)
    halfway = asyncio.Event()

    def tell(doing: str, fraction: float) -> None:
        if doing == "converting" and fraction > 0.1:
            halfway.set()

    task = asyncio.create_task(bases.write_image(order, tell))
    async with asyncio.timeout(60):
        await halfway.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert names_in(bases_folder(image_dir)) == [order.plan.image.part.name]
    for _ in range(2):
        await bases.take_back(order.plan)
        assert names_in(bases_folder(image_dir)) == []
    await import_base(bases, order)


INTERRUPTED = """
import asyncio, os, signal, sys
from pathlib import Path
from tests.disk.test_bases import bases_in, order_for, silent

image_dir, source, calls = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
CHANGES = ("os.link", "os.remove", "os.rename", "os.chmod", "fcntl.ioctl")
made = 0

def count(event, args):
    # Before each call that changes the folder the power can go.
    global made
    made += event in CHANGES or (event == "open" and str(image_dir) in str(args[0]))
    if made == calls:
        made += 1  # os.kill is an event too
        os.kill(os.getpid(), signal.SIGKILL)

async def main():
    bases = bases_in(image_dir)
    order = order_for(image_dir, source)
    sys.addaudithook(count)
    await bases.write_image(order, silent)
    await bases.register(order)
asyncio.run(main())
"""


@pytest.mark.parametrize("goes_on", [True, False], ids=["resumed", "undone"])
async def test_a_kill_at_any_call_leaves_a_base_or_nothing(
    tmp_path: Path, image_dir: Path, bases: Bases, *, goes_on: bool
) -> None:
    source = make_image(tmp_path / "source", disk_format=RAW)
    order = order_for(image_dir, source)
    folder = bases_folder(image_dir)
    killed = 0
    while True:
        argv = [sys.executable, "-c", INTERRUPTED, image_dir, source, str(killed + 1)]
        finished = await asyncio.to_thread(
            subprocess.run, [str(word) for word in argv], check=False
        )
        if finished.returncode == 0:
            break
        assert finished.returncode == -signal.SIGKILL
        killed += 1
        if goes_on:
            await bases.write_image(order, silent)
            await bases.register(order)
            assert names_in(folder) == ["debian.json", "debian.qcow2"]
            assert is_immutable(folder / "debian.qcow2")
            await bases.verify_hash("debian", silent)
            await bases.remove("debian", in_use={})
        else:
            await bases.take_back(order.plan)
        assert names_in(folder) == []
    assert killed > 10


async def test_a_job_takes_back_nothing_that_another_has_made(
    tmp_path: Path, image_dir: Path, bases: Bases
) -> None:
    source = make_image(tmp_path / "source", disk_format=RAW)
    await import_base(bases, order_for(image_dir, source))
    other = order_for(image_dir, source, job="e" * 32)
    await bases.take_back(other.plan)
    await bases.verify_hash("debian", silent)


# ---------------------------------------------------------------- that they never change
async def test_every_change_of_a_base_is_seen(
    tmp_path: Path, image_dir: Path, bases: Bases
) -> None:
    source = make_image(tmp_path / "source", disk_format=RAW)
    manifest = await import_base(bases, order_for(image_dir, source))
    path = bases.path_of(manifest)
    whole, status = path.read_bytes(), path.stat()
    make_mutable(path)

    async def change() -> str:
        with pytest.raises(BaseChanged, match=r"^debian: ") as changed:
            await chain_of(bases, "debian")
        (state,) = await bases.list()
        assert state.changed == changed.value.message
        return changed.value.message

    path.chmod(0o644)
    assert "may be written to: its mode is 0644" in await change()
    write(path, disk_format=QCOW2, pattern=0x66)
    path.chmod(0o444)
    assert "was written to after its import" in await change()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # as a tool that hides it would
    await chain_of(bases, "debian")
    with pytest.raises(BaseChanged, match="its hash differs"):
        await bases.verify_hash("debian", silent)
    path.write_bytes(whole[:-512])
    assert "bytes instead of" in await change()
    path.write_bytes(whole[:24] + (16 * MIB).to_bytes(8, "big") + whole[32:])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert f"its header says {16 * MIB} bytes, its manifest {8 * MIB}" in await change()
    path.write_bytes(b"nothing".ljust(len(whole)))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert "has no qcow2 header" in await change()
    path.unlink()
    assert "is gone" in await change()
    path.write_bytes(whole)
    path.chmod(0o444)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    await bases.verify_hash("debian", silent)


async def test_a_change_anywhere_in_the_chain_is_seen(
    tmp_path: Path, image_dir: Path, bases: Bases
) -> None:
    source = make_image(tmp_path / "source", disk_format=RAW)
    lower = bases.path_of(await import_base(bases, order_for(image_dir, source)))
    layer = make_overlay(tmp_path / "layer", lower)
    order = order_for(image_dir, layer, name="web", source_format=QCOW2, parent="debian")
    await import_base(bases, order)
    await chain_of(bases, "web")
    make_mutable(lower)
    write(lower, disk_format=QCOW2, pattern=0x66)
    with pytest.raises(BaseChanged, match=r"^debian: .*was written to"):
        await chain_of(bases, "web")


async def test_a_base_that_is_open_for_writing_is_not_used(
    tmp_path: Path, image_dir: Path, bases: Bases
) -> None:
    source = make_image(tmp_path / "source", disk_format=RAW)
    path = bases.path_of(await import_base(bases, order_for(image_dir, source)))
    make_mutable(path)
    with path.open("r+b"):
        assert (await bases.look_at("debian")).changed is None
        with pytest.raises(ImageBusy):
            await chain_of(bases, "debian")


async def test_a_manifest_that_cannot_be_read_hides_no_other_base(
    tmp_path: Path, image_dir: Path, bases: Bases, caplog: pytest.LogCaptureFixture
) -> None:
    source = make_image(tmp_path / "source", disk_format=RAW)
    order = order_for(image_dir, source)
    await import_base(bases, order)
    folder = bases_folder(image_dir)
    (folder / "broken.json").write_text('{"name": "broken"}')
    (folder / "copied.json").write_bytes(order.plan.manifest.read_bytes())
    assert [state.manifest.name for state in await bases.list()] == ["debian"]
    assert ["broken" in caplog.text, "is that of debian" in caplog.text] == [True, True]
    with pytest.raises(BaseChanged, match=r"its manifest .* cannot be read"):
        await bases.find("broken")
    fields = json.loads(order.plan.manifest.read_text())
    assert (fields["source"], fields["source_format"]) == (str(source), "raw")


# ---------------------------------------------------------------- when they may leave
async def test_a_base_that_something_stands_on_stays(
    tmp_path: Path, image_dir: Path, bases: Bases
) -> None:
    source = make_image(tmp_path / "source", disk_format=RAW)
    path = bases.path_of(await import_base(bases, order_for(image_dir, source)))
    disks = disks_folder(image_dir)
    disks.mkdir()

    for name in ("web1.qcow2", f".{'a' * 32}.part"):  # a disk, and one that is half made
        overlay = make_overlay(disks / name, path)
        with pytest.raises(BaseInUse, match=f"1 images stand on it .*{name}"):
            await bases.remove("debian", in_use={})
        overlay.unlink()

    (tmp_path / "other-way").symlink_to(image_dir)
    overlay = make_overlay(disks / "web1.qcow2", tmp_path / "other-way" / "bases" / path.name)
    with pytest.raises(BaseInUse, match="stand on it"):
        await bases.remove("debian", in_use={})
    overlay.unlink()

    with pytest.raises(BaseInUse, match="the domain old-guest has it") as caught:
        await bases.remove("debian", in_use={path: "old-guest"})
    assert "that domain" in caught.value.hint
    (disks / "unknown.qcow2").write_bytes(b"QFI\xfb".ljust(512))
    with pytest.raises(BaseInUse, match=r"what .*unknown.qcow2 stands on cannot be read"):
        await bases.remove("debian", in_use={})
    (disks / "unknown.qcow2").unlink()
    # What a guest has written to the beginning of its raw disk counts for nothing.
    (disks / "data.raw").write_bytes(make_overlay(tmp_path / "fake", path).read_bytes())

    assert path.exists()
    await bases.remove("debian", in_use={tmp_path / "elsewhere": "guest"})
    assert names_in(bases_folder(image_dir)) == []
    with pytest.raises(BaseNotFound):
        await bases.remove("debian", in_use={})


async def test_a_base_that_a_job_works_with_stays(
    tmp_path: Path, image_dir: Path, bases: Bases
) -> None:
    source = make_image(tmp_path / "source", disk_format=RAW)
    await import_base(bases, order_for(image_dir, source))
    async with bases.hold("debian"), bases.hold("debian"):
        with pytest.raises(BaseInUse, match="a job works with it") as caught:
            await bases.remove("debian", in_use={})
        assert "when it has ended" in caught.value.hint
    removing = asyncio.create_task(bases.remove("debian", in_use={}))
    await asyncio.sleep(0)
    while not removing.done():
        with pytest.raises((BaseInUse, BaseNotFound, BaseChanged)):
            async with bases.hold("debian"):
                pytest.fail("held while it was removed")
        await asyncio.sleep(0)
    await removing


async def test_a_base_that_stands_on_another_keeps_it_from_its_first_step_on(
    tmp_path: Path, image_dir: Path, bases: Bases
) -> None:
    source = make_image(tmp_path / "source", disk_format=RAW)
    lower = bases.path_of(await import_base(bases, order_for(image_dir, source)))
    layer = make_overlay(tmp_path / "layer", lower)
    order = order_for(image_dir, layer, name="web", source_format=QCOW2, parent="debian")
    await bases.write_image(order, silent)
    with pytest.raises(BaseInUse):
        await bases.remove("debian", in_use={})
    await bases.register(order)
    with pytest.raises(BaseInUse):
        await bases.remove("debian", in_use={})
    await bases.remove("web", in_use={})
    await bases.remove("debian", in_use={})


async def test_a_registered_base_is_taken_back_only_while_nothing_stands_on_it(
    tmp_path: Path, image_dir: Path, bases: Bases
) -> None:
    order = order_for(image_dir, make_image(tmp_path / "source", disk_format=RAW))
    path = bases.path_of(await import_base(bases, order))
    disks_folder(image_dir).mkdir()
    overlay = make_overlay(disks_folder(image_dir) / "web1.qcow2", path)
    with pytest.raises(BaseInUse):
        await bases.take_back(order.plan)
    overlay.unlink()
    for _ in range(2):
        await bases.take_back(order.plan)
        assert names_in(bases_folder(image_dir)) == []
    assert not base_import.is_registered(order.plan)
