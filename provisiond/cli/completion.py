"""What the tab key proposes: names and ids that provisiond knows."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import typer

from provisiond.api.client import ProvisiondClient
from provisiond.errors import ProvisionError
from provisiond.settings import DEFAULT_SOCKET

_T = TypeVar("_T")

# An answer that comes later is of no use to somebody who has pressed the tab key.
_COMPLETION_SECONDS = 1.0


def complete_domain(ctx: typer.Context, incomplete: str) -> list[str]:
    """The domains, running or not, by name."""
    found = _ask_quickly(ctx, lambda client: [one.name for one in client.domains()])
    return _fitting(found, incomplete)


def complete_base(ctx: typer.Context, incomplete: str) -> list[str]:
    """The golden bases, by name."""
    found = _ask_quickly(ctx, lambda client: [one.name for one in client.bases()])
    return _fitting(found, incomplete)


def complete_disk(ctx: typer.Context, incomplete: str) -> list[str]:
    """The disks that provisiond made, by name."""
    found = _ask_quickly(ctx, lambda client: [one.name for one in client.disks()])
    return _fitting(found, incomplete)


def complete_target(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """The targets of the domain that was named before, with the names of the disks there."""
    domain = ctx.params.get("domain") or ""
    found = _ask_quickly(ctx, lambda client: client.domain(domain).disks)
    return [
        (one.target, one.name if one.name is not None and _is_plain(one.name) else "")
        for one in found
        if one.target.startswith(incomplete) and _is_plain(one.target)
    ]


def complete_job(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """The newest jobs by id, with what each works on; for a cancel those that have not ended."""
    found = [
        job
        for job in _ask_quickly(ctx, lambda client: client.jobs())
        if job.id.startswith(incomplete) and not (ctx.info_name == "cancel" and job.state.ended)
    ]
    return [
        (job.id, f"{job.subject} {job.state}" if _is_plain(job.subject) else job.state)
        for job in found
    ]


def _fitting(names: list[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete) and _is_plain(name)]


def _is_plain(name: str) -> bool:
    """Whether a shell takes the name as it stands; another could be a command, or an escape."""
    return name == shlex.quote(name)


def _ask_quickly(ctx: typer.Context, question: Callable[[ProvisiondClient], list[_T]]) -> list[_T]:
    """For the tab key: whatever goes wrong, there is just nothing to propose."""
    socket = ctx.find_root().params.get("socket") or DEFAULT_SOCKET
    try:
        with ProvisiondClient(Path(socket), reply_seconds=_COMPLETION_SECONDS) as client:
            return question(client)
    except ProvisionError:
        return []
