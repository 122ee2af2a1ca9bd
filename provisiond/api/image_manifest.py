"""The manifest of an image: what it was made of, as whoever made it wrote it down.

It lies beside the image (`IMAGE.manifest.json`), goes with it through an import, and is shown with
the base. Nothing is decided by it but one thing: it is of this image, whose SHA-256 it has.
"""

from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, AwareDatetime, Field, JsonValue

from provisiond.api.guest_config import printable
from provisiond.api.message import Message

LONGEST = 4 * 2**20  # bytes of a manifest's file
MAX_PACKAGES = 20_000

Word = Annotated[str, Field(min_length=1, max_length=255), AfterValidator(printable)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Package(Message):
    """One package of the distribution's, in the version that is installed."""

    name: Word
    version: Word


class ImageManifest(Message):
    """What is known of an image. None and an absent field are what nobody knows.

    `sha256` is the image file's. `recipe` is what its builder was told. `agent_sha256` is that of
    the guest's script in the image. A list of bases leaves `packages` out.
    """

    sha256: Sha256
    made_at: AwareDatetime | None = None
    builder: Word | None = None
    recipe: dict[str, JsonValue] | None = None
    distribution: Word | None = None
    init: Word | None = None
    agent_version: Word | None = None
    agent_sha256: Sha256 | None = None
    packages: Annotated[tuple[Package, ...], Field(max_length=MAX_PACKAGES)] | None = None

    def without_packages(self) -> Self:
        """The same, as short as a list shows it."""
        return self.model_copy(update={"packages": None})

    def to_json(self) -> bytes:
        """What stands in the file."""
        return self.model_dump_json(indent=2, exclude_none=True).encode() + b"\n"


def manifest_path(image: Path) -> Path:
    """Where the manifest of an image is, if it has one."""
    return image.with_name(f"{image.name}.manifest.json")
