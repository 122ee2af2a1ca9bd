"""The plan: every path, name and key of a job, derived from its id and its domain's alone.

After a crash we compute these again; we never search for what a job may have left.
"""

import re
import uuid
from dataclasses import dataclass
from pathlib import Path

from provisiond.api.requests import DiskFormat

CHANNEL_NAME = "org.provisiond.0"

# The UUID of a domain made by a job is one of this namespace, so after a crash it is known.
_DOMAINS = uuid.UUID("0f4d8c1e-9f0b-4a65-8a55-6d0c6a6b5f37")

_JOB_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Plan:
    """Where a job's things are; `iso_part` is the ISO while it is half written."""

    nonce: str
    iso: Path
    iso_part: Path


def plan_job(job_id: str, *, runtime_dir: Path) -> Plan:
    """The plan of the job `job_id` (32 hex digits; random, so it serves as the nonce as well)."""
    if not is_job_id(job_id):
        raise ValueError(f"{job_id!r} is no job id")
    folder = iso_folder(runtime_dir)
    return Plan(job_id, folder / f"{job_id}.iso", folder / f"{job_id}.iso.part")


def is_job_id(text: str) -> bool:
    """Whether `text` has the form of a job's id."""
    return _JOB_ID.fullmatch(text) is not None


def iso_folder(runtime_dir: Path) -> Path:
    """The folder of all config ISOs, on tmpfs; none but root and the disk backend gets at them."""
    return runtime_dir / "iso"


# ---------------------------------------------------------------- what a job makes
@dataclass(frozen=True, slots=True)
class FilePlan:
    """A file that a job makes: `path` once it is whole, `part` until then.

    `part` stays, as a second name of the same file, until the job has stored that it made `path`:
    so after a crash a file of the job's own is told from a stranger's (disk/folder.py).
    """

    path: Path
    part: Path


@dataclass(frozen=True, slots=True)
class BasePlan:
    """The files of a golden base."""

    image: FilePlan
    manifest: Path


def bases_folder(image_dir: Path) -> Path:
    """The folder of the golden bases."""
    return image_dir / "bases"


def disks_folder(image_dir: Path) -> Path:
    """The folder of the disks that provisiond makes: overlays, data disks."""
    return image_dir / "disks"


def plan_disk(job_id: str, *, name: str, disk_format: DiskFormat, image_dir: Path) -> FilePlan:
    """The file of the disk `name`, made by the job `job_id`."""
    return _plan_file(disks_folder(image_dir), job_id, f"{name}.{disk_format}")


def plan_base(job_id: str, *, name: str, disk_format: DiskFormat, image_dir: Path) -> BasePlan:
    """The files of the base `name`, made by the job `job_id`."""
    folder = bases_folder(image_dir)
    return BasePlan(_plan_file(folder, job_id, f"{name}.{disk_format}"), folder / f"{name}.json")


def _plan_file(folder: Path, job_id: str, file_name: str) -> FilePlan:
    if not is_job_id(job_id):
        raise ValueError(f"{job_id!r} is no job id")
    return FilePlan(folder / file_name, folder / f".{job_id}.part")


def plan_uuid(job_id: str) -> str:
    """The UUID of the domain that the job `job_id` makes."""
    return str(uuid.uuid5(_DOMAINS, job_id))


def plan_mac(job_id: str, *, is_xen: bool) -> str:
    """The MAC of the first interface of the domain that the job makes, in its vendor's range."""
    vendor = "00:16:3e" if is_xen else "52:54:00"
    tail = uuid.UUID(plan_uuid(job_id)).bytes[-3:]
    return f"{vendor}:{tail[0] & 0x7F:02x}:{tail[1]:02x}:{tail[2]:02x}"


# ---------------------------------------------------------------- what a guest has
@dataclass(frozen=True, slots=True)
class Keys:
    """Where a Xen guest speaks: under `folder` all are its own, `verdict` and `log` a job's."""

    home: str
    folder: str
    verdict: str
    log: str
    hello: str
    hotplug: str
    """`feature/hotplug/vbd`: 1 where the guest takes hot-attached disks (xenstore-paths)."""


def plan_keys(domid: int) -> Keys:
    """The xenstore keys of a domain. libxl lets a guest write below `data` and `feature`."""
    home = f"/local/domain/{domid}"
    folder = f"{home}/data/provisiond"
    return Keys(
        home=home,
        folder=folder,
        verdict=f"{folder}/verdict",
        log=f"{folder}/log",
        hello=f"{folder}/hello",
        hotplug=f"{home}/feature/hotplug/vbd",
    )
