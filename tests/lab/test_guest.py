"""The tiny guest is real: it boots, sees disks come and go, and its damages break real steps."""

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from provisiond.iso.image import build_image
from tests.lab.console import open_console
from tests.lab.domain import CHANNEL
from tests.lab.embed import destroy_all
from tests.lab.initramfs import PROJECT, STEPS
from tests.lab.program import Lab, Running

BOOT = 90  # seconds; a guest needs three alone, more when the machine is busy
NONCE = "0123456789abcdef0123456789abcdef"
HASH = "$6$saltsalt$" + "x" * 86


def configuration(guest: Running) -> str:
    return f"""\
FORMAT=1
NONCE={NONCE}
INSTANCE={guest.uuid}
GENERATION=1
HOSTNAME=configured
IF0_MAC={guest.mac}
IF0_ADDRESSES=10.0.0.5/24 fd00::5/64
IF0_GATEWAY4=10.0.0.1
DNS=10.0.0.1
USER=root
PASSWORD_HASH={HASH}
SSH_KEY0=ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGJ test
TIMEZONE=Europe/Vienna
"""


def write_iso(root: Path, guest: Running) -> Path:
    path = root / f"{guest.name}.iso"
    path.write_bytes(build_image({"provision.conf": configuration(guest).encode()}))
    return path


def channel_path(lab: Lab, guest: Running) -> Path:
    for channel in ET.fromstring(lab.xml(guest.name)).iterfind("devices/channel"):
        if channel.find(f"target[@name='{CHANNEL}']") is not None:
            return Path(channel.findall("source")[0].attrib["path"])
    raise AssertionError(f"{guest.name} has no channel {CHANNEL}")


async def verdict(channel: Path) -> str:
    """The guest's last word, once it says it; what it logged is printed for a failed test."""
    reader, writer = await asyncio.open_unix_connection(channel)
    try:
        while line := (await reader.readline()).decode():
            print(line, end="")
            if line.split(" ")[1].strip() in {"done", "failed"}:
                return line.strip()
        raise AssertionError("the channel closed without a verdict")
    finally:
        writer.close()
        await writer.wait_closed()


async def test_a_disk_that_is_attached_by_another_process_comes_and_goes_in_the_guest(
    lab: Lab,
) -> None:
    (guest,) = lab.start("--silent")
    iso = write_iso(lab.root, guest)
    async with asyncio.timeout(BOOT), open_console(guest.shell) as console:
        assert (await console.run("pidof provision-guest")).status == 1
        lab.attach(guest.name, iso)
        label = "dd if=/dev/sr0 bs=1 skip=32808 count=9"
        seen = await console.run(f"until {label} 2>/dev/null; do usleep 10000; done")
        assert seen == (0, "PROVISION")
        read = await console.run("mount -t iso9660 -o ro /dev/sr0 /mnt; cat /mnt/*; umount /mnt")
        assert read.output == configuration(guest)
        lab.detach(guest.name, iso)
        gone = await console.run("while [ -e /sys/block/sr0 ]; do usleep 10000; done")
        assert gone.status == 0


async def test_the_real_script_configures_the_guest(lab: Lab) -> None:
    (guest,) = lab.start()
    lab.attach(guest.name, write_iso(lab.root, guest))
    async with asyncio.timeout(BOOT):
        assert await verdict(channel_path(lab, guest)) == f"{NONCE} done"
    async with asyncio.timeout(BOOT), open_console(guest.shell) as console:
        assert (await console.run("hostname")).output == "configured\n"
        assert f"root:{HASH}:" in (await console.run("cat /etc/shadow")).output
        assert "inet 10.0.0.5/24" in (await console.run("ip addr")).output


async def test_each_damage_makes_its_own_step_fail(lab: Lab) -> None:
    guests = {step: lab.start("--break", step, prefix=step)[0] for step in STEPS}
    for guest in guests.values():
        lab.attach(guest.name, write_iso(lab.root, guest))
    channels = [channel_path(lab, guest) for guest in guests.values()]
    async with asyncio.timeout(BOOT):
        words = await asyncio.gather(*(verdict(path) for path in channels))
    failed = {step: word.split(" ")[1:3] for step, word in zip(guests, words, strict=True)}
    assert failed == {step: ["failed", step] for step in STEPS}


async def test_a_shell_answers_with_status_and_output_whatever_the_command(lab: Lab) -> None:
    (guest,) = lab.start("--silent", "--no-nic", "--no-scsi", "--no-channel")
    async with asyncio.timeout(BOOT), open_console(guest.shell) as console:
        assert await console.run("printf 'no newline'; exit 7") == (7, "no newline")
        assert (await console.run("echo 'unterminated")).status == 2
        assert (await console.run("cat; read x")).output == ""
        assert (await console.run(f"echo '{'long ' * 2000}' | wc -c")).output.strip() == "10001"
        numbers = "".join(f"{number}\n" for number in range(1, 5001))
        assert await console.run("seq 1 5000") == (0, numbers)
        assert (await console.run("ls /sys/class/net")).output == "lo\n"
        assert (await console.run("ls /sys/class/virtio-ports /sys/class/scsi_host")).output.count(
            "org"
        ) == 0
    async with asyncio.timeout(BOOT), open_console(guest.shell) as console:
        assert await console.run("true") == (0, "")


def qemu_processes(root: Path) -> list[int]:
    """Asked of the kernel, not of pid files: whose command line names the root."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            argv = (folder / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if b"qemu-system" in argv.split(b"\0")[0] and f"{root}/".encode() in argv:
            found.append(int(folder.name))
    return found


def test_nothing_is_left_after_the_starter_was_killed(lab: Lab) -> None:
    argv = [sys.executable, "-m", "tests.lab", str(lab.root), "start", "--count", "2"]
    with subprocess.Popen(argv, cwd=PROJECT, stderr=subprocess.PIPE) as starter:
        for _ in itertools.takewhile(lambda _: not qemu_processes(lab.root), itertools.count()):
            assert starter.poll() is None
        os.kill(starter.pid, signal.SIGKILL)
    destroy_all(lab.root)
    assert qemu_processes(lab.root) == []
    assert not lab.root.exists()


def test_a_directory_that_is_no_lab_is_never_removed(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    with pytest.raises(ValueError, match="no lab's root"):
        destroy_all(tmp_path)
    assert (tmp_path / "precious").exists()
