"""Errors as replies: application/problem+json (RFC 9457) with code, message and hint."""

import math
from collections.abc import Mapping, MutableMapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match

from provisiond.api.replies import ErrorReply, FieldError
from provisiond.api.requests import UNKNOWN_KIND, JobKind
from provisiond.errors import (
    BaseChanged,
    BaseExists,
    BaseInUse,
    BaseNotFound,
    Busy,
    ChainTooDeep,
    DiskExists,
    DiskInUse,
    DiskNotFound,
    DiskStillAttached,
    DomainExists,
    DomainNotFound,
    DomainNotRunning,
    Forbidden,
    HypervisorUnavailable,
    ImageBusy,
    ImageNotFound,
    ImageRefused,
    JobEnded,
    JobNotFound,
    NoFreeTarget,
    NoGuestChannel,
    NoSpace,
    NotMadeHere,
    Overloaded,
    ProvisionError,
    RequestConflict,
    ShuttingDown,
    SizeTooSmall,
    StateUnusable,
    StateUnwritable,
    TemplateUnusable,
    TooManyJobs,
    TooManyRequests,
    VhdNeedsTapdisk,
)

PROBLEM = "application/problem+json"
_MAX_FIELDS = 100  # of the refused ones, how many a reply names
_RETRY_AFTER_SECONDS = "5"
_STATUS: dict[type[ProvisionError], HTTPStatus] = {
    **dict.fromkeys(
        (BaseNotFound, DiskNotFound, DomainNotFound, ImageNotFound, JobNotFound),
        HTTPStatus.NOT_FOUND,
    ),
    **dict.fromkeys(
        (
            BaseChanged,
            BaseExists,
            BaseInUse,
            Busy,
            ChainTooDeep,
            DiskExists,
            DiskInUse,
            DiskStillAttached,
            DomainExists,
            DomainNotRunning,
            ImageBusy,
            ImageRefused,
            JobEnded,
            NoFreeTarget,
            NoGuestChannel,
            NotMadeHere,
            RequestConflict,
            SizeTooSmall,
            TemplateUnusable,
            VhdNeedsTapdisk,
        ),
        HTTPStatus.CONFLICT,
    ),
    Forbidden: HTTPStatus.FORBIDDEN,
    TooManyRequests: HTTPStatus.TOO_MANY_REQUESTS,
    **dict.fromkeys(
        (HypervisorUnavailable, Overloaded, ShuttingDown, StateUnusable, TooManyJobs),
        HTTPStatus.SERVICE_UNAVAILABLE,
    ),
    **dict.fromkeys((NoSpace, StateUnwritable), HTTPStatus.INSUFFICIENT_STORAGE),
}


def add_error_replies(app: FastAPI) -> None:
    """Have every error of the application answered in the one shape."""

    @app.exception_handler(ProvisionError)
    async def explained(_request: Request, error: ProvisionError) -> Response:
        return problem(error)

    @app.exception_handler(RequestValidationError)
    async def refused(_request: Request, error: RequestValidationError) -> Response:
        fields = [_field_error(one) for one in error.errors()[:_MAX_FIELDS]]
        message = "; ".join(f"{one.field}: {one.message}" for one in fields)
        hint = "Correct the named fields and ask again."
        status = HTTPStatus.UNPROCESSABLE_ENTITY
        return _reply(status, "invalid_request", message, hint, fields=fields)

    @app.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> Response:
        status = HTTPStatus(error.status_code)
        code = status.phrase.lower().replace(" ", "_").replace("-", "_")
        message = f"{request.method} {request.url.path}: {status.phrase}"
        hint = "See /openapi.json for what there is."
        headers = dict(error.headers or {})
        if status is HTTPStatus.METHOD_NOT_ALLOWED:
            headers["Allow"] = ", ".join(sorted(_methods_of(request)))
        return _reply(status, code, message, hint, headers=headers)

    @app.exception_handler(Exception)
    async def unforeseen(_request: Request, error: Exception) -> Response:
        message = f"unforeseen error: {type(error).__name__}"
        hint = "Report it with provisiond's log."
        return _reply(HTTPStatus.INTERNAL_SERVER_ERROR, "internal_error", message, hint)


def _methods_of(request: Request) -> set[str]:
    """All that the path takes, as RFC 9110 has it (10.2.1); Starlette tells the first route's."""
    methods: set[str] = set()
    for route in request.app.routes:
        if route.matches(request.scope)[0] is not Match.NONE:
            methods |= route.methods
    return methods


def problem(error: ProvisionError) -> Response:
    """The reply that an error of ours is answered with."""
    status = _STATUS.get(type(error), HTTPStatus.INTERNAL_SERVER_ERROR)
    headers = {}
    if isinstance(error, TooManyRequests):
        headers["Retry-After"] = str(math.ceil(error.retry_after))
    return _reply(status, error.code, error.message, error.hint, headers=headers)


def _reply(
    status: HTTPStatus,
    code: str,
    message: str,
    hint: str,
    *,
    fields: Sequence[FieldError] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    body = ErrorReply(
        title=status.phrase,
        status=status.value,
        code=code,
        message=message,
        hint=hint,
        fields=list(fields),
    )
    sent = dict(headers or {})
    if status is HTTPStatus.SERVICE_UNAVAILABLE:
        sent["Retry-After"] = _RETRY_AFTER_SECONDS
    return JSONResponse(body.model_dump(mode="json"), status, media_type=PROBLEM, headers=sent)


def _field_error(error: MutableMapping[str, Any]) -> FieldError:
    """The path of the field and the reason; never the input, which may be a secret."""
    whole, *parts = error["loc"]  # the first is "body", "query", "header" or "path"
    if error["type"] == UNKNOWN_KIND:
        parts = ["kind"]
    elif parts and parts[0] in list(JobKind):  # which of the requests it was taken for
        parts = parts[1:]
    if parts and isinstance(parts[0], int):  # no field: where in the body its JSON is broken
        parts = []
    path = ""
    for part in parts:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    reason = str(error["msg"]).removeprefix("Value error, ")
    return FieldError(field=path.removeprefix(".") or str(whole), message=reason)
