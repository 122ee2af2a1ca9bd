"""The daemon on a host whose wall clock is set while it works, before and after a restart."""

import asyncio
import itertools
import struct
import time
from collections.abc import Mapping
from pathlib import Path

import httpx
import pytest

from tests.daemon.certificates import make_authority, make_certificate, tls_settings
from tests.daemon.host import in_guest
from tests.daemon.images import import_of, raw_image, run_job
from tests.daemon.program import STORY, Daemon, request
from tests.daemon.test_callers import client
from tests.lab.library import library
from tests.lab.program import Lab

pytestmark = pytest.mark.timeout(180)

HOUR, DAY = 3600, 86400
BOOT_WITHOUT_A_CLOCK = -int(time.time())  # 1970, before NTP has set it
IN_2099 = 73 * 365 * DAY


class WallClock:
    """The wall clock of one daemon: how far it is ahead of the host's, in seconds."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.set(0)

    def set(self, ahead: int) -> None:
        """From now on, for a daemon that runs as well: the file is mapped, eight bytes at once."""
        with self._file.open("r+b" if self._file.exists() else "wb") as opened:
            opened.write(struct.pack("=q", ahead * 10**9))

    @property
    def environment(self) -> Mapping[str, str]:
        source = Path(__file__).with_name("wall_clock.c")
        return {"LD_PRELOAD": str(library(source)), "WALL_CLOCK": str(self._file)}


def with_clock(daemon: Daemon) -> WallClock:
    clock = WallClock(daemon.folder / "clock")
    daemon.environment = clock.environment
    return clock


async def test_the_clock_is_set_at_each_fact_and_nothing_else_is_different(
    lab: Lab, guest_daemon: Daemon
) -> None:
    (guest,) = lab.start()
    clock = with_clock(guest_daemon)
    await guest_daemon.start()
    generations, times = [], []
    jumps = itertools.cycle((IN_2099, DAY, -HOUR, BOOT_WITHOUT_A_CLOCK, 0, -DAY))
    for name in ("first", "second"):
        clock.set(next(jumps))
        async with guest_daemon.events("/v1/events") as events:
            job = await guest_daemon.submit(request(guest.name, request_id=name, hostname=name))
            async for event in events:
                clock.set(next(jumps))
                if event["state"] in ("SUCCEEDED", "FAILED"):
                    break
        job = await guest_daemon.job(job["id"])
        assert job["failure"] is None
        assert [event["state"] for event in job["history"]] == STORY
        generations.append(job["generation"])
        times += [event["at"] for event in job["history"]]
        assert (await in_guest(guest, "hostname")).strip() == name
    assert generations == sorted(set(generations)), "a guest takes no generation twice"
    assert times != sorted(times), "the clock was set"
    listed = (await guest_daemon.get("/v1/jobs")).json()["jobs"]
    assert [job["request_id"] for job in listed] == ["second", "first"]


async def test_a_clock_set_forward_while_no_daemon_runs_ends_no_job(
    lab: Lab, guest_daemon: Daemon
) -> None:
    (guest,) = lab.start("--delay", "5")
    clock = with_clock(guest_daemon)
    guest_daemon.settings["ready_seconds"] = 1
    await guest_daemon.start()
    job = await guest_daemon.submit(request(guest.name))
    await guest_daemon.wait_for(job["id"], "ISO_ATTACHED")
    await guest_daemon.kill()
    clock.set(IN_2099)
    await guest_daemon.start()
    job = await guest_daemon.wait_for(job["id"], "SUCCEEDED")
    clock.set(0)
    assert job["iso_attached_seconds"] > IN_2099, "what is shown is the wall clock's"


async def test_a_clock_set_back_lengthens_no_deadline(lab: Lab, guest_daemon: Daemon) -> None:
    (guest,) = lab.start("--silent")
    clock = with_clock(guest_daemon)
    guest_daemon.settings["ready_seconds"] = 1
    await guest_daemon.start()
    job = await guest_daemon.submit(request(guest.name, deadline_seconds=10))
    await guest_daemon.wait_for(job["id"], "ISO_ATTACHED")
    await guest_daemon.kill()
    clock.set(-DAY)
    await guest_daemon.start()
    async with asyncio.timeout(60):
        job = await guest_daemon.wait_for(job["id"], "FAILED")
    assert job["failure"]["code"] == "deadline_exceeded"
    assert job["iso_attached_seconds"] is None, "nobody knows it"


async def test_a_daemon_that_starts_in_2099_removes_no_history(
    daemon: Daemon, tmp_path: Path
) -> None:
    await run_job(daemon, import_of(raw_image(tmp_path / "image.raw", mib=1), name="golden"))
    await daemon.stop()
    clock = with_clock(daemon)
    clock.set(IN_2099)
    for request_id in ("first", "second"):
        await daemon.start()
        body = {"kind": "verify_base", "request_id": request_id, "base": "golden"}
        await run_job(daemon, body)
        await daemon.stop()
    clock.set(0)
    await daemon.start()
    jobs = (await daemon.get("/v1/jobs")).json()["jobs"]
    assert [job["request_id"] for job in jobs] == ["second", "first", "import-golden"]


async def test_certificates_are_as_old_as_the_clock_says_and_no_connection_ends_by_it(
    idle_daemon: Daemon, tmp_path: Path
) -> None:
    authority = make_authority(tmp_path)
    host = make_certificate(tmp_path, "host", by=authority, ip="127.0.0.1")
    master = make_certificate(tmp_path, "master.example.org", by=authority)
    idle_daemon.settings |= tls_settings(host, clients=authority)
    clock = with_clock(idle_daemon)
    who = {"PROVISIOND_OPERATORS": '["master.example.org"]'}
    idle_daemon.environment = {**idle_daemon.environment, **who}
    await idle_daemon.start()
    async with client(idle_daemon, authority, master) as before:
        assert (await before.get("/v1/jobs")).status_code == 200
        clock.set(IN_2099)
        assert (await before.get("/v1/jobs")).status_code == 200
        async with client(idle_daemon, authority, master) as later:
            with pytest.raises(httpx.TransportError):
                await later.get("/v1/jobs")
    assert (await idle_daemon.get("/v1/jobs")).status_code == 200, "the socket asks for none"
    clock.set(0)
    async with client(idle_daemon, authority, master) as again:
        assert (await again.get("/v1/jobs")).status_code == 200
