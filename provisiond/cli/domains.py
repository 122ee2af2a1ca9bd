"""provisionctl domains, ip, ips, ssh: looking at guests, and reaching them."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from provisiond.api.replies import DomainList
from provisiond.cli.asking import provisiond, show_json
from provisiond.cli.completion import complete_domain
from provisiond.cli.options import Json
from provisiond.display import new_console
from provisiond.errors import NoAddress
from provisiond.process import become, hand_over
from provisiond.reach import choose_address, copy_key_argv, match_names, ssh_argv
from provisiond.tables import show_addresses, show_domains

# What ssh itself tries first, in its order.
_KEYS = ("id_ed25519.pub", "id_ecdsa.pub", "id_rsa.pub")

_Domain = Annotated[
    str, typer.Argument(metavar="NAME", autocompletion=complete_domain, help="Its name or UUID.")
]


def domains(ctx: typer.Context, *, as_json: Json = False) -> None:
    """List this host's domains: state, addresses, disks, job.

    An address has its source: job (provisiond gave it), xenstore (the guest's tools say so), lease
    (libvirt's DHCP server), agent (QEMU's guest agent). A disk that provisiond made has its name.
    """
    with provisiond(ctx, as_json=as_json) as client:
        found = client.domains()
        if as_json:
            show_json(DomainList(domains=found))
        else:
            show_domains(new_console(), found)


def ip(ctx: typer.Context, name: _Domain, *, as_json: Json = False) -> None:
    """Show the addresses of a guest, the best first.

    One a line: address, tab, its source (as in domains).
    """
    with provisiond(ctx, as_json=as_json) as client:
        domain = client.domain(name)
        choose_address(domain.name, domain.addresses)  # there is one
        if as_json:
            show_json(domain)
        else:
            show_addresses(new_console(), domain.addresses)


def ips(
    ctx: typer.Context,
    pattern: Annotated[
        str,
        typer.Argument(
            metavar="PATTERN",
            autocompletion=complete_domain,
            help="Of names, as a shell's: 'web*'; in quotes.",
        ),
    ],
    *,
    as_json: Json = False,
) -> None:
    """Show the addresses of all guests whose names match.

    One a line: name, tab, address, tab, its source (as in domains).
    """
    with provisiond(ctx, as_json=as_json) as client:
        every = client.domains()
        names = set(match_names(pattern, [domain.name for domain in every]))
        found = [domain for domain in every if domain.name in names]
        if not found:
            raise NoAddress(
                f"{pattern}: no domain has such a name", hint="provisionctl domains lists them."
            )
        if not any(domain.addresses for domain in found):
            raise NoAddress(
                f"{pattern}: none of {len(found)} matching domains has an address that is known"
            )
        if as_json:
            show_json(DomainList(domains=found))
            return
        console = new_console()
        for domain in found:
            show_addresses(console, domain.addresses, of=domain.name)


def ssh(
    ctx: typer.Context,
    name: _Domain,
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="COMMAND", help="After --; left out: a shell of the guest."),
    ] = None,
    *,
    user: Annotated[str, typer.Option(metavar="NAME", help="Who logs in.")] = "root",
    key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The key to log in with; left out: ssh's own choice."),
    ] = None,
    copy_key: Annotated[
        bool,
        typer.Option("--copy-key", help="First have ssh-copy-id add your key to the guest's."),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Write provisiond's errors to stdout as JSON.")
    ] = False,
) -> None:
    """Log into a guest with ssh, or run a command there.

    The address is the first that ip shows. ssh keeps the guest's host key under the domain's UUID.
    """
    with provisiond(ctx, as_json=as_json) as client:
        domain = client.domain(name)
        address = choose_address(domain.name, domain.addresses)
        # The address may be another guest's tomorrow; the host key is kept for the domain.
        if copy_key:
            public = key or _own_key()
            argv = copy_key_argv(address, user=user, key=public, known_as=domain.uuid)
            if status := asyncio.run(hand_over(argv)):
                raise typer.Exit(status)
        become(ssh_argv(address, user=user, command=command or (), key=key, known_as=domain.uuid))


def _own_key() -> Path:
    """This user's own public key."""
    folder = Path.home() / ".ssh"
    found = [folder / name for name in _KEYS if (folder / name).exists()]
    if not found:
        raise typer.BadParameter(
            f"no key is in {folder}: make one with ssh-keygen, or name one with --key",
            param_hint="--copy-key",
        )
    return found[0]
