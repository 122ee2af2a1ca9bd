"""provisionctl image bake's work, on real images with real tools."""

import os
import select
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from provisiond.api.requests import DiskFormat
from provisiond.disk import image_file
from provisiond.disk.folder import make_immutable, make_mutable
from provisiond.disk.manifest import Manifest
from provisiond.errors import ImageBusy, ImageNotFound, ImageRefused, NoSpace, ProvisionError
from provisiond.images.agent_files import InitSystem, agent_folder, read_agent
from provisiond.images.baking import Baked, bake
from provisiond.images.image_lock import lock_for_replacing
from tests.disk.conftest import mounted
from tests.disk.images import MIB, make_overlay, tool, writing_guest
from tests.images.golden import (
    LAYOUTS,
    SIZE,
    Snapshot,
    debugfs,
    make_golden,
    make_tree,
    put,
    snapshot,
)

RAW, QCOW2, QCOW, VHD = DiskFormat.RAW, DiskFormat.QCOW2, DiskFormat.QCOW, DiskFormat.VHD
SCRIPT = stat.S_IFREG | 0o755
TEXT = stat.S_IFREG | 0o644
LINK = stat.S_IFLNK | 0o777
UNIT = "/etc/systemd/system/provision-guest.service"
WANTS = "/etc/systemd/system/multi-user.target.wants/provision-guest.service"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A system with systemd, to be changed and then made an image of."""
    return make_tree(tmp_path / "tree", LAYOUTS["systemd"])


@pytest.fixture
def small_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of 4 MiB."""
    (tmp_path / "small").mkdir()
    with mounted("tmpfs", "size=4M", tmp_path / "small") as folder:
        yield folder


def said_nothing(_line: str) -> None:
    pass


async def baked(image: Path, disk_format: DiskFormat = RAW) -> Baked:
    return await bake(image, disk_format=disk_format, said=said_nothing)


def shipped(name: str) -> bytes:
    return (agent_folder() / name).read_bytes()


def changes(before: Snapshot, after: Snapshot) -> dict[str, tuple[int, int, int, bytes] | None]:
    """What differs; folders that were made are left out, a path that is gone is None."""
    return {
        path: after.get(path)
        for path in before.keys() | after.keys()
        if before.get(path) != after.get(path)
        and not (path not in before and stat.S_ISDIR(after[path][0]))
    }


def link(target: str) -> tuple[int, int, int, bytes]:
    return (LINK, 0, 0, target.encode())


def file(mode: int, content: bytes) -> tuple[int, int, int, bytes]:
    return (mode, 0, 0, content)


def _levels(pattern: str, start: str, stop: str) -> dict[str, tuple[int, int, int, bytes]]:
    names = dict.fromkeys("2345", f"S{start}") | dict.fromkeys("016", f"K{stop}")
    return {
        f"{pattern.format(level)}/{name}provision-guest": link("../init.d/provision-guest")
        for level, name in names.items()
    }


def expected(layout: str) -> dict[str, tuple[int, int, int, bytes]]:
    init = shipped("init/provision-guest.sysv")
    return {
        "systemd": {
            UNIT: file(TEXT, shipped("init/provision-guest.service")),
            WANTS: link(UNIT),
        },
        "upstart": {
            "/etc/init/provision-guest.conf": file(TEXT, shipped("init/provision-guest.upstart"))
        },
        "openrc": {
            "/etc/init.d/provision-guest": file(SCRIPT, shipped("init/provision-guest.openrc")),
            "/etc/runlevels/default/provision-guest": link("/etc/init.d/provision-guest"),
        },
        "sysv-insserv": {
            "/etc/init.d/provision-guest": file(SCRIPT, init),
            "/etc/init.d/.depend.start": file(
                TEXT, b"TARGETS = provision-guest rsyslog cron\nINTERACTIVE =\ncron: rsyslog\n"
            ),
            "/etc/init.d/.depend.stop": file(
                TEXT, b"TARGETS = provision-guest sendsigs umountfs\numountfs: sendsigs\n"
            ),
            **_levels("/etc/rc{}.d", "01", "01"),
        },
        "sysv-chkconfig": {
            "/etc/rc.d/init.d/provision-guest": file(SCRIPT, init),
            **_levels("/etc/rc.d/rc{}.d", "20", "80"),
        },
        "rc.local": {
            "/etc/rc.local": file(
                SCRIPT,
                b"#!/bin/sh -e\nstart_it\n" + shipped("init/rc.local.snippet") + b"exit 0\n",
            )
        },
    }[layout]


