"""provisionctl image bake, extract: the guest's script into an image; kernel and root out of it."""

import asyncio
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from provisiond.api.requests import DiskFormat
from provisiond.cli.asking import explained, json_text
from provisiond.cli.options import Json
from provisiond.display import new_console, say
from provisiond.images import baking, contents, extraction
from provisiond.images.agent_files import InitSystem

_SUFFIXES = {
    ".qcow2": DiskFormat.QCOW2,
    ".qcow": DiskFormat.QCOW,
    ".vhd": DiskFormat.VHD,
    ".raw": DiskFormat.RAW,
    ".img": DiskFormat.RAW,
}
ImageFile = Annotated[Path, typer.Argument(metavar="IMAGE", help="An image file on this host.")]
ImageFormat = Annotated[
    DiskFormat | None,
    typer.Option("--format", help="The image's; left out: what its name ends with (.img is raw)."),
]


def bake(
    image: ImageFile,
    *,
    disk_format: ImageFormat = None,
    init: Annotated[
        InitSystem | None, typer.Option(help="What starts programs there; left out: it is found.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Put the guest's script into an image, without booting it.

    Script, README and start-up file are written to a copy that is read back, checked and then takes
    the image's name: whatever happens, the image is as it was or wholly baked. No guest may have
    it. A manifest that lies beside it is written anew.
    """
    console = new_console(stderr=True)

    def said(line: str) -> None:
        if not as_json:
            say(console, line)

    with explained(as_json=as_json):
        baked = asyncio.run(_bake(image, format_of(image, disk_format), init, said))
    if as_json:
        typer.echo(json_text(asdict(baked), indent=2))
        return
    console = new_console()
    for path in baked.files:
        say(console, path)


async def _bake(
    image: Path, disk_format: DiskFormat, init: InitSystem | None, said: Callable[[str], None]
) -> baking.Baked:
    made_of = await contents.manifest_of(image)
    baked = await baking.bake(image, disk_format=disk_format, init=init, said=said)
    if made_of is not None:  # it was true of the image as it was before
        await contents.describe(
            image,
            disk_format=disk_format,
            builder=made_of.builder,
            recipe=made_of.recipe,
            said=said,
        )
    return baked


def extract(
    image: ImageFile,
    *,
    kernel: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The kernel that its guest boots.")
    ] = None,
    initrd: Annotated[
        Path | None, typer.Option(metavar="FILE", help="That kernel's initrd.")
    ] = None,
    rootfs: Annotated[
        Path | None,
        typer.Option(
            metavar="TARGET",
            help="The root: *.tar, *.tar.gz, *.tar.zst; *.cpio.gz for a root in memory; "
            "any other name: a folder, for NFS.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    disk_format: ImageFormat = None,
    as_json: Json = False,
) -> None:
    """Take kernel, initrd and root out of an image.

    It is neither booted nor mounted. Each appears whole or not at all. The root is for root
    alone to ask for: its files have owners.
    """
    if kernel is None and initrd is None and rootfs is None:
        raise typer.BadParameter("say what: --kernel, --initrd, --rootfs")
    console = new_console(stderr=True)
    with explained(as_json=as_json):
        extracted = asyncio.run(
            extraction.extract(
                image,
                disk_format=format_of(image, disk_format),
                kernel=kernel,
                initrd=initrd,
                rootfs=rootfs,
                force=force,
                said=lambda line: None if as_json else say(console, line),
            )
        )
    if as_json:
        typer.echo(json_text(asdict(extracted), indent=2))


def format_of(image: Path, said: DiskFormat | None) -> DiskFormat:
    """What was said, else what the name says: an image is never asked itself."""
    disk_format = said or _SUFFIXES.get(image.suffix.lower())
    if disk_format is None:
        raise typer.BadParameter(f"{image.name}: say its format", param_hint="--format")
    return disk_format
