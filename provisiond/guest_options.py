"""What provisionctl's options say of a guest: the parts of a request's `config`.

Only what the options mean among themselves is judged here (wrong usage); the daemon judges values.
"""

import json
import sys
from typing import Any

import typer

_LONGEST_SECRET = 4096


def network(*, ip: str | None, gateway: str | None, mac: str | None) -> dict[str, Any]:
    """The short form of one interface, or the long one where a MAC address tells which."""
    if mac is None:
        return {"ip": ip, "gateway": gateway}
    if ip is None:
        raise typer.BadParameter("goes with --ip", param_hint="--mac")
    interface: dict[str, Any] = {"mac": mac, "addresses": [ip]}
    if gateway is not None:
        interface["gateway6" if ":" in gateway else "gateway4"] = gateway
    return {"interfaces": [interface]}


def read_keys(files: list[typer.FileText]) -> list[str]:
    """The public keys of all files; empty lines and comments are left out."""
    lines = (line.strip() for file in files for line in file)
    return [line for line in lines if line and not line.startswith("#")]


def read_config(file: typer.FileText | None) -> dict[str, Any]:
    """The config object as the file has it; the daemon judges what is in it."""
    if file is None:
        return {}
    try:
        found = json.load(file)
    except ValueError:  # its message could repeat a secret
        found = None
    if not isinstance(found, dict):
        raise typer.BadParameter(f"{file.name} holds no JSON object", param_hint="--config")
    return found


def read_secret(*, clear: bool, hashed: bool, config: typer.FileText | None) -> dict[str, str]:
    """The password or its hash from stdin's first line, or from whoever sits at the terminal."""
    if not clear and not hashed:
        return {}
    hint = "--password-stdin" if clear else "--password-hash-stdin"
    if clear and hashed:
        raise typer.BadParameter("one of it and --password-hash-stdin", param_hint=hint)
    if config is not None and config.fileno() == sys.stdin.fileno():
        raise typer.BadParameter("stdin is taken by --config", param_hint=hint)
    if sys.stdin.isatty():
        what = "Password of the guest" if clear else "Hash of the guest's password"
        secret = typer.prompt(what, hide_input=True, confirmation_prompt=clear, err=True)
    else:
        line = sys.stdin.buffer.readline(_LONGEST_SECRET)
        secret = line.decode(errors="replace").removesuffix("\n").removesuffix("\r")
    if not secret:
        raise typer.BadParameter("stdin's first line is empty", param_hint=hint)
    return {"password" if clear else "password_hash": secret}