# ---------------------------------------------------------------- what is in it afterwards
@pytest.mark.parametrize("layout", LAYOUTS)
async def test_a_baked_image_starts_the_script_and_is_otherwise_as_it_was(
    tmp_path: Path, layout: str
) -> None:
    image = make_golden(tmp_path / "a.raw", make_tree(tmp_path / "tree", LAYOUTS[layout]))
    before = snapshot(image, tmp_path)
    told = await baked(image)
    after = snapshot(image, tmp_path)
    assert changes(before, after) == {
        "/usr/sbin/provision-guest": file(SCRIPT, shipped("provision-guest")),
        "/usr/share/doc/provision-guest/README.md": file(TEXT, shipped("README.md")),
        **expected(layout),
    }
    assert told.init == layout.partition("-")[0]
    assert told.distribution == f"{LAYOUTS[layout].distribution} {LAYOUTS[layout].version}"
    assert told.agent_sha256 == read_agent().sha256


async def test_an_rc_local_keeps_every_byte_that_it_had(tmp_path: Path) -> None:
    """A form feed, NEL and their like end no line of a shell's; what follows in a comment would
    become a command."""
    tree = make_tree(tmp_path / "tree", LAYOUTS["rc.local"])
    comment = b"# caf\xe9 \x0c rm \x0b rm \x1c rm \x85 rm \xc2\x85 rm \xe2\x80\xa8 rm\r\n"
    (tree / "etc/rc.local").write_bytes(b"#!/bin/sh\n" + comment + b"start_it\nexit 0\n")
    image = make_golden(tmp_path / "a.raw", tree)
    await baked(image)
    ours = shipped("init/rc.local.snippet")
    expected = b"#!/bin/sh\n" + comment + b"start_it\n" + ours + b"exit 0\n"
    assert snapshot(image, tmp_path)["/etc/rc.local"] == file(SCRIPT, expected)


@pytest.mark.parametrize(
    ("disk_format", "table"),
    [
        (QCOW2, "label: gpt\nsize=1MiB, type=uefi\ntype=linux\n"),
        (VHD, "label: dos\ntype=83\n"),
        (QCOW, "label: dos\nsize=1MiB, type=82\ntype=5\ntype=83\n"),
        (RAW, "label: gpt\nsize=1MiB, type=swap\nsize=12MiB\n"),
    ],
)
async def test_partition_and_format_do_not_matter(
    tmp_path: Path, tree: Path, disk_format: DiskFormat, table: str
) -> None:
    image = make_golden(tmp_path / "a", tree, disk_format=disk_format, table=table)
    await baked(image, disk_format)
    after = snapshot(image, tmp_path, disk_format=disk_format)
    assert after["/usr/sbin/provision-guest"] == file(SCRIPT, shipped("provision-guest"))
    assert after[WANTS] == link(UNIT)
    if disk_format in (QCOW2, QCOW):
        tool("qemu-img", "info", image)


async def test_an_older_ext_file_system_is_baked_too(tmp_path: Path, tree: Path) -> None:
    image = make_golden(tmp_path / "a.raw", tree, kind="ext2")
    await baked(image)
    assert WANTS in snapshot(image, tmp_path)


async def test_a_second_bake_changes_nothing(tmp_path: Path, tree: Path) -> None:
    image = make_golden(tmp_path / "a.raw", tree)
    await baked(image)
    before = snapshot(image, tmp_path)
    await baked(image)
    assert snapshot(image, tmp_path) == before


