"""The config ISO: the same bytes each time, read back by strangers, whole or absent, destroyed."""

import os
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from provisiond.errors import IsoNotDestroyed, IsoNotWritten, SettingsError
from provisiond.iso.image import (
    build_image,
    destroy_iso,
    prepare_folder,
    write_iso,
)
from provisiond.plan import Plan, plan_job

SECTOR = 2048
JOB = "0123456789abcdef0123456789abcdef"
TREE = {
    "provision.conf": b"FORMAT=1\nHOSTNAME=web1\n",
    "README.TXT": b"This disk configures this machine once.\n",
    "meta-data": b"{}\n",
    "user-data": b"#cloud-config\n{}\n",
    "network-config": b"{}\n" * 2000,
}


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """A folder on tmpfs."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.fixture
def plan(run_dir: Path) -> Plan:
    plan = plan_job(JOB, runtime_dir=run_dir)
    prepare_folder(plan.iso.parent, mode=0o700, allow_disk=False)
    return plan


@pytest.fixture
def full_tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A real tmpfs of 64 KiB, smaller than any ISO."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], check=True)
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


# ---------------------------------------------------------------- an independent reader (ECMA-119)
def volume(image: bytes, kind: int) -> bytes:
    """The volume descriptor of this kind: 1 is primary, 2 is Joliet's."""
    sectors = (image[at : at + SECTOR] for at in range(16 * SECTOR, len(image), SECTOR))
    return next(sector for sector in sectors if sector[0] == kind and sector[1:6] == b"CD001")


def extent(record: bytes) -> tuple[int, int]:
    """Where a directory record's data is (9.1.3, 9.1.4), and that both byte orders say so."""
    start, size = (int.from_bytes(record[at : at + 4], "little") for at in (2, 10))
    assert (start, size) == tuple(int.from_bytes(record[at : at + 4], "big") for at in (6, 14))
    return start * SECTOR, size


def records(image: bytes, root: bytes) -> Iterator[bytes]:
    """The records of the files in the root directory (9.1)."""
    at, size = extent(root)
    end = at + size
    while at < end:
        length = image[at]
        if length == 0:
            at += SECTOR - at % SECTOR
            continue
        record = image[at : at + length]
        if not record[25] & 2:  # no directory
            yield record
        at += length


