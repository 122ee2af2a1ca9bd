"""provisionctl base and disk: golden bases, and the overlays that stand on them."""

from pathlib import Path
from typing import Annotated

import typer

from provisiond.api.replies import BaseList, DiskList
from provisiond.api.requests import DiskFormat, JobKind
from provisiond.cli.asking import Json, provisiond, show_json
from provisiond.cli.waiting import NoWait, RequestId, ask_for, new_request_id, read_size
from provisiond.display import new_console, say, show_base, show_bases, show_disks

base = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Golden bases.")
disk = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Disks over golden bases.")

BaseName = Annotated[str, typer.Argument(metavar="NAME", help="The base.")]
DiskName = Annotated[str, typer.Argument(metavar="NAME", help="The disk.")]


# ---------------------------------------------------------------- base
@base.command("import")
def import_base(
    ctx: typer.Context,
    name: BaseName,
    source: Annotated[Path, typer.Argument(metavar="FILE", help="An image on provisiond's host.")],
    *,
    source_format: Annotated[DiskFormat, typer.Option(help="What FILE is; it is never guessed.")],
    base_format: Annotated[
        DiskFormat, typer.Option("--format", help="What the base shall be.")
    ] = DiskFormat.QCOW2,
    parent: Annotated[
        str | None, typer.Option(metavar="BASE", help="The base that FILE is an overlay over.")
    ] = None,
    request_id: RequestId = None,
    no_wait: NoWait = False,
    as_json: Json = False,
) -> None:
    """Make a base out of an image: copied, checked, hashed, never changed again."""
    request = {
        "kind": JobKind.IMPORT_BASE,
        "request_id": request_id or new_request_id(),
        "name": name,
        "source": str(source.absolute()),
        "source_format": source_format,
        "format": base_format,
        "parent": parent,
    }
    ask_for(ctx, request, wait=not no_wait, as_json=as_json)


@base.command("list")
def list_bases(ctx: typer.Context, as_json: Json = False) -> None:
    """List the bases, and whether each is as it was imported."""
    with provisiond(ctx, as_json=as_json) as client:
        found = client.bases()
        if as_json:
            show_json(BaseList(bases=found))
        else:
            show_bases(new_console(), found)


@base.command("show")
def show_one_base(ctx: typer.Context, name: BaseName, as_json: Json = False) -> None:
    """Show a base: where it comes from, its hash, what stands on it."""
    with provisiond(ctx, as_json=as_json) as client:
        found = client.base(name)
        if as_json:
            show_json(found)
        else:
            show_base(new_console(), found)


@base.command("verify")
def verify_base(
    ctx: typer.Context,
    name: BaseName,
    request_id: RequestId = None,
    no_wait: NoWait = False,
    as_json: Json = False,
) -> None:
    """Read a base whole and compare it with the hash of its import."""
    request = {
        "kind": JobKind.VERIFY_BASE,
        "request_id": request_id or new_request_id(),
        "base": name,
    }
    ask_for(ctx, request, wait=not no_wait, as_json=as_json)


@base.command("remove")
def remove_base(ctx: typer.Context, name: BaseName, as_json: Json = False) -> None:
    """Remove a base that nothing stands on."""
    with provisiond(ctx, as_json=as_json) as client:
        client.remove_base(name)
        if not as_json:
            say(new_console(), f"{name}: removed")


# ---------------------------------------------------------------- disk
@disk.command("create")
def create_disk(
    ctx: typer.Context,
    name: DiskName,
    *,
    base: Annotated[str, typer.Option(metavar="BASE", help="The base that it stands on.")],
    disk_format: Annotated[
        DiskFormat, typer.Option("--format", help="qcow2, qcow or vhd.")
    ] = DiskFormat.QCOW2,
    size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Such as 20G; left out: the base's.")
    ] = None,
    request_id: RequestId = None,
    no_wait: NoWait = False,
    as_json: Json = False,
) -> None:
    """Make an overlay over a base, for a domain that you define yourself."""
    request = {
        "kind": JobKind.CREATE_OVERLAY,
        "request_id": request_id or new_request_id(),
        "name": name,
        "base": base,
        "format": disk_format,
        "size": None if size is None else read_size(size, option="--size"),
    }
    ask_for(ctx, request, wait=not no_wait, as_json=as_json)


@disk.command("list")
def list_disks(ctx: typer.Context, as_json: Json = False) -> None:
    """List the disks that provisiond made, and the domain that has each."""
    with provisiond(ctx, as_json=as_json) as client:
        found = client.disks()
        if as_json:
            show_json(DiskList(disks=found))
        else:
            show_disks(new_console(), found)


@disk.command("remove")
def remove_disk(ctx: typer.Context, name: DiskName, as_json: Json = False) -> None:
    """Remove a disk, with its data, that no domain has."""
    with provisiond(ctx, as_json=as_json) as client:
        client.remove_disk(name)
        if not as_json:
            say(new_console(), f"{name}: removed")