async def test_what_a_guest_was_given_is_not_in_the_image_made_of_it(
    tmp_path: Path, tree: Path
) -> None:
    put(tree, "var/lib/provision-guest/applied", "INSTANCE=1")
    image = make_golden(tmp_path / "a.raw", tree)
    await baked(image)
    assert not [path for path in snapshot(image, tmp_path) if "lib/provision-guest" in path]


@pytest.mark.parametrize("owner", [3_000_000_000, 2**32 - 2])
async def test_a_state_folder_goes_whoever_owns_it_and_however_deep_it_is(
    tmp_path: Path, tree: Path, owner: int
) -> None:
    state = tree / "var/lib/provision-guest"
    for number in range(20):
        put(state, f"{'folder/' * number}applied", "INSTANCE=1")
    for number in range(900):
        put(state, str(number), "")
    for path in (state, state / "applied"):
        os.chown(path, owner, owner)
    image = make_golden(tmp_path / "a.raw", tree)
    assert snapshot(image, tmp_path)["/var/lib/provision-guest"][1] == owner
    await baked(image)
    assert not [path for path in snapshot(image, tmp_path) if "lib/provision-guest" in path]


async def test_a_state_folder_that_no_guest_made_is_refused(tmp_path: Path, tree: Path) -> None:
    for number in range(1001):
        put(tree, f"var/lib/provision-guest/{number}", "x")
    image = make_golden(tmp_path / "a.raw", tree)
    before = image.read_bytes()
    with pytest.raises(ImageRefused, match="more than 1000 names"):
        await baked(image)
    assert image.read_bytes() == before


async def test_what_is_put_in_has_the_selinux_label_of_its_folder(
    tmp_path: Path, tree: Path
) -> None:
    image = make_golden(tmp_path / "a.raw", tree)
    for path, label in (("/usr/sbin", "bin_t"), ("/etc/systemd/system", "unit_t")):
        debugfs(image, f"ea_set {path} security.selinux system_u:object_r:{label}:s0")
    await baked(image)
    for path, label in (("/usr/sbin/provision-guest", "bin_t"), (UNIT, "unit_t")):
        told = debugfs(image, f"ea_get {path} security.selinux")
        assert f"system_u:object_r:{label}:s0" in told


async def test_owner_mode_and_attributes_of_the_file_stay(tmp_path: Path, tree: Path) -> None:
    image = make_golden(tmp_path / "a.raw", tree)
    os.chown(image, 1234, 2345)
    image.chmod(0o640)
    os.setxattr(image, "user.origin", b"here")
    await baked(image)
    status = image.stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (1234, 2345, 0o640)
    assert os.getxattr(image, "user.origin") == b"here"
    assert status.st_blocks * 512 < SIZE  # its holes too


