"""provisionctl provision, create, destroy: guests configured, made and removed."""

import sys
from typing import Annotated

import typer

from provisiond.api.replies import DomainView
from provisiond.api.requests import JobKind
from provisiond.cli.asking import ANSWERED_NO, provisiond
from provisiond.cli.completion import complete_base, complete_domain
from provisiond.cli.options import (
    JobOptions,
    NoWait,
    OverlayFormat,
    OverlaySize,
    mebibytes_of,
    spread,
)
from provisiond.cli.waiting import ask_for_job
from provisiond.display import new_console, say
from provisiond.guest_options import GuestOptions
from provisiond.terminal import printable

_Wait = Annotated[
    bool, typer.Option("--wait", help="Wait for the job's end and show its way there.")
]


@spread
def provision(
    ctx: typer.Context,
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", autocompletion=complete_domain, help="A running domain: name or UUID."
        ),
    ],
    guest: GuestOptions,
    mac: Annotated[
        str | None, typer.Option(metavar="MAC", help="The interface of --ip; left out: the first.")
    ] = None,
    *,
    options: JobOptions,
    wait: _Wait = False,
) -> None:
    """Configure the guest of a running domain.

    No option takes a password: a command line can be read by every user of the host.
    """
    request = {"domain": name, "config": guest.read(mac=mac), "target": guest.target}
    with provisiond(ctx, as_json=options.as_json) as client:
        ask_for_job(client, JobKind.PROVISION, request, options, wait=wait)


@spread
def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The name of the new domain.")],
    *,
    base: Annotated[
        str,
        typer.Option(metavar="BASE", autocompletion=complete_base, help="What its disk stands on."),
    ],
    disk_format: OverlayFormat = None,
    size: OverlaySize = None,
    memory: Annotated[
        int | None, typer.Option(parser=mebibytes_of, metavar="SIZE", help="Such as 512M, 2G.")
    ] = None,
    vcpus: Annotated[int | None, typer.Option(metavar="NUMBER", help="Virtual CPUs.")] = None,
    network: Annotated[
        str | None, typer.Option(metavar="NETWORK", help="libvirt's, for the first interface.")
    ] = None,
    bridge: Annotated[
        str | None, typer.Option(metavar="BRIDGE", help="The host's, instead of --network.")
    ] = None,
    mac: Annotated[
        str | None, typer.Option(metavar="MAC", help="The first interface's; left out: a new one.")
    ] = None,
    template: Annotated[
        str | None, typer.Option(metavar="TEMPLATE", help="The domain's; left out: default.")
    ] = None,
    guest: GuestOptions,
    options: JobOptions,
    wait: _Wait = False,
) -> None:
    """Make a domain over a base, start it and configure its guest.

    What no option says stays as the template has it. No option takes a password: a command line
    can be read by every user of the host.
    """
    making = {
        "base": base,
        "format": disk_format,
        "size": size,
        "memory_mib": memory,
        "vcpus": vcpus,
        "network": network,
        "bridge": bridge,
        "mac": mac,
        "template": template,
    }
    request = {
        "domain": name,
        "create": {key: value for key, value in making.items() if value is not None},
        "config": guest.read(),
        "target": guest.target,
    }
    with provisiond(ctx, as_json=options.as_json) as client:
        ask_for_job(client, JobKind.PROVISION, request, options, wait=wait)


# ---------------------------------------------------------------- destroy
@spread
def destroy(
    ctx: typer.Context,
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", autocompletion=complete_domain, help="Its name or UUID."),
    ],
    *,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Also a domain that provisiond did not make; its own disks stay."
        ),
    ] = False,
    remove_data: Annotated[
        bool,
        typer.Option(
            "--remove-data", help="Remove the data disks as well that provisiond made for it."
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask, even on a terminal.")] = False,
    options: JobOptions,
    no_wait: NoWait = False,
) -> None:
    """End a domain that provisiond made, and remove its overlay.

    On a terminal you are asked first.
    """
    request = {"domain": name, "force": force, "remove_data": remove_data}
    with provisiond(ctx, as_json=options.as_json) as client:
        if sys.stdin.isatty() and not yes:
            _confirm(client.domain(name), remove_data=remove_data)
        ask_for_job(client, JobKind.DESTROY, request, options, wait=not no_wait)


# What becomes of a domain's disks, by whether provisiond made it and --remove-data was given.
_FATES = {
    (True, True): "Its overlay and its data disks are removed with it.",
    (True, False): "Its overlay is removed with it; data disks stay.",
    (False, True): "The data disks that provisiond made for it are removed with it.",
    (False, False): "Its disks stay.",
}


def _confirm(domain: DomainView, *, remove_data: bool) -> None:
    """Ask the person at the terminal; leaves with 1 where the answer is no."""
    fate = _FATES[domain.made_here, remove_data]
    try:
        sure = typer.confirm(
            f"{printable(domain.name)} is {printable(domain.state)}. {fate} Destroy it?", err=True
        )
    except typer.Abort:
        raise KeyboardInterrupt from None
    if not sure:
        say(new_console(stderr=True), f"{domain.name}: nothing was done")
        raise typer.Exit(ANSWERED_NO)
