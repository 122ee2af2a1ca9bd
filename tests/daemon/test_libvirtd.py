"""provisiond beside a libvirtd that is a process of its own, dies, hangs and comes back."""

import asyncio
import contextlib
import pwd
import stat
from collections.abc import Awaitable, Callable

import pytest

from tests.daemon.canary import Place, files_below, found, processes
from tests.daemon.notified import Notified
from tests.daemon.program import STORY, Daemon, Json, facts, request
from tests.lab.domain import Guest, kernel_words
from tests.lab.libvirtd import Libvirtd
from tests.lab.program import Running
from tests.virt.guests import domain

pytestmark = pytest.mark.timeout(120)


def start_guest(libvirtd: Libvirtd, name: str, *, delay: int = 0, silent: bool = False) -> Running:
    words = kernel_words(delay=delay, silent=silent)
    (guest,) = libvirtd.start_guests(Guest(name, kernel_words=words))
    return guest


async def until(is_so: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(60):
        while True:
            if await is_so():
                return
            await asyncio.sleep(0.05)


async def health(daemon: Daemon, status: int) -> None:
    """Returns when /healthz answers with `status`."""

    async def answers() -> bool:
        return (await daemon.get("/healthz")).status_code == status

    await until(answers)


async def stuck_in_monitor(libvirtd: Libvirtd, guest: Running) -> None:
    """Returns when a call waits for the guest's QEMU."""

    async def waits() -> bool:
        return await asyncio.to_thread(libvirtd.waits_for_monitor, guest.name)

    await until(waits)


async def waits_for_libvirt(daemon: Daemon, job: Json) -> None:
    """Returns when the job's history says so."""
    async with asyncio.timeout(60), daemon.events(f"/v1/jobs/{job['id']}/events") as events:
        async for event in events:
            if "waits for libvirt" in event["detail"]:
                return
    raise AssertionError(await daemon.job(job["id"]))


def assert_nothing_is_left(daemon: Daemon, libvirtd: Libvirtd, job: Json) -> None:
    assert list(daemon.iso_folder.iterdir()) == []
    assert job["proof"]["disk_absent_from_live_xml"] is True
    assert job["proof"]["iso_file_absent"] is True
    assert ".iso" not in libvirtd.xml(job["subject"])


def secret_places(libvirtd: Libvirtd, daemon: Daemon, guest: Running) -> list[str]:
    """Where the password or a hash is, in all that libvirtd makes of the job, but for the ISO."""
    places = (
        Place("live XML", libvirtd.xml(guest.name).encode()),
        *processes(libvirtd.folder, daemon.folder),
        *files_below(libvirtd.folder, daemon.folder, but=daemon.iso_folder),
    )
    known = {
        "live XML": guest.uuid,
        "arguments of *": f"guest={guest.name}",
        "environment of *": "PATH=",
        f"{daemon.log}": guest.name,
    }
    return found([request(guest.name)["config"]["password"]], places, known=known)


async def test_a_guest_is_provisioned_whose_qemu_is_another_user(
    libvirtd: Libvirtd, system_daemon: Daemon
) -> None:
    guest = start_guest(libvirtd, "plain", delay=2)
    system_daemon.settings["ready_seconds"] = 1
    await system_daemon.start()
    job = await system_daemon.submit(request(guest.name))
    job = await system_daemon.wait_for(job["id"], "ISO_ATTACHED")
    assert stat.S_IMODE(system_daemon.iso_folder.stat().st_mode) == 0o711
    (iso,) = system_daemon.iso_folder.iterdir()
    assert stat.S_IMODE(iso.stat().st_mode) == 0o600
    assert iso.stat().st_uid == pwd.getpwnam("libvirt-qemu").pw_uid
    assert str(iso) in libvirtd.xml(guest.name)
    assert secret_places(libvirtd, system_daemon, guest) == []
    job = await system_daemon.wait_for(job["id"], "SUCCEEDED")
    assert facts(job) == STORY
    assert_nothing_is_left(system_daemon, libvirtd, job)


async def test_libvirtd_killed_while_the_verdict_is_awaited(
    libvirtd: Libvirtd, system_daemon: Daemon
) -> None:
    guest = start_guest(libvirtd, "verdict", delay=4)
    system_daemon.settings["ready_seconds"] = 1
    await system_daemon.start()
    job = await system_daemon.submit(request(guest.name))
    await system_daemon.wait_for(job["id"], "ISO_ATTACHED")
    libvirtd.kill()
    await system_daemon.wait_for(job["id"], "GUEST_CONFIGURED")  # its word takes another way
    libvirtd.start()
    job = await system_daemon.wait_for(job["id"], "SUCCEEDED")
    assert facts(job) == STORY
    assert_nothing_is_left(system_daemon, libvirtd, job)


async def test_libvirtd_killed_just_before_the_attach(
    libvirtd: Libvirtd, system_daemon: Daemon
) -> None:
    guest = start_guest(libvirtd, "attach")
    await system_daemon.start()
    job = await system_daemon.submit(request(guest.name))
    await system_daemon.wait_for(job["id"], "ISO_WRITTEN")
    libvirtd.kill()
    await waits_for_libvirt(system_daemon, job)
    libvirtd.start()
    job = await system_daemon.wait_for(job["id"], "SUCCEEDED")
    assert facts(job) == STORY
    assert_nothing_is_left(system_daemon, libvirtd, job)


async def test_libvirtd_killed_while_the_detach_runs(
    libvirtd: Libvirtd, system_daemon: Daemon
) -> None:
    guest = start_guest(libvirtd, "detach", delay=2)
    system_daemon.settings["ready_seconds"] = 1
    await system_daemon.start()
    job = await system_daemon.submit(request(guest.name))
    await system_daemon.wait_for(job["id"], "ISO_ATTACHED")
    libvirtd.freeze()
    await system_daemon.wait_for(job["id"], "GUEST_CONFIGURED")
    libvirtd.freeze_qemu(guest.name)
    libvirtd.thaw()
    await stuck_in_monitor(libvirtd, guest)
    libvirtd.kill()
    libvirtd.thaw_qemu(guest.name)
    libvirtd.start()
    job = await system_daemon.wait_for(job["id"], "SUCCEEDED")
    assert facts(job) == STORY
    assert_nothing_is_left(system_daemon, libvirtd, job)


async def test_libvirtd_away_beyond_the_deadline_is_the_reason_given_and_nothing_is_left(
    libvirtd: Libvirtd, system_daemon: Daemon
) -> None:
    attached = start_guest(libvirtd, "attached", silent=True)
    written = start_guest(libvirtd, "written", silent=True)
    system_daemon.settings["ready_seconds"] = 1
    await system_daemon.start()
    first = await system_daemon.submit(request(attached.name, deadline_seconds=9))
    await system_daemon.wait_for(first["id"], "ISO_ATTACHED")
    second = await system_daemon.submit(request(written.name, deadline_seconds=5))
    await system_daemon.wait_for(second["id"], "ISO_WRITTEN")
    libvirtd.kill()

    refused = await system_daemon.post(request("third"))
    assert (refused.status_code, refused.json()["code"]) == (503, "hypervisor_unavailable")
    assert "libvirtd" in refused.json()["hint"]
    assert refused.headers["retry-after"]

    await system_daemon.wait_for(first["id"], "UNDOING")
    await system_daemon.wait_for(second["id"], "UNDOING")
    assert len(list(system_daemon.iso_folder.iterdir())) == 2  # a QEMU may still have it open
    libvirtd.start()
    first = await system_daemon.wait_for(first["id"], "FAILED")
    second = await system_daemon.wait_for(second["id"], "FAILED")
    assert first["failure"]["code"] == second["failure"]["code"] == "deadline_exceeded"
    assert "ISO_ATTACHED" in first["failure"]["message"]
    assert "guest's console" in first["failure"]["hint"]  # libvirt was not what it waited for
    assert libvirtd.uri in second["failure"]["message"]
    assert "libvirtd" in second["failure"]["hint"]
    assert_nothing_is_left(system_daemon, libvirtd, first)
    assert_nothing_is_left(system_daemon, libvirtd, second)


async def test_a_guest_that_was_paused_is_the_reason_why_it_did_not_answer(
    libvirtd: Libvirtd, system_daemon: Daemon
) -> None:
    guest = start_guest(libvirtd, "paused", silent=True)
    system_daemon.settings["ready_seconds"] = 1
    await system_daemon.start()
    job = await system_daemon.submit(request(guest.name, deadline_seconds=15))
    await system_daemon.wait_for(job["id"], "ISO_ATTACHED")
    with domain(libvirtd, guest.uuid) as found:
        found.suspend()
        job = await system_daemon.wait_for(job["id"], "FAILED")
        found.resume()
    assert job["failure"]["code"] == "deadline_exceeded"
    assert "The domain is paused" in job["failure"]["hint"]
    assert_nothing_is_left(system_daemon, libvirtd, job)


async def test_provisiond_goes_on_that_was_started_before_libvirtd(
    libvirtd: Libvirtd, system_daemon: Daemon
) -> None:
    guest = start_guest(libvirtd, "early", delay=2)
    system_daemon.settings["ready_seconds"] = 1
    await system_daemon.start()
    job = await system_daemon.submit(request(guest.name))
    await system_daemon.wait_for(job["id"], "ISO_ATTACHED")
    await system_daemon.kill()
    libvirtd.kill()
    await system_daemon.start()
    assert (await system_daemon.get("/healthz")).status_code == 503
    await waits_for_libvirt(system_daemon, job)
    libvirtd.start()
    job = await system_daemon.wait_for(job["id"], "SUCCEEDED")
    await health(system_daemon, 200)
    assert_nothing_is_left(system_daemon, libvirtd, job)


async def test_a_domain_destroyed_while_it_is_configured_is_reported_as_lost(
    libvirtd: Libvirtd, system_daemon: Daemon
) -> None:
    guest = start_guest(libvirtd, "lost", silent=True)
    system_daemon.settings["ready_seconds"] = 1
    await system_daemon.start()
    job = await system_daemon.submit(request(guest.name))
    await system_daemon.wait_for(job["id"], "ISO_ATTACHED")
    libvirtd.destroy_guest(guest.name)
    job = await system_daemon.wait_for(job["id"], "FAILED")
    assert job["failure"]["code"] == "guest_lost"
    assert_nothing_is_left(system_daemon, libvirtd, job)


async def test_libvirtd_that_hangs_is_noticed_and_the_job_goes_on_when_it_is_back(
    libvirtd: Libvirtd, system_daemon: Daemon
) -> None:
    guest = start_guest(libvirtd, "hang", delay=2)
    system_daemon.settings["ready_seconds"] = 1
    await system_daemon.start()
    job = await system_daemon.submit(request(guest.name))
    await system_daemon.wait_for(job["id"], "ISO_ATTACHED")
    libvirtd.freeze()
    await system_daemon.wait_for(job["id"], "GUEST_CONFIGURED")
    await health(system_daemon, 503)
    refused = await system_daemon.post(request("other"))
    assert (refused.status_code, refused.json()["code"]) == (503, "hypervisor_unavailable")
    assert "hangs" in refused.json()["hint"]
    assert await system_daemon.stop() == 0  # whatever libvirtd does
    await system_daemon.start()
    libvirtd.thaw()
    job = await system_daemon.wait_for(job["id"], "SUCCEEDED")
    assert_nothing_is_left(system_daemon, libvirtd, job)


async def test_domains_whose_qemu_hangs_do_not_hold_up_another(
    libvirtd: Libvirtd, system_daemon: Daemon
) -> None:
    """More of them than the five calls that libvirtd works on for one connection."""
    stuck = [start_guest(libvirtd, f"stuck{number}", silent=True) for number in range(6)]
    free = start_guest(libvirtd, "free")
    system_daemon.settings["ready_seconds"] = 1
    await system_daemon.start()
    for guest in stuck:
        libvirtd.freeze_qemu(guest.name)
        await system_daemon.submit(request(guest.name))
    for guest in stuck:
        await stuck_in_monitor(libvirtd, guest)
    job = await system_daemon.submit(request(free.name))
    job = await system_daemon.wait_for(job["id"], "SUCCEEDED")
    assert facts(job) == STORY
    assert ".iso" not in libvirtd.xml(free.name)
    for guest in stuck:
        libvirtd.thaw_qemu(guest.name)


async def test_a_libvirtd_that_holds_every_thread_is_told_to_systemd_and_ends_nobody(
    libvirtd: Libvirtd, system_daemon: Daemon
) -> None:
    with contextlib.closing(Notified(system_daemon, watchdog="2000000")) as notified:
        await system_daemon.start()
        await notified.wait_for("STATUS=0 unfinished jobs", "WATCHDOG=1")
        libvirtd.freeze()
        asked = [asyncio.create_task(system_daemon.get("/v1/domains")) for _ in range(40)]
        await notified.wait_for("STATUS=0 unfinished jobs; libvirt does not answer", "WATCHDOG=1")
        libvirtd.thaw()
        await asyncio.gather(*asked)
        await notified.wait_for("STATUS=0 unfinished jobs", "WATCHDOG=1")
    assert system_daemon.said().count("libvirt: calls that hang hold every thread") == 1
