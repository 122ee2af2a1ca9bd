"""A command asks provisiond: the client, how an error ends the command, and JSON for stdout."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

import typer
from pydantic import BaseModel

from provisiond.api.client import ApiError, ProvisiondClient
from provisiond.api.replies import ErrorReply
from provisiond.display import new_console, show_error
from provisiond.errors import (
    BuildFailed,
    DaemonUnreachable,
    ImageNotVerified,
    NoAddress,
    ProvisionError,
)
from provisiond.settings import DEFAULT_SOCKET

JOB_FAILED = NOT_READY = NO_ADDRESS = ANSWERED_NO = 1
REFUSED, UNREACHABLE, TROUBLE, CTRL_C, NO_READER = 3, 4, 5, 130, 141
EXIT_CODES = """\b
Exit status:
  0    done; where a job was waited for, and in watch JOB: it succeeded
  1    the job failed; ip, ips, ssh: no address is known; destroy: the answer was no;
       doctor: something is missing that provisiond needs; image verify: it does not work;
       image build: a phase failed
  2    wrong usage
  3    provisiond refused the request (HTTP 4xx)
  4    provisiond cannot be reached
  5    provisiond or the hypervisor is in trouble (HTTP 5xx)
  130  Ctrl-C; a job that was waited for goes on
  141  nobody reads the output any more (| head)
  ssh ends as the command in the guest does, or with 255 of ssh's own.

\b
With --json, stdout has one JSON document: the API's reply, or its error reply
(watch: one event a line; base remove, disk remove: {}; ssh: errors alone).
Wrong usage is always told on stderr.
"""


@contextmanager
def provisiond(ctx: typer.Context, *, as_json: bool) -> Iterator[ProvisiondClient]:
    """A client for one command; errors are shown and become the exit status."""
    with explained(as_json=as_json), ProvisiondClient(ctx.obj or DEFAULT_SOCKET) as client:
        yield client


@contextmanager
def explained(*, as_json: bool) -> Iterator[None]:
    """What fails in the block is shown, and becomes the exit status."""
    try:
        yield
    except ProvisionError as error:
        reply = error.reply if isinstance(error, ApiError) else _as_reply(error)
        if as_json:
            show_json(reply)
        else:
            show_error(new_console(stderr=True), reply)
        raise typer.Exit(exit_status(error)) from None


def exit_status(error: ProvisionError) -> int:
    """The exit status that stands for an error, as --help has it."""
    if isinstance(error, DaemonUnreachable):
        return UNREACHABLE
    if isinstance(error, ImageNotVerified | BuildFailed):
        return ANSWERED_NO
    if isinstance(error, NoAddress):
        return NO_ADDRESS
    if isinstance(error, ApiError) and error.status < HTTPStatus.INTERNAL_SERVER_ERROR:
        return REFUSED
    return TROUBLE


def _as_reply(error: ProvisionError) -> ErrorReply:
    """An error of this side in the shape that the daemon's errors have."""
    status = HTTPStatus.BAD_GATEWAY
    if isinstance(error, DaemonUnreachable):
        status = HTTPStatus.SERVICE_UNAVAILABLE
    if isinstance(error, NoAddress):
        status = HTTPStatus.NOT_FOUND
    return ErrorReply(
        title=status.phrase,
        status=status.value,
        code=error.code,
        message=error.message,
        hint=error.hint,
    )


def show_json(message: BaseModel) -> None:
    typer.echo(json_text(message.model_dump(mode="json"), indent=2))


def show_nothing() -> None:
    """The JSON document of a command to which the API replies nothing but that it is done."""
    typer.echo("{}")


def json_text(value: object, indent: int | None = None) -> str:
    """JSON in which every character that a terminal could obey is an escape."""
    return json.dumps(value, indent=indent).replace("\x7f", "\\u007f")
