"""The doctor's judgement: on a kernel's own words, and on folders laid out as /sys has them."""

import shutil
from pathlib import Path

from provisiond.api.replies import HealthView
from provisiond.doctor import (
    Level,
    check_daemon,
    check_group,
    check_reserve,
    check_socket,
    check_space,
    check_templates,
    check_tmpfs,
    check_writable,
    check_xen,
    keeps_secrets,
    nearest,
    parse_swaps,
)
from provisiond.errors import DaemonUnreachable
from tests.lab.fixtures import TMPFS

# As Linux 6.18 wrote it.
SWAPS = (
    "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
    "/dev/dm-1                               partition\t8388604\t\t0\t\t-2\n"
    "/srv/s\\040w\\134ap\\040(deleted)        file\t\t8188\t\t0\t\t-3\n"
)


def block_device(folder: Path, name: str, *, uuid: str = "", below: tuple[str, ...] = ()) -> Path:
    """A block device's folder as sysfs lays it out."""
    device = folder / name
    (device / "slaves").mkdir(parents=True)
    for one in below:
        (device / "slaves" / one).symlink_to(folder / one)
    if uuid:
        (device / "dm").mkdir()
        (device / "dm" / "uuid").write_text(f"{uuid}\n")
    return device


# ---------------------------------------------------------------- swap
def test_the_swap_areas_are_read_with_their_blanks() -> None:
    assert parse_swaps(SWAPS) == [Path("/dev/dm-1"), Path("/srv/s w\\ap (deleted)")]
    assert parse_swaps(SWAPS.partition("\n")[0] + "\n") == []


def test_swap_keeps_a_secret_where_every_disk_below_it_is_encrypted(tmp_path: Path) -> None:
    block_device(tmp_path, "sda2")
    block_device(tmp_path, "dm-0", uuid="CRYPT-LUKS2-0123-luks", below=("sda2",))
    block_device(tmp_path, "dm-1", uuid="LVM-0123", below=("dm-0",))
    block_device(tmp_path, "dm-2", uuid="LVM-4567", below=("dm-0", "sda2"))
    block_device(tmp_path, "dm-3", uuid="LVM-89ab", below=("sda2",))
    safe = {
        name: keeps_secrets(tmp_path / name) for name in ("sda2", *map("dm-{}".format, range(4)))
    }
    assert safe == {"sda2": False, "dm-0": True, "dm-1": True, "dm-2": False, "dm-3": False}


def test_swap_in_memory_keeps_a_secret_unless_it_is_written_back_to_a_disk(tmp_path: Path) -> None:
    device = block_device(tmp_path, "zram0")
    (tmp_path / "253:0").symlink_to(device)  # as /sys/dev/block names it
    assert keeps_secrets(tmp_path / "253:0")
    (device / "backing_dev").write_text("none\n")
    assert keeps_secrets(tmp_path / "253:0")
    (device / "backing_dev").write_text("/dev/sda5\n")
    assert not keeps_secrets(tmp_path / "253:0")


# ---------------------------------------------------------------- folders
def test_tmpfs_is_asked_for_a_folder_that_does_not_exist_yet(tmp_path: Path) -> None:
    assert check_tmpfs(TMPFS / "none" / "yet", allow_disk=False).level is Level.OK
    on_proc = Path("/proc/self/none")
    refused = check_tmpfs(on_proc, allow_disk=False)
    assert (refused.level, refused.found) == (Level.FAIL, f"{on_proc} is on proc")
    assert check_tmpfs(on_proc, allow_disk=True).level is Level.WARN
    assert nearest(tmp_path / "a" / "b") == tmp_path


def test_a_folder_that_cannot_be_written_is_told_with_the_reason(tmp_path: Path) -> None:
    assert check_writable("state_dir", tmp_path / "new").found.endswith("is writable")
    on_proc = check_writable("state_dir", Path("/proc/self"))
    assert on_proc.level is Level.FAIL
    assert on_proc.todo
    assert check_space("state_dir", Path("/proc")).level is Level.FAIL


def test_what_is_left_free_for_others_is_no_room_for_images(tmp_path: Path) -> None:
    assert check_reserve(tmp_path / "new", reserve=0).level is Level.OK
    full = check_reserve(tmp_path / "new", reserve=shutil.disk_usage(tmp_path).total)
    assert full.level is Level.WARN
    assert "reserve_mib" in full.todo


def test_the_template_that_is_used_where_none_is_named_is_looked_for(tmp_path: Path) -> None:
    template = tmp_path / "default.xml"
    absent = check_templates(tmp_path)
    assert (absent.level, f"> {template}" in absent.todo) == (Level.WARN, True)
    template.write_text("<network/>")
    wrong = check_templates(tmp_path)
    assert (wrong.level, "<network>" in wrong.found) == (Level.WARN, True)
    template.write_text("<domain type='qemu'/>")
    good = check_templates(tmp_path)
    assert (good.level, good.found) == (Level.OK, f"{template} makes guests of type qemu")


# ---------------------------------------------------------------- the socket
def test_a_socket_that_is_absent_or_none_is_told_apart(tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    error = DaemonUnreachable(f"{absent}: nothing listens there")
    assert check_daemon(absent, error).level is Level.WARN
    assert check_socket(absent).level is Level.WARN
    absent.write_text("")
    assert check_socket(absent).level is Level.FAIL


def healthy(*, xenstore_connected: bool | None) -> HealthView:
    return HealthView(
        ok=True,
        version="1",
        hypervisor="test:///default",
        hypervisor_connected=True,
        xenstore_connected=xenstore_connected,
        jobs_unfinished=3,
    )


def test_a_daemon_that_answers_is_well(tmp_path: Path) -> None:
    check = check_daemon(tmp_path, healthy(xenstore_connected=None))
    assert check.level is Level.OK
    assert "3 unfinished jobs" in check.found


def test_a_daemon_in_a_dom0_knows_whether_xenstore_answers() -> None:
    assert check_xen(healthy(xenstore_connected=True)).level is Level.OK
    lost = check_xen(healthy(xenstore_connected=False))
    assert lost.level is Level.FAIL
    assert "xenstored" in lost.todo
    assert "no Xen dom0" in check_xen(healthy(xenstore_connected=None)).found


def test_a_group_that_does_not_exist_is_told_how_to_make_it() -> None:
    assert check_group("root").level is Level.OK
    assert check_group("no-such-group").todo == "groupadd --system no-such-group"