# ---------------------------------------------------------------- hostile images
async def test_links_are_followed_in_the_image_and_never_on_this_host(
    tmp_path: Path, tree: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    put(tree, str(outside).lstrip("/"), "/")
    (tree / "usr/sbin/init").unlink()
    (tree / "usr/sbin").rmdir()
    (tree / "usr/sbin").symlink_to(outside)
    (tree / "etc").rename(tree / "real")
    (tree / "etc").symlink_to("../../../../real")
    image = make_golden(tmp_path / "a.raw", tree)
    await bake(image, disk_format=RAW, init=InitSystem.SYSTEMD, said=said_nothing)
    after = snapshot(image, tmp_path)
    assert after[f"{outside}/provision-guest"] == file(SCRIPT, shipped("provision-guest"))
    assert after[WANTS.replace("/etc", "/real")] == link(UNIT)
    assert list(outside.iterdir()) == []
    assert not Path(UNIT).exists()


@pytest.mark.parametrize(
    ("links", "reason"),
    [
        ({"usr/sbin": "->/nowhere"}, "usr/sbin"),
        ({"usr/sbin": "->a", "usr/a": "->sbin"}, "no end"),
        ({"usr/share/doc/provision-guest": "a file"}, "no folder"),
        ({"usr/sbin/provision-guest": "/"}, "is a folder"),
    ],
)
async def test_an_image_whose_folders_are_none_stays_as_it_was(
    tmp_path: Path, tree: Path, links: dict[str, str], reason: str
) -> None:
    for path, text in links.items():
        if (tree / path).is_dir() and not (tree / path).is_symlink():
            (tree / path).rename(tmp_path / "away")
        put(tree, path, text)
    image = make_golden(tmp_path / "a.raw", tree)
    before = image.read_bytes()
    with pytest.raises(ImageRefused, match=reason):
        await bake(image, disk_format=RAW, init=InitSystem.SYSTEMD, said=said_nothing)
    assert image.read_bytes() == before
    assert [path.name for path in tmp_path.glob(".*")] == []


async def test_a_state_folder_that_is_a_link_takes_nothing_else_with_it(
    tmp_path: Path, tree: Path
) -> None:
    put(tree, "var/lib/provision-guest", "->/etc")
    image = make_golden(tmp_path / "a.raw", tree)
    await baked(image)
    after = snapshot(image, tmp_path)
    assert "/etc/passwd" in after
    assert "/var/lib/provision-guest" not in after


async def test_names_that_no_parser_expects_do_not_matter(tmp_path: Path, tree: Path) -> None:
    strange = ['a "b', "a\nquit", "-rf", "x" * 255, "\x1b[2J", "ä", "a  b"]
    for folder in ("etc", "usr/sbin", "etc/systemd/system", "var/lib"):
        for name in strange:
            (tree / folder / name).write_text("x")
        (tree / folder / os.fsdecode(b"\xff\xfe")).write_text("x")
    image = make_golden(tmp_path / "a.raw", tree)
    before = snapshot(image, tmp_path)
    await baked(image)
    after = snapshot(image, tmp_path)
    assert set(after) > set(before)
    assert all(after[path] == before[path] for path in before)


async def test_files_of_absurd_size_are_not_read(tmp_path: Path, tree: Path) -> None:
    put(tree, "etc/fstab", "x")
    image = make_golden(tmp_path / "a.raw", tree)
    debugfs(image, "set_inode_field /etc/fstab size 1099511627776")
    with pytest.raises(ImageRefused, match=r"1099511627776 bytes|has errors"):
        await baked(image)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("feature needs_recovery", "journal"),
        ("set_super_value state 2", "errors"),
        ("clri /etc/passwd", "has errors"),
        ("set_inode_field /etc links_count 77", "has errors"),
    ],
)
async def test_an_image_that_is_not_whole_is_refused(
    tmp_path: Path, tree: Path, damage: str, reason: str
) -> None:
    image = make_golden(tmp_path / "a.raw", tree)
    debugfs(image, damage)
    before = image.read_bytes()
    with pytest.raises(ImageRefused, match=reason):
        await baked(image)
    assert image.read_bytes() == before


async def test_a_disk_without_a_root_is_refused(tmp_path: Path, tree: Path) -> None:
    (tree / "usr/sbin/init").unlink()
    (tree / "usr/lib/systemd/systemd").unlink()
    image = make_golden(tmp_path / "a.raw", tree)
    with pytest.raises(ImageRefused, match="no file system of the disk is a guest's root"):
        await baked(image)


async def test_an_init_system_that_is_not_seen_has_to_be_said(tmp_path: Path, tree: Path) -> None:
    (tree / "usr/sbin/init").unlink()
    put(tree, "usr/sbin/init", "ELF")
    image = make_golden(tmp_path / "a.raw", tree)
    with pytest.raises(ImageRefused, match="not seen") as refused:
        await baked(image)
    assert "--init" in refused.value.hint
    await bake(image, disk_format=RAW, init=InitSystem.RC_LOCAL, said=said_nothing)
    mode, _, _, content = snapshot(image, tmp_path)["/etc/rc.local"]
    assert mode == SCRIPT
    assert content == b"#!/bin/sh\n" + shipped("init/rc.local.snippet") + b"exit 0\n"


