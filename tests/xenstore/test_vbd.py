"""What is read of a Xen disk, over a real xenstored: the guest's end, dom0's end, loop devices."""

import asyncio
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from provisiond.virt.vbd import (
    BackEnds,
    Loops,
    await_connected,
    back_ends_for,
    back_ends_of,
    domid_of,
    free_loop,
    frontend_state,
    remove,
    vdev_number,
)
from provisiond.xenstore.client import Xenstore
from tests.xenstore.connect import Counted
from tests.xenstore.daemon import XenDomain, Xenstored

ISO = Path("/run/provisiond/iso/0123.iso")
TARGET = "xvdp"


def attach(xenstored: Xenstored, domain: XenDomain, *, file: Path) -> None:
    """What libxl leaves when its attach returns: both ends, the guest's own in state 1."""
    number = vdev_number(TARGET)
    state = frontend_state(domid=domain.domid, target=TARGET)
    xenstored.dom0.write(state, b"1")
    xenstored.dom0.set_permissions(state, [f"n{domain.domid}", "r0"])
    back_end = f"/local/domain/0/backend/vbd/{domain.domid}/{number}"
    xenstored.dom0.write(f"{back_end}/params", str(file).encode())


async def test_the_wait_ends_when_the_guests_driver_says_connected(
    xenstored: Xenstored, xenstore: Xenstore, domain: XenDomain
) -> None:
    attach(xenstored, domain, file=ISO)
    waiting = asyncio.create_task(await_connected(xenstore, domid=5, target=TARGET))
    state = f"device/vbd/{vdev_number(TARGET)}/state"
    for number in (b"2", b"3"):
        domain.write(state, number)
        # an answer on the connection that serves the wait: it has seen the state before
        await xenstore.read(frontend_state(domid=5, target=TARGET))
        assert not waiting.done()
    domain.write(state, b"4")
    assert await waiting is True


async def test_the_wait_ends_when_the_domain_is_gone(
    xenstored: Xenstored, xenstore: Xenstore, domain: XenDomain
) -> None:
    attach(xenstored, domain, file=ISO)
    waiting = asyncio.create_task(await_connected(xenstore, domid=5, target=TARGET))
    xenstored.dom0.rm(f"{domain.home}/device/vbd")
    assert await waiting is False


async def test_a_back_end_is_found_by_the_file_that_it_serves(
    xenstored: Xenstored, xenstore: Xenstore, domain: XenDomain
) -> None:
    assert await back_ends_of(xenstore, ISO) == []
    other = xenstored.introduce(6, uuid=str(uuid.uuid4()))
    attach(xenstored, domain, file=ISO)
    attach(xenstored, other, file=ISO.with_name("4567.iso"))
    path = "/local/domain/0/backend/vbd/5/51952"
    assert await back_ends_of(xenstore, ISO) == [path]
    xenstored.dom0.rm(path)
    assert await back_ends_of(xenstore, ISO) == []


async def test_whose_back_ends_serve_an_iso_is_found_under_every_domid_that_may_be_the_domains(
    xenstored: Xenstored, xenstore: Xenstore, domain: XenDomain
) -> None:
    other = xenstored.introduce(6, uuid=str(uuid.uuid4()))
    rebooted = xenstored.introduce(7, uuid=domain.uuid)
    for one in (domain, other, rebooted):
        attach(xenstored, one, file=ISO)
    # One that is being destroyed: libxl has removed its home, and not yet its back end.
    unknown = "/local/domain/0/backend/qdisk/8/51952"
    xenstored.dom0.write(f"{unknown}/params", f"aio:{ISO}".encode())
    back_ends = BackEnds(xenstore)
    folder = "/local/domain/0/backend/vbd"
    own = {f"{folder}/5/51952", f"{folder}/7/51952", unknown}
    assert set(await back_ends.of(ISO, uuid=domain.uuid)) == own
    assert await back_ends.of(ISO.with_name("4567.iso"), uuid=domain.uuid) == []
    xenstored.dom0.rm(f"{folder}/5")
    assert set(await back_ends.of(ISO, uuid=domain.uuid)) == own - {f"{folder}/5/51952"}


async def test_a_look_for_an_isos_back_ends_reads_nothing_of_other_domains_but_once_whose_they_are(
    xenstored: Xenstored, xenstore: Counted, domain: XenDomain
) -> None:
    others = xenstored.introduce_all({10 + n: str(uuid.uuid4()) for n in range(20)})
    for one in (domain, *others):
        attach(xenstored, one, file=ISO.with_name(f"{one.domid}.iso"))
    back_ends = BackEnds(xenstore)
    first = await _reads_of(back_ends, xenstore, domain)
    again = await _reads_of(back_ends, xenstore, domain)
    assert first == len(others) + 1 + again
    assert again <= 2


async def test_a_domid_that_another_domain_had_is_looked_at_anew(
    xenstored: Xenstored, xenstore: Xenstore, domain: XenDomain
) -> None:
    other = xenstored.introduce(6, uuid=str(uuid.uuid4()))
    attach(xenstored, other, file=ISO)
    back_ends = BackEnds(xenstore)
    assert await back_ends.of(ISO, uuid=domain.uuid) == []
    xenstored.dom0.rm("/local/domain/0/backend/vbd/6")
    assert await back_ends.of(ISO, uuid=domain.uuid) == []
    xenstored.dom0.write(f"{other.home}/vm", f"/vm/{domain.uuid}".encode())
    attach(xenstored, other, file=ISO)
    assert await back_ends.of(ISO, uuid=domain.uuid) == ["/local/domain/0/backend/vbd/6/51952"]


