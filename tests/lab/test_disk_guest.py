"""The tiny guest on a disk is real: base, overlay and domain, as made by hand."""

import asyncio
import hashlib
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.lab.console import Console, open_console
from tests.lab.disk import DiskGuestFiles
from tests.lab.domain import Guest, template_xml
from tests.lab.embed import lab_folder
from tests.lab.program import Lab, Running
from tests.lab.test_guest import BOOT, HASH, NONCE, channel_path, verdict, write_iso


def make_base(image: Path, folder: Path) -> Path:
    base = folder / "base.qcow2"
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", image, base], check=True)
    return base


def make_overlay(base: Path, name: str) -> Path:
    overlay = base.with_name(f"{name}.qcow2")
    backing = ("-F", "qcow2", "-b", base)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *backing, overlay], check=True)
    return overlay


def define(
    lab: Lab, name: str, disk: Path, *, files: DiskGuestFiles, target: str = "vda", words: str = ""
) -> Running:
    """What provisiond makes of a template, by hand."""
    model = Guest(name, kernel_words=tuple(words.split()))
    template = template_xml(model, files=files.boot, folder=lab_folder(lab.root), target=target)
    domain = ET.fromstring(template)
    source = domain.find("devices/disk/source")
    assert source is not None
    source.set("file", str(disk))
    return lab.define(ET.tostring(domain, encoding="unicode"))


async def told(console: Console, command: str) -> str:
    answer = await console.run(command)
    assert answer.status == 0, answer
    return answer.output


async def reboot(guest: Running) -> None:
    """Returns once the guest runs that came after the one that is there now."""
    async with open_console(guest.shell) as console:
        before = await told(console, "cat /proc/sys/kernel/random/boot_id")
        await console.order("reboot -f")
    while True:
        async with open_console(guest.shell) as console:
            if await told(console, "cat /proc/sys/kernel/random/boot_id") != before:
                return


@pytest.mark.parametrize("target", ["vda", "sda"])
async def test_a_guest_boots_from_its_overlay_and_keeps_what_it_writes(
    lab: Lab, disk_guest_files: DiskGuestFiles, target: str
) -> None:
    base = make_base(disk_guest_files.image, lab.root)
    before = hashlib.sha256(base.read_bytes()).hexdigest()
    disk = make_overlay(base, "web1")
    guest = define(lab, "web1", disk, files=disk_guest_files, target=target, words="lab.silent")
    async with asyncio.timeout(BOOT):
        async with open_console(guest.shell) as console:
            mounted = await told(console, "grep ' / ' /proc/mounts")
            assert mounted.startswith(f"/dev/{target} / ext4 rw,")
            await told(console, "echo kept >/root/note")
        await reboot(guest)
        async with open_console(guest.shell) as console:
            assert await told(console, "cat /root/note") == "kept\n"
    assert hashlib.sha256(base.read_bytes()).hexdigest() == before


async def test_two_guests_of_one_base_know_nothing_of_each_other(
    lab: Lab, disk_guest_files: DiskGuestFiles
) -> None:
    base = make_base(disk_guest_files.image, lab.root)
    guests = [
        define(lab, name, make_overlay(base, name), files=disk_guest_files, words="lab.silent")
        for name in ("web1", "web2")
    ]
    assert len({guest.uuid for guest in guests} | {guest.mac for guest in guests}) == 4
    async with asyncio.timeout(BOOT):
        for guest in guests:
            async with open_console(guest.shell) as console:
                assert await told(console, f"ls /root; touch /root/{guest.name}") == ""


async def test_a_configuration_is_applied_once_and_is_there_after_a_reboot(
    lab: Lab, disk_guest_files: DiskGuestFiles
) -> None:
    overlay = make_overlay(make_base(disk_guest_files.image, lab.root), "web1")
    guest = define(lab, "web1", overlay, files=disk_guest_files)
    lab.attach(guest.name, write_iso(lab.root, guest))
    async with asyncio.timeout(BOOT):
        assert await verdict(channel_path(lab, guest)) == f"{NONCE} done"
        await reboot(guest)  # the ISO stays, so the script finds it again
        assert await verdict(channel_path(lab, guest)) == f"{NONCE} done"
        async with open_console(guest.shell) as console:
            assert await told(console, "hostname") == "configured\n"
            assert f"root:{HASH}:" in await told(console, "cat /etc/shadow")
            assert "inet 10.0.0.5/24" in await told(console, "ip addr show eth0")
            assert "inet6 fd00::5/64" in await told(console, "ip addr show eth0")
            log = await told(console, "cat /var/log/provision-guest.log")
    assert log.count("done: everything was applied and read back") == 1
    assert log.count("this configuration is applied already") == 1


async def test_a_guest_without_its_disk_says_so(lab: Lab, disk_guest_files: DiskGuestFiles) -> None:
    overlay = make_overlay(make_base(disk_guest_files.image, lab.root), "web1")
    guest = define(lab, "web1", overlay, files=disk_guest_files, words="root=/dev/absent")
    read = guest.log.read_text
    async with asyncio.timeout(BOOT):
        # A file tells nobody that it has grown.
        while "none of these disks has come: /dev/absent" not in read():  # noqa: ASYNC110
            await asyncio.sleep(0.1)
