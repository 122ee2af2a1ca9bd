"""What provisionctl's options say of a guest: the parts of a request's `config`.

Only what the options mean among themselves is judged here (wrong usage); the daemon judges values.
"""

import json
import sys
from collections.abc import Sequence
from typing import Any, TextIO

import typer

Config = dict[str, Any]

_SECRETS = ("password", "password_hash")
_LONGEST_LINE = 4096  # bytes; the daemon takes far fewer


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
