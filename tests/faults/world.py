"""What is on the host while a daemon serves, and what of it no daemon may leave behind."""

import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.daemon.images import files_of
from tests.daemon.program import Daemon, Json
from tests.faults.breakpoint import Breakpoint
from tests.faults.hypervisor import GuestHost
from tests.faults.volumes import Place, Volumes
from tests.lab.embed import qemu_pids

PASSWORD = b"correct horse"  # what `program.request` asks for
LIBVIRTS_OWN = "libvirt's own"


@dataclass
class Host:
    """A daemon that can be stopped at a call; with `guests`, libvirt and QEMU as well.

    With `volumes` its files are on file systems of their own; `rebooted` is true once their power
    was cut: no guest runs then. Without `has_room` the daemon may refuse.
    """

    folder: Path
    breakpoint: Breakpoint
    daemon: Daemon
    guests: GuestHost | None = None
    volumes: Volumes | None = None
    rebooted: bool = False
    has_room: bool = True

    async def lose_power(self) -> None:
        """All of the host at once, at this very moment, and its next start; no daemon runs."""
        assert self.volumes is not None
        self.volumes.cut()
        await self.daemon.kill()
        if self.guests is not None:
            self.guests.end_all()
        self.volumes.restore()
        self.daemon.socket.unlink(missing_ok=True)
        self.rebooted = True

    @contextmanager
    def without_room(self, place: Place) -> Iterator[None]:
        """One of the file systems is full until the block is left."""
        assert self.volumes is not None
        with self.volumes.full(place):
            self.has_room = False
            yield
        # What was asked for meanwhile may still be answered with 507.

    async def get(self, path: str) -> Json:
        reply = await self.daemon.get(path)
        assert reply.status_code == 200, reply.text
        return dict(reply.json())

    async def delete(self, path: str) -> int:
        async with self.daemon.http() as http:
            return (await http.delete(path)).status_code

    # ------------------------------------------------------------ jobs
    async def job_of(self, request_id: str) -> Json | None:
        """The job of a request; None where the daemon does not know it."""
        jobs = (await self.get("/v1/jobs"))["jobs"]
        return next((job for job in jobs if job["request_id"] == request_id), None)

    async def run(self, body: Json) -> Json:
        """The job of the request at its end."""
        return await self.daemon.ended((await self.daemon.submit(body))["id"])

    # ------------------------------------------------------------ what is there
    def files(self) -> list[str]:
        """Every file below the folder of images."""
        return list(files_of(self.daemon))

    async def domains(self) -> dict[str, Json]:
        return {one["name"]: one for one in (await self.get("/v1/domains"))["domains"]}

    async def leftovers(self) -> list[str]:
        """What must not be there when every job has ended, whatever became of it."""
        return [*await self._left_in_the_daemon(), *self._left_in_files(), *await self._left_qemu()]

    async def _left_in_the_daemon(self) -> list[str]:
        jobs = (await self.get("/v1/jobs"))["jobs"]
        return [
            f"{job['kind']} is still {job['state']}"
            for job in jobs
            if job["state"] not in ("SUCCEEDED", "FAILED")
        ]

    def _left_in_files(self) -> Iterator[str]:
        isos = self.daemon.iso_folder
        for path in isos.iterdir() if isos.exists() else ():
            yield f"{path.relative_to(self.folder)} is left"
        for name in self.files():
            if Path(name).name.startswith(".") or name.endswith(".part"):
                yield f"{name} is left"
        for path in (self.daemon.log, *self.daemon.state_file.parent.iterdir()):
            if PASSWORD in path.read_bytes():
                yield f"the password stands in {path.name}"
        yield from _damage(self.daemon.state_file)

    async def _left_qemu(self) -> list[str]:
        """A QEMU that libvirt does not know is one that it forgot when it died with the daemon."""
        if self.guests is None:
            return []
        domains = await self.domains()
        left = [
            f"{name} has {disk['source']}, which is not there"
            for name, domain in domains.items()
            for disk in domain["disks"]
            if disk["source"] and not Path(disk["source"]).exists()
        ]
        running = sum(domain["state"] != "off" for domain in domains.values())
        extra = len(list(qemu_pids(self.guests.root))) - running
        return [*left, f"{LIBVIRTS_OWN}: {extra} QEMU without a domain"] if extra > 0 else left

    async def base_problems(self, name: str) -> list[str]:
        """In what a base is not what its manifest says, or could be changed."""
        base = await self.get(f"/v1/bases/{name}")
        path = Path(base["path"])
        problems = [f"base {name}: {base['changed']}"] if base["changed"] else []
        if hashlib.sha256(path.read_bytes()).hexdigest() != base["sha256"]:
            problems.append(f"base {name} holds other data")
        if path.stat().st_mode & 0o777 != 0o444 or path.stat().st_nlink != 1:
            problems.append(f"base {name}: mode or number of names is wrong")
        return problems


def _damage(state_file: Path) -> Iterator[str]:
    with closing(sqlite3.connect(f"file:{state_file}?mode=ro", uri=True)) as connection:
        (said,) = connection.execute("PRAGMA integrity_check").fetchone()
    if said != "ok":
        yield f"the state file is damaged: {said}"


def died(error: BaseException) -> bool:
    """Whether an error of a request is that the daemon went away."""
    return isinstance(error, httpx.TransportError | RuntimeError)
