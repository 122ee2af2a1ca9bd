"""The real daemon as a process of its own, and the HTTP that its users speak to it."""

import asyncio
import os
import signal
import ssl
import sys
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

PROVISIOND = Path(sys.executable).with_name("provisiond")
START_SECONDS = 30
# Between two looks of a test that no event can wake: the daemon hears a caller 100 times a second.
LOOK_SECONDS = 0.05
Json = dict[str, Any]
# The states of a job that goes well, in their order.
STORY = [
    "ACCEPTED",
    "DISKS_CREATED",
    "DOMAIN_STARTED",
    "ISO_WRITTEN",
    "ISO_ATTACHED",
    "GUEST_CONFIGURED",
    "ISO_DETACHED",
    "SUCCEEDED",
]


class Api(ABC):
    """The HTTP that the users of a running daemon speak to it."""

    @property
    @abstractmethod
    def socket(self) -> Path:
        """The daemon's Unix socket."""

    @abstractmethod
    def said(self) -> str:
        """What the daemon has logged, for the message of a failed test."""

    def http(self, *, seconds: float | None = 30) -> httpx.AsyncClient:
        # Without authorities, which no Unix socket has: to read them would take longer than to ask.
        no_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        transport = httpx.AsyncHTTPTransport(uds=str(self.socket), verify=no_tls)
        return httpx.AsyncClient(transport=transport, base_url="http://provisiond", timeout=seconds)

    async def get(self, path: str) -> httpx.Response:
        async with self.http() as http:
            return await http.get(path)

    async def post(self, body: Json) -> httpx.Response:
        async with self.http() as http:
            return await http.post("/v1/jobs", json=body)

    async def submit(self, body: Json) -> Json:
        reply = await self.post(body)
        assert reply.status_code == 202, reply.text
        return dict(reply.json())

    async def cancel(self, job_id: str) -> httpx.Response:
        async with self.http() as http:
            return await http.delete(f"/v1/jobs/{job_id}")

    async def job(self, job_id: str) -> Json:
        reply = await self.get(f"/v1/jobs/{job_id}")
        assert reply.status_code == 200, reply.text
        return dict(reply.json())

    @asynccontextmanager
    async def events(self, path: str, *, after: int | None = None) -> AsyncIterator["Events"]:
        headers = {} if after is None else {"Last-Event-ID": str(after)}
        async with (
            self.http(seconds=None) as http,
            http.stream("GET", path, headers=headers) as reply,
        ):
            assert reply.status_code == 200, await reply.aread()
            yield Events(reply)

    async def ended(self, job_id: str) -> Json:
        """The job at its end, whichever it is."""
        async with self.events(f"/v1/jobs/{job_id}/events") as events:
            async for _ in events:
                pass
        return await self.job(job_id)

    async def wait_for(self, job_id: str, *states: str) -> Json:
        """The job, once it has come to one of `states` (or has ended in another: a failure)."""
        async with self.events(f"/v1/jobs/{job_id}/events") as events:
            async for event in events:
                if event["state"] in states:
                    return await self.job(job_id)
        job = await self.job(job_id)
        raise AssertionError(f"ended as {job['state']}, not {states}: {job}\n{self.said()}")


@dataclass
class Daemon(Api):
    """`provisiond serve` over one folder: settings, state, runtime directory, socket, log."""

    folder: Path
    settings: dict[str, object]
    environment: Mapping[str, str] = field(default_factory=dict)
    prefix: tuple[str | Path, ...] = ()
    process: asyncio.subprocess.Process | None = None

    @property
    def socket(self) -> Path:
        return self.folder / "provisiond.sock"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def said(self) -> str:
        return self.log.read_text()

    @property
    def iso_folder(self) -> Path:
        return self.folder / "run/iso"

    @property
    def image_dir(self) -> Path:
        return self.folder / "images"

    @property
    def template_dir(self) -> Path:
        return self.folder / "templates"

    @property
    def state_file(self) -> Path:
        return self.folder / "state/provisiond.sqlite"

    def write_settings(self) -> Path:
        settings = {
            "state_dir": str(self.folder / "state"),
            "runtime_dir": str(self.folder / "run"),
            "image_dir": str(self.image_dir),
            "template_dir": str(self.template_dir),
            "reserve_mib": 16,
            "socket": str(self.socket),
            "log_level": "debug",
        } | self.settings
        path = self.folder / "provisiond.toml"
        path.write_text("".join(f"{key} = {_toml(value)}\n" for key, value in settings.items()))
        return path

    async def spawn(self) -> asyncio.subprocess.Process:
        """Start the process without waiting for it to serve."""
        argv = [*self.prefix, PROVISIOND, "serve", "--config", self.write_settings()]
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | dict(self.environment),
            )
        return self.process

    async def start(self) -> None:
        """Start the process and wait until it answers."""
        process = await self.spawn()
        await self.until_it_answers(lambda: process.returncode is not None)

    async def until_it_answers(self, has_ended: Callable[[], bool]) -> None:
        """Wait until the process serves; RuntimeError with its log if it has ended instead."""
        async with asyncio.timeout(START_SECONDS), self.http() as http:
            while True:
                try:
                    await http.get("/healthz")
                except httpx.TransportError:
                    if has_ended():
                        raise RuntimeError(self.log.read_text()) from None
                    await asyncio.sleep(0.02)
                else:
                    return

    async def stop(self) -> int:
        """SIGTERM, and the exit status."""
        return await self.end(signal.SIGTERM)

    async def kill(self) -> None:
        """SIGKILL: the power cut that a test can have."""
        await self.end(signal.SIGKILL)

    async def run_to_its_end(self) -> tuple[int, str]:
        """For a daemon that refuses to start: exit status and what it said."""
        process = await self.spawn()
        async with asyncio.timeout(START_SECONDS):
            status = await process.wait()
        return status, self.log.read_text()

    async def end(self, how: signal.Signals) -> int:
        """End the process by this signal; what it ended with (a signal's number is negative)."""
        if self.process is None:
            return 0
        if self.process.returncode is None:
            self.process.send_signal(how)
        async with asyncio.timeout(START_SECONDS):
            return await self.process.wait()


class Events:
    """Server-sent events as they come: the JSON of each, its id checked against it."""

    def __init__(self, reply: httpx.Response) -> None:
        self._lines = reply.aiter_lines()

    async def __aiter__(self) -> AsyncIterator[Json]:
        event: Json = {}
        async for line in self._lines:
            name, _, value = line.partition(":")
            if name == "data":
                event["data"] = value
            elif name in ("id", "event"):
                event[name] = value.strip()
            elif not line and "data" in event:
                data = httpx.Response(200, content=event["data"]).json()
                assert str(data["seq"]) == event["id"]
                assert data["state"] == event["event"]
                yield data
                event = {}


def request(domain: str, **changes: object) -> Json:
    """The smallest request: ip, host name, password; `changes` go into it or into its config."""
    body: Json = {
        "request_id": f"request-of-{domain}",
        "domain": domain,
        "config": {"hostname": domain, "ip": "10.0.2.15/24", "password": "correct horse"},
    }
    for key, value in changes.items():
        if key in ("request_id", "deadline_seconds", "generation", "target"):
            body[key] = value
        else:
            body["config"][key] = value
    return body


def states(job: Json) -> list[str]:
    """The state of each line of a job's history."""
    return [event["state"] for event in job["history"]]


def facts(job: Json) -> list[str]:
    """The states in their order; a note leaves a job in the state that it has."""
    return list(dict.fromkeys(states(job)))


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else f'"{value}"'
