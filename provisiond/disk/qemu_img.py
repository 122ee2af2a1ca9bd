"""qemu-img: one function for each of its verbs. The argv are built purely, results are read back.

Formats are always said and never guessed, paths are absolute (what has a ':' before the first '/'
is a protocol to qemu-img). What others wrote is read under limits of memory and time.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

from provisiond.api.requests import DiskFormat
from provisiond.disk.chain import QEMU_NAMES, DiskChain, DiskImage, parse_chain, parse_info
from provisiond.errors import ImageNotFound, ImageRefused, NoSpace, ToolFailed
from provisiond.process import Finished, run

# A header that was made to be read needs a few megabytes and milliseconds.
_UNTRUSTED_HEADER = ["prlimit", "--as=1073741824", "--cpu=8"]
# The tables of a large image are walked: the time is the job's, the memory is not.
_UNTRUSTED_TABLES = ["prlimit", "--as=2147483648"]

_NOT_STARTED = (126, 127)  # prlimit's own, as a shell's
_DAMAGED, _LEAKING, _UNSUPPORTED = 2, 3, 63  # exit statuses of qemu-img check

_PROGRESS = re.compile(r"\((\d{1,3}(?:\.\d+)?)/100%\)")


# ---------------------------------------------------------------- read
async def read_image(path: Path, *, disk_format: DiskFormat) -> DiskImage:
    """The image at `path`.

    Raises ImageNotFound, or ImageRefused where it is no image of that format, or a guest writes to
    it.
    """
    return parse_info(await _ask(info_argv(path, disk_format=disk_format), path))


async def read_chain(path: Path, *, disk_format: DiskFormat) -> DiskChain:
    """The image at `path` and all that it stands on, as QEMU will open them."""
    argv = info_argv(path, disk_format=disk_format, whole_chain=True)
    return parse_chain(await _ask(argv, path))


def info_argv(path: Path, *, disk_format: DiskFormat, whole_chain: bool = False) -> list[str]:
    """The command that tells of an image."""
    return [
        *_UNTRUSTED_HEADER,
        *("qemu-img", "info"),
        "--output=json",
        *(["--backing-chain"] if whole_chain else []),
        *("-f", QEMU_NAMES[disk_format]),
        _absolute(path),
    ]


async def check(path: Path, *, disk_format: DiskFormat) -> bool:
    """Refuse an image whose tables are damaged; False where the format has nothing to check.

    Raises ImageRefused, also for clusters that nothing refers to: whoever wrote it did not finish.
    """
    finished = await run(check_argv(path, disk_format=disk_format), check=False)
    if finished.returncode == _DAMAGED:
        raise ImageRefused(f"{path}: is damaged: {_first_words(finished)}")
    if finished.returncode == _LEAKING:
        raise ImageRefused(
            f"{path}: has clusters that belong to nothing",
            hint="Mend it with qemu-img check -r leaks, then ask again.",
        )
    _require_started(finished)
    if finished.returncode not in (0, _UNSUPPORTED):
        raise ImageRefused(f"{path}: cannot be checked: {_first_words(finished)}")
    return finished.returncode == 0


def check_argv(path: Path, *, disk_format: DiskFormat) -> list[str]:
    """The command that checks an image's tables."""
    return [
        *_UNTRUSTED_TABLES,
        *("qemu-img", "check"),
        _described(path, disk_format),
    ]


async def measure(source: Path, *, disk_format: DiskFormat, to_format: DiskFormat) -> int:
    """How many bytes the data of `source` take as `to_format`, about, without what it stands on."""
    argv = measure_argv(source, disk_format=disk_format, to_format=to_format)
    answer = await _ask(argv, source)
    required = json.loads(answer).get("required")
    if not isinstance(required, int):
        raise ToolFailed(f"qemu-img does not say how much room {source} needs")
    return required


def measure_argv(source: Path, *, disk_format: DiskFormat, to_format: DiskFormat) -> list[str]:
    """The command that measures. What is written can be measured as qcow2 alone: holes are left out
    of a raw file too, and a VHD is like one with clusters of 2 MiB."""
    return [
        *_UNTRUSTED_TABLES,
        *("qemu-img", "measure"),
        "--output=json",
        *("-O", QEMU_NAMES[DiskFormat.QCOW2]),
        *(["-o", "cluster_size=2M"] if to_format is DiskFormat.VHD else []),
        _described(source, disk_format),
    ]


