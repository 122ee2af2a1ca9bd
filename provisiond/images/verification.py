"""Does an image work? A guest of it is made, provisioned for real, logged in to and thrown away.

    hash and look at the image → power-on → hello → the config disk attached → done → the log-in
        → what was asked for is there, and nothing of the config disk

The daemon is the real one, on a host that is thrown away (throw_away.py); the image is its base and
cannot be written there. The password is made up here and is forgotten with the guest.
"""

import asyncio
import os
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from provisiond.api.requests import DiskFormat
from provisiond.disk import qemu_img
from provisiond.disk.fingerprint import hash_file, take_fingerprint
from provisiond.disk.folder import refuse_writers, write_whole
from provisiond.disk.header import read_header
from provisiond.disk.image_file import opened
from provisiond.disk.inspection import inspect
from provisiond.disk.manifest import Manifest
from provisiond.errors import ImageBusy, ImageNotVerified, ProvisionError
from provisiond.images import guest_console, qemu_monitor
from provisiond.images.model_domain import Accelerator, Boot, Model, model_xml
from provisiond.images.qemu_monitor import Monitor
from provisiond.images.throw_away import ThrowAwayHost, require_means, throw_away_host
from provisiond.images.trial import BASE, Seen, Trial
from provisiond.threads import Threads
from provisiond.virt.kvm import PROBE_SECONDS, host_kernel, probe_kvm

_ATTACH_SECONDS = 120.0  # a busy host's guest may be slow
_MOST_VCPUS = 2
_PICTURE_SECONDS = 30.0

Said = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Wanted:
    """How to verify. `within` is how many seconds the guest may take until its script says hello,
    and how many from there until it is configured."""

    accelerator: Accelerator | None = None
    """None: KVM where it is proven to work."""
    memory_mib: int = 1024
    boot: Boot | None = None
    """None: from its disk."""
    within: float = 300.0
    login_within: float | None = 120.0
    """How many seconds a log-in may take once it is configured; None: nobody shall log in."""


@dataclass(frozen=True, slots=True)
class Verified:
    """What was seen of an image that works."""

    image: Path
    sha256: str
    accelerator: Accelerator
    seen: Seen

    def to_json(self) -> dict[str, object]:
        """As JSON types."""
        return asdict(self) | {"image": str(self.image)}


async def verify(
    image: Path,
    *,
    disk_format: DiskFormat,
    screenshot: Path | None = None,
    said: Said,
    wanted: Wanted | None = None,
) -> Verified:
    """Provision a guest of `image` and look at it; `said` is told each fact as it comes.

    A picture of the guest's screen goes to `screenshot`, also where it does not work. Raises
    ImageNotVerified where the guest is not what was asked for (AgentSilent and NoLogin are such),
    ImageRefused and ImageBusy as an import does, NotPermitted and ToolFailed where the host lacks
    something.
    """
    require_means()
    wanted = wanted or Wanted()
    image = image.resolve()
    with opened(image):
        before = take_fingerprint(image)
        manifest = await _manifest_of(image, disk_format)
        said(f"the image has the SHA-256 {manifest.sha256}")
        accelerator = wanted.accelerator or await _find_accelerator(wanted.boot, said)
        seen = await _try(image, manifest, wanted, accelerator, screenshot=screenshot, said=said)
        if take_fingerprint(image) != before:
            raise ImageBusy(f"{image}: somebody else changed it while its guest ran")
    return Verified(image, manifest.sha256, accelerator, seen)


async def _manifest_of(image: Path, disk_format: DiskFormat) -> Manifest:
    """What an import would note of it, after the same look at it."""
    await asyncio.to_thread(inspect, image, disk_format=disk_format)
    await asyncio.to_thread(refuse_writers, image)
    checked = await qemu_img.check(image, disk_format=disk_format)
    header = await asyncio.to_thread(read_header, image, disk_format=disk_format)
    threads = Threads(size=1, name="hash")
    try:
        sha256 = await hash_file(image, threads=threads, progress=lambda _fraction: None)
    finally:
        threads.close()
    status = image.stat()
    return Manifest(
        name=BASE,
        format=disk_format,
        virtual_size=header.virtual_size,
        file_size=status.st_size,
        mtime_ns=status.st_mtime_ns,
        sha256=sha256,
        parent=None,
        source=str(image),
        source_format=disk_format,
        checked=checked,
        job_id=uuid.uuid4().hex,
        imported_at=datetime.fromtimestamp(time.time(), UTC),
    )


async def _find_accelerator(boot: Boot | None, said: Said) -> Accelerator:
    kernel = host_kernel() if boot is None else boot.kernel
    if kernel is None:
        said("the guest runs with TCG: no kernel in /boot could prove that KVM works")
        return Accelerator.TCG
    state = await probe_kvm(kernel, within=PROBE_SECONDS)
    said(f"the guest runs with {'KVM' if state.works else 'TCG'}: {state.reason}")
    return Accelerator.KVM if state.works else Accelerator.TCG


# ---------------------------------------------------------------- the guest
async def _try(
    image: Path,
    manifest: Manifest,
    wanted: Wanted,
    accelerator: Accelerator,
    *,
    screenshot: Path | None,
    said: Said,
) -> Seen:
    def template(folder: Path) -> str:
        return model_xml(
            Model(
                accelerator=accelerator,
                memory_mib=wanted.memory_mib,
                vcpus=min(_MOST_VCPUS, os.cpu_count() or 1),
                boot=wanted.boot,
                console=_console(folder),
                console_log=_console_log(folder),
                monitor=_monitor(folder),
            )
        )

    limits = {
        "ready_seconds": wanted.within,
        "attach_seconds": _ATTACH_SECONDS,
        "detach_seconds": _ATTACH_SECONDS,
    }
    async with throw_away_host(image, manifest, template=template, limits=limits) as host:
        with host.client() as client:
            trial = Trial(client, _console_log(host.folder), said)
            await trial.power_on(within=wanted.within)
            async with (
                qemu_monitor.opened(_monitor(host.folder)) as monitor,
                guest_console.opened(_console(host.folder)) as console,
            ):
                try:
                    await trial.configure(monitor)
                    if wanted.login_within is not None:
                        await trial.look_inside(console, within=wanted.login_within)
                except ImageNotVerified:
                    await _picture(host, monitor, screenshot, said)
                    raise
                await _picture(host, monitor, screenshot, said)
            return trial.seen


def _console(folder: Path) -> Path:
    return folder / "console"


def _console_log(folder: Path) -> Path:
    return folder / "console.log"


def _monitor(folder: Path) -> Path:
    return folder / "monitor"


async def _picture(
    host: ThrowAwayHost, monitor: Monitor, screenshot: Path | None, said: Said
) -> None:
    """No picture is no reason for another verdict."""
    if screenshot is None:
        return
    try:
        async with asyncio.timeout(_PICTURE_SECONDS):
            png = await monitor.screen(host.folder / "screen.ppm")
        part = screenshot.with_name(f"{screenshot.name}.part")
        await asyncio.to_thread(write_whole, screenshot, png, part=part)
        said(f"a picture of its screen: {screenshot}")
    except (ProvisionError, OSError) as error:  # TimeoutError is one
        said(f"no picture of its screen: {str(error) or 'QEMU does not answer'}")