# ---------------------------------------------------------------- images that others have
@pytest.mark.parametrize("disk_format", [RAW, QCOW2, VHD])
async def test_an_image_that_a_guest_has_is_refused(
    tmp_path: Path, tree: Path, disk_format: DiskFormat
) -> None:
    image = make_golden(tmp_path / "a", tree, disk_format=disk_format)
    async with writing_guest(image, disk_format=disk_format):
        with pytest.raises(ImageBusy):
            await baked(image, disk_format)
    await baked(image, disk_format)


async def test_an_image_that_any_program_may_write_to_is_refused(
    tmp_path: Path, tree: Path
) -> None:
    image = make_golden(tmp_path / "a", tree)
    with image.open("r+b"), pytest.raises(ImageBusy, match="open for writing"):
        await baked(image)  # tapdisk and loop devices do not know of QEMU's lock


async def test_an_image_that_a_guest_only_reads_is_refused_too(tmp_path: Path, tree: Path) -> None:
    image = make_golden(tmp_path / "a", tree)
    with reading_guest(image), pytest.raises(ImageBusy, match="QEMU"):
        await baked(image)
    await baked(image)


@contextmanager
def reading_guest(image: Path) -> Iterator[None]:
    """A program as a guest's has the raw image open for the block, to read it alone."""
    argv = ["qemu-io", "-r", "-f", "raw", str(image)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as guest:
        assert guest.stdin is not None
        assert guest.stdout is not None
        guest.stdin.write(b"read 0 512\n")
        guest.stdin.flush()
        assert b"512/512" in guest.stdout.readline()
        yield
        guest.stdin.close()


async def test_no_guest_gets_an_image_that_is_being_baked(tmp_path: Path, tree: Path) -> None:
    image = make_golden(tmp_path / "a.qcow2", tree, disk_format=QCOW2)
    refused = []

    def try_to_open(_line: str) -> None:
        for words in (["-r"], []):
            argv = ["qemu-io", *words, "-f", "qcow2", "-c", "read 0 512", str(image)]
            ended = subprocess.run(argv, capture_output=True, text=True, check=False)
            refused.append("lock" in ended.stderr)

    await bake(image, disk_format=QCOW2, said=try_to_open)
    # The last line comes when the copy has taken its place.
    assert refused[:-2] == [True] * (len(refused) - 2)
    assert len(refused) > 4
    assert refused[-2:] == [False, False]


async def test_a_program_that_begins_to_write_during_the_bake_keeps_its_image(
    tmp_path: Path, tree: Path
) -> None:
    image = make_golden(tmp_path / "a.raw", tree)
    with ExitStack() as writers:

        def begin_to_write(line: str) -> None:
            if "read back" in line:
                writer = writers.enter_context(image.open("r+b", buffering=0))
                writer.write(b"by a guest")

        with pytest.raises(ImageBusy, match="open for writing"):
            await bake(image, disk_format=RAW, said=begin_to_write)
    assert image.read_bytes().startswith(b"by a guest")
    assert [path.name for path in tmp_path.glob(".*")] == []


async def test_a_file_that_gets_the_name_of_the_image_during_the_bake_keeps_it(
    tmp_path: Path, tree: Path
) -> None:
    image = make_golden(tmp_path / "a.raw", tree)

    def exchange(line: str) -> None:
        if "read back" in line:
            (tmp_path / "other").write_text("another image")
            (tmp_path / "other").replace(image)

    with pytest.raises(ImageBusy, match="another file"):
        await bake(image, disk_format=RAW, said=exchange)
    assert image.read_text() == "another image"


def test_no_lock_is_had_on_a_file_that_has_lost_its_name(tmp_path: Path) -> None:
    image = tmp_path / "a.raw"
    image.write_text("one")
    with image_file.opened(image) as descriptor:
        lock_for_replacing(descriptor, image)
        (tmp_path / "other").write_text("other")
        (tmp_path / "other").replace(image)
        with pytest.raises(ImageBusy, match="another file"):
            lock_for_replacing(descriptor, image)
        image.unlink()
        with pytest.raises(ImageNotFound):
            lock_for_replacing(descriptor, image)


@pytest.mark.parametrize("what", ["another image", "hard link", "immutable", "golden base"])
async def test_what_others_stand_on_is_refused(tmp_path: Path, tree: Path, what: str) -> None:
    image = make_golden(tmp_path / "a.qcow2", tree, disk_format=QCOW2)
    if what == "another image":
        image = make_overlay(tmp_path / "over.qcow2", image)
    elif what == "hard link":
        (tmp_path / "other.qcow2").hardlink_to(image)
    elif what == "golden base":
        _write_manifest(image)
    elif not make_immutable(image):
        pytest.skip("no immutable files on this file system")
    before = image.read_bytes()
    try:
        with pytest.raises(ImageRefused, match=what):
            await baked(image, QCOW2)
    finally:
        make_mutable(image)
    assert image.read_bytes() == before


def _write_manifest(image: Path) -> None:
    manifest = Manifest(
        name=image.stem,
        format=QCOW2,
        virtual_size=SIZE,
        file_size=image.stat().st_size,
        mtime_ns=image.stat().st_mtime_ns,
        sha256="0" * 64,
        parent=None,
        source="/x",
        source_format=QCOW2,
        checked=True,
        job_id="0" * 32,
        imported_at=datetime.now(UTC),
    )
    image.with_suffix(".json").write_bytes(manifest.to_json())


# ---------------------------------------------------------------- ends half-way
@pytest.mark.parametrize(("disk_format", "moments"), [(RAW, (2,)), (QCOW2, (1, 2, 3))])
async def test_a_bake_that_is_killed_leaves_the_image_as_it_was(
    tmp_path: Path, tree: Path, disk_format: DiskFormat, moments: tuple[int, ...]
) -> None:
    image = make_golden(tmp_path / "a", tree, disk_format=disk_format)
    before = image.read_bytes()
    for lines in moments:
        kill_a_bake(image, disk_format, lines=lines)
        assert image.read_bytes() == before
        assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
        assert_all_end(naming=tmp_path)
    await baked(image, disk_format)
    assert WANTS in snapshot(image, tmp_path, disk_format=disk_format)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".a")] == []


