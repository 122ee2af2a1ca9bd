"""A daemon over a simulated host with many domains, and what is read of both afterwards."""

import asyncio
import json
import re
import sqlite3
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.daemon import KIND
from tests.bench.http import Keeper, kept
from tests.bench.simulated import HOST
from tests.bench.simulated_host import FIRST_DOMID, ends_of, name_of, uuid_of
from tests.daemon.fixtures import fresh_folder
from tests.daemon.program import Daemon, Json
from tests.lab.initramfs import PROJECT
from tests.xenstore.daemon import Xenstored

PASSWORD_HASH = "$6$saltsalt$" + "Ab0./" * 17 + "x"
ON_DISK = Path("/var/tmp")
"""Where SQLite writes: /tmp may be in memory."""
_UNFINISHED = re.compile(rb"^provisiond_jobs_unfinished (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Facts:
    """When a job came to each state, and what the host did for it; Unix times, and seconds."""

    states: dict[str, float]
    host: dict[str, float]


@dataclass
class Crowd:
    """The daemon, its host's process, and how many domains there are."""

    daemon: Daemon
    count: int
    host: subprocess.Popen[bytes]
    said: Path
    state: Path
    jobs: list[str] = field(default_factory=list)

    @property
    def pid(self) -> int:
        assert self.daemon.process is not None
        return self.daemon.process.pid

    async def submit(self, numbers: Sequence[int], *, at_once: int = 8) -> None:
        """A job for each of these domains, as fast as so many masters ask."""
        waiting = list(reversed(numbers))

        async def ask() -> None:
            async with kept(self.daemon.socket) as http:
                while waiting:
                    self.jobs.append(await http.submit(body_of(waiting.pop())))

        await asyncio.gather(*(ask() for _ in range(min(at_once, len(numbers)))))

    async def submit_at_pace(self, numbers: Sequence[int], *, per_second: float) -> None:
        """A job for each of these domains, at a steady pace, whether those before have ended."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        idle: asyncio.Queue[Keeper] = asyncio.Queue()
        async with _connections(self.daemon.socket, 8) as keepers, asyncio.TaskGroup() as tasks:
            for keeper in keepers:
                idle.put_nowait(keeper)
            for turn, number in enumerate(numbers):
                await asyncio.sleep(began + turn / per_second - loop.time())
                tasks.create_task(self._ask(await idle.get(), idle, number))

    async def _ask(self, keeper: Keeper, idle: asyncio.Queue[Keeper], number: int) -> None:
        self.jobs.append(await keeper.submit(body_of(number)))
        idle.put_nowait(keeper)

    async def all_ended(self) -> None:
        """Looks four times a second: no event says that nothing is left."""
        async with kept(self.daemon.socket) as http:
            while await self.unfinished(http):  # noqa: ASYNC110 - it is another process's
                await asyncio.sleep(0.25)

    @staticmethod
    async def unfinished(http: Keeper) -> int:
        _, text = await http.ask("GET", "/metrics")
        found = _UNFINISHED.search(text)
        assert found is not None
        return int(float(found[1]))

    def facts(self) -> list[Facts]:
        """Of all jobs; each must have succeeded. Once the daemon has stopped, and its host."""
        host: dict[str, dict[str, float]] = defaultdict(dict)
        for line in self.said.read_text().splitlines():
            if line != "ready":
                job_id, what, value = json.loads(line)
                host[job_id][what] = value
        states: dict[str, dict[str, float]] = defaultdict(dict)
        with closing(sqlite3.connect(self.state)) as connection:
            rows = connection.execute("SELECT job_id, state, at FROM events ORDER BY seq")
            for job_id, state, at in rows:
                states[job_id].setdefault(state, at)
        failed = [job_id for job_id in self.jobs if "SUCCEEDED" not in states[job_id]]
        assert not failed, f"{len(failed)} jobs of {len(self.jobs)} have not succeeded"
        return [Facts(states[job_id], host[job_id]) for job_id in self.jobs]

    async def end(self) -> None:
        """Stop the daemon and its host, and have both write down what they know."""
        await self.daemon.stop()
        self.host.communicate()


def body_of(number: int) -> Json:
    """The request for a domain: what a master would ask."""
    return {
        "request_id": f"bench-{number}",
        "domain": name_of(number),
        "config": {
            "hostname": f"{name_of(number)}.example.org",
            "ip": "10.0.2.15/24",
            "gateway": "10.0.2.2",
            "password_hash": PASSWORD_HASH,
        },
    }


@asynccontextmanager
async def crowd(count: int, *, think: float | None) -> AsyncIterator[Crowd]:
    """So many domains whose guests answer after `think` seconds, or never; the daemon serves."""
    with ExitStack() as stack:
        store = stack.enter_context(Xenstored())
        _build(store, count)
        folder = stack.enter_context(fresh_folder())
        on_disk = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-", dir=ON_DISK))
        said = folder / "host"
        host = _start_host(folder / "host.sock", store.socket, count, think, said)
        stack.callback(_kill, host)
        daemon = Daemon(
            folder,
            settings_for(count) | {"state_dir": on_disk},
            environment={
                KIND: "simulated",
                HOST: str(folder / "host.sock"),
                "XENSTORED_PATH": str(store.socket),
                "PYTHONPATH": str(PROJECT),
            },
            prefix=(sys.executable, "-m", "tests.bench.daemon"),
        )
        try:
            await daemon.start()
            yield Crowd(daemon, count, host, said, Path(on_disk, "provisiond.sqlite"))
        finally:
            await daemon.kill()


def settings_for(count: int) -> dict[str, object]:
    """Room for that many jobs at work at once, and callers who ask as often as they like."""
    return {
        "libvirt_uri": "xen:///system",
        "max_jobs": min(10_000, max(100, count)),
        "max_jobs_waiting": 10_000,
        "requests_per_second": 1_000_000,
        "deadline_seconds": 7200,
        "log_level": "info",
    }


def _build(store: Xenstored, count: int) -> None:
    """They stand in the store and are not introduced: xenstored would look at each one's ring for
    every request, which is no cost of ours. What they say is written by dom0, and fires the same
    watches. Each has the back end of the disk that it was started from."""
    for domain in store.build_all({FIRST_DOMID + n: uuid_of(n) for n in range(count)}):
        store.dom0.write(f"{domain.home}/feature/hotplug/vbd", b"1")
        _, back = ends_of(domain.domid, "xvda")
        store.dom0.write(f"{back}/params", f"/srv/{domain.domid - FIRST_DOMID}.qcow2".encode())


def _start_host(
    path: Path, store: Path, count: int, think: float | None, said: Path
) -> subprocess.Popen[bytes]:
    seconds = "never" if think is None else str(think)
    argv: list[str | Path] = [sys.executable, "-m", "tests.bench.simulated_host", path, store]
    argv += [str(count), seconds]
    with said.open("wb") as file:
        host = subprocess.Popen(argv, cwd=PROJECT, stdin=subprocess.PIPE, stdout=file)
    while not said.read_text():
        assert host.poll() is None, "the simulated host has ended"
    return host


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


@asynccontextmanager
async def _connections(socket: Path, count: int) -> AsyncIterator[list[Keeper]]:
    if count == 0:
        yield []
        return
    async with kept(socket) as first, _connections(socket, count - 1) as others:
        yield [first, *others]
