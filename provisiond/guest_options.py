"""What provisionctl's options say of a guest: the parts of a request's `config`.

Only what the options mean among themselves is judged here (wrong usage); the daemon judges values.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TextIO

import typer

Config = dict[str, Any]

_SECRETS = ("password", "password_hash")
_LONGEST_LINE = 4096  # bytes; the daemon takes far fewer
_AGAIN = "May be given again."


@dataclass(frozen=True, kw_only=True)
class GuestOptions:
    """What the guest shall become, as the commands that configure one take it."""

    ip: Annotated[
        str | None, typer.Option(metavar="CIDR", help="The guest's, such as 192.0.2.10/24.")
    ] = None
    gateway: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Its default route.")] = (
        None
    )
    hostname: Annotated[
        str | None, typer.Option(metavar="NAME", help="Needed, here or in --config.")
    ] = None
    nameserver: Annotated[
        list[str] | None, typer.Option(metavar="ADDRESS", help=f"For DNS. {_AGAIN}")
    ] = None
    search: Annotated[
        list[str] | None, typer.Option(metavar="DOMAIN", help=f"For DNS. {_AGAIN}")
    ] = None
    user: Annotated[
        str | None, typer.Option(metavar="NAME", help="Whose password and keys; left out: root.")
    ] = None
    password_stdin: Annotated[
        bool,
        typer.Option(
            "--password-stdin",
            help="Read the password from stdin's first line; on a terminal you are asked.",
        ),
    ] = False
    password_hash_stdin: Annotated[
        bool, typer.Option("--password-hash-stdin", help="The same, for a crypt(5) hash.")
    ] = False
    ssh_key: Annotated[
        list[typer.FileText] | None,
        typer.Option(metavar="FILE", encoding="utf-8", help=f"Public keys, one a line. {_AGAIN}"),
    ] = None
    timezone: Annotated[str | None, typer.Option(metavar="ZONE", help="Such as Europe/Vienna.")] = (
        None
    )
    config: Annotated[
        typer.FileText | None,
        typer.Option(
            metavar="FILE",
            encoding="utf-8",
            help="The API's 'config', as JSON; '-' is stdin. Options win over it.",
        ),
    ] = None
    target: Annotated[
        str | None,
        typer.Option(
            metavar="TARGET",
            help="The config ISO's, such as sdb or xvdp; left out: a free one.",
        ),
    ] = None

    def read(self, *, mac: str | None = None) -> Config:
        """The request's `config`, with the secret that is read from stdin.

        `mac` tells whose the address is; left out, the first interface's.
        """
        options = {
            "hostname": self.hostname,
            "nameservers": self.nameserver,
            "search": self.search,
            "user": self.user,
            "ssh_authorized_keys": read_keys(self.ssh_key or []),
            "timezone": self.timezone,
        }
        whole = with_options(read_config(self.config), options)
        whole = with_network(whole, ip=self.ip, gateway=self.gateway, mac=mac)
        if "hostname" not in whole:
            raise typer.BadParameter("a guest needs a name", param_hint="--hostname")
        secret = read_secret(
            clear=self.password_stdin, hashed=self.password_hash_stdin, config=self.config
        )
        return with_secret(whole, secret)


def with_options(config: Config, options: Config) -> Config:
    """`config` with every option that was given in the place of its key."""
    return config | {key: value for key, value in options.items() if value not in (None, [])}


def with_network(config: Config, *, ip: str | None, gateway: str | None, mac: str | None) -> Config:
    """`config` with the options' address; in the long form where a MAC address tells whose it is.

    Raises BadParameter where the config has the long form already: an option cannot tell which of
    its interfaces it means.
    """
    given = {"--ip": ip, "--gateway": gateway, "--mac": mac}
    names = [name for name, value in given.items() if value is not None]
    if names and config.get("interfaces"):
        raise typer.BadParameter(
            "cannot go with the 'interfaces' of --config: say it there, at the interface it is for",
            param_hint=names[0],
        )
    whole = with_options(config, {"ip": ip, "gateway": gateway})
    if mac is None:
        return whole
    address, router = whole.pop("ip", None), whole.pop("gateway", None)
    if address is None:
        raise typer.BadParameter("goes with --ip", param_hint="--mac")
    interface = {"mac": mac, "addresses": [address]}
    if router is not None:
        interface["gateway6" if ":" in str(router) else "gateway4"] = router
    return whole | {"interfaces": [interface]}


def with_secret(config: Config, secret: Config) -> Config:
    """`config` with the secret in the place of its own, whichever form that has."""
    if not secret:
        return config
    return {key: value for key, value in config.items() if key not in _SECRETS} | secret


def read_keys(files: Sequence[TextIO]) -> list[str]:
    """The public keys of all files; empty lines and comments are left out."""
    lines = (line.strip() for file in files for line in _text_of(file, "--ssh-key").split("\n"))
    return [line for line in lines if line and not line.startswith("#")]


def read_config(file: TextIO | None) -> Config:
    """The config object as the file has it; the daemon judges what is in it."""
    if file is None:
        return {}
    text = _text_of(file, "--config")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):  # its message could repeat a secret
        found = None
    if not isinstance(found, dict):
        raise typer.BadParameter(f"{file.name} holds no JSON object", param_hint="--config")
    return found


def _text_of(file: TextIO, option: str) -> str:
    try:
        return file.read()
    except UnicodeDecodeError:
        raise typer.BadParameter(f"{file.name} is not UTF-8", param_hint=option) from None


def read_secret(*, clear: bool, hashed: bool, config: TextIO | None) -> Config:
    """The password or its hash from stdin's first line, or from whoever sits at the terminal."""
    if not clear and not hashed:
        return {}
    hint = "--password-stdin" if clear else "--password-hash-stdin"
    if clear and hashed:
        raise typer.BadParameter("one of it and --password-hash-stdin", param_hint=hint)
    if config is not None and config.fileno() == sys.stdin.fileno():
        raise typer.BadParameter("stdin is taken by --config", param_hint=hint)
    try:
        secret = _ask(clear=clear) if sys.stdin.isatty() else _first_line(hint)
        secret.encode()  # a terminal's bytes that are no text come as lone surrogates
    except UnicodeError:  # its message could repeat a part of the secret
        raise typer.BadParameter("the secret is not UTF-8", param_hint=hint) from None
    if not secret:
        raise typer.BadParameter("stdin's first line is empty", param_hint=hint)
    return {"password" if clear else "password_hash": secret}


def _ask(*, clear: bool) -> str:
    what = "Password of the guest" if clear else "Hash of the guest's password"
    try:
        answer = typer.prompt(what, hide_input=True, confirmation_prompt=clear, err=True)
    except typer.Abort:
        raise KeyboardInterrupt from None
    return str(answer)


def _first_line(hint: str) -> str:
    line = sys.stdin.buffer.readline(_LONGEST_LINE + 1)
    if len(line) > _LONGEST_LINE:
        raise typer.BadParameter("stdin's first line is too long", param_hint=hint)
    return line.decode().removesuffix("\n").removesuffix("\r")
