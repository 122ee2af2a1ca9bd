"""provisionctl doctor: is this host ready?"""

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from provisiond.cli.asking import NOT_READY, json_text
from provisiond.cli.options import Json
from provisiond.display import new_console, show_check
from provisiond.doctor import Check, Level, examine
from provisiond.settings import DEFAULT_CONFIG


def doctor(
    ctx: typer.Context,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help=f"Settings; left out: {DEFAULT_CONFIG}.")
    ] = None,
    kernel: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A kernel that is booted to prove KVM.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check whether this host has what provisiond needs.

    Says what to do where something is missing.
    """
    console, checks = new_console(), list[Check]()

    async def run_checks() -> None:
        async for check in examine(config=config, address=ctx.obj, kernel=kernel):
            checks.append(check)
            if not as_json:
                show_check(console, check)

    asyncio.run(run_checks())
    if as_json:
        typer.echo(json_text({"checks": [asdict(check) for check in checks]}, indent=2))
    if any(check.level is Level.FAIL for check in checks):
        raise typer.Exit(NOT_READY)
