"""Everything that a daemon is asked for, each sort by a worker that does the same again and again.

A worker leaves nothing behind: no job, disk, base or connection of its own, so that between two
rounds the daemon has what it had before.
"""

import asyncio
import signal
import ssl
import uuid
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import ClassVar

import httpx

from tests.daemon.certificates import Certificate
from tests.daemon.command import Command
from tests.daemon.data_disks import attach_of, detach_of
from tests.daemon.images import MIB, import_of, overlay_of, raw_image
from tests.daemon.program import Daemon, Json, request
from tests.lab.program import Running

PATHS = (
    *("/healthz", "/metrics", "/openapi.json", "/v1/jobs", "/v1/jobs?limit=1000", "/v1/domains"),
    *("/v1/bases", "/v1/disks", "/v1/jobs/absent", "/v1/domains/absent", "/absent"),
)
COMMANDS = (
    ("jobs",),
    ("domains",),
    ("base", "list"),
    ("disk", "list", "--json"),
    ("show", "absent"),
)
TINY = "tiny"  # a base that boots
RELOAD_SECONDS = 0.5
PAUSE = 0.02
DEADLINE = 5  # seconds, the least that a job may have


@dataclass
class Site:
    """A daemon and who works with it. `done` counts what was done, by its name."""

    daemon: Daemon
    port: int
    authority: Certificate
    master: Certificate
    guests: Sequence[Running] = ()
    done: Counter[str] = field(default_factory=Counter)

    async def run(self, body: Json) -> Json:
        """The job of the request at its end, whichever that is."""
        job = await self.daemon.submit(body)
        return await self.daemon.ended(job["id"])

    async def succeed(self, body: Json) -> Json:
        job = await self.run(body)
        assert job["state"] == "SUCCEEDED", job["failure"]
        return job

    async def remove(self, path: str) -> None:
        async with self.daemon.http() as http:
            reply = await http.delete(path)
        assert reply.status_code == 204, reply.text


class Worker(ABC):
    """One sort of work."""

    name: ClassVar[str]

    def __init__(self, site: Site) -> None:
        self.site = site

    @abstractmethod
    async def once(self) -> None:
        """Do it, and take back what is left of it."""

    async def work(self, end: float) -> None:
        """Again and again until this time of the loop's, once at least."""
        while True:
            await self.once()
            self.site.done[self.name] += 1
            await asyncio.sleep(PAUSE)  # the quickest would leave no time for the others
            if asyncio.get_running_loop().time() >= end:
                return


# ---------------------------------------------------------------- files
class Overlays(Worker):
    """An overlay is made and removed."""

    name = "overlays"

    async def once(self) -> None:
        name = f"o{uuid.uuid4().hex[:12]}"
        await self.site.succeed(overlay_of("kept", name=name))
        await self.site.remove(f"/v1/disks/{name}")


class Bases(Worker):
    """A small image is imported, verified and removed."""

    name = "bases"

    async def once(self) -> None:
        name = f"b{uuid.uuid4().hex[:12]}"
        source = self.site.daemon.folder / f"{name}.raw"
        await asyncio.to_thread(raw_image, source, mib=1)
        try:
            await self.site.succeed(import_of(source, name=name))
            verify = {"kind": "verify_base", "base": name, "request_id": f"verify-{name}"}
            await self.site.succeed(verify)
            await self.site.remove(f"/v1/bases/{name}")
        finally:
            source.unlink()


class Verified(Worker):
    """A base that stays is read and found unchanged: the quickest job of all."""

    name = "verified"

    async def once(self) -> None:
        request_id = uuid.uuid4().hex
        verify = {"kind": "verify_base", "base": "verified", "request_id": request_id}
        await self.site.succeed(verify)


class CalledOff(Worker):
    """An import is called off wherever it is just then; one that was quicker is removed."""

    name = "called off"

    async def once(self) -> None:
        name = f"c{uuid.uuid4().hex[:12]}"
        source = self.site.daemon.folder / "kept.raw"
        job = await self.site.daemon.submit(import_of(source, name=name))
        await asyncio.sleep(self.site.done[self.name] % 10 * 0.03)
        await self.site.daemon.cancel(job["id"])
        if (await self.site.daemon.ended(job["id"]))["state"] == "SUCCEEDED":
            await self.site.remove(f"/v1/bases/{name}")


# ---------------------------------------------------------------- what comes to nothing
class Refused(Worker):
    """Requests that make no job."""

    name = "refused"

    async def once(self) -> None:
        no_image = self.site.daemon.folder / "no-image"
        no_image.touch()
        wrong: Sequence[tuple[Json, int]] = (
            (request("absent", request_id=uuid.uuid4().hex), 404),
            (request("absent", ip="300.0.0.1/24"), 422),
            ({"kind": "import_base"}, 422),
            (overlay_of("absent", name="x", request_id=uuid.uuid4().hex), 404),
            (attach_of("absent", size=MIB), 404),
            (import_of(no_image, name="x", request_id=uuid.uuid4().hex), 409),
        )
        for body, status in wrong:
            reply = await self.site.daemon.post(body)
            assert reply.status_code == status, reply.text


