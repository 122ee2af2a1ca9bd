"""xenstored gone in each phase of a provisioning: its store is lost, it comes back empty or never.

A real libvirtd and its QEMU hold the domain and the config ISO, and a real xenstored of the test's
own carries the guest's word, as it does for a Xen guest; the test says the words.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from provisiond.api.replies import JobState
from provisiond.api.requests import DestroyRequest, ProvisionRequest
from provisiond.disk.bases import Bases
from provisiond.disk.disks import Disks
from provisiond.guest.xenstore import XenstoreSignal
from provisiond.iso.image import prepare_folder
from provisiond.job import Job
from provisiond.plan import bases_folder, disks_folder, iso_folder, plan_job, plan_keys
from provisiond.store import Store
from provisiond.story import Limits, Tools
from provisiond.supervisor import Supervisor
from provisiond.threads import Threads
from provisiond.virt.libvirt import Hypervisor
from provisiond.xenstore.client import Xenstore
from provisiond.xenstore.domains import Domains
from provisiond.xenstore.lost_events import LostEvents
from tests.daemon.program import request
from tests.daemon.test_libvirtd import start_guest
from tests.lab.libvirtd import Libvirtd
from tests.lab.program import Running
from tests.xenstore.connect import connected, looked_for
from tests.xenstore.daemon import XenDomain, Xenstored
from tests.xenstore.test_domains import followed

pytestmark = pytest.mark.timeout(180)

S = JobState
DOMID = 5
SOON = 60.0


@dataclass
class Host:
    """The daemon's inside without its HTTP, over one guest that never speaks by itself."""

    libvirtd: Libvirtd
    xenstored: Xenstored
    guest: Running
    domain: XenDomain
    tools: Tools
    supervisor: Supervisor

    def come_back(self) -> None:
        """xenstored with an empty store, into which libxl makes the domain again."""
        self.xenstored.start()
        self.domain = self.xenstored.introduce(DOMID, uuid=self.guest.uuid)

    async def submit(self, **changes: object) -> Job:
        body = ProvisionRequest.model_validate(request(self.guest.name, **changes))
        return (await self.supervisor.submit(body, by="test"))[0]

    async def reached(self, job: Job, *states: JobState) -> Job:
        async with asyncio.timeout(SOON):
            async for event in self.tools.store.follow(0, job_id=job.id):
                if event.state in states:
                    found = await self.tools.store.find(job.id)
                    assert found is not None
                    return found
        raise AssertionError(await self.tools.store.events_after(0, job_id=job.id))

    async def noted(self, job: Job, what: str) -> None:
        async with asyncio.timeout(SOON):
            async for event in self.tools.store.follow(0, job_id=job.id):
                if what in event.detail:
                    return

    async def say(self, job: Job, word: str) -> None:
        """As the guest, once its key is there."""
        nonce = plan_job(job.id, runtime_dir=self.tools.runtime_dir).nonce
        line = f"{nonce} {word}".encode()
        async with asyncio.timeout(SOON):
            while True:
                with contextlib.suppress(PermissionError, FileNotFoundError):
                    await asyncio.to_thread(self.xenstored.dom0.read, plan_keys(DOMID).verdict)
                    await asyncio.to_thread(self.domain.write, "data/provisiond/verdict", line)
                    return
                await asyncio.sleep(0.05)

    @property
    def isos(self) -> list[Path]:
        return list(iso_folder(self.tools.runtime_dir).iterdir())

    def assert_nothing_is_left(self) -> None:
        assert self.isos == []
        assert ".iso" not in self.libvirtd.xml(self.guest.name)
        with contextlib.suppress(FileNotFoundError):
            keys = self.xenstored.dom0.directory(f"{self.domain.home}/data")
            assert "provisiond" not in keys


def tools_over(
    folder: Path, libvirtd: Libvirtd, open_signal: Callable[[Job, Path | None], XenstoreSignal]
) -> Tools:
    images = folder / "images"
    bases = Bases(bases_folder(images), disks=disks_folder(images), reserve=0, max_chain=4)
    disks = Disks(bases, disks_folder(images), reserve=0, max_chain=4)
    return Tools(
        store=Store(folder / "state/provisiond.sqlite"),
        hypervisor=Hypervisor(libvirtd.uri, threads=8),
        bases=bases,
        disks=disks,
        iso_threads=Threads(size=2, name="iso"),
        runtime_dir=folder / "run",
        image_dir=images,
        template_dir=folder / "templates",
        limits=Limits(ready=0.5, attach=30, detach=2),
        slots=asyncio.Semaphore(4),
        disk_slots=asyncio.Semaphore(4),
        image_slots=asyncio.Semaphore(2),
        by_tapdisk=False,
        open_signal=open_signal,
        observe=lambda _before, _after: None,
    )


@contextlib.asynccontextmanager
async def opened(tools: Tools) -> AsyncIterator[None]:
    tools.bases.prepare()
    tools.disks.prepare()
    prepare_folder(iso_folder(tools.runtime_dir), mode=0o711, allow_disk=False)
    await tools.store.open()
    try:
        yield
    finally:
        await tools.store.stop_following()
        await tools.hypervisor.close()
        await tools.store.close()
        for closing in (tools.bases, tools.disks, tools.iso_threads):
            closing.close()


