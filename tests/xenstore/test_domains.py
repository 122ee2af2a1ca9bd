"""A domain is followed by its UUID: through reboots, and through the loss of xenstored."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from provisiond.xenstore.client import Xenstore
from provisiond.xenstore.domains import Domains
from tests.xenstore.connect import SOON, connected
from tests.xenstore.daemon import Xenstored

UUID = "5f0a2a3e-6d0f-4a6c-9d6a-1f9a4a3b2c1d"


@asynccontextmanager
async def followed(xenstore: Xenstore) -> AsyncIterator[Domains]:
    domains = Domains(xenstore)
    task = asyncio.create_task(domains.follow())
    try:
        yield domains
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@pytest.fixture
async def domains(xenstored: Xenstored) -> AsyncIterator[Domains]:
    async with connected(xenstored.socket) as xenstore, followed(xenstore) as domains:
        yield domains


async def becomes(domains: Domains, uuid: str, domid: int | None) -> None:
    """Returns when the domain has this domid; whoever follows it is woken for that."""
    wake = asyncio.Event()
    with domains.following(uuid, wake=wake):
        async with asyncio.timeout(SOON):
            while await domains.domid(uuid) != domid:
                await wake.wait()
                wake.clear()


async def test_a_domain_is_found_by_its_uuid(xenstored: Xenstored) -> None:
    xenstored.introduce(5, uuid=UUID)
    xenstored.introduce(6, uuid="other")
    async with connected(xenstored.socket) as xenstore, followed(xenstore) as domains:
        assert domains.known(UUID) is None
        assert await domains.domid(UUID) == domains.known(UUID) == 5
        assert await domains.domid("other") == 6
        assert await domains.domid("nobody") is None


async def test_a_domain_that_comes_and_goes_is_told(xenstored: Xenstored, domains: Domains) -> None:
    await becomes(domains, UUID, None)
    guest = await asyncio.to_thread(xenstored.introduce, 5, uuid=UUID)
    await becomes(domains, UUID, 5)
    await asyncio.to_thread(guest.shut_down)
    await becomes(domains, UUID, None)


async def test_a_reboot_is_a_new_domid_whichever_comes_first(
    xenstored: Xenstored, domains: Domains
) -> None:
    old = await asyncio.to_thread(xenstored.introduce, 5, uuid=UUID)
    await becomes(domains, UUID, 5)
    new = await asyncio.to_thread(xenstored.introduce, 6, uuid=UUID)
    await becomes(domains, UUID, 6)
    await asyncio.to_thread(old.shut_down)
    await becomes(domains, UUID, 6)
    await asyncio.to_thread(new.shut_down)
    await becomes(domains, UUID, None)
    await asyncio.to_thread(xenstored.introduce, 7, uuid=UUID)
    await becomes(domains, UUID, 7)


async def test_a_dead_domains_home_that_somebody_wrote_into_is_no_domain(
    xenstored: Xenstored, domains: Domains
) -> None:
    await asyncio.to_thread(xenstored.introduce, 5, uuid=UUID)
    await becomes(domains, UUID, 5)
    xenstored.dom0.rm("/local/domain/5/vm")
    with domains.following(UUID, wake=asyncio.Event()):
        await asyncio.to_thread(xenstored.introduce, 6, uuid="other")
        await becomes(domains, "other", 6)
        assert domains.known(UUID) is None


async def test_a_look_that_no_event_has_asked_for_reads_no_domid_that_is_known(
    xenstored: Xenstored,
) -> None:
    xenstored.introduce(5, uuid=UUID)
    async with connected(xenstored.socket) as xenstore:
        domains = Domains(xenstore)
        await domains._look(followed_too=True)
        wake = asyncio.Event()
        with domains.following(UUID, wake=wake):
            xenstored.build_all({6: UUID})  # it came without an event
            await domains._look(followed_too=False)
            assert domains.known(UUID) == 6
            assert wake.is_set()
            assert xenstore.reads["/local/domain/5/vm"] == 1
            await domains._look(followed_too=True)
            assert xenstore.reads["/local/domain/5/vm"] == 2


async def test_nothing_is_known_of_domains_until_xenstored_is_back(
    xenstored: Xenstored, domains: Domains
) -> None:
    await asyncio.to_thread(xenstored.introduce, 5, uuid=UUID)
    await becomes(domains, UUID, 5)
    xenstored.kill()
    xenstored.start()
    xenstored.introduce(9, uuid=UUID)
    await becomes(domains, UUID, 9)


async def test_a_vm_key_that_is_no_uuids_is_passed_over(
    xenstored: Xenstored, domains: Domains
) -> None:
    for domid, vm in ((7, b""), (8, b"/elsewhere/" + UUID.encode()), (9, b"\xff/vm/\x00")):
        xenstored.dom0.write(f"/local/domain/{domid}/vm", vm)
    xenstored.dom0.write("/local/domain/x/vm", f"/vm/{UUID}".encode())
    await asyncio.to_thread(xenstored.introduce, 5, uuid=UUID)
    await becomes(domains, UUID, 5)
