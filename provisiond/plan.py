"""The plan: every path, name and key of a job, derived from its id and its domain's alone.

After a crash we compute these again; we never search for what a job may have left.
"""

import re
from dataclasses import dataclass
from pathlib import Path

CHANNEL_NAME = "org.provisiond.0"

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
