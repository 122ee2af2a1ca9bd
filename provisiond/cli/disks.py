"""provisionctl disk: overlays and data disks made, attached, detached and removed."""

from typing import Annotated

import typer

from provisiond.api.client import ProvisiondClient
from provisiond.api.replies import DiskList
from provisiond.api.requests import DiskFormat, JobKind
from provisiond.cli.asking import provisiond, show_json, show_nothing
from provisiond.cli.completion import complete_base, complete_disk, complete_domain, complete_target
from provisiond.cli.options import (
    JobOptions,
    Json,
    NoWait,
    OverlayFormat,
    OverlaySize,
    size_of,
    spread,
)
from provisiond.cli.waiting import ask_for_job
from provisiond.display import new_console, say
from provisiond.tables import show_disks, show_disks_of

_Domain = Annotated[
    str, typer.Argument(metavar="DOMAIN", autocompletion=complete_domain, help="Its name or UUID.")
]


@spread
def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The name of the new disk.")],
    *,
    base: Annotated[
        str, typer.Option(metavar="BASE", autocompletion=complete_base, help="What it stands on.")
    ],
    disk_format: OverlayFormat = None,
    size: OverlaySize = None,
    options: JobOptions,
    no_wait: NoWait = False,
) -> None:
    """Make an overlay over a base, for a domain that you define."""
    request = {"name": name, "base": base, "format": disk_format, "size": size}
    with provisiond(ctx, as_json=options.as_json) as client:
        ask_for_job(client, JobKind.CREATE_OVERLAY, request, options, wait=not no_wait)


@spread
def attach(
    ctx: typer.Context,
    domain: _Domain,
    *,
    size: Annotated[
        int | None,
        typer.Option(
            parser=size_of, metavar="SIZE", help="Make a new disk: 512M, 10G, 1T, or the like."
        ),
    ] = None,
    disk_format: Annotated[
        DiskFormat | None,
        typer.Option("--format", help="The new disk's; left out: raw on Xen, else qcow2."),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(metavar="DISK", help="The new disk's name; left out: made from the domain's."),
    ] = None,
    disk: Annotated[
        str | None,
        typer.Option(
            metavar="DISK",
            autocompletion=complete_disk,
            help="Take a disk that exists, instead of --size.",
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(metavar="TARGET", help="Such as vdb, xvdb; left out: the first that is free."),
    ] = None,
    persistent: Annotated[
        bool,
        typer.Option(
            "--persistent",
            help="Also after the domain's next start; one that is off takes only such.",
        ),
    ] = False,
    options: JobOptions,
    no_wait: NoWait = False,
) -> None:
    """Add a data disk to a domain: a new one (--size), or --disk.

    Shows the domain's disks before and after, and the target that the disk was really given.
    """
    request = {
        "domain": domain,
        "disk": disk,
        "size": size,
        "format": disk_format,
        "name": name,
        "target": target,
        "persistent": persistent,
    }
    with provisiond(ctx, as_json=options.as_json) as client:
        if not options.as_json:
            _show_disks_of(client, domain, "before")
        job = ask_for_job(client, JobKind.ATTACH_DISK, request, options, wait=not no_wait)
        if not options.as_json and not no_wait:
            _show_disks_of(client, domain, "after")
            say(new_console(), f"{job.subject}: {job.disk or disk} is attached as {job.target}")


@spread
def detach(
    ctx: typer.Context,
    domain: _Domain,
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET", autocompletion=complete_target, help="The disk's, such as vdb."
        ),
    ],
    *,
    persistent: Annotated[
        bool,
        typer.Option("--persistent", help="It does not come back with the domain's next start."),
    ] = False,
    remove: Annotated[
        bool, typer.Option("--remove", help="Remove the disk with its data; includes --persistent.")
    ] = False,
    options: JobOptions,
    no_wait: NoWait = False,
) -> None:
    """Take a data disk away from a domain; its data are kept.

    Done when nothing has the disk any more: a guest that uses it has to let go.
    """
    request = {"domain": domain, "target": target, "persistent": persistent, "remove": remove}
    with provisiond(ctx, as_json=options.as_json) as client:
        if not options.as_json:
            _show_disks_of(client, domain, "before")
        job = ask_for_job(client, JobKind.DETACH_DISK, request, options, wait=not no_wait)
        if not options.as_json and not no_wait:
            _show_disks_of(client, domain, "after")
            say(new_console(), f"{job.subject}: {target} is detached")


def _show_disks_of(client: ProvisiondClient, name: str, when: str) -> None:
    domain, console = client.domain(name), new_console()
    say(console, f"{domain.name}: disks {when}:", "bold")
    show_disks_of(console, domain.disks)


def list_disks(ctx: typer.Context, *, as_json: Json = False) -> None:
    """List the disks that provisiond has made."""
    with provisiond(ctx, as_json=as_json) as client:
        found = client.disks()
        if as_json:
            show_json(DiskList(disks=found))
        else:
            show_disks(new_console(), found)


def remove(
    ctx: typer.Context,
    name: Annotated[
        str, typer.Argument(metavar="NAME", autocompletion=complete_disk, help="The disk's name.")
    ],
    *,
    as_json: Json = False,
) -> None:
    """Remove a disk that no domain has, with its data."""
    with provisiond(ctx, as_json=as_json) as client:
        client.remove_disk(name)
        if as_json:
            show_nothing()
        else:
            say(new_console(), f"{name}: disk removed")


app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Overlays and data disks.")
for _name, _command in (
    ("create", create),
    ("attach", attach),
    ("detach", detach),
    ("list", list_disks),
    ("remove", remove),
):
    app.command(_name)(_command)
