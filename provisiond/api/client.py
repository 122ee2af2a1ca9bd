"""The HTTP API from the other end: what masters in Python and provisionctl use.

    with ProvisiondClient() as provisiond:
        job = provisiond.submit(request)
        for event in provisiond.job_events(job.id):
            print(event.at, event.state, event.detail)
        job = provisiond.job(job.id)

Every method raises DaemonUnreachable where nothing answers (ReplyLost, one of it, where the request
may have arrived), ApiError where provisiond replies with an error, and UnexpectedReply where what
answers is not provisiond. One client belongs to one thread at a time.
"""

import itertools
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, SecretStr, ValidationError

from provisiond.api.replies import (
    BaseList,
    BaseView,
    DiskList,
    DiskView,
    DomainList,
    DomainView,
    ErrorReply,
    EventView,
    FieldError,
    HealthView,
    JobList,
    JobView,
)
from provisiond.api.requests import ProvisionRequest, Request
from provisiond.errors import DaemonUnreachable, ProvisionError, ReplyLost
from provisiond.settings import DEFAULT_SOCKET

_M = TypeVar("_M", bound=BaseModel)

# A stream that is silent for longer, without even a comment, is taken for dead and asked for again.
_SILENCE_SECONDS = 60.0
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 5.0


class ApiError(ProvisionError):
    """An error reply. `code`, `message`, `hint`, `fields` and `status` are the daemon's own."""

    def __init__(self, reply: ErrorReply) -> None:
        super().__init__(reply.message, hint=reply.hint)
        self.code = reply.code  # type: ignore[misc]  # each reply brings its own
        self.reply = reply

    @property
    def status(self) -> int:
        """The HTTP status: 4xx, the request is refused; 5xx, provisiond cannot just now."""
        return self.reply.status

    @property
    def fields(self) -> list[FieldError]:
        """The refused fields of a request, each with its reason."""
        return self.reply.fields


class UnexpectedReply(ProvisionError):
    """What answers does not speak this version's API."""

    code = "unexpected_reply"
    default_hint = "Is it provisiond that listens there, and of the same version as this client?"


