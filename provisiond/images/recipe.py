"""What an image is built of: one recipe for each builder. It is stored, and sent to other machines.

Whatever of it gets into a command line, a preseed or a shell has a form that nothing can be hidden
in. Sizes are in bytes.
"""

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError, model_validator

from provisiond.api.message import Message
from provisiond.api.requests import Name
from provisiond.errors import RecipeRefused
from provisiond.images.agent_files import InitSystem

GIB = 2**30
_MAX_WORDS = 1000


class Builder(StrEnum):
    """What can make an image."""

    MMDEBSTRAP = "mmdebstrap"
    DIB = "dib"
    KIWI = "kiwi"
    ISO = "iso"


class NetworkStack(StrEnum):
    """What owns the image's network, where the builder lets one choose."""

    IFUPDOWN = "ifupdown"
    NETWORKD = "networkd"
    NETWORK_MANAGER = "network-manager"
    NETPLAN = "netplan"


def _absolute(path: Path) -> Path:
    # libvirt, qemu-img and virt-install all take commas and colons in paths for something else.
    if not path.is_absolute() or ".." in path.parts or not _is_plain(str(path)):
        raise ValueError("must be an absolute path without '..', ':', ',' and control characters")
    return path


def _without_login(url: str) -> str:
    # A recipe is in command lines, in logs, and in manifests that whoever may see a base reads.
    if "@" in urlsplit(url).netloc:
        raise ValueError(
            "must hold no user name and no password: for apt they go into its auth.conf(5)"
        )
    return url


def _is_plain(text: str) -> bool:
    return text.isprintable() and ":" not in text and "," not in text


Package = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9+.-]{0,99}$")]
Suite = Annotated[str, Field(pattern=r"^[a-z][a-z0-9.-]{0,39}$")]
Url = Annotated[
    str,
    Field(pattern=r"^(https?|file)://[A-Za-z0-9._~:/?#@!$&'()*+,;=%\[\]-]{1,500}$"),
    AfterValidator(_without_login),
]
Element = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
LocalFile = Annotated[Path, AfterValidator(_absolute)]
DiskSize = Annotated[int, Field(ge=GIB // 2, le=2048 * GIB, multiple_of=1024 * 1024)]
DebianInit = Literal[InitSystem.SYSTEMD, InitSystem.SYSV, InitSystem.OPENRC]
Packages = Annotated[tuple[Package, ...], Field(max_length=_MAX_WORDS)]


class _Recipe(Message):
    name: Name
    size: DiskSize = 4 * GIB


class MmdebstrapRecipe(_Recipe):
    """A Debian by mmdebstrap. Without `suite` and `mirror` it comes from the host's apt sources."""

    builder: Literal[Builder.MMDEBSTRAP] = Builder.MMDEBSTRAP
    suite: Suite | None = None
    mirror: Url | None = None
    packages: Packages = ()
    kernel: Package = "linux-image-cloud-amd64"
    init: DebianInit = InitSystem.SYSTEMD
    network_stack: NetworkStack = NetworkStack.IFUPDOWN

    @model_validator(mode="after")
    def _goes_together(self) -> "MmdebstrapRecipe":
        if (self.suite is None) is not (self.mirror is None):
            raise ValueError("'suite' and 'mirror' go together: give both, or none")
        if self.init is not InitSystem.SYSTEMD and self.network_stack is not NetworkStack.IFUPDOWN:
            raise ValueError(f"'network_stack' must be ifupdown with {self.init}")
        return self


class DibRecipe(_Recipe):
    """What diskimage-builder makes of `elements`, our own among them."""

    builder: Literal[Builder.DIB] = Builder.DIB
    elements: Annotated[tuple[Element, ...], Field(min_length=1, max_length=50)] = (
        "debian-minimal",
    )
    suite: Suite = "bookworm"
    mirror: Url | None = None
    security_mirror: Url | None = None
    packages: Packages = ()
    kernel: Package = "linux-image-cloud-amd64"
    network_stack: NetworkStack = NetworkStack.IFUPDOWN


class KiwiRecipe(_Recipe):
    """What kiwi makes of a description; without one, of the one that comes with provisiond."""

    builder: Literal[Builder.KIWI] = Builder.KIWI
    description: LocalFile | None = None
    profile: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] | None = None


class IsoRecipe(_Recipe):
    """An installation from an ISO, in a guest of libvirt's, without anybody at its console.

    `sha256` is what the ISO must have; `answers` replaces the preseed or kickstart that comes with
    provisiond. `tree` is where a network installer gets its packages from.
    """

    builder: Literal[Builder.ISO] = Builder.ISO
    iso: LocalFile | Url
    sha256: Sha256 | None = None
    answers: LocalFile | None = None
    tree: Url | None = None
    packages: Packages = ()
    network: Name | None = None
    libvirt_uri: Annotated[str, Field(pattern=r"^[a-z][A-Za-z0-9+:/._@-]{0,199}$")] = (
        "qemu:///system"
    )
    memory_mib: Annotated[int, Field(ge=256, le=2**20)] = 2048
    vcpus: Annotated[int, Field(ge=1, le=256)] = 2
    minutes: Annotated[int, Field(ge=1, le=1440)] = 120


Recipe = Annotated[
    MmdebstrapRecipe | DibRecipe | KiwiRecipe | IsoRecipe, Field(discriminator="builder")
]
_NAME: TypeAdapter[str] = TypeAdapter(Name)
_ADAPTER: TypeAdapter[MmdebstrapRecipe | DibRecipe | KiwiRecipe | IsoRecipe] = TypeAdapter(Recipe)


def parse_recipe(untrusted_text: str | bytes) -> Recipe:
    """The recipe that JSON holds. Raises RecipeRefused, which names each field."""
    try:
        return _ADAPTER.validate_json(untrusted_text)
    except ValidationError as error:
        raise _refused(error) from None


def make_recipe(untrusted_fields: Mapping[str, object]) -> Recipe:
    """The recipe of these fields; what is None is left to the defaults. Raises RecipeRefused."""
    try:
        return _ADAPTER.validate_python(_given(untrusted_fields))
    except ValidationError as error:
        raise _refused(error) from None


def make_iso_recipe(untrusted_fields: Mapping[str, object]) -> IsoRecipe:
    """As make_recipe, of an installation: the builder need not be named."""
    try:
        return IsoRecipe.model_validate(_given(untrusted_fields))
    except ValidationError as error:
        raise _refused(error, before=0) from None


def parse_name(untrusted: str) -> str:
    """The name of an image. Raises RecipeRefused."""
    try:
        return _NAME.validate_python(untrusted)
    except ValidationError as error:
        told = error.errors(include_url=False, include_input=False)[0]["msg"]
        raise RecipeRefused(f"name: {told}") from None


def _given(fields: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in fields.items() if value is not None}


def _refused(error: ValidationError, *, before: int = 1) -> RecipeRefused:
    """Each refused field with its reason; `before` it `loc` has the builder, of any recipe."""
    told = []
    for one in error.errors(include_url=False, include_input=False, include_context=False):
        place = one["loc"][before:] or ("recipe",)
        # A number is a place in a tuple; further names are the validator's own alternatives.
        numbers = [str(part) for part in place[1:] if isinstance(part, int)]
        field = ".".join([str(place[0]), *numbers])
        told.append(f"{field}: {one['msg'].removeprefix('Value error, ')}")
    return RecipeRefused("; ".join(told))
