"""Real images for the tests, made with qemu-img and qemu-io."""

import asyncio
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from provisiond.api.requests import DiskFormat
from provisiond.disk.chain import QEMU_NAMES

MIB = 2**20


def tool(*argv: str | Path | int) -> str:
    """What the program says; the test fails where it fails."""
    words = [str(word) for word in argv]
    finished = subprocess.run(words, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, f"{words}: {finished.stderr}{finished.stdout}"
    return finished.stdout


def make_image(
    path: Path, *, disk_format: DiskFormat, size: int = 8 * MIB, pattern: int | None = 0x5A
) -> Path:
    """An image of `size` bytes whose first MiB is full of `pattern`, with a fixed size for VHD."""
    name = QEMU_NAMES[disk_format]
    options = ["-o", "force_size=on"] if disk_format is DiskFormat.VHD else []
    tool("qemu-img", "create", "-q", "-f", name, *options, path, size)
    if pattern is not None:
        write(path, disk_format=disk_format, pattern=pattern)
    return path


def make_overlay(
    path: Path,
    base: Path,
    *,
    disk_format: DiskFormat = DiskFormat.QCOW2,
    base_format: DiskFormat = DiskFormat.QCOW2,
) -> Path:
    """An overlay over `base`, made past provisiond."""
    names = QEMU_NAMES[disk_format], QEMU_NAMES[base_format]
    tool("qemu-img", "create", "-q", "-f", names[0], "-F", names[1], "-b", base, path)
    return path


def write(
    path: Path, *, disk_format: DiskFormat, pattern: int, offset: int = 0, size: int = MIB
) -> None:
    """What a guest does: write `pattern` to the disk."""
    command = f"write -P {pattern} {offset} {size}"
    tool("qemu-io", "-f", QEMU_NAMES[disk_format], "-c", command, path)


def holds(
    path: Path, *, disk_format: DiskFormat, pattern: int, offset: int = 0, size: int = MIB
) -> bool:
    """Whether a guest would read `pattern` there."""
    command = f"read -P {pattern} {offset} {size}"
    argv = ["qemu-io", "-f", QEMU_NAMES[disk_format], "-r", "-c", command, str(path)]
    said = subprocess.run(argv, capture_output=True, text=True, check=False)
    return said.returncode == 0 and "verification failed" not in said.stdout


@asynccontextmanager
async def writing_guest(path: Path, *, disk_format: DiskFormat) -> AsyncIterator[None]:
    """A program as a guest's has the image open for the block, and has written to it."""
    guest = await asyncio.create_subprocess_exec(
        *("qemu-io", "-f", QEMU_NAMES[disk_format], str(path)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert guest.stdin is not None
    assert guest.stdout is not None
    guest.stdin.write(b"write 0 512\n")
    await guest.stdout.readuntil(b"ops/sec")
    try:
        yield
    finally:
        guest.stdin.close()
        await guest.wait()