async def _ask(argv: list[str], path: Path) -> str:
    if not path.exists():
        raise ImageNotFound(f"{path}: does not exist")
    finished = await run(argv, check=False)
    _require_started(finished)
    if finished.returncode != 0:
        raise ImageRefused(f"{path}: cannot be read: {_first_words(finished)}")
    return finished.stdout.decode(errors="replace")


def _require_started(finished: Finished) -> None:
    if finished.returncode in _NOT_STARTED:
        raise ToolFailed(f"qemu-img cannot be started: {_first_words(finished)}")


def _first_words(finished: Finished) -> str:
    """The first of the tool's own words: what follows of a damaged image are a thousand alike."""
    said = (finished.stderr.strip() or finished.stdout.strip()).decode(errors="replace")
    line = said.partition("\n")[0][:500] or f"status {finished.returncode}"
    return line.removeprefix("qemu-img: ")


# ---------------------------------------------------------------- write
async def create_overlay(
    part: Path, *, disk_format: DiskFormat, base: DiskImage, size: int
) -> None:
    """Make an overlay of `size` bytes over `base` at `part`, over whatever is there."""
    await _write(create_argv(part, disk_format=disk_format, base=base, size=size), part)


async def create_blank(part: Path, *, disk_format: DiskFormat, size: int) -> None:
    """Make an image of `size` bytes, all zeros and none of them allocated, at `part`."""
    await _write(create_argv(part, disk_format=disk_format, base=None, size=size), part)


def create_argv(
    part: Path, *, disk_format: DiskFormat, base: DiskImage | None, size: int
) -> list[str]:
    """The command that makes an image, over `base` or blank."""
    return [
        *("qemu-img", "create"),
        "-q",
        *("-f", QEMU_NAMES[disk_format]),
        *_options(disk_format),
        *_backing(base),
        _absolute(part),
        str(size),
    ]


async def convert(
    source: Path,
    part: Path,
    *,
    from_format: DiskFormat,
    to_format: DiskFormat,
    parent: DiskImage | None = None,
    progress: Callable[[float], None],
) -> None:
    """Copy what `source` holds to `part`; with `parent`, on which it stands, only what differs."""
    argv = convert_argv(source, part, from_format=from_format, to_format=to_format, parent=parent)

    def hear(line: str) -> None:
        if (fraction := parse_progress(line)) is not None:
            progress(fraction)

    await _write(argv, part, hear)


def convert_argv(
    source: Path,
    part: Path,
    *,
    from_format: DiskFormat,
    to_format: DiskFormat,
    parent: DiskImage | None = None,
) -> list[str]:
    """The command that copies an image."""
    return [
        *_UNTRUSTED_TABLES,
        *("qemu-img", "convert"),
        "-p",
        *("-O", QEMU_NAMES[to_format]),
        *_options(to_format),
        *(["-B", *_backing(parent)[1:]] if parent is not None else []),
        _described(source, from_format, over=parent),
        _absolute(part),
    ]


def parse_progress(text: str) -> float | None:
    """The last progress in what `qemu-img -p` wrote, from 0 to 1; None where it has none."""
    told = _PROGRESS.findall(text)
    return min(float(told[-1]) / 100, 1.0) if told else None


async def _write(argv: list[str], part: Path, hear: Callable[[str], None] | None = None) -> None:
    try:
        await run(argv, hear=hear)
    except ToolFailed as error:
        if "No space left on device" in error.message:
            raise NoSpace(f"{part.parent}: became full meanwhile: {error.message}") from error
        raise


def _options(disk_format: DiskFormat) -> list[str]:
    # Without it a VHD's size is rounded up to whole cylinders.
    return ["-o", "force_size=on"] if disk_format is DiskFormat.VHD else []


def _backing(base: DiskImage | None) -> list[str]:
    if base is None:
        return []
    return ["-b", _absolute(base.path), "-F", QEMU_NAMES[base.format]]


def _described(path: Path, disk_format: DiskFormat, *, over: DiskImage | None = None) -> str:
    """An image as QEMU's JSON: of what its header names nothing is opened, it stands on `over`."""
    described: dict[str, object] = _with_driver(path, disk_format)
    if disk_format in (DiskFormat.QCOW2, DiskFormat.QCOW):
        described["backing"] = None if over is None else _with_driver(over.path, over.format)
    return f"json:{json.dumps(described)}"


def _with_driver(path: Path, disk_format: DiskFormat) -> dict[str, object]:
    file = {"driver": "file", "filename": _absolute(path)}
    return {"driver": QEMU_NAMES[disk_format], "file": file}


def _absolute(path: Path) -> str:
    if not path.is_absolute():
        raise ValueError(f"{path} is no absolute path")
    return str(path)
