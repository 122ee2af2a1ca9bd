"""The laboratory's machine, as far as no boot is needed: its command line, its end, its results."""

import re
import tarfile
from pathlib import Path

import pytest

from tests.lab.domain import Guest
from tests.lab.initramfs import PROJECT, GuestFiles
from tests.xen.domu import domu_template_xml, domu_xml
from tests.xen.image import Dom0Files
from tests.xen.machine import Disks, MachineFailed, qemu_argv, run_machine, unpack_results
from tests.xen.wheels import LEFT_OUT, dom0_lock


@pytest.fixture
def disks(tmp_path: Path) -> Disks:
    return Disks(tmp_path)


@pytest.fixture
def nothing(tmp_path: Path) -> Dom0Files:
    """Files that are there, and that no machine boots from."""
    empty = tmp_path / "empty"
    empty.write_bytes(bytes(1024 * 1024))
    xen = tmp_path / "xen.gz"
    xen.write_bytes(
        b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\x03\x00\x00\x00\x00\x00\x00\x00\x00\x00"
    )
    return Dom0Files(xen=xen, kernel=empty, initramfs=empty, root=empty)


def test_the_kernel_and_the_initramfs_are_modules_of_xen(disks: Disks, nothing: Dom0Files) -> None:
    argv = qemu_argv(nothing, disks)
    modules = argv[argv.index("-initrd") + 1].split(",")
    assert modules[0].startswith(f"{nothing.kernel} console=hvc0 ")
    assert modules[1] == str(nothing.initramfs)
    assert argv[argv.index("-kernel") + 1] == str(disks.xen)


async def test_a_machine_that_does_not_boot_is_told_with_its_console(
    disks: Disks, nothing: Dom0Files
) -> None:
    disks.given.write_bytes(bytes(10240))
    with pytest.raises(MachineFailed, match="the machine ended with 1; the end of its console"):
        await run_machine(nothing, disks, say=print, silence=60)


async def test_a_machine_that_says_nothing_is_ended(
    disks: Disks, nothing: Dom0Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = disks.folder / "bin"
    programs.mkdir()
    hung = programs / "qemu-system-x86_64"
    hung.write_text(
        f"#!/bin/sh\necho $$\necho 'the last words' >{disks.console}\nexec sleep 1000\n"
    )
    hung.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    said: list[str] = []
    with pytest.raises(MachineFailed, match=r"said nothing for 1 s; .*\n.*the last words"):
        await run_machine(nothing, disks, say=said.append, silence=1)
    (pid,) = said
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("garbage", [bytes(20480), b"x" * 20480], ids=["zeros", "noise"])
def test_a_machine_that_gives_nothing_back_is_told(disks: Disks, garbage: bytes) -> None:
    disks.results.write_bytes(garbage)
    with pytest.raises(MachineFailed, match="gave no results back"):
        unpack_results(disks, disks.folder)


def test_what_the_machine_gives_back_is_unpacked(disks: Disks) -> None:
    with tarfile.open(disks.results, "w") as results:
        results.add(__file__, "status")
    with disks.results.open("ab") as disk:
        disk.truncate(1024 * 1024)  # a tar on a disk is followed by the rest of the disk
    unpack_results(disks, disks.folder)
    assert (disks.folder / "status").read_bytes() == Path(__file__).read_bytes()


def test_a_pv_guest_boots_what_the_tiny_guest_boots() -> None:
    files = GuestFiles(kernel=Path("/guest/vmlinuz"), initramfs=Path("/guest/initramfs.gz"))
    guest = Guest("web1", kernel_words=("lab.silent",))
    xml = domu_xml(guest, files=files)
    for part in (
        '<domain type="xen">',
        "<kernel>/guest/vmlinuz</kernel>",
        "<initrd>/guest/initramfs.gz</initrd>",
        "lab.silent</cmdline>",
        "<on_reboot>restart</on_reboot>",
        f"<uuid>{guest.uuid}</uuid>",
    ):
        assert part in xml


def test_a_template_of_pv_guests_names_nothing_that_is_one_guests() -> None:
    files = GuestFiles(kernel=Path("/guest/vmlinuz"), initramfs=Path("/guest/initramfs.gz"))
    xml = domu_template_xml(Guest("web1", kernel_words=("lab.silent",)), files=files)
    assert '<interface type="bridge">' in xml
    assert "lab.silent</cmdline>" in xml
    for part in ("<uuid", "<mac", "<disk"):
        assert part not in xml


def test_the_lock_of_dom0_lacks_what_is_left_out_and_nothing_else() -> None:
    def names(lock: str) -> set[str]:
        return set(re.findall(r"^([a-z0-9-]+)==", lock, re.MULTILINE))

    whole = (PROJECT / "constraints.txt").read_text()
    assert names(whole) - names(dom0_lock()) == set(LEFT_OUT)
    assert all(line in whole.splitlines() for line in dom0_lock().splitlines())
