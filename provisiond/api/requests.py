"""What may be asked: one request for each kind of job. POST /v1/jobs takes any of them.

Sizes are in bytes. A request's `request_id` makes it idempotent: the same id and body give the same
job again. Each refusal is raised at the field that is wrong, so that the reply can name it.
"""

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, ValidationInfo, field_validator

from provisiond.api.guest_config import GuestConfig, Mac, printable
from provisiond.api.message import Message

_REQUEST_ID = r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$"
# A name becomes a file's name, and a domain's: no separator, no ':' (qemu-img takes that for a
# protocol), nothing hidden.
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
_UUID = re.compile(r"[0-9A-Fa-f]{8}-?([0-9A-Fa-f]{4}-?){3}[0-9A-Fa-f]{12}", re.ASCII)
_TARGET = r"^(vd|sd|xvd)[a-z]$"
_SECTOR = 512
LARGEST_DISK = 2**46  # 64 TiB
_LARGEST_VHD = 2040 * 2**30

DEFAULT_TEMPLATE = "default"
"""The template of a guest whose request names none."""


class DiskFormat(StrEnum):
    """The formats that a disk image may have."""

    RAW = "raw"
    QCOW2 = "qcow2"
    QCOW = "qcow"
    VHD = "vhd"


class JobKind(StrEnum):
    """What a job does; each has a request of its own."""

    PROVISION = "provision"
    DESTROY = "destroy"
    ATTACH_DISK = "attach_disk"
    DETACH_DISK = "detach_disk"
    CREATE_OVERLAY = "create_overlay"
    IMPORT_BASE = "import_base"
    VERIFY_BASE = "verify_base"


def _absolute(path: Path) -> Path:
    text = str(path)
    if not path.is_absolute() or ".." in path.parts or not text.isprintable() or ":" in text:
        raise ValueError("must be an absolute path without '..', ':' and control characters")
    return path


def _no_raw_overlay(disk_format: DiskFormat) -> DiskFormat:
    if disk_format is DiskFormat.RAW:
        raise ValueError("cannot be raw: a raw disk stands on no base")
    return disk_format


Name = Annotated[str, Field(pattern=_NAME)]
Size = Annotated[int, Field(gt=0, le=LARGEST_DISK, multiple_of=_SECTOR)]
OverlayFormat = Annotated[DiskFormat, AfterValidator(_no_raw_overlay)]
DomainName = Annotated[str, Field(min_length=1, max_length=255), AfterValidator(printable)]


class _Request(Message):
    request_id: Annotated[str, Field(pattern=_REQUEST_ID)]
    deadline_seconds: Annotated[int, Field(ge=5, le=86400)] | None = None

    def public(self) -> dict[str, Any]:
        """The request as JSON types without its secrets: what may be stored and shown."""
        secrets = {"config": {"password", "password_hash"}}
        return self.model_dump(mode="json", exclude=secrets, exclude_none=True)


# ---------------------------------------------------------------- guests
class Create(Message):
    """The domain to be made: an overlay over `base`, and the rest from the operator's template.

    `size` is the overlay's; left out, the base's. What else is left out stays as the template has
    it; `network` is a network of libvirt's, `bridge` one of the host's.
    """

    base: Name
    format: OverlayFormat = DiskFormat.QCOW2
    size: Size | None = None
    memory_mib: Annotated[int, Field(ge=16, le=2**24)] | None = None
    vcpus: Annotated[int, Field(ge=1, le=1024)] | None = None
    network: Name | None = None
    bridge: Name | None = None
    mac: Mac | None = None
    template: Name = DEFAULT_TEMPLATE

    @field_validator("bridge")
    @classmethod
    def _network_or_bridge(cls, bridge: str | None, info: ValidationInfo) -> str | None:
        if bridge is not None and info.data.get("network") is not None:
            raise ValueError("must be absent where 'network' is given: one of the two")
        return bridge


class ProvisionRequest(_Request):
    """Configure the guest of a running domain, or, with `create`, of one that is made for it.

    `generation` must grow for a domain that is provisioned again; left out, provisiond counts.
    `target` is the disk target the config ISO shall take; left out, provisiond picks a free one.
    """

    kind: Literal[JobKind.PROVISION] = JobKind.PROVISION
    create: Create | None = None
    domain: DomainName
    config: GuestConfig
    generation: Annotated[int, Field(ge=1, le=2**53)] | None = None
    target: Annotated[str, Field(pattern=r"^(sd|xvd)[a-z]$")] | None = None

    @field_validator("domain")
    @classmethod
    def _a_new_name(cls, domain: str, info: ValidationInfo) -> str:
        if info.data.get("create") is not None and not re.fullmatch(_NAME, domain, re.ASCII):
            raise ValueError(
                "is no name for a new domain: up to 63 letters, digits, '.', '_', '-', "
                "a letter or digit first"
            )
        if info.data.get("create") is not None and _UUID.fullmatch(domain):
            raise ValueError("has the form of a UUID, and a domain is known by that as well")
        return domain


