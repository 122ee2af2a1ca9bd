"""The manifest of a golden base: what it was when it was registered. `<name>.json` beside it."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from provisiond.api.image_manifest import LONGEST, ImageManifest
from provisiond.api.requests import DiskFormat, Name
from provisiond.disk.image_file import opened
from provisiond.errors import BaseChanged, BaseNotFound, ImageRefused
from provisiond.plan import BasePlan

_NOT_NEGATIVE = Field(ge=0)
_MOST_TOLD = 5  # of what is wrong with a manifest


class Manifest(BaseModel):
    """What is known of a base. Sizes are in bytes; `checked` tells whether its format has tables
    that qemu-img could check. `job_id` is the job that made it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    name: Name
    format: DiskFormat
    virtual_size: Annotated[int, _NOT_NEGATIVE]
    file_size: Annotated[int, _NOT_NEGATIVE]
    mtime_ns: int
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    parent: Name | None
    source: str
    source_format: DiskFormat
    checked: bool
    job_id: str
    imported_at: AwareDatetime
    made_of: ImageManifest | None = None
    """What the image's maker wrote down of it."""

    @property
    def file_name(self) -> str:
        """The name of the base's file, in the manifest's folder."""
        return f"{self.name}.{self.format}"

    def to_json(self) -> bytes:
        """What stands in the file."""
        # What nobody knows is left out: a provisiond of before it was asked for reads it too.
        left_out = {"made_of"} if self.made_of is None else None
        return self.model_dump_json(indent=2, exclude=left_out).encode() + b"\n"


@dataclass(frozen=True, slots=True)
class BaseOrder:
    """What a job that imports a base was asked for, and where it makes it."""

    job_id: str
    name: str
    source: Path
    source_format: DiskFormat
    format: DiskFormat
    parent: str | None
    plan: BasePlan
    manifest: Path | None = None
    """The file that says what the source is made of."""


def read_manifest(path: Path) -> Manifest:
    """The manifest at `path`. Raises BaseNotFound, or BaseChanged where it is none."""
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise BaseNotFound(f"{path.stem}: no base has this name") from None
    except (ValidationError, OSError) as error:
        raise BaseChanged(
            f"{path.stem}: its manifest {path} cannot be read: {_first_line(error)}",
            hint="Put the manifest back as it was.",
        ) from error
    if path.name[0] != "." and manifest.name != path.stem:  # a draft has its job's name
        raise BaseChanged(
            f"{path.stem}: its manifest {path} is that of {manifest.name}",
            hint="Put the manifest back as it was.",
        )
    return manifest


def read_image_manifest(path: Path) -> ImageManifest:
    """What the maker of an image wrote of it. Raises ImageNotFound, ImageRefused; blocks."""
    with opened(path) as descriptor, os.fdopen(os.dup(descriptor), "rb") as file:
        untrusted = file.read(LONGEST + 1)
    if len(untrusted) > LONGEST:
        raise ImageRefused(f"{path}: has more than {LONGEST} bytes, and is no manifest of an image")
    try:
        return ImageManifest.model_validate_json(untrusted)
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, one['loc']))}: {one['msg']}"
            for one in error.errors(include_url=False, include_input=False)[:_MOST_TOLD]
        )
        raise ImageRefused(f"{path}: is no manifest of an image: {wrong}") from None


def _first_line(error: Exception) -> str:
    return "; ".join(str(error).splitlines()[:3])


def difference(manifest: Manifest, path: Path) -> str | None:
    """How the base's file differs from its manifest at a first look; None where it does not.

    What is on a read-only mount cannot be written to, whatever its mode says. Raises OSError.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        return "is no regular file"
    if status.st_size != manifest.file_size:
        return f"has {status.st_size} bytes instead of {manifest.file_size}"
    if status.st_mtime_ns != manifest.mtime_ns:
        return "was written to after its import"
    if status.st_mode & 0o222 and not os.statvfs(path).f_flag & os.ST_RDONLY:
        return f"may be written to: its mode is {stat.S_IMODE(status.st_mode):04o}"
    return None