def system_use(record: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The Rock Ridge entries of a record (SUSP 4)."""
    at = 33 + record[32] + (record[32] + 1) % 2
    while at + 4 <= len(record) and record[at + 2] >= 4:
        yield record[at : at + 2], record[at + 4 : at + record[at + 2]]
        at += record[at + 2]


def read_by_rock_ridge(image: bytes) -> dict[str, bytes]:
    tree = {}
    for record in records(image, volume(image, 1)[156:190]):
        # NM: one byte of flags, then the name
        name = b"".join(data[1:] for kind, data in system_use(record) if kind == b"NM")
        start, size = extent(record)
        tree[name.decode()] = image[start : start + size]
    return tree


def read_by_joliet(image: bytes) -> dict[str, bytes]:
    tree = {}
    for record in records(image, volume(image, 2)[156:190]):
        start, size = extent(record)
        name = record[33 : 33 + record[32]].decode("utf-16-be").removesuffix(";1")
        tree[name] = image[start : start + size]
    return tree


# ---------------------------------------------------------------- in memory
def test_it_is_read_back_by_its_own_reader_and_by_two_others() -> None:
    image = build_image(TREE)
    assert read_by_rock_ridge(image) == TREE
    assert read_by_rock_ridge(image) == TREE
    assert read_by_joliet(image) == TREE


@settings(max_examples=25)
@given(
    st.dictionaries(st.sampled_from(sorted(TREE)), st.binary(max_size=5000), min_size=1, max_size=5)
)
def test_any_content_comes_back(tree: dict[str, bytes]) -> None:
    image = build_image(tree)
    assert read_by_rock_ridge(image) == read_by_joliet(image) == tree


def test_blkid_finds_the_label_as_udev_would(tmp_path: Path) -> None:
    iso = tmp_path / "x.iso"
    iso.write_bytes(build_image(TREE))
    said = subprocess.run(
        ["/sbin/blkid", "-p", "-o", "export", iso], stdout=subprocess.PIPE, check=True, text=True
    ).stdout.splitlines()
    assert "LABEL=PROVISION" in said
    assert "TYPE=iso9660" in said


def test_the_label_stands_where_the_guests_script_looks() -> None:
    image = build_image(TREE)
    assert image[32769:32774] == b"CD001"
    assert image[32808:32840] == b"PROVISION".ljust(32)


def test_files_are_roots_alone() -> None:
    image = build_image(TREE)
    for record in records(image, volume(image, 1)[156:190]):
        (posix,) = (data for kind, data in system_use(record) if kind == b"PX")
        mode, _links, owner, group = (
            int.from_bytes(posix[at : at + 4], "little") for at in (0, 8, 16, 24)
        )
        assert (oct(mode), owner, group) == (oct(stat.S_IFREG | 0o400), 0, 0)


def test_the_same_tree_gives_the_same_bytes_in_another_second() -> None:
    before = int(time.time())
    image = build_image(TREE)
    while int(time.time()) == before:
        time.sleep(0.02)
    assert build_image(dict(reversed(TREE.items()))) == image


def test_the_same_tree_gives_the_same_bytes_in_another_place() -> None:
    program = (
        "import sys; from provisiond.iso.image import build_image;"
        "sys.stdout.buffer.write(build_image({'meta-data': b'x'}))"
    )
    images = {
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"TZ": zone, "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            check=True,
        ).stdout
        for zone, seed in (("Asia/Tokyo", "1"), ("America/Lima", "2"))
    }
    assert images == {build_image({"meta-data": b"x"})}


# ---------------------------------------------------------------- the folder
def test_the_folder_is_made_for_its_owner_alone(run_dir: Path) -> None:
    folder = run_dir / "a" / "iso"
    prepare_folder(folder, mode=0o700, allow_disk=False)
    prepare_folder(folder, mode=0o700, allow_disk=False)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o777)
    prepare_folder(folder, mode=0o711, allow_disk=False)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o711


def test_a_folder_that_is_not_on_tmpfs_is_refused() -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        kind = subprocess.run(
            ["stat", "-f", "-c", "%T", folder], stdout=subprocess.PIPE, check=True, text=True
        ).stdout.strip()
        assert kind not in ("tmpfs", "ramfs"), "this test needs a /var/tmp on a disk"
        with pytest.raises(SettingsError, match="not on tmpfs") as caught:
            prepare_folder(Path(folder) / "iso", mode=0o700, allow_disk=False)
        assert str(caught.value).startswith("runtime_dir: ")
        assert "allow_iso_on_disk" in caught.value.hint
        prepare_folder(Path(folder) / "iso", mode=0o700, allow_disk=True)


@contextmanager
def mounted(kind: str, point: Path, *options: str) -> Iterator[Path]:
    """A new file system of this kind at a folder."""
    subprocess.run(["mount", "-t", kind, *options, kind, point], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", point], check=True)


def test_ramfs_is_memory_as_well(tmp_path: Path) -> None:
    with mounted("ramfs", tmp_path) as folder:
        prepare_folder(folder / "iso", mode=0o700, allow_disk=False)


def test_an_overlay_is_refused_though_tmpfs_is_all_that_it_stands_on(tmp_path: Path) -> None:
    """As a container has it: what is below can be anything."""
    with mounted("tmpfs", tmp_path) as folder:
        layers = {name: folder / name for name in ("lowerdir", "upperdir", "workdir")}
        for layer in (*layers.values(), folder / "whole"):
            layer.mkdir()
        options = ",".join(f"{name}={layer}" for name, layer in layers.items())
        with (
            mounted("overlay", folder / "whole", "-o", options) as whole,
            pytest.raises(SettingsError, match="is on overlay, not on tmpfs"),
        ):
            prepare_folder(whole / "iso", mode=0o700, allow_disk=False)


def test_a_link_to_a_disk_is_seen_through(tmp_path: Path) -> None:
    with mounted("tmpfs", tmp_path) as folder, tempfile.TemporaryDirectory(dir="/var/tmp") as disk:
        (folder / "iso").symlink_to(disk)
        with pytest.raises(SettingsError, match="not on tmpfs"):
            prepare_folder(folder / "iso", mode=0o700, allow_disk=False)


def test_a_folder_that_cannot_be_made_is_the_settings_fault(run_dir: Path) -> None:
    (run_dir / "file").touch()
    with pytest.raises(SettingsError, match="runtime_dir: cannot make"):
        prepare_folder(run_dir / "file" / "iso", mode=0o700, allow_disk=False)


# ---------------------------------------------------------------- whole, or not at all
def test_it_appears_whole_and_for_its_owner_alone(plan: Plan) -> None:
    write_iso(plan, b"secret" * 1000)
    assert plan.iso.read_bytes() == b"secret" * 1000
    assert stat.S_IMODE(plan.iso.stat().st_mode) == 0o600
    assert list(plan.iso.parent.iterdir()) == [plan.iso]


def test_writing_it_again_destroys_the_older_one(plan: Plan) -> None:
    write_iso(plan, b"older secret")
    plan.iso_part.write_bytes(b"half of it")
    with plan.iso.open("rb") as older, plan.iso_part.open("rb") as part:
        write_iso(plan, b"newer secret")
        assert set(older.read()) == set(part.read()) == {0}
    assert plan.iso.read_bytes() == b"newer secret"


def test_nothing_is_left_where_there_is_no_room(full_tmpfs: Path) -> None:
    plan = plan_job(JOB, runtime_dir=full_tmpfs)
    prepare_folder(plan.iso.parent, mode=0o700, allow_disk=False)
    with pytest.raises(IsoNotWritten, match="No space left on device"):
        write_iso(plan, build_image(TREE))
    assert not list(plan.iso.parent.iterdir())
    write_iso(plan, b"small")  # the room is free again
    assert destroy_iso(plan)


def test_a_folder_that_is_gone_is_told(plan: Plan) -> None:
    plan.iso.parent.rmdir()
    with pytest.raises(IsoNotWritten, match="No such file or directory"):
        write_iso(plan, b"secret")
    assert not destroy_iso(plan)


@pytest.mark.parametrize("name", ["iso", "iso_part"])
def test_a_link_is_never_followed(plan: Plan, run_dir: Path, name: str) -> None:
    victim = run_dir / "shadow"
    victim.write_bytes(b"root:x:")
    link: Path = getattr(plan, name)
    link.symlink_to(victim)
    write_iso(plan, b"secret")
    assert victim.read_bytes() == b"root:x:"
    assert not plan.iso.is_symlink()
    assert plan.iso.read_bytes() == b"secret"


def test_a_link_is_taken_away_and_what_it_leads_to_is_not(plan: Plan, run_dir: Path) -> None:
    victim = run_dir / "shadow"
    victim.write_bytes(b"root:x:")
    plan.iso.symlink_to(victim)
    assert not destroy_iso(plan), "there was no ISO"
    assert victim.read_bytes() == b"root:x:"
    assert not plan.iso.is_symlink()


# ---------------------------------------------------------------- destroyed
def test_whoever_has_it_open_reads_zeros_after_its_end(plan: Plan) -> None:
    image = build_image(TREE)
    write_iso(plan, image)
    with plan.iso.open("rb") as file:
        assert destroy_iso(plan)
        assert os.fstat(file.fileno()).st_nlink == 0
        assert file.read() == bytes(len(image))
    assert not list(plan.iso.parent.iterdir())


def test_destroying_may_be_asked_for_twice(plan: Plan) -> None:
    write_iso(plan, b"secret")
    assert destroy_iso(plan)
    assert not destroy_iso(plan)


def test_what_is_half_written_is_destroyed_too(plan: Plan) -> None:
    plan.iso_part.write_bytes(b"secret")
    with plan.iso_part.open("rb") as file:
        assert not destroy_iso(plan), "there was no ISO"
        assert file.read() == bytes(6)
    assert not list(plan.iso.parent.iterdir())


def test_what_cannot_be_destroyed_is_told_and_may_be_asked_for_again(full_tmpfs: Path) -> None:
    plan = plan_job(JOB, runtime_dir=full_tmpfs)
    prepare_folder(plan.iso.parent, mode=0o700, allow_disk=False)
    write_iso(plan, b"secret")
    subprocess.run(["mount", "-o", "remount,ro", full_tmpfs], check=True)
    with pytest.raises(IsoNotDestroyed, match="Read-only file system"):
        destroy_iso(plan)
    subprocess.run(["mount", "-o", "remount,rw", full_tmpfs], check=True)
    assert destroy_iso(plan)


def test_another_jobs_iso_is_left_alone(plan: Plan, run_dir: Path) -> None:
    other = plan_job("f" * 32, runtime_dir=run_dir)
    write_iso(plan, b"mine")
    write_iso(other, b"other")
    assert destroy_iso(plan)
    assert other.iso.read_bytes() == b"other"