@pytest.fixture
async def host(
    libvirtd: Libvirtd, xenstored: Xenstored, daemon_folder: Path
) -> AsyncIterator[Host]:
    daemon_folder.chmod(0o755)
    guest = start_guest(libvirtd, "web1", silent=True)
    domain = xenstored.introduce(DOMID, uuid=guest.uuid)
    async with (
        connected(xenstored.socket) as xenstore,
        followed(xenstore) as domains,
        looked_for(xenstore) as lost_events,
    ):

        def open_signal(job: Job, _channel: Path | None) -> XenstoreSignal:
            return signal_of(job, xenstore, domains, lost_events, daemon_folder / "run")

        tools = tools_over(daemon_folder, libvirtd, open_signal)
        supervisor = Supervisor(tools, deadline_seconds=600, max_unfinished=10)
        async with opened(tools), supervisor.running():
            yield Host(libvirtd, xenstored, guest, domain, tools, supervisor)


def signal_of(
    job: Job, xenstore: Xenstore, domains: Domains, lost_events: LostEvents, runtime_dir: Path
) -> XenstoreSignal:
    assert job.domain_uuid is not None
    return XenstoreSignal(
        nonce=plan_job(job.id, runtime_dir=runtime_dir).nonce,
        uuid=job.domain_uuid,
        xenstore=xenstore,
        domains=domains,
        lost_events=lost_events,
        reboot_seconds=60.0,
        expects_keys=job.has_reached(S.ISO_ATTACHED),
    )


# ---------------------------------------------------------------- and back
async def test_a_job_that_is_accepted_without_xenstored_goes_on_once_it_is_there(
    host: Host,
) -> None:
    host.xenstored.kill()
    job = await host.submit()
    await host.reached(job, S.ISO_WRITTEN)
    host.come_back()
    await host.reached(job, S.ISO_ATTACHED)
    await host.say(job, "done")
    await host.reached(job, S.SUCCEEDED)
    host.assert_nothing_is_left()


@pytest.mark.parametrize("state", [S.ISO_WRITTEN, S.ISO_ATTACHED])
async def test_a_guest_says_done_after_xenstored_has_lost_its_store(
    host: Host, state: JobState
) -> None:
    job = await host.submit()
    await host.reached(job, state)
    host.xenstored.kill()
    host.come_back()
    await host.reached(job, S.ISO_ATTACHED)
    await host.say(job, "done")
    job = await host.reached(job, S.SUCCEEDED)
    assert job.proof is not None
    host.assert_nothing_is_left()


async def test_the_end_of_a_job_needs_no_xenstored(host: Host) -> None:
    """What it would remove went with the store."""
    job = await host.submit()
    await host.reached(job, S.ISO_ATTACHED)
    host.libvirtd.freeze()
    await host.say(job, "done")
    await host.reached(job, S.GUEST_CONFIGURED)
    host.xenstored.kill()
    host.libvirtd.thaw()
    await host.reached(job, S.SUCCEEDED)
    host.come_back()
    host.assert_nothing_is_left()


async def test_a_cancel_while_xenstored_hangs_waits_for_the_guests_last_word(host: Host) -> None:
    job = await host.submit()
    await host.reached(job, S.ISO_ATTACHED)
    host.xenstored.stop()
    await host.supervisor.cancel(job.id, by="test")
    await host.reached(job, S.UNDOING)
    await host.noted(job, "the guest's last word is not known yet")
    assert len(host.isos) == 1
    host.xenstored.resume()
    job = await host.reached(job, S.FAILED)
    assert job.failure is not None
    assert job.failure.code == "cancelled"
    host.assert_nothing_is_left()


# ---------------------------------------------------------------- and never back
async def test_a_xenstored_that_never_comes_back_costs_the_deadline_and_a_destroy_ends_the_wait(
    host: Host,
) -> None:
    job = await host.submit(deadline_seconds=5)
    await host.reached(job, S.ISO_ATTACHED)
    host.xenstored.kill()
    await host.reached(job, S.UNDOING)
    await host.noted(job, "the guest's last word is not known yet")
    body = {"kind": "destroy", "request_id": "end", "domain": host.guest.name, "force": True}
    end = (await host.supervisor.submit(DestroyRequest.model_validate(body), by="test"))[0]
    await host.reached(end, S.SUCCEEDED)
    job = await host.reached(job, S.FAILED)
    assert job.failure is not None
    assert job.failure.code == "deadline_exceeded"
    assert host.isos == []


async def test_a_job_that_never_saw_xenstored_ends_at_its_deadline(host: Host) -> None:
    host.xenstored.kill()
    job = await host.submit(deadline_seconds=5)
    job = await host.reached(job, S.FAILED)
    assert job.failure is not None
    assert job.failure.code == "deadline_exceeded"
    assert host.isos == []
