"""provisionctl provision, create, destroy."""

import sys
from typing import Annotated

import typer

from provisiond.api.requests import DiskFormat, JobKind
from provisiond.cli.asking import Json
from provisiond.cli.completion import complete_domain
from provisiond.cli.waiting import NoWait, RequestId, ask_for, new_request_id, read_size
from provisiond.guest_options import (
    Config,
    read_config,
    read_keys,
    read_secret,
    with_network,
    with_options,
    with_secret,
)

_AGAIN = "May be given again."
MIB = 2**20


# ---------------------------------------------------------------- options of more than one command
Ip = Annotated[str | None, typer.Option(metavar="CIDR", help="Such as 192.0.2.10/24.")]
Gateway = Annotated[str | None, typer.Option(metavar="ADDRESS")]
Hostname = Annotated[str | None, typer.Option(metavar="NAME")]
Nameserver = Annotated[list[str] | None, typer.Option(metavar="ADDRESS", help=_AGAIN)]
Search = Annotated[list[str] | None, typer.Option(metavar="DOMAIN", help=_AGAIN)]
User = Annotated[str | None, typer.Option(help="Whose password and keys; left out: root.")]
PasswordStdin = Annotated[
    bool,
    typer.Option(
        "--password-stdin", help="Read it from stdin's first line; a terminal asks for it."
    ),
]
PasswordHashStdin = Annotated[
    bool, typer.Option("--password-hash-stdin", help="The same, for a crypt(5) hash.")
]
SshKey = Annotated[
    list[typer.FileText] | None,
    typer.Option(
        metavar="FILE", encoding="utf-8", help="Public keys, one a line. May be given again."
    ),
]
Timezone = Annotated[str | None, typer.Option(metavar="ZONE")]
ConfigFile = Annotated[
    typer.FileText | None,
    typer.Option(
        metavar="FILE",
        encoding="utf-8",
        help="The request's whole 'config' as JSON, '-' for stdin; options win over it.",
    ),
]
Target = Annotated[str | None, typer.Option(help="The ISO's disk target, such as sdb or xvdp.")]
Deadline = Annotated[int | None, typer.Option(metavar="SECONDS", help="Until the guest's verdict.")]
Wait = Annotated[bool, typer.Option("--wait", help="Wait for the end and show the way.")]


# ---------------------------------------------------------------- provision, create
def provision(
    ctx: typer.Context,
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", autocompletion=complete_domain, help="A running domain: name or UUID."
        ),
    ],
    *,
    ip: Ip = None,
    gateway: Gateway = None,
    mac: Annotated[
        str | None, typer.Option(metavar="MAC", help="The interface; left out: the first.")
    ] = None,
    hostname: Hostname = None,
    nameserver: Nameserver = None,
    search: Search = None,
    user: User = None,
    password_stdin: PasswordStdin = False,
    password_hash_stdin: PasswordHashStdin = False,
    ssh_key: SshKey = None,
    timezone: Timezone = None,
    config: ConfigFile = None,
    target: Target = None,
    deadline: Deadline = None,
    request_id: RequestId = None,
    wait: Wait = False,
    as_json: Json = False,
) -> None:
    """Configure the guest of a running domain.

    No option takes a password: a command line can be read by every user of the host.
    """
    whole = _config_of(
        config,
        hostname=hostname,
        nameservers=nameserver,
        search=search,
        user=user,
        ssh_authorized_keys=read_keys(ssh_key or []),
        timezone=timezone,
    )
    whole = with_network(whole, ip=ip, gateway=gateway, mac=mac)
    secret = read_secret(clear=password_stdin, hashed=password_hash_stdin, config=config)
    request = {
        "request_id": request_id or new_request_id(),
        "domain": name,
        "config": with_secret(whole, secret),
        "target": target,
        "deadline_seconds": deadline,
    }
    ask_for(ctx, request, wait=wait, as_json=as_json)


def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The new domain's name.")],
    *,
    base: Annotated[str, typer.Option(metavar="BASE", help="The golden base of its disk.")],
    disk_format: Annotated[
        DiskFormat, typer.Option("--format", help="The format of its disk.")
    ] = DiskFormat.QCOW2,
    size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Of its disk, such as 20G; not: the base's.")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Such as 2G; left out: the template's.")
    ] = None,
    vcpus: Annotated[int | None, typer.Option(help="Left out: the template's.")] = None,
    network: Annotated[str | None, typer.Option(help="A network of libvirt's.")] = None,
    bridge: Annotated[str | None, typer.Option(help="A bridge of the host's.")] = None,
    mac: Annotated[
        str | None, typer.Option(metavar="MAC", help="Of its first interface; left out: a new one.")
    ] = None,
    template: Annotated[str, typer.Option(help="The operator's template.")] = "default",
    ip: Ip = None,
    gateway: Gateway = None,
    hostname: Hostname = None,
    nameserver: Nameserver = None,
    search: Search = None,
    user: User = None,
    password_stdin: PasswordStdin = False,
    password_hash_stdin: PasswordHashStdin = False,
    ssh_key: SshKey = None,
    timezone: Timezone = None,
    config: ConfigFile = None,
    target: Target = None,
    deadline: Deadline = None,
    request_id: RequestId = None,
    wait: Wait = False,
    as_json: Json = False,
) -> None:
    """Make a guest out of a golden base: its disk, its domain, and its configuration."""
    whole = _config_of(
        config,
        hostname=hostname,
        nameservers=nameserver,
        search=search,
        user=user,
        ssh_authorized_keys=read_keys(ssh_key or []),
        timezone=timezone,
    )
    whole = with_network(whole, ip=ip, gateway=gateway, mac=None)
    secret = read_secret(clear=password_stdin, hashed=password_hash_stdin, config=config)
    wanted = {
        "base": base,
        "format": disk_format,
        "size": None if size is None else read_size(size, option="--size"),
        "memory_mib": None if memory is None else read_size(memory, option="--memory") // MIB,
        "vcpus": vcpus,
        "network": network,
        "bridge": bridge,
        "mac": mac,
        "template": template,
    }
    request = {
        "request_id": request_id or new_request_id(),
        "domain": name,
        "create": wanted,
        "config": with_secret(whole, secret),
        "target": target,
        "deadline_seconds": deadline,
    }
    ask_for(ctx, request, wait=wait, as_json=as_json)


def _config_of(config: typer.FileText | None, **options: object) -> Config:
    """The request's configuration: the file's, and what the options say over it."""
    whole = with_options(read_config(config), options)
    if "hostname" not in whole:
        raise typer.BadParameter("a guest needs a name", param_hint="--hostname")
    return whole


# ---------------------------------------------------------------- destroy
def destroy(
    ctx: typer.Context,
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", autocompletion=complete_domain, help="Name or UUID."),
    ],
    *,
    force: Annotated[
        bool, typer.Option("--force", help="Also where provisiond did not make it; disks stay.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask on a terminal.")] = False,
    request_id: RequestId = None,
    no_wait: NoWait = False,
    as_json: Json = False,
) -> None:
    """End a domain that provisiond made, and remove it with the disk that was made for it."""
    if not yes and sys.stdin.isatty():
        typer.confirm(f"End {name} and remove it for good?", abort=True)
    request = {
        "kind": JobKind.DESTROY,
        "request_id": request_id or new_request_id(),
        "domain": name,
        "force": force,
    }
    ask_for(ctx, request, wait=not no_wait, as_json=as_json)
