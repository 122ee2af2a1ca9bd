"""provisionctl image verify, as a process of its own, over the tiny guest's image."""

import asyncio
import hashlib
import json
import os
import select
import signal
import struct
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from provisiond.api.client import ProvisiondClient
from provisiond.api.requests import DiskFormat
from provisiond.disk.chain import DiskImage
from provisiond.disk.qemu_img import create_blank, create_overlay
from provisiond.images.picture import png_of
from provisiond.images.trial import Trial
from tests.daemon.command import SECONDS, Command, Ended, end
from tests.lab.disk import DiskGuestFiles
from tests.lab.domain import KERNEL_WORDS
from tests.lab.packages import cache_directory

GETTY = (*KERNEL_WORDS, "lab.getty")


@dataclass(frozen=True, slots=True)
class Verifying:
    """The command with a folder for all that it makes, over one image."""

    command: Command
    folder: Path
    files: DiskGuestFiles

    def words(self, *more: str | Path, kernel_words: tuple[str, ...] = GETTY) -> list[str | Path]:
        return [
            *("image", "verify", self.files.image),
            *("--format", "raw"),
            *("--kernel", self.files.boot.kernel),
            *("--initrd", self.files.boot.initramfs),
            *("--append", " ".join(kernel_words)),
            *("--accelerator", "tcg"),
            *("--memory", "128M"),
            *more,
        ]

    async def run(self, *more: str | Path, kernel_words: tuple[str, ...] = GETTY) -> Ended:
        return await self.command.run(*self.words(*more, kernel_words=kernel_words))

    async def until_power_on(self) -> asyncio.subprocess.Process:
        process = await self.command.start(*self.words())
        assert process.stdout is not None
        async with asyncio.timeout(SECONDS):
            while line := await process.stdout.readline():
                if b"power-on" in line:
                    return process
        raise AssertionError(await end(process, b""))


@pytest.fixture
def verifying(disk_guest_files: DiskGuestFiles) -> Iterator[Verifying]:
    """At the end nothing of what the command makes is there, whatever it came to."""
    # What libvirt knows of QEMU already stays known: it would take it 4 s to find out.
    with tempfile.TemporaryDirectory(prefix="v-", dir="/var/tmp") as name:
        folder = Path(name)
        kept = folder / "cache/provisiond"
        kept.mkdir(parents=True)
        (kept / "libvirt-capabilities").symlink_to(cache_directory() / "libvirt-capabilities")
        own = folder / "tmp"
        own.mkdir()
        environment = {"TMPDIR": str(own), "XDG_CACHE_HOME": str(folder / "cache")}
        yield Verifying(Command(Path("/nowhere"), environment), own, disk_guest_files)
        assert processes_of(own) == []
        assert list(own.iterdir()) == []


