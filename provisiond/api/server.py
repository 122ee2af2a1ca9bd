"""The HTTP API: validate, call the supervisor, map results to replies. Nothing is decided here."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, Query, Request, Response
from fastapi.responses import PlainTextResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.exceptions import HTTPException

from provisiond import __version__
from provisiond.api.callers import Caller
from provisiond.api.gate import Gate
from provisiond.api.limits import Traffic
from provisiond.api.openapi import DescribedApi, documented
from provisiond.api.problems import add_error_replies
from provisiond.api.replies import (
    BaseList,
    BaseView,
    DiskList,
    DomainList,
    DomainView,
    HealthView,
    JobList,
    JobView,
)
from provisiond.api.requests import Name
from provisiond.api.requests import Request as JobRequest
from provisiond.api.views import view_base, view_disk, view_domain, view_event, view_job
from provisiond.errors import JobNotFound
from provisiond.inventory import DomainState, Inventory
from provisiond.job import Event, Job
from provisiond.metrics import CONTENT_TYPE, Metrics
from provisiond.store import Store
from provisiond.supervisor import Supervisor
from provisiond.virt.libvirt import Hypervisor
from provisiond.xenstore.client import Xenstore

_MAX_BODY = 256 * 1024
_NOT_FOUND, _CONFLICT = HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT
_UNPROCESSABLE = HTTPStatus.UNPROCESSABLE_ENTITY
_REFUSALS_OF_A_JOB = (
    HTTPStatus.BAD_REQUEST,
    _NOT_FOUND,
    _CONFLICT,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    _UNPROCESSABLE,
)
_KNOWN_JOB: dict[int | str, dict[str, Any]] = {
    HTTPStatus.OK.value: {"model": JobView, "description": "The job of that request_id."}
}


def create_app(
    *,
    supervisor: Supervisor,
    store: Store,
    inventory: Inventory,
    hypervisor: Hypervisor,
    xenstore: Xenstore | None,
    metrics: Metrics,
    traffic: Traffic,
) -> FastAPI:
    """The ASGI application over these."""
    app = DescribedApi(
        title="provisiond",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses=documented(),
    )
    app.add_middleware(_BodyLimit)
    app.add_middleware(Gate, traffic=traffic)  # the outermost: nothing is read before it
    add_error_replies(app)
    _add_jobs(app, supervisor, store)
    _add_events(app, store)
    _add_images(app, inventory)
    _add_domains(app, supervisor, inventory)
    _add_host(app, supervisor, store, hypervisor=hypervisor, xenstore=xenstore, metrics=metrics)
    return app


# ---------------------------------------------------------------- jobs
def _add_jobs(app: FastAPI, supervisor: Supervisor, store: Store) -> None:
    # A thousand jobs keep the state file and the event loop busy for a while: one list at a time,
    # so that whoever asks for something small comes in between.
    listing = asyncio.Lock()

    @app.post(
        "/v1/jobs",
        status_code=HTTPStatus.ACCEPTED,
        tags=["jobs"],
        responses=_KNOWN_JOB | documented(*_REFUSALS_OF_A_JOB),
    )
    async def submit(
        request: JobRequest, response: Response, caller: Annotated[Caller, Depends(_caller)]
    ) -> JobView:
        """Ask for a job of any kind. The same request_id and body give the same job, with 200."""
        job, is_new = await supervisor.submit(request, by=caller.name)
        response.headers["Location"] = f"/v1/jobs/{job.id}"
        if not is_new:
            response.status_code = HTTPStatus.OK
        return view_job(job)

    @app.get("/v1/jobs", tags=["jobs"], responses=documented(_UNPROCESSABLE))
    async def list_jobs(limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> JobList:
        """The newest jobs, newest first."""
        async with listing:
            return JobList(jobs=[view_job(job) for job in await store.newest(limit)])

    @app.get("/v1/jobs/{job_id}", tags=["jobs"], responses=documented(_NOT_FOUND))
    async def show(job_id: str) -> JobView:
        """One job with its history. A prefix of its id is enough where it is unique."""
        job = await find_job(store, job_id)
        history = await store.events_after(0, job_id=job.id)
        return view_job(job, history, supervisor.progress_of(job.id))

    @app.delete(
        "/v1/jobs/{job_id}",
        status_code=HTTPStatus.ACCEPTED,
        tags=["jobs"],
        responses=documented(_NOT_FOUND, _CONFLICT),
    )
    async def cancel(job_id: str, caller: Annotated[Caller, Depends(_caller)]) -> JobView:
        """Cancel a job: what it made is undone, unless what it was asked for is done first."""
        job = await find_job(store, job_id)
        return view_job(await supervisor.cancel(job.id, by=caller.name))


# A plain function would be run in a thread, and so would an endpoint.
async def _caller(request: Request) -> Caller:
    caller: Caller = request.state.caller
    return caller


async def find_job(store: Store, job_id: str) -> Job:
    """The job with this id, or with the only id that starts so (4 digits at least)."""
    job = await store.find(job_id)
    if job is None and len(job_id) >= 4 and job_id.isalnum():
        found = await store.find_by_prefix(job_id)
        if len(found) > 1:
            raise JobNotFound(f"more than one job's id starts with {job_id}")
        job = found[0] if found else None
    if job is None:
        raise JobNotFound(f"no job has the id {job_id}")
    return job


# ---------------------------------------------------------------- events
_LastEventId = Annotated[
    int | None, Header(ge=0, le=2**63 - 1, description="Resume after this event.")
]


def _add_events(app: FastAPI, store: Store) -> None:
    @app.get(
        "/v1/events",
        response_class=EventSourceResponse,
        tags=["events"],
        responses=documented(_UNPROCESSABLE),
    )
    async def all_events(last_event_id: _LastEventId = None) -> AsyncIterator[ServerSentEvent]:
        """Every fact of every job from now on, or after Last-Event-ID."""
        async for event in store.follow(last_event_id):
            yield _sent_event(event)

    async def known_job(job_id: str) -> Job:
        return await find_job(store, job_id)

    @app.get(
        "/v1/jobs/{job_id}/events",
        response_class=EventSourceResponse,
        tags=["events"],
        responses=documented(_NOT_FOUND, _UNPROCESSABLE),
    )
    async def job_events(
        job: Annotated[Job, Depends(known_job)], last_event_id: _LastEventId = None
    ) -> AsyncIterator[ServerSentEvent]:
        """Every fact of one job, from its first (or after Last-Event-ID) to its last."""
        async for event in store.follow(last_event_id or 0, job_id=job.id):
            yield _sent_event(event)


def _sent_event(event: Event) -> ServerSentEvent:
    return ServerSentEvent(id=str(event.seq), event=event.state.value, data=view_event(event))


# ---------------------------------------------------------------- images
def _add_images(app: FastAPI, inventory: Inventory) -> None:
    @app.get("/v1/bases", tags=["images"])
    async def bases() -> BaseList:
        """The golden bases, by name."""
        return BaseList(bases=[view_base(facts, whole=False) for facts in await inventory.bases()])

    @app.get("/v1/bases/{name}", tags=["images"], responses=documented(_NOT_FOUND, _UNPROCESSABLE))
    async def base(name: Name) -> BaseView:
        """One golden base."""
        return view_base(await inventory.base(name), whole=True)

    @app.delete(
        "/v1/bases/{name}",
        status_code=HTTPStatus.NO_CONTENT,
        tags=["images"],
        responses=documented(_NOT_FOUND, _CONFLICT, _UNPROCESSABLE),
    )
    async def remove_base(name: Name) -> None:
        """Remove a base that nothing stands on."""
        await inventory.remove_base(name)

    @app.get("/v1/disks", tags=["images"])
    async def disks() -> DiskList:
        """The disks that provisiond made, by name."""
        return DiskList(disks=[view_disk(facts) for facts in await inventory.disks()])

    @app.delete(
        "/v1/disks/{name}",
        status_code=HTTPStatus.NO_CONTENT,
        tags=["images"],
        responses=documented(_NOT_FOUND, _CONFLICT, _UNPROCESSABLE),
    )
    async def remove_disk(name: Name) -> None:
        """Remove a disk that no domain has."""
        await inventory.remove_disk(name)


# ---------------------------------------------------------------- the host
def _add_domains(app: FastAPI, supervisor: Supervisor, inventory: Inventory) -> None:
    def view(state: DomainState) -> DomainView:
        return view_domain(state, job_id=supervisor.job_at_work_on(state.domain.uuid))

    @app.get("/v1/domains", tags=["host"])
    async def domains() -> DomainList:
        """All domains of the host, by name."""
        return DomainList(domains=[view(state) for state in await inventory.domains()])

    @app.get("/v1/domains/{name}", tags=["host"], responses=documented(_NOT_FOUND))
    async def domain(name: str) -> DomainView:
        """One domain, by its name or UUID."""
        return view(await inventory.domain(name))


def _add_host(
    app: FastAPI,
    supervisor: Supervisor,
    store: Store,
    *,
    hypervisor: Hypervisor,
    xenstore: Xenstore | None,
    metrics: Metrics,
) -> None:
    @app.get("/healthz", tags=["host"])
    async def health(response: Response) -> HealthView:
        """Whether provisiond can take work: 200, or 503 with the same body."""
        xenstore_lost = xenstore is not None and not xenstore.connected
        trouble = await store.trouble()
        reached = hypervisor.connected and not xenstore_lost
        ok = reached and trouble is None and not supervisor.full
        if not ok:
            response.status_code = HTTPStatus.SERVICE_UNAVAILABLE
        return HealthView(
            ok=ok,
            version=__version__,
            hypervisor=hypervisor.uri,
            hypervisor_connected=hypervisor.connected,
            xenstore_connected=None if xenstore is None else xenstore.connected,
            state_trouble=trouble,
            jobs_unfinished=supervisor.unfinished,
        )

    @app.get("/metrics", tags=["host"], response_class=PlainTextResponse)
    async def prometheus() -> Response:
        """Prometheus' exposition format."""
        text = metrics.render(unfinished=supervisor.unfinished, connected=hypervisor.connected)
        return Response(text, media_type=CONTENT_TYPE)


# ---------------------------------------------------------------- limits
_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]


class _BodyLimit:
    """Refuses a body of more than 256 KiB, announced or not (ASGI middleware)."""

    def __init__(self, app: Callable[[Any, _Receive, _Send], Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: _Receive, send: _Send) -> None:
        received = 0

        async def limited() -> _Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > _MAX_BODY:
                raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            return message

        await self._app(scope, limited, send)
