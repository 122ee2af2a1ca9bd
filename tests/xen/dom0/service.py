"""provisiond as systemd runs it in this dom0."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.daemon.command import Command, Ended, Word, end
from tests.daemon.program import Api, Json
from tests.xen.dom0 import host

CONFIG = Path("/etc/provisiond/provisiond.toml")
LABORATORY = Path("/run/systemd/system/provisiond.service.d/laboratory.conf")  # ./install
ISO_FOLDER = Path("/run/provisiond/iso")
STATE_FOLDER = Path("/var/lib/provisiond")
DISK_FOLDER = STATE_FOLDER / "images/disks"


class Service(Api):
    """The installed unit."""

    @property
    def socket(self) -> Path:
        return Path("/run/provisiond/provisiond.sock")

    def said(self) -> str:
        return host.run("journalctl", "--unit=provisiond", "--lines=100", "--no-pager")

    def kill(self) -> None:
        """SIGKILL, as by the kernel when memory is short; systemd starts it again by itself."""
        host.run("systemctl", "kill", "--signal=KILL", "--kill-whom=main", "provisiond")

    async def answered(self) -> None:
        """Returns once it can take work."""
        async with self.http() as http:
            while True:
                try:
                    if (await http.get("/healthz")).status_code == 200:
                        return
                except httpx.TransportError:
                    pass  # it is not up yet
                await asyncio.sleep(0.2)

    async def command(self, *words: Word, stdin: bytes = b"", status: int = 0) -> Ended:
        """`provisionctl`, which has to end with `status`, however slow it is under emulation."""
        said = await end(await Command(self.socket).start(*words), stdin)
        assert said.status == status, f"{said}\n{self.said()}"
        return said

    async def noted(self, job_id: str, beginning: str) -> None:
        """Returns once the history of the job has a line that begins so."""
        async with self.events(f"/v1/jobs/{job_id}/events") as events:
            async for event in events:
                if event["detail"].startswith(beginning):
                    return
        raise AssertionError(
            f"ended, and nothing begins with {beginning}: {await self.job(job_id)}"
        )

    async def jobs(self) -> list[Json]:
        """All jobs, oldest first, without their histories."""
        return list(reversed((await self.get("/v1/jobs")).json()["jobs"]))

    async def job_ids(self) -> list[str]:
        """The ids of all jobs, oldest first."""
        return [str(job["id"]) for job in await self.jobs()]


@contextmanager
def as_shipped() -> Iterator[None]:
    """The unit as an operator has it, without the laboratory's longer watchdog."""
    kept = LABORATORY.read_text()
    LABORATORY.unlink()
    _read_again()
    try:
        yield
    finally:
        LABORATORY.write_text(kept)
        _read_again()


def _read_again() -> None:
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "restart", "provisiond")


def set_up(**settings: float) -> None:
    """Starts the service again, with these settings besides those that it was installed with."""
    with CONFIG.open("a") as config:
        config.writelines(f"{key} = {value}\n" for key, value in settings.items())
    host.run("systemctl", "restart", "provisiond")