class DestroyRequest(_Request):
    """End a domain that provisiond made, and remove it with the overlay that was made for it.

    `force` takes any domain of the host. `remove_data` removes the data disks as well that
    provisiond made; no other disk is ever touched.
    """

    kind: Literal[JobKind.DESTROY]
    domain: DomainName
    force: bool = False
    remove_data: bool = False


# ---------------------------------------------------------------- disks
class AttachDiskRequest(_Request):
    """Hot-add a data disk: a new one of `size`, or the one called `disk` that exists.

    Left out, `format` is raw on Xen and qcow2 on QEMU, `target` the first that is free, and `name`
    (of a new disk) made from the domain's. `persistent`: it is there after the next start as well;
    a domain that is off takes only such a disk.
    """

    kind: Literal[JobKind.ATTACH_DISK]
    domain: DomainName
    disk: Name | None = None
    size: Annotated[Size | None, Field(validate_default=True)] = None
    format: DiskFormat | None = None
    name: Name | None = None
    target: Annotated[str, Field(pattern=_TARGET)] | None = None
    persistent: bool = False

    @field_validator("size")
    @classmethod
    def _new_or_existing(cls, size: int | None, info: ValidationInfo) -> int | None:
        if "disk" in info.data and (size is None) is (info.data["disk"] is None):
            raise ValueError("goes with a new disk, 'disk' with one that exists: give one of them")
        return size

    @field_validator("format", "name")
    @classmethod
    def _of_a_new_disk(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("disk") is not None:
            raise ValueError("must be absent where 'disk' names one that exists")
        if value == DiskFormat.VHD and (info.data.get("size") or 0) > _LARGEST_VHD:
            raise ValueError("cannot be vhd: a VHD has at most 2040 GiB")
        return value


class DetachDiskRequest(_Request):
    """Take a data disk that provisiond made away from a domain; its data are kept.

    `persistent`: it does not come back with the next start. `remove` removes the disk with its
    data, and does what `persistent` does.
    """

    kind: Literal[JobKind.DETACH_DISK]
    domain: DomainName
    target: Annotated[str, Field(pattern=_TARGET)]
    persistent: bool = False
    remove: bool = False


class CreateOverlayRequest(_Request):
    """Make an overlay over a base, for a domain that somebody else defines."""

    kind: Literal[JobKind.CREATE_OVERLAY]
    name: Name
    base: Name
    format: OverlayFormat = DiskFormat.QCOW2
    size: Size | None = None


# ---------------------------------------------------------------- bases
class ImportBaseRequest(_Request):
    """Make a golden base out of the image `source`, a file of this host.

    Its format is never guessed. With `parent`, the source is an overlay over that base, and the new
    base stands on it as well. `manifest`, a file of this host as well, says what the source is made
    of (an ImageManifest); it is kept with the base.
    """

    kind: Literal[JobKind.IMPORT_BASE]
    name: Name
    source: Annotated[Path, AfterValidator(_absolute)]
    source_format: DiskFormat
    format: DiskFormat = DiskFormat.QCOW2
    parent: Name | None = None
    manifest: Annotated[Path, AfterValidator(_absolute)] | None = None


class VerifyBaseRequest(_Request):
    """Read a base whole and compare it with the hash of its manifest."""

    kind: Literal[JobKind.VERIFY_BASE]
    base: Name


# ---------------------------------------------------------------- any of them
UNKNOWN_KIND = "unknown_kind"


def _kind_of(body: Any) -> str:
    kind = body.get("kind", "provision") if isinstance(body, dict) else getattr(body, "kind", "")
    return str(kind)


Request = Annotated[
    Annotated[ProvisionRequest, Tag(JobKind.PROVISION)]
    | Annotated[DestroyRequest, Tag(JobKind.DESTROY)]
    | Annotated[AttachDiskRequest, Tag(JobKind.ATTACH_DISK)]
    | Annotated[DetachDiskRequest, Tag(JobKind.DETACH_DISK)]
    | Annotated[CreateOverlayRequest, Tag(JobKind.CREATE_OVERLAY)]
    | Annotated[ImportBaseRequest, Tag(JobKind.IMPORT_BASE)]
    | Annotated[VerifyBaseRequest, Tag(JobKind.VERIFY_BASE)],
    Discriminator(
        _kind_of,
        custom_error_type=UNKNOWN_KIND,
        custom_error_message=f"is none of {', '.join(JobKind)}",
    ),
]
