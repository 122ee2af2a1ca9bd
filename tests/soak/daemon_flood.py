"""A real guest floods its channel during its job; the users of the daemon's API wait meanwhile."""

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from time import monotonic, perf_counter
from typing import ClassVar

from tests.daemon.fixtures import fresh_folder
from tests.daemon.program import Daemon, request
from tests.lab.console import Console, open_console
from tests.lab.domain import CHANNEL
from tests.lab.fixtures import fresh_root
from tests.lab.initramfs import guest_files
from tests.lab.program import Lab, Running
from tests.soak.latency import Scene

FLOODS = ("cat /dev/urandom", "yes", "cat /dev/zero", "yes 0123456789abcdef log flood")
# The kernel's own list knows the port; a name that is no device would be a file in the memory.
BEGIN = f"""
for port in /sys/class/virtio-ports/*; do
    [ "$(cat $port/name)" != {CHANNEL} ] || device=/dev/${{{{port##*/}}}}
done
[ -c "$device" ] || exit 1
{{}} >$device & echo $! >/run/flood
"""
STOP = "[ ! -e /run/flood ] || kill -9 $(cat /run/flood); rm -f /run/flood"
PATHS = ("/healthz", "/v1/jobs", "/v1/domains", "/metrics")
TICKS = os.sysconf("SC_CLK_TCK")


class DaemonFlood(Scene):
    """One guest for each flood, whose jobs wait for their verdicts."""

    name: ClassVar[str] = "API, real guests' channels"

    def __init__(self, daemon: Daemon, consoles: list[Console]) -> None:
        self._daemon = daemon
        self._consoles = consoles

    def cpu(self) -> float:
        assert self._daemon.process is not None
        stat = Path(f"/proc/{self._daemon.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(stat[11]) + int(stat[12])) / TICKS

    async def flood(self, *, on: bool) -> None:
        for console, command in zip(self._consoles, FLOODS, strict=True):
            said = await console.run(BEGIN.format(command) if on else STOP)
            assert said.status == 0, said

    def taken(self) -> str:
        return f"{len(FLOODS)} guests"

    async def neighbours(self, seconds: float) -> list[float]:
        waits = []
        end = monotonic() + seconds
        async with self._daemon.http() as http:
            while monotonic() < end:
                for path in PATHS:
                    asked = perf_counter()
                    assert (await http.get(path)).status_code == 200
                    waits.append(perf_counter() - asked)
        return waits


@asynccontextmanager
async def daemon_flood() -> AsyncIterator[DaemonFlood]:
    """The scene, at work; at the end no guest is left."""
    async with AsyncExitStack() as stack:
        root = stack.enter_context(fresh_root())
        folder = stack.enter_context(fresh_folder())
        lab = Lab(root=root, files=guest_files())
        guests = lab.start("--silent", count=len(FLOODS))
        settings = {"libvirt_uri": lab.uri, "ready_seconds": 1, "requests_per_second": 10000}
        daemon = Daemon(folder, settings | {"deadline_seconds": 3600, "log_level": "info"})
        stack.push_async_callback(daemon.kill)
        await daemon.start()
        consoles = [await _console(stack, guest) for guest in guests]
        for guest in guests:
            job = await daemon.submit(request(guest.name))
            await daemon.wait_for(job["id"], "ISO_ATTACHED")
        yield DaemonFlood(daemon, consoles)


async def _console(stack: AsyncExitStack, guest: Running) -> Console:
    return await stack.enter_async_context(open_console(guest.shell))