class ProvisiondClient:
    """provisiond on the Unix socket `socket`; nothing is sent before the first call.

    A call may take `reply_seconds` until its reply begins. The iterators of events survive a
    restart of the daemon that takes up to `away_seconds`.
    """

    def __init__(
        self,
        socket: Path = DEFAULT_SOCKET,
        *,
        reply_seconds: float = 30.0,
        away_seconds: float = 60.0,
    ) -> None:
        self._socket = socket
        self._away_seconds = away_seconds
        self._http = httpx.Client(
            transport=httpx.HTTPTransport(uds=str(socket)),
            base_url="http://provisiond",
            timeout=reply_seconds,
            trust_env=False,
        )

    def another(self, *, reply_seconds: float) -> "ProvisiondClient":
        """A client for the same provisiond, for another thread."""
        return ProvisiondClient(
            self._socket, reply_seconds=reply_seconds, away_seconds=self._away_seconds
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_raised: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; jobs go on."""
        self._http.close()

    # ------------------------------------------------------------ jobs
    def submit(self, request: Request | Mapping[str, Any]) -> JobView:
        """Ask for a job of any kind; returns at once with the accepted job.

        A mapping is sent as it is, and the daemon judges it. Where the reply was lost
        (ReplyLost), ask again with the same request_id: the same job is returned.
        """
        body = request if isinstance(request, Mapping) else _body_of(request)
        # httpx would refuse by itself what has no UTF-8 (lone surrogates) or is no number (NaN).
        content = json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        return self._ask(JobView, "POST", "/v1/jobs", content=content, headers=headers)

    def jobs(self, limit: int = 100) -> list[JobView]:
        """The newest jobs, newest first, without their history; `limit` is 1 to 1000."""
        return self._ask(JobList, "GET", "/v1/jobs", params={"limit": limit}).jobs

    def job(self, job_id: str) -> JobView:
        """One job with its history; a unique beginning of its id (4 digits or more) is enough."""
        return self._ask(JobView, "GET", _path("jobs", job_id))

    def cancel(self, job_id: str) -> JobView:
        """Ask for the job's undoing; it ends as FAILED (cancelled) unless it is done first.

        Returns before the undoing is over: `job_events` tells.
        """
        return self._ask(JobView, "DELETE", _path("jobs", job_id))

    # ------------------------------------------------------------ events
    def job_events(self, job_id: str, *, after: int | None = None) -> Iterator[EventView]:
        """Every fact of one job, from its first (or from behind the event `after`) to its last.

        Ends when the job has ended. Nothing is lost or told twice when the daemon restarts.
        """
        job = self.job(job_id)
        for event in self._follow(f"{_path('jobs', job.id)}/events", after or 0, job.id):
            yield event
            if event.state.ended:
                return

    def events(self, *, after: int | None = None) -> Iterator[EventView]:
        """Every fact of every job, from now on or from behind the event `after`; without end."""
        yield from self._follow("/v1/events", after, None)

    def _follow(self, path: str, after: int | None, job_id: str | None) -> Iterator[EventView]:
        """The events of a stream that is asked for again, from behind the last, when it breaks."""
        was_answered, away_since = False, None
        pauses = _pauses()
        while True:
            try:
                for sent in self._stream(path, after):
                    was_answered, away_since, pauses = True, None, _pauses()
                    after = after if sent.id is None else sent.id
                    if sent.data:
                        yield _parse(EventView, sent.data)
                if job_id is not None and self._has_told_all(job_id, after):
                    return
            except (DaemonUnreachable, ApiError) as error:
                away_since = away_since or time.monotonic()
                too_long = time.monotonic() - away_since > self._away_seconds
                if not was_answered or too_long or not _may_pass(error):
                    raise
            time.sleep(next(pauses))

    def _has_told_all(self, job_id: str, last_seq: int | None) -> bool:
        """Whether a stream that ended did so because its job has ended, not the daemon."""
        job = self.job(job_id)
        return job.state.ended and all(e.seq <= (last_seq or 0) for e in job.history or [])

    def _stream(self, path: str, after: int | None) -> Iterator["SentEvent"]:
        """One connection's events; the first, without id or data, says that it stands."""
        headers = {"Accept": "text/event-stream"}
        if after is not None:
            headers["Last-Event-ID"] = str(after)
        request = self._http.build_request("GET", path, headers=headers, timeout=_SILENCE_SECONDS)
        with self._reaching():
            reply = self._http.send(request, stream=True)
            try:
                if reply.status_code != HTTPStatus.OK:
                    reply.read()
                    raise _error_of(reply)
                yield SentEvent(None, "")
                yield from parse_events(reply.iter_bytes())
            finally:
                reply.close()

    # ------------------------------------------------------------ the host
    def domains(self) -> list[DomainView]:
        """All domains of the host, by name."""
        return self._ask(DomainList, "GET", "/v1/domains").domains

    def domain(self, name: str) -> DomainView:
        """One domain of the host, by its name or UUID."""
        return self._ask(DomainView, "GET", _path("domains", name))

    def bases(self) -> list[BaseView]:
        """All golden bases, by name."""
        return self._ask(BaseList, "GET", "/v1/bases").bases

    def base(self, name: str) -> BaseView:
        """One golden base, and what stands on it."""
        return self._ask(BaseView, "GET", _path("bases", name))

    def remove_base(self, name: str) -> None:
        """Remove a golden base that nothing stands on, with its file."""
        self._request("DELETE", _path("bases", name))

    def disks(self) -> list[DiskView]:
        """All disks that provisiond has made, by name."""
        return self._ask(DiskList, "GET", "/v1/disks").disks

    def remove_disk(self, name: str) -> None:
        """Remove a disk that no domain has, with its data."""
        self._request("DELETE", _path("disks", name))

    def health(self) -> HealthView:
        """Whether provisiond can take work; `ok` is False while libvirt is away."""
        with self._reaching():
            reply = self._http.get("/healthz")
        if reply.status_code in (HTTPStatus.OK, HTTPStatus.SERVICE_UNAVAILABLE):
            return _parse(HealthView, reply.content)
        raise _error_of(reply)

    # ------------------------------------------------------------ one call
    def _ask(self, kind: type[_M], method: str, path: str, **more: Any) -> _M:
        return _parse(kind, self._request(method, path, **more).content)

    def _request(self, method: str, path: str, **more: Any) -> httpx.Response:
        with self._reaching():
            reply = self._http.request(method, path, **more)
        if not reply.is_success:
            raise _error_of(reply)
        return reply

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except httpx.HTTPError as error:
            raise _unreachable(self._socket, error) from error


# ---------------------------------------------------------------- what is sent
def _body_of(request: Request) -> dict[str, Any]:
    """The request as JSON types with its secrets, which pydantic would print as stars."""
    body = request.public()
    if not isinstance(request, ProvisionRequest):
        return body
    for name in ("password", "password_hash"):
        secret = getattr(request.config, name)
        if isinstance(secret, SecretStr):
            body["config"][name] = secret.get_secret_value()
    return body


def _path(kind: str, name: str) -> str:
    return f"/v1/{kind}/{quote(name, safe='', errors='surrogateescape')}"


# ---------------------------------------------------------------- what comes back
def _parse(kind: type[_M], content: bytes | str) -> _M:
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        raise UnexpectedReply(f"the reply is no {kind.__name__}") from error


def _error_of(reply: httpx.Response) -> ProvisionError:
    try:
        return ApiError(ErrorReply.model_validate_json(reply.content))
    except ValidationError:
        return UnexpectedReply(f"the reply has status {reply.status_code} and is no ErrorReply")


def _unreachable(socket: Path, error: httpx.HTTPError) -> DaemonUnreachable:
    cause = _system_error(error)
    if isinstance(cause, PermissionError):
        return DaemonUnreachable(
            f"{socket}: this user may not connect",
            hint="Become root, or a member of the socket's group (ls -l shows it).",
        )
    if isinstance(cause, FileNotFoundError | ConnectionRefusedError):
        return DaemonUnreachable(f"{socket}: nothing listens there ({cause.strerror})")
    if isinstance(error, httpx.TimeoutException):
        return ReplyLost(f"{socket}: no answer in time", hint="Look into provisiond's log.")
    return ReplyLost(f"{socket}: the connection broke before the reply was whole ({error})")


def _system_error(error: BaseException | None) -> OSError | None:
    """The operating system's own error behind one of httpx."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


# ---------------------------------------------------------------- following
def _pauses() -> Iterator[float]:
    """How long to wait before each next try, in seconds."""
    doubled = (_FIRST_PAUSE_SECONDS * 2**n for n in range(20))
    return itertools.chain(
        (min(pause, _LONGEST_PAUSE_SECONDS) for pause in doubled),
        itertools.repeat(_LONGEST_PAUSE_SECONDS),
    )


def _may_pass(error: ProvisionError) -> bool:
    """Whether the same question may get an answer in a moment: the daemon is away, or starting."""
    return not isinstance(error, ApiError) or error.status == HTTPStatus.SERVICE_UNAVAILABLE


@dataclass(frozen=True, slots=True)
class SentEvent:
    """One server-sent event: where to resume, and its data."""

    id: int | None
    data: str


def parse_events(chunks: Iterable[bytes]) -> Iterator[SentEvent]:
    """The events of a text/event-stream (WHATWG HTML, 9.2.6) that has ids which are numbers.

    Lines are split here, at line feeds alone: JSON may hold other line separators as they are.
    """
    last_id: int | None = None
    data: list[str] = []
    for line in _lines(chunks):
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "id" and value.isdecimal():
            last_id = int(value)
        elif name == "data":
            data.append(value)
        elif not line and (data or last_id is not None):
            yield SentEvent(last_id, "\n".join(data))
            data = []


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.removesuffix(b"\r").decode(errors="replace")