def assert_all_end(*, naming: Path) -> None:
    """Every program that has the folder in its command line ends by itself."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words, handle = (process / "cmdline").read_bytes(), os.pidfd_open(int(process.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
        if os.fsencode(naming) in words and int(process.name) != os.getpid():
            assert select.select([handle], [], [], 60)[0], words
        os.close(handle)


def kill_a_bake(image: Path, disk_format: DiskFormat, *, lines: int) -> None:
    """Start the command, and kill it when it has said so many lines."""
    program = Path(sys.executable).with_name("provisionctl")
    argv: list[str | Path] = [program, "image", "bake", image, "--format", disk_format]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as baking:
        assert baking.stderr is not None
        assert all(baking.stderr.readline() for _ in range(lines))
        baking.kill()


async def test_without_room_for_the_copy_the_image_is_as_it_was(
    small_folder: Path, tmp_path: Path, tree: Path
) -> None:
    (tree / "usr/data").write_bytes(os.urandom(2 * MIB))
    image = make_golden(tmp_path / "a.qcow2", tree, disk_format=QCOW2)
    image = _moved(image, small_folder)
    before = image.read_bytes()
    with pytest.raises(NoSpace):
        await baked(image, QCOW2)
    assert image.read_bytes() == before
    assert [path.name for path in small_folder.iterdir()] == ["a.qcow2"]


def _moved(image: Path, folder: Path) -> Path:
    target = folder / image.name
    target.write_bytes(image.read_bytes())
    return target


async def test_without_room_in_the_image_it_is_as_it_was(tmp_path: Path, tree: Path) -> None:
    image = make_golden(tmp_path / "a.raw", tree, size=2 * MIB)
    free = int(tool("dumpe2fs", "-h", image).partition("Free blocks:")[2].split()[0])
    filler = tmp_path / "filler"
    filler.write_bytes(b"x" * ((free - 12) * 1024))
    debugfs(image, f"write {filler} /filler")
    before = image.read_bytes()
    with pytest.raises(ProvisionError):
        await baked(image)
    assert image.read_bytes() == before
    assert not (tmp_path / ".a.raw.part").exists()
