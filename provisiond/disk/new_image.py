"""New images: overlays, blanks and copies, each made by the tool that can: VHD has its own."""

from collections.abc import Callable
from pathlib import Path

from provisiond.api.requests import DiskFormat
from provisiond.disk import qemu_img, vhd
from provisiond.disk.chain import DiskChain, DiskImage, check_overlay, refuse_overlay
from provisiond.disk.folder import begin
from provisiond.errors import ImageRefused, VhdNeedsTapdisk
from provisiond.plan import FilePlan
from provisiond.threads import Threads


def admit_overlay(
    name: str,
    *,
    base: DiskChain,
    disk_format: DiskFormat,
    size: int,
    max_chain: int,
    by_tapdisk: bool,
) -> None:
    """Refuse an overlay that cannot be, or that QEMU would open though only tapdisk may.

    Raises SizeTooSmall, ChainTooDeep, VhdNeedsTapdisk, ImageRefused.
    """
    refuse_overlay(name, base=base, size=size, max_chain=max_chain)
    below = base.top.format
    if disk_format is DiskFormat.RAW:
        raise ImageRefused(f"{name}: a raw disk stands on no base", hint="Use qcow2.")
    if disk_format is DiskFormat.VHD:
        if not by_tapdisk:
            raise VhdNeedsTapdisk(f"{name}: QEMU would open it, and read zeros instead of its base")
        if below not in (DiskFormat.RAW, DiskFormat.VHD):
            raise ImageRefused(
                f"{name}: a VHD cannot stand on a base that is {below}",
                hint="Import the base as vhd or raw.",
            )
    if disk_format is DiskFormat.QCOW and below is DiskFormat.VHD:
        raise ImageRefused(
            f"{name}: qcow cannot say that its base is a VHD, and QEMU would take it for raw",
            hint="Use qcow2.",
        )


async def write_overlay(
    plan: FilePlan,
    *,
    base: DiskChain,
    disk_format: DiskFormat,
    size: int,
    max_chain: int,
    threads: Threads,
) -> DiskChain:
    """Write an overlay at `plan.part`, mode 0600, and read it back as `read_overlay` does.

    The chain is the one that it will be at `plan.path`.
    """
    if disk_format is DiskFormat.VHD:
        await threads.call(plan.part.unlink, missing_ok=True)
        await vhd.create_differencing(plan.part, parent=base.top, size=size, threads=threads)
    else:
        await threads.call(begin, plan)
        await qemu_img.create_overlay(plan.part, disk_format=disk_format, base=base.top, size=size)
    chain = await read_overlay(
        plan.part,
        base=base,
        disk_format=disk_format,
        size=size,
        max_chain=max_chain,
        threads=threads,
    )
    return chain.renamed(plan.path)


async def read_overlay(
    path: Path,
    *,
    base: DiskChain,
    disk_format: DiskFormat,
    size: int,
    max_chain: int,
    threads: Threads,
) -> DiskChain:
    """The overlay at `path` with all that it stands on, as its reader will open it.

    Raises ToolFailed where it is another one than was asked for.
    """
    if disk_format is DiskFormat.VHD:
        chain = await threads.call(vhd.read_chain, path)
    else:
        chain = await qemu_img.read_chain(path, disk_format=disk_format)
    check_overlay(chain, base=base, size=size, max_chain=max_chain)
    return chain


async def write_blank(
    plan: FilePlan, *, disk_format: DiskFormat, size: int, threads: Threads
) -> None:
    """Write an image that holds `size` bytes of zeros at `plan.part`, mode 0600."""
    await threads.call(begin, plan)
    await qemu_img.create_blank(plan.part, disk_format=disk_format, size=size)
    if disk_format is DiskFormat.VHD:
        await threads.call(vhd.mend_geometry, plan.part)


async def write_copy(
    plan: FilePlan,
    *,
    source: Path,
    source_format: DiskFormat,
    disk_format: DiskFormat,
    parent: DiskImage | None,
    threads: Threads,
    progress: Callable[[float], None],
) -> bool:
    """Copy an image to `plan.part`, mode 0600, and check it; with `parent`, what differs from it.

    False where the format has no tables that could be checked.
    """
    await threads.call(begin, plan)
    await qemu_img.convert(
        source,
        plan.part,
        from_format=source_format,
        to_format=disk_format,
        parent=parent,
        progress=progress,
    )
    if disk_format is DiskFormat.VHD:
        await threads.call(vhd.mend_geometry, plan.part)
        await threads.call(vhd.check_image, plan.part)
        return True
    return await qemu_img.check(plan.part, disk_format=disk_format)
