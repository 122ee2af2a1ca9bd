"""File systems of the daemon's own: their power is cut, they are filled to the last block.

The state and the images are on an ext4 each, on a loop device: so the sync of one brings nothing of
the other to its disk. Nothing gets there by itself either (`commit=600`, `noauto_da_alloc`): what
was not synced is lost. The config ISOs are on tmpfs, which a power cut empties.
"""

import errno
import fcntl
import os
import struct
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

MIB = 2**20
BLOCK = 4096
IMAGES_MIB = 128
STATE_MIB = 16
RUNTIME_MIB = 1

# EXT4_IOC_SHUTDOWN of linux/ext4.h, _IOR('X', 125, __u32): no write reaches the device any more.
_SHUTDOWN = 0x8004587D
_WITHOUT_THE_JOURNAL = struct.pack("I", 2)  # EXT4_GOING_FLAGS_NOLOGFLUSH

Place = Literal["state", "images", "run"]
# The folders of each, as a call's name has them.
FOLDERS: Mapping[Place, tuple[str, ...]] = {
    "state": (" state/",),
    "images": (" images/", " bases/", " disks/"),
    "run": (" run/", " iso/"),
}


class Volumes:
    """What is mounted below a daemon's folder, at `state`, `images` and `run`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._disks = {"state": folder / "state.ext4", "images": folder / "images.ext4"}
        self._mounted: list[Path] = []
        for place, size in (("state", STATE_MIB), ("images", IMAGES_MIB)):
            _make_ext4(self._disks[place], size=size * MIB)
        self._mount()

    # ------------------------------------------------------------ a power cut
    def sync(self) -> None:
        """What is there now is on the disks."""
        for place in self._disks:
            _call("sync", "--file-system", self._folder / place)

    def cut(self) -> None:
        """From now on nothing reaches the disks: the programs that use them may be ended."""
        for place in self._disks:
            descriptor = os.open(self._folder / place, os.O_RDONLY)
            try:
                fcntl.ioctl(descriptor, _SHUTDOWN, _WITHOUT_THE_JOURNAL)
            finally:
                os.close(descriptor)

    def restore(self) -> None:
        """The disks as the cut has left them are mounted, and the tmpfs is empty."""
        for place, disk in self._disks.items():
            # On a device of its own: the kernel may still hold the file system that was shut down.
            after = disk.with_suffix(".after")
            _call("cp", "--sparse=always", disk, after)
            self._unmount(self._folder / place)
            after.rename(disk)
        self.unmount()
        self._mount()

    # ------------------------------------------------------------ a full disk
    @contextmanager
    def full(self, place: Place) -> Iterator[None]:
        """No block is free there until the block is left."""
        ballast = self._folder / place / "ballast"
        with ballast.open("wb", buffering=0) as file:
            for size in (MIB, BLOCK, BLOCK):  # what is written at last may make room for a block
                _fill(file.fileno(), size)
        try:
            yield
        finally:
            ballast.unlink()

    # ------------------------------------------------------------ mounts
    def unmount(self) -> None:
        """None of them is mounted any more."""
        for place in reversed(self._mounted):
            _call("umount", "--lazy", place)
        self._mounted.clear()

    def _unmount(self, place: Path) -> None:
        _call("umount", "--lazy", place)
        self._mounted.remove(place)

    def _mount(self) -> None:
        words: Mapping[str, tuple[str | Path, ...]] = {
            place: ("-o", "loop,commit=600,noauto_da_alloc", disk)
            for place, disk in self._disks.items()
        }
        tmpfs = ("-t", "tmpfs", "-o", f"mode=711,size={RUNTIME_MIB}m", "tmpfs")
        for place, how in {**words, "run": tmpfs}.items():
            folder = self._folder / place
            folder.mkdir(exist_ok=True)
            _call("mount", *how, folder)
            self._mounted.append(folder)
            folder.chmod(0o711)
            if (found := folder / "lost+found").exists():
                found.rmdir()


@contextmanager
def mounted(folder: Path) -> Iterator[Volumes]:
    """Those of a daemon over `folder`; at the end none is left."""
    volumes = Volumes(folder)
    try:
        yield volumes
    finally:
        volumes.unmount()


def _make_ext4(disk: Path, *, size: int) -> None:
    with disk.open("wb") as file:
        file.truncate(size)
    _call("mkfs.ext4", "-q", "-F", "-m", "0", "-b", str(BLOCK), disk)


def _fill(descriptor: int, size: int) -> None:
    """Write so many bytes at once until there is no room for them."""
    block = bytes(size)
    try:
        while os.write(descriptor, block) == size:
            pass
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
    os.fsync(descriptor)


def _call(*argv: str | Path) -> None:
    subprocess.run(argv, check=True)
