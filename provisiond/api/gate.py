"""Before and behind every request: may this caller ask that, and is it too much; then the record.

Each request that could change something leaves one line in the log of `provisiond.audit`, allowed
or not: who, what, which job, with what outcome. Of those that came too fast the first after one
that did not: a flood of lines would have the journal drop others.
"""

import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from provisiond.api.callers import Caller, Role
from provisiond.api.limits import Traffic
from provisiond.api.problems import problem
from provisiond.errors import Forbidden, ProvisionError, TooManyRequests

audit = logging.getLogger("provisiond.audit")

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]
_App = Callable[[Any, _Receive, _Send], Awaitable[None]]


class Gate:
    """ASGI middleware; the caller is in the connection's `state`."""

    def __init__(self, app: _App, *, traffic: Traffic) -> None:
        self._app = app
        self._traffic = traffic
        self._too_fast: set[str] = set()

    async def __call__(self, scope: Any, receive: _Receive, send: _Send) -> None:
        caller: Caller = scope["state"]["caller"]
        record = _Record(caller, scope)

        async def recorded(message: _Message) -> None:
            if message["type"] == "http.response.start":
                record.hear(message)
            await send(message)

        try:
            self._admit(caller, record)
            with self._traffic.request(caller.counted_as):
                await self._app(scope, receive, recorded)
        except ProvisionError as error:
            await problem(error)(scope, receive, recorded)
        finally:
            record.write()

    def _admit(self, caller: Caller, record: "_Record") -> None:
        counted = caller.counted_as
        try:
            self._traffic.take_turn(counted, now=time.monotonic())
        except TooManyRequests:
            record.is_wanted = counted not in self._too_fast
            self._too_fast.add(counted)
            raise
        self._too_fast.discard(counted)
        if not caller.role.may(record.method):
            what = "may only read" if caller.role is Role.VIEWER else "has no role here"
            raise Forbidden(f"{caller.name}: {what}")


class _Record:
    """What is recorded of one request."""

    def __init__(self, caller: Caller, scope: _Message) -> None:
        self.method: str = scope["method"]
        self.is_wanted = True
        self._caller = caller
        # As it was sent: a blank that is escaped there stays so in the line.
        self._path = scope["raw_path"].decode("ascii")
        self._status = 500  # where no response begins
        self._job = _job_in(scope["path"])

    def hear(self, start: _Message) -> None:
        self._status = start["status"]
        for name, value in start["headers"]:
            if name == b"location":
                self._job = _job_in(value.decode("latin-1")) or self._job

    def write(self) -> None:
        """Reads that were allowed leave no line."""
        if Role.VIEWER.may(self.method) and self._caller.role is not Role.NOBODY:
            return
        if not self.is_wanted:
            return
        audit.info(
            "%s (%s; %s) %s %s: %d%s",
            self._caller.name,
            self._caller.role,
            self._caller.detail,
            self.method,
            self._path,
            self._status,
            f", job {self._job}" if self._job else "",
            extra={"CALLER": self._caller.name, "STATUS_CODE": str(self._status)}
            | ({"JOB_ID": self._job} if self._job else {}),
        )


def _job_in(path: str) -> str:
    """The id in the path of a job; empty where it is no such path."""
    match path.split("/"):
        case ["", "v1", "jobs", job_id, *_] if job_id.isalnum():
            return job_id
    return ""
