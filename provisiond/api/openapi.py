"""What the OpenAPI tells of errors: which statuses a route has, each with the one shape."""

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI

from provisiond.api.problems import PROBLEM
from provisiond.api.replies import ErrorReply

_DESCRIPTIONS = {
    HTTPStatus.BAD_REQUEST: "The body is nested too deeply, or a number of it is too long.",
    HTTPStatus.FORBIDDEN: "The caller may not do this.",
    HTTPStatus.NOT_FOUND: "What is named does not exist.",
    HTTPStatus.CONFLICT: "What is named is not in a state for this; nothing was done.",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "The body is longer than 256 KiB.",
    HTTPStatus.UNPROCESSABLE_ENTITY: "Fields are wrong, and named; nothing was done.",
    HTTPStatus.TOO_MANY_REQUESTS: "The caller asks faster than it may; Retry-After says when.",
    HTTPStatus.INTERNAL_SERVER_ERROR: "libvirt or a tool has failed, or provisiond has a defect.",
    HTTPStatus.SERVICE_UNAVAILABLE: "Not just now: libvirt or xenstored is away, too much is at "
    "work, or provisiond stops; Retry-After says when.",
    HTTPStatus.INSUFFICIENT_STORAGE: "The disk with the state or the images is full.",
}
_OF_EVERY_ROUTE = (
    HTTPStatus.FORBIDDEN,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.INTERNAL_SERVER_ERROR,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.INSUFFICIENT_STORAGE,
)
_NEVER_SENT = "HTTPValidationError"  # FastAPI's own shape of a refusal


def documented(*statuses: HTTPStatus) -> dict[int | str, dict[str, Any]]:
    """These and the errors of every route as a route's `responses`, for the OpenAPI."""
    return {
        status.value: {"model": ErrorReply, "description": _DESCRIPTIONS[status]}
        for status in sorted({*statuses, *_OF_EVERY_ROUTE})
    }


class DescribedApi(FastAPI):
    """FastAPI, with the media types that replies really have in the OpenAPI."""

    def openapi(self) -> dict[str, Any]:
        """The document; made once."""
        if self.openapi_schema is None:
            document = super().openapi()
            for operation in (one for path in document["paths"].values() for one in path.values()):
                _describe_errors(operation["responses"])
                for parameter in operation.get("parameters", ()):
                    parameter["schema"] = _never_null(parameter["schema"])
            for name in (_NEVER_SENT, "ValidationError"):
                document["components"]["schemas"].pop(name, None)
            health = document["paths"]["/healthz"]["get"]["responses"]
            health["503"]["content"] |= health["200"]["content"]  # that it is not well is no error
        return super().openapi()


def _never_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A parameter may be absent; null is what a body alone can hold."""
    kinds: list[dict[str, Any]] = [
        kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}
    ]
    if len(kinds) != 1:
        return schema
    return {key: value for key, value in schema.items() if key != "anyOf"} | kinds[0]


def _describe_errors(replies: dict[str, Any]) -> None:
    """Errors are problems; the refusal that FastAPI adds to a route with any parameter is none."""
    for status in [status for status in replies if int(status) >= HTTPStatus.BAD_REQUEST]:
        (content,) = replies[status]["content"].values()
        if content["schema"]["$ref"].endswith(f"/{_NEVER_SENT}"):
            del replies[status]
        else:
            replies[status]["content"] = {PROBLEM: content}