# ---------------------------------------------------------------- who looks on
class Reads(Worker):
    """Everything that can be read."""

    name = "reads"

    async def once(self) -> None:
        async with self.site.daemon.http() as http:
            for path in PATHS:
                reply = await http.get(path)
                assert reply.status_code in (200, 404), reply.text


class Streams(Worker):
    """Event streams that are left: while they are silent, at an event, and before the answer."""

    name = "streams"

    async def once(self) -> None:
        async with self.site.daemon.events("/v1/events"):
            pass
        async with self.site.daemon.events("/v1/events", after=0) as events:
            async for _ in events:
                break
        reader, writer = await asyncio.open_unix_connection(self.site.daemon.socket)
        writer.write(b"GET /v1/events HTTP/1.1\r\nHost: provisiond\r\n\r\n")
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        del reader


class Hanging(Worker):
    """Connections that are cut in the middle of a request, or of the TLS greeting."""

    name = "cut off"

    async def once(self) -> None:
        unix = await asyncio.open_unix_connection(self.site.daemon.socket)
        tcp = await asyncio.open_connection("127.0.0.1", self.site.port)
        for _, writer in (unix, tcp):
            writer.write(
                b"POST /v1/jobs HTTP/1.1\r\nHost: provisiond\r\nContent-Length: 9\r\n\r\n{"
            )
            with suppress(OSError):  # the daemon may hang up first: that was no greeting
                await writer.drain()
            writer.transport.abort()


class Remote(Worker):
    """Each request over a new TLS connection; then one without a certificate."""

    name = "tls"

    async def once(self) -> None:
        known = ssl.create_default_context(cafile=str(self.site.authority.certificate))
        unknown = ssl.create_default_context(cafile=str(self.site.authority.certificate))
        known.load_cert_chain(self.site.master.certificate, self.site.master.key)
        async with self._client(known) as http:
            assert (await http.get("/v1/jobs")).status_code == 200
        async with self._client(unknown) as http:
            try:
                await http.get("/v1/jobs")
            except httpx.TransportError:
                pass
            else:
                raise AssertionError("a client without a certificate was answered")

    def _client(self, context: ssl.SSLContext) -> httpx.AsyncClient:
        return httpx.AsyncClient(verify=context, base_url=f"https://127.0.0.1:{self.site.port}")


class Reloads(Worker):
    """The certificates are read again, while connections are made with them."""

    name = "reloads"

    async def once(self) -> None:
        assert self.site.daemon.process is not None
        self.site.daemon.process.send_signal(signal.SIGHUP)
        await asyncio.sleep(RELOAD_SECONDS)


class Commands(Worker):
    """provisionctl, one after the other."""

    name = "commands"

    async def once(self) -> None:
        words = COMMANDS[self.site.done[self.name] % len(COMMANDS)]
        said = await Command(self.site.daemon.socket).run(*words)
        assert said.status == (3 if "absent" in words else 0), said


WITHOUT_GUESTS: Sequence[type[Worker]] = (
    *(Overlays, Overlays, Overlays, Bases, Verified, CalledOff, Refused),
    *(Reads, Streams, Hanging, Remote, Reloads, Commands),
)


# ---------------------------------------------------------------- guests
def expect_failure(job: Json, code: str) -> None:
    assert job["failure"] is not None, job
    assert job["failure"]["code"] == code, job["failure"]


class DataDisks(Worker):
    """A data disk is hot-added to a running guest, taken away and removed."""

    name = "data disks"

    async def once(self) -> None:
        guest = self.site.guests[0].name
        job = await self.site.succeed(attach_of(guest, size=MIB))
        await self.site.succeed(detach_of(guest, job["target"], remove=True))


class Cancelled(Worker):
    """A guest that never answers has its ISO; then its job is called off."""

    name = "cancelled"

    async def once(self) -> None:
        body = request(self.site.guests[1].name, request_id=uuid.uuid4().hex)
        job = await self.site.daemon.submit(body)
        await self.site.daemon.wait_for(job["id"], "ISO_ATTACHED")
        await self.site.daemon.cancel(job["id"])
        expect_failure(await self.site.daemon.ended(job["id"]), "cancelled")


class TimedOut(Worker):
    """The same, and its time ends."""

    name = "timed out"

    async def once(self) -> None:
        name = self.site.guests[2].name
        body = request(name, request_id=uuid.uuid4().hex, deadline_seconds=DEADLINE)
        expect_failure(await self.site.run(body), "deadline_exceeded")


class Configured(Worker):
    """A guest takes its configuration."""

    name = "configured"

    async def once(self) -> None:
        await self.site.succeed(request(self.site.guests[3].name, request_id=uuid.uuid4().hex))


class Made(Worker):
    """A guest is made of a base, and called off while it boots: its domain and its disk go."""

    name = "made"

    async def once(self) -> None:
        body = request("made1", request_id=uuid.uuid4().hex) | {"create": {"base": TINY}}
        job = await self.site.daemon.submit(body)
        await self.site.daemon.wait_for(job["id"], "ISO_WRITTEN")
        await self.site.daemon.cancel(job["id"])
        expect_failure(await self.site.daemon.ended(job["id"]), "cancelled")


WITH_GUESTS: Sequence[type[Worker]] = (DataDisks, Cancelled, TimedOut, Configured, Made)
