"""provisionctl base: golden bases imported, listed, verified and removed."""

from pathlib import Path
from typing import Annotated

import typer

from provisiond.api.image_manifest import manifest_path
from provisiond.api.replies import BaseList
from provisiond.api.requests import DiskFormat, JobKind
from provisiond.cli.asking import provisiond, show_json, show_nothing
from provisiond.cli.completion import complete_base
from provisiond.cli.options import JobOptions, Json, NoWait, spread
from provisiond.cli.waiting import ask_for_job
from provisiond.display import new_console, say
from provisiond.tables import show_base, show_bases

_Base = Annotated[
    str, typer.Argument(metavar="NAME", autocompletion=complete_base, help="The base's name.")
]


@spread
def import_base(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The name of the new base.")],
    source: Annotated[Path, typer.Argument(metavar="IMAGE", help="An image file on this host.")],
    *,
    source_format: Annotated[DiskFormat, typer.Option(help="The image's; it is never guessed.")],
    disk_format: Annotated[
        DiskFormat | None, typer.Option("--format", help="The base's; left out: qcow2.")
    ] = None,
    parent: Annotated[
        str | None,
        typer.Option(
            metavar="BASE",
            autocompletion=complete_base,
            help="Where the image is an overlay: the base that it stands on.",
        ),
    ] = None,
    manifest: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="What the image is made of; left out: IMAGE.manifest.json, where it exists.",
        ),
    ] = None,
    options: JobOptions,
    no_wait: NoWait = False,
) -> None:
    """Make a golden base out of an image.

    The base is a copy: checked, hashed and read-only. The image stays as it is.
    """
    beside = manifest_path(source.resolve())
    if manifest is None and beside.exists():
        manifest = beside
    request = {
        "name": name,
        "source": str(source.resolve()),
        "source_format": source_format,
        "format": disk_format,
        "parent": parent,
        "manifest": None if manifest is None else str(manifest.resolve()),
    }
    with provisiond(ctx, as_json=options.as_json) as client:
        ask_for_job(client, JobKind.IMPORT_BASE, request, options, wait=not no_wait)


def list_bases(ctx: typer.Context, *, as_json: Json = False) -> None:
    """List the golden bases."""
    with provisiond(ctx, as_json=as_json) as client:
        found = client.bases()
        if as_json:
            show_json(BaseList(bases=found))
        else:
            show_bases(new_console(), found)


def show(ctx: typer.Context, name: _Base, *, as_json: Json = False) -> None:
    """Show a base: its file, its hash, what stands on it."""
    with provisiond(ctx, as_json=as_json) as client:
        base = client.base(name)
        if as_json:
            show_json(base)
        else:
            show_base(new_console(), base)


@spread
def verify(
    ctx: typer.Context, name: _Base, *, options: JobOptions, no_wait: NoWait = False
) -> None:
    """Read a base whole and compare it with its hash."""
    with provisiond(ctx, as_json=options.as_json) as client:
        request = {"base": name}
        ask_for_job(client, JobKind.VERIFY_BASE, request, options, wait=not no_wait)


def remove(ctx: typer.Context, name: _Base, *, as_json: Json = False) -> None:
    """Remove a base that nothing stands on."""
    with provisiond(ctx, as_json=as_json) as client:
        client.remove_base(name)
        if as_json:
            show_nothing()
        else:
            say(new_console(), f"{name}: base removed")


app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Golden bases: what guests' disks stand on."
)
for _name, _command in (
    ("import", import_base),
    ("list", list_bases),
    ("show", show),
    ("verify", verify),
    ("remove", remove),
):
    app.command(_name)(_command)
