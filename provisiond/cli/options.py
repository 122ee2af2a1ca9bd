"""Options that several commands take: declared once, as a dataclass."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import wraps
from typing import Annotated, Any

import typer

from provisiond.api.requests import DiskFormat
from provisiond.sizes import parse_size

Json = Annotated[bool, typer.Option("--json", help="Write JSON to stdout, errors too.")]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Return as soon as it is accepted.")]


def size_of(text: str) -> int:
    """What an option's size says, in bytes."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def mebibytes_of(text: str) -> int:
    """What an option's size says, in MiB."""
    mebibytes, rest = divmod(size_of(text), 1024 * 1024)
    if rest:
        raise typer.BadParameter(f"{text!r} is no multiple of 1M")
    return mebibytes


OverlaySize = Annotated[
    int | None,
    typer.Option(
        parser=size_of,
        metavar="SIZE",
        help="The disk's, such as 512M, 10G, 1T; left out: the base's.",
    ),
]
OverlayFormat = Annotated[
    DiskFormat | None,
    typer.Option("--format", metavar="qcow2|qcow|vhd", help="The disk's; left out: qcow2."),
]


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """How a command asks for its job, and in which form it answers."""

    deadline: Annotated[
        int | None,
        typer.Option(
            metavar="SECONDS", help="How long the job may take; left out: provisiond's setting."
        ),
    ] = None
    request_id: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Ask again with the same ID: it stays one job."),
    ] = None
    as_json: Json = False


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with the fields of each dataclass among its parameters as options of its own."""
    signature = inspect.signature(command, eval_str=True)
    groups: dict[str, Any] = {
        one.name: one.annotation
        for one in signature.parameters.values()
        if is_dataclass(one.annotation)
    }

    @wraps(command)
    def spread_out(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{one.name: given.pop(one.name) for one in fields(group)})
        command(**given)

    def parameters() -> Iterator[inspect.Parameter]:
        for one in signature.parameters.values():
            if one.name in groups:
                yield from _parameters_of(groups[one.name])
            else:
                yield one.replace(kind=inspect.Parameter.KEYWORD_ONLY)

    spread_out.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=list(parameters())
    )
    spread_out.__annotations__ = {one.name: one.annotation for one in parameters()}
    return spread_out


def _parameters_of(group: Any) -> Iterator[inspect.Parameter]:
    for one in fields(group):
        yield inspect.Parameter(
            one.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if one.default is MISSING else one.default,
            annotation=one.type,
        )