def processes_of(folder: Path) -> list[int]:
    """The processes that were started with something of the folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"{folder}/".encode() in (process / "cmdline").read_bytes():
                found.append(int(process.name))
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended since it was listed
    return found


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ---------------------------------------------------------------- what is said
async def test_an_image_that_works_is_verified_and_left_as_it_was(
    verifying: Verifying, tmp_path: Path
) -> None:
    picture, before = tmp_path / "screen.png", sha256(verifying.files.image)
    said = await verifying.run("--json", "--screenshot", picture)
    assert said.status == 0, said
    verified = json.loads(said.out)
    assert verified["sha256"] == before == sha256(verifying.files.image)
    seen = verified["seen"]
    times = [seen[name] for name in ("hello", "attached", "done", "succeeded", "login")]
    assert times == sorted(times)
    assert times[0] > 0
    assert seen["checks"]["host name"].startswith("verify-")
    assert "10.0.2.15/24" in seen["checks"]["address"]
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


async def test_an_image_whose_script_never_speaks_is_told(verifying: Verifying) -> None:
    said = await verifying.run("--within", "5", kernel_words=(*GETTY, "lab.silent"))
    assert said.status == 1, said
    assert "error: agent_silent: verify-" in said.err
    assert "no sign of readiness within 5 s" in said.err


async def test_a_guest_that_cannot_be_configured_is_told_with_its_last_words(
    verifying: Verifying,
) -> None:
    said = await verifying.run(kernel_words=(*GETTY, "lab.break=password"))
    assert said.status == 1, said
    assert "error: image_not_verified" in said.err
    assert "the guest's step password failed" in said.err
    last_words = said.err.partition("the guest's last words:")[2]
    assert "password failed: " in last_words
    assert "lab: up after" in last_words


# ---------------------------------------------------------------- nothing is left
async def test_ctrl_c_leaves_nothing_and_what_others_left_is_removed(
    verifying: Verifying,
) -> None:
    left = verifying.folder / "verify-of-a-host-whose-power-was-cut"
    (left / "images").mkdir(parents=True)
    (left / ".provisiond-throw-away").touch()
    strangers = verifying.folder / "verify-of-a-stranger"
    strangers.mkdir()
    process = await verifying.until_power_on()
    assert processes_of(verifying.folder) != []
    process.send_signal(signal.SIGINT)
    said = await end(process, b"")
    assert said.status == 130, said
    assert "nothing of it is left" in said.err
    assert not left.exists()
    strangers.rmdir()


async def test_kill_leaves_nothing(verifying: Verifying) -> None:
    process = await verifying.until_power_on()
    (first,) = [pid for pid in processes_of(verifying.folder) if is_unshare(pid)]
    ended = os.pidfd_open(first)
    try:
        process.kill()
        await process.wait()
        assert (await asyncio.to_thread(select.select, [ended], [], [], SECONDS))[0] == [ended]
    finally:
        os.close(ended)


def is_unshare(pid: int) -> bool:
    return Path(f"/proc/{pid}/comm").read_text().strip() == "unshare"


# ---------------------------------------------------------------- what is refused
async def test_an_image_that_somebody_writes_to_is_refused(
    verifying: Verifying, tmp_path: Path
) -> None:
    image = tmp_path / "image.qcow2"
    await create_blank(image, disk_format=DiskFormat.QCOW2, size=2**20)
    with image.open("r+b"):
        said = await verifying.command.run("image", "verify", image)
    assert said.status == 5, said
    assert "error: image_busy" in said.err


async def test_an_image_that_names_other_files_is_refused(
    verifying: Verifying, tmp_path: Path
) -> None:
    image = tmp_path / "image.qcow2"
    base = DiskImage(verifying.files.image, DiskFormat.RAW, 2**20, 0, None, None)
    await create_overlay(image, disk_format=DiskFormat.QCOW2, base=base, size=2**26)
    said = await verifying.command.run("image", "verify", image)
    assert said.status == 5, said
    assert "error: image_refused" in said.err


async def test_words_that_do_not_go_together_are_wrong_usage(verifying: Verifying) -> None:
    image = verifying.files.image
    for words in ((image,), (image, "--format", "raw", "--initrd", image)):
        said = await verifying.command.run("image", "verify", *words)
        assert said.status == 2, said


# ---------------------------------------------------------------- what is told
def test_the_password_is_in_no_word_of_the_guest_that_is_told(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    with ProvisiondClient(tmp_path / "socket") as client:
        trial = Trial(client, log, lambda _text: None)
        typed = b"login: \x1b[1m" + trial._password.encode() + b"\x1b[m\r\n" * 3 + b"\0\xff\r\n"
        log.write_bytes(b"x" * 2**20 + b"\n" + typed)
        told = trial._last_words()
    assert told[-2] == "login: (the password)"
    assert not any(trial._password in line for line in told)


# ---------------------------------------------------------------- the picture
def test_a_picture_is_a_png_with_every_pixel() -> None:
    pixels = bytes(range(3 * 5 * 7))
    assert read_png(png_of(b"P6\n5 7\n255\n" + pixels)) == (5, 7, pixels)


def read_png(png: bytes) -> tuple[int, int, bytes]:
    """Width, height and pixels by the PNG specification, of lines that are unfiltered."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    at, chunks = 8, []
    while at < len(png):
        (size,) = struct.unpack_from(">I", png, at)
        kind, data = png[at + 4 : at + 8], png[at + 8 : at + 8 + size]
        assert struct.unpack_from(">I", png, at + 8 + size) == (zlib.crc32(kind + data),)
        chunks.append((kind, data))
        at += 12 + size
    assert [kind for kind, _ in chunks] == [b"IHDR", b"IDAT", b"IEND"]
    width, height, *how = struct.unpack(">IIBBBBB", chunks[0][1])
    assert how == [8, 2, 0, 0, 0]
    lines = zlib.decompress(chunks[1][1])
    assert len(lines) == height * (1 + 3 * width)
    assert set(lines[:: 1 + 3 * width]) == {0}
    return (
        width,
        height,
        b"".join(lines[at + 1 : at + 1 + 3 * width] for at in range(0, len(lines), 1 + 3 * width)),
    )


@pytest.mark.parametrize(
    "text", [b"", b"P5\n1 1\n255\n\0", b"P6\n2 1\n255\n\0\0\0", b"P6\n0 0\n255\n"]
)
def test_what_is_no_picture_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"is no|are no"):
        png_of(text)