async def _reads_of(back_ends: BackEnds, xenstore: Counted, domain: XenDomain) -> int:
    before = xenstore.reads.total()
    assert await back_ends.of(ISO, uuid=domain.uuid) == []
    return xenstore.reads.total() - before


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vbd/5/51728/params", "/srv/web1.img"),
        ("qdisk/5/51728/params", "aio:/srv/web1.img"),
        ("qdisk/5/51728/params", "qcow2:/srv/web1.img"),
        ("vbd/5/51728/tapdisk-params", "vhd:/srv/web1.img"),
    ],
)
async def test_whoever_serves_a_file_is_found(
    xenstored: Xenstored, xenstore: Xenstore, key: str, value: str
) -> None:
    """What libxl writes for the kernel, for QEMU and for tapdisk."""
    path = f"/local/domain/0/backend/{key}"
    xenstored.dom0.write(path, value.encode())
    assert await back_ends_of(xenstore, Path("/srv/web1.img")) == [path.rpartition("/")[0]]
    for other in ("/web1.img", "/srv/web1.im", "/srv/web1.img2", "/other/srv/web1.img"):
        assert await back_ends_of(xenstore, Path(other)) == []


async def test_a_domain_is_served_until_its_last_back_end_is_gone(
    xenstored: Xenstored, xenstore: Xenstore
) -> None:
    paths = [f"/local/domain/0/backend/{kind}" for kind in ("vbd/5/51712", "qdisk/5/51728")]
    for path in (*paths, "/local/domain/0/backend/vbd/6/51712"):
        xenstored.dom0.write(f"{path}/params", b"/srv/x.img")
    assert await back_ends_for(xenstore, 5) == paths
    xenstored.dom0.rm(paths[0])
    assert await back_ends_for(xenstore, 5) == paths[1:]
    xenstored.dom0.rm("/local/domain/0/backend/qdisk/5")
    assert await back_ends_for(xenstore, 5) == []


async def test_a_disk_that_libvirt_does_not_know_is_taken_from_both_ends_and_no_other_is(
    xenstored: Xenstored, xenstore: Xenstore, domain: XenDomain
) -> None:
    attach(xenstored, domain, file=ISO)
    other = xenstored.introduce(6, uuid=str(uuid.uuid4()))
    attach(xenstored, other, file=ISO.with_name("4567.iso"))
    number = vdev_number(TARGET)
    xenstored.dom0.write(f"/libxl/5/device/vbd/{number}/params", b"x")
    (back_end,) = await back_ends_of(xenstore, ISO)
    assert domid_of(back_end) == 5
    for _ in range(2):  # what is gone is gone
        await remove(xenstore, back_end)
        for node in (f"/local/domain/5/device/vbd/{number}", f"/libxl/5/device/vbd/{number}"):
            with pytest.raises(FileNotFoundError):
                await xenstore.read(node)
        assert await back_ends_for(xenstore, 5) == []
    assert len(await back_ends_for(xenstore, 6)) == 1
    assert await xenstore.read(frontend_state(domid=6, target=TARGET)) == b"1"


def test_the_number_of_a_target_is_the_one_that_linux_gives_it() -> None:
    """Documentation/admin-guide/devices.txt: block major 202, 16 minors a disk."""
    assert vdev_number("xvda") == 51712
    assert vdev_number("xvdd") == 51760
    assert vdev_number("xvdp") == 51952
    for wrong in ("sda", "xvd", "xvdq", "xvdaa", "xvdA"):
        with pytest.raises(ValueError, match="none of xvda to xvdp"):
            vdev_number(wrong)


async def test_a_loop_device_is_found_by_its_file_also_after_that_was_unlinked(
    tmp_path: Path,
) -> None:
    for name, file in (
        ("loop0", "/other.iso"),
        ("loop3", str(ISO)),
        ("loop12", f"{ISO} (deleted)"),
        ("loop4", f"{ISO}.part"),
    ):
        (tmp_path / name / "loop").mkdir(parents=True)
        (tmp_path / name / "loop/backing_file").write_text(f"{file}\n")
    (tmp_path / "loop7").mkdir()
    loops = Loops(block_devices=tmp_path)
    assert await loops.of(ISO) == ["loop12", "loop3"]
    assert await loops.of(Path("/none.iso")) == []


@pytest.fixture
def file_in_a_loop(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A file, and the name of the loop device over it."""
    file = tmp_path / "disk.img"
    file.write_bytes(bytes(1 << 20))
    argv = ("losetup", "--find", "--show", str(file))
    ended = subprocess.run(argv, check=True, capture_output=True, text=True)
    name = Path(ended.stdout.strip()).name
    try:
        yield file, name
    finally:
        free_loop(name, file)


async def test_a_loop_device_is_let_go_of_the_file_that_is_meant_and_of_no_other(
    file_in_a_loop: tuple[Path, str],
) -> None:
    file, name = file_in_a_loop
    loops = Loops()
    assert await loops.of(file) == [name]
    free_loop(name, file.with_name("another.iso"))
    assert await loops.of(file) == [name]
    free_loop(name, file)
    assert await loops.of(file) == []
    free_loop(name, file)  # it has no file any more
