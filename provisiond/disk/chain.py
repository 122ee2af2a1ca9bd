"""What a disk image is, and the chain of images that it stands on; read out of qemu-img's JSON."""

import json
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from provisiond.api.requests import DiskFormat
from provisiond.errors import ChainTooDeep, ImageRefused, SizeTooSmall, ToolFailed

QEMU_NAMES = {
    DiskFormat.RAW: "raw",
    DiskFormat.QCOW2: "qcow2",
    DiskFormat.QCOW: "qcow",
    DiskFormat.VHD: "vpc",
}
_LARGEST = 2**63 - 1  # bytes; QEMU has no larger number for a size
_FORMATS = {name: disk_format for disk_format, name in QEMU_NAMES.items()}


@dataclass(frozen=True, slots=True)
class DiskImage:
    """An image file. `virtual_size` is what a guest sees, in bytes, `file_size` what the file takes
    of its file system.

    `backing` is the image that it stands on, `backing_format` None where the header does not say.
    """

    path: Path
    format: DiskFormat
    virtual_size: int
    file_size: int
    backing: Path | None
    backing_format: DiskFormat | None


@dataclass(frozen=True, slots=True)
class DiskChain:
    """An image and all that it stands on: the top first, what stands on nothing last."""

    images: tuple[DiskImage, ...]

    @property
    def top(self) -> DiskImage:
        """The image that a guest writes to."""
        return self.images[0]

    @property
    def depth(self) -> int:
        """How many images it has."""
        return len(self.images)

    def renamed(self, path: Path) -> "DiskChain":
        """The same chain, its top at `path`."""
        return DiskChain((replace(self.top, path=path), *self.images[1:]))


def parse_info(untrusted_text: str) -> DiskImage:
    """The image that `qemu-img info --output=json` tells of.

    Raises ImageRefused where a field is missing or wrong, or the format is none of ours.
    """
    return _image(_load(untrusted_text))


def parse_chain(untrusted_text: str) -> DiskChain:
    """The chain that `qemu-img info --output=json --backing-chain` tells of, each image standing on
    the next. Raises ImageRefused as `parse_info` does."""
    answer = _load(untrusted_text)
    if not isinstance(answer, list) or not answer:
        raise ImageRefused("qemu-img tells of no image")
    images = tuple(_image(one) for one in answer)
    for upper, lower in pairwise(images):
        if upper.backing != lower.path:
            raise ImageRefused(f"{upper.path}: stands on {upper.backing}, not on {lower.path}")
    if images[-1].backing is not None:
        raise ImageRefused(f"{images[-1].path}: what it stands on is missing from its chain")
    return DiskChain(images)


def _load(untrusted_text: str) -> Any:
    try:
        return json.loads(untrusted_text)
    except (ValueError, RecursionError) as error:
        raise ImageRefused(f"qemu-img's answer is no JSON: {error}") from None


def _image(untrusted: Any) -> DiskImage:
    if not isinstance(untrusted, dict) or not isinstance(untrusted.get("filename"), str):
        raise ImageRefused("qemu-img tells of an image that has no file")
    path = _path(untrusted["filename"], of="an image")
    backing = untrusted.get("full-backing-filename", untrusted.get("backing-filename"))
    backing_format = untrusted.get("backing-filename-format")
    return DiskImage(
        path=path,
        format=parse_format(untrusted.get("format"), of=path),
        virtual_size=_bytes(untrusted.get("virtual-size"), of=path),
        file_size=_bytes(untrusted.get("actual-size"), of=path),
        backing=None if backing is None else _path(backing, of=path),
        backing_format=None if backing_format is None else parse_format(backing_format, of=path),
    )


def _path(untrusted: Any, *, of: Path | str) -> Path:
    # 'json:…', 'nbd://…' and 'file:…' are qemu's other ways to name an image: never a file of ours.
    # What is not printable would reach a log and a terminal; a NUL and lone surrogates are not.
    if isinstance(untrusted, str) and untrusted.startswith("/") and untrusted.isprintable():
        return Path(untrusted)
    raise ImageRefused(f"{of}: {untrusted!r} is no absolute path of a file")


def parse_format(untrusted: Any, *, of: Path) -> DiskFormat:
    """The format that qemu calls so; raises ImageRefused, which names the image `of`."""
    if isinstance(untrusted, str) and untrusted in _FORMATS:
        return _FORMATS[untrusted]
    raise ImageRefused(f"{of}: the format {untrusted!r} is none of {', '.join(DiskFormat)}")


def _bytes(untrusted: Any, *, of: Path) -> int:
    is_number = isinstance(untrusted, int) and not isinstance(untrusted, bool)
    if is_number and 0 <= untrusted <= _LARGEST:
        return int(untrusted)
    raise ImageRefused(f"{of}: {untrusted!r} is no size in bytes")


# ---------------------------------------------------------------- what may be made
def refuse_overlay(name: str, *, base: DiskChain, size: int, max_chain: int) -> None:
    """Refuse an overlay of `size` bytes over `base`: SizeTooSmall or ChainTooDeep."""
    if size < base.top.virtual_size:
        raise SizeTooSmall(f"{name}: {size} bytes are less than its base's {base.top.virtual_size}")
    if base.depth + 1 > max_chain:
        raise ChainTooDeep(
            f"{name}: would be the top of {base.depth + 1} images, and {max_chain} may be"
        )


def check_overlay(chain: DiskChain, *, base: DiskChain, size: int, max_chain: int) -> None:
    """Compare an overlay as it was read back with what was asked for.

    Raises SizeTooSmall, ChainTooDeep, or ToolFailed where it is another one than was asked for.
    """
    top = chain.top
    refuse_overlay(str(top.path), base=base, size=size, max_chain=max_chain)
    if top.virtual_size != size:
        raise ToolFailed(f"{top.path}: was made with {top.virtual_size} bytes instead of {size}")
    if top.backing != base.top.path:
        raise ToolFailed(f"{top.path}: stands on {top.backing} instead of {base.top.path}")
    # A qcow (version 1) header has no place for the format of what it stands on.
    if top.backing_format not in (base.top.format, None):
        raise ToolFailed(f"{top.path}: takes its base for {top.backing_format}")
    # What a file takes of its file system may change without a change of the file.
    below = tuple(replace(image, file_size=0) for image in chain.images[1:])
    wanted = tuple(replace(image, file_size=0) for image in base.images)
    if below != wanted:
        raise ToolFailed(f"{top.path}: what it stands on reads {below} instead of {wanted}")
