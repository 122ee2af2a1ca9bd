"""What a hypervisor gives a machine, made for a container: the config disk, and the virtio port.

The disk is a block device of the kernel (a loop device) over the real ISO. A container shares the
kernel's list of disks with this host, so it has a list of its own: a folder over its /sys/block,
where a disk comes and goes as a link to what the kernel shows of the device, as in the real one.
"""

import os
import select
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from provisiond.guest.verdict import Hello, LogLine, Verdict, parse_word
from tests.service.container import Container

DISK = "sr0"
# Runs as the first process of the container and becomes its init. systemd-nspawn makes the
# kernel's settings read-only, also those that are the container's own: its name and its network.
PLUG_IN = """\
#!/bin/sh
set -e
mount -t proc proc /mnt
for setting in kernel/hostname net; do
    mount --bind "/mnt/sys/$setting" "/proc/sys/$setting"
done
umount /mnt
mount --bind /hardware/block /sys/block
mkdir /dev/virtio-ports
ln -s /hardware/port /dev/virtio-ports/org.provisiond.0
exec /sbin/init
"""
# What mount asks in place of the kernel: the one below a container may know no ISO 9660.
MOUNT_ISO = """\
#!/bin/sh
# mount -t iso9660 DEVICE FOLDER, with the options that mount was given
exec fuseiso "$1" "$2" -o "$4"
"""


class Hardware:
    """The folder that a container sees as /hardware; new for each boot."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "block").mkdir(parents=True)
        (folder / "plug-in").write_text(PLUG_IN)
        os.mkfifo(folder / "port")
        self._port = self._listen()
        self._said = b""

    def close(self) -> None:
        os.close(self._port)

    # ------------------------------------------------------------ the port
    def _listen(self) -> int:
        """Read and write: the end never comes, whoever else opens and closes it."""
        return os.open(self.folder / "port", os.O_RDWR | os.O_NONBLOCK)

    @contextmanager
    def unheard(self) -> Iterator[None]:
        """Nobody listens at the port: whoever says a word waits, as at that of QEMU."""
        os.close(self._port)
        try:
            yield
        finally:
            self._port = self._listen()
            self._said = b""

    def hello(self, *, within: float) -> Hello:
        """The script's first hello from now on."""
        self._drain()
        until = time.monotonic() + within
        while True:
            word = parse_word(self._line(until), nonce="")
            if isinstance(word, Hello):
                return word

    def verdict(self, nonce: str, *, within: float) -> Verdict:
        """The first verdict with this nonce; what the script logs before it is printed."""
        until = time.monotonic() + within
        while True:
            word = parse_word(self._line(until), nonce=nonce)
            if isinstance(word, LogLine):
                print(f"    {word.text}")
            elif word is not None and not isinstance(word, Hello):
                return word

    def _drain(self) -> None:
        self._said = b""
        while select.select([self._port], [], [], 0)[0]:
            os.read(self._port, 65536)

    def _line(self, until: float) -> bytes:
        while b"\n" not in self._said:
            left = max(0.0, until - time.monotonic())
            assert select.select([self._port], [], [], left)[0], "the script says nothing"
            self._said += os.read(self._port, 65536)
        line, _, self._said = self._said.partition(b"\n")
        return line

    # ------------------------------------------------------------ the disk
    @contextmanager
    def disk(self, container: Container, iso: Path) -> Iterator[None]:
        """The ISO is a read-only drive of the running container, until the context ends."""
        with _loop_device(iso) as device:
            node = container.path(f"/dev/{DISK}")
            os.mknod(node, stat.S_IFBLK | 0o660, device.stat().st_rdev)
            link = self.folder / "block" / DISK
            link.symlink_to(f"/sys/devices/virtual/block/{device.name}")
            try:
                yield
            finally:
                link.unlink()
                node.unlink()


@contextmanager
def _loop_device(file: Path) -> Iterator[Path]:
    """A loop device that the kernel takes away with the last who has it open, however that ends."""
    argv: list[str | Path] = ["losetup", "--find", "--show", "--read-only", file]
    made = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    device = Path(made.strip())
    with device.open("rb"):
        subprocess.run(["losetup", "--detach", device], check=True)  # as soon as nobody has it open
        yield device
