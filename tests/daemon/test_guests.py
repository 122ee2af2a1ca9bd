"""End to end: the real daemon, real libvirt and QEMU, a real kernel, the real guest script."""

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from passlib.hash import sha512_crypt

from tests.daemon.canary import files_below, found
from tests.daemon.host import in_guest
from tests.daemon.program import STORY, Daemon, Json, request, states
from tests.lab.initramfs import STEPS
from tests.lab.program import Lab, Running

PASSWORD = "correct horse"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl ops"


async def assert_nothing_is_left(daemon: Daemon, lab: Lab, job: Json) -> None:
    """No ISO, no attachment, and a proof that says so. Ends the daemon, to look for itself."""
    assert list(daemon.iso_folder.iterdir()) == []
    assert job["proof"]["disk_absent_from_live_xml"] is True
    assert job["proof"]["iso_file_absent"] is True
    await daemon.stop()
    assert ".iso" not in lab.xml(job["subject"])


async def test_a_guest_is_provisioned_and_nothing_of_the_secret_is_left(
    lab: Lab, guest_daemon: Daemon
) -> None:
    (guest,) = lab.start()
    await guest_daemon.start()
    body = request(
        guest.name,
        hostname="web1.example.org",
        ip=None,
        interfaces=[
            {
                "mac": guest.mac,
                "addresses": ["10.0.2.15/24", "fd00:2::15/64"],
                "gateway4": "10.0.2.2",
                "gateway6": "fd00:2::2",
                "mtu": 1400,
                "routes": [{"to": "198.51.100.0/24", "via": "10.0.2.9", "metric": 50}],
            }
        ],
        nameservers=["10.0.2.3"],
        search=["example.org"],
        ssh_authorized_keys=[KEY],
        timezone="Europe/Vienna",
    )
    job = await guest_daemon.submit(body)
    job = await guest_daemon.wait_for(job["id"], "SUCCEEDED")
    assert states(job) == STORY
    at = {fact["state"]: fact["at"] for fact in job["history"]}
    assert at["DISKS_CREATED"] == at["ISO_WRITTEN"], "nothing is done between: one save"
    assert job["failure"] is None
    assert job["proof"]["iso_overwritten_and_unlinked"] is True
    assert job["iso_attached_seconds"] > 0

    assert (await in_guest(guest, "hostname")).strip() == "web1"
    addresses = await in_guest(guest, "ip addr show eth0")
    assert "inet 10.0.2.15/24" in addresses
    assert "inet6 fd00:2::15/64" in addresses
    assert "mtu 1400" in addresses
    routes = await in_guest(guest, "ip route; ip -6 route")
    assert "default via 10.0.2.2" in routes
    assert "default via fd00:2::2" in routes
    assert "198.51.100.0/24 via 10.0.2.9" in routes
    assert KEY in await in_guest(guest, "cat /root/.ssh/authorized_keys")
    assert "nameserver 10.0.2.3" in await in_guest(guest, "cat /etc/resolv.conf")
    assert "web1.example.org" in await in_guest(guest, "cat /etc/hosts")
    hashed = (await in_guest(guest, "grep ^root: /etc/shadow")).split(":")[1]
    assert sha512_crypt.verify(PASSWORD, hashed)
    assert "PROVISION" not in await in_guest(guest, "cat /proc/mounts; ls /run")

    await assert_nothing_is_left(guest_daemon, lab, job)
    left = files_below(guest_daemon.folder, lab.root)
    known = {f"{guest_daemon.state_file}": "web1.example.org", f"{guest_daemon.log}": guest.name}
    assert found([PASSWORD, hashed], left, known=known) == []


async def test_each_step_of_the_script_that_fails_is_named_by_the_host(
    lab: Lab, guest_daemon: Daemon
) -> None:
    guests = {step: lab.start("--break", step, prefix=step)[0] for step in STEPS}
    await guest_daemon.start()

    async def provision(guest: Running) -> Json:
        body = request(
            guest.name, nameservers=["10.0.2.3"], ssh_authorized_keys=[KEY], timezone="UTC"
        )
        job = await guest_daemon.submit(body)
        return await guest_daemon.wait_for(job["id"], "FAILED")

    jobs = await asyncio.gather(*map(provision, guests.values()))
    for step, job in zip(STEPS, jobs, strict=True):
        assert (job["failure"]["code"], job["failure"]["step"]) == ("guest_failed", step), job
        assert any(step in line for line in job["guest_log"]), job
        assert states(job)[-3:] == ["ISO_ATTACHED", "UNDOING", "FAILED"]
        assert job["proof"]["iso_overwritten_and_unlinked"] is True
    assert list(guest_daemon.iso_folder.iterdir()) == []


async def test_a_guest_that_never_answers_costs_its_deadline_and_nothing_is_left(
    lab: Lab, guest_daemon: Daemon
) -> None:
    (guest,) = lab.start("--silent")
    guest_daemon.settings["ready_seconds"] = 1
    await guest_daemon.start()
    job = await guest_daemon.submit(request(guest.name, deadline_seconds=6))
    job = await guest_daemon.wait_for(job["id"], "FAILED")
    assert job["failure"]["code"] == "deadline_exceeded"
    assert "ISO_ATTACHED" in job["failure"]["message"]
    assert "guest's console" in job["failure"]["hint"]
    assert states(job)[-3:] == ["ISO_ATTACHED", "UNDOING", "FAILED"]
    (attached,) = (event for event in job["history"] if event["state"] == "ISO_ATTACHED")
    assert "no sign of readiness within 1 s" in attached["detail"]
    await assert_nothing_is_left(guest_daemon, lab, job)


async def test_a_job_whose_time_passed_while_the_daemon_was_away_leaves_no_task(
    lab: Lab, guest_daemon: Daemon
) -> None:
    (guest,) = lab.start("--silent")
    guest_daemon.settings["ready_seconds"] = 60
    await guest_daemon.start()
    job = await guest_daemon.submit(request(guest.name, deadline_seconds=5))
    await guest_daemon.wait_for(job["id"], "ISO_WRITTEN")
    await guest_daemon.kill()
    await asyncio.sleep(5)
    await guest_daemon.start()
    job = await guest_daemon.wait_for(job["id"], "FAILED")
    assert job["failure"]["code"] == "deadline_exceeded"
    await assert_nothing_is_left(guest_daemon, lab, job)
    assert "never retrieved" not in guest_daemon.said(), "a task was left to itself"


async def test_a_cancel_while_waiting_undoes_all_and_frees_the_domain(
    lab: Lab, guest_daemon: Daemon
) -> None:
    (guest,) = lab.start("--silent")
    guest_daemon.settings["ready_seconds"] = 1
    await guest_daemon.start()
    first = await guest_daemon.submit(request(guest.name))
    await guest_daemon.wait_for(first["id"], "ISO_ATTACHED")

    busy = await guest_daemon.post(request(guest.name, request_id="another"))
    assert busy.status_code == 409
    assert busy.json()["code"] == "busy"
    assert first["id"] in busy.json()["message"]
    (domain,) = (await guest_daemon.get("/v1/domains")).json()["domains"]
    assert domain["job_id"] == first["id"]

    cancels = await asyncio.gather(*(guest_daemon.cancel(first["id"]) for _ in range(4)))
    assert {cancel.status_code for cancel in cancels} == {202}
    job = await guest_daemon.wait_for(first["id"], "FAILED")
    assert job["failure"]["code"] == "cancelled"
    assert job["cancel_requested"] is True
    assert job["iso_attached_seconds"] > 0
    again = await guest_daemon.cancel(first["id"])
    assert (again.status_code, again.json()["code"]) == (409, "job_ended")

    second = await guest_daemon.submit(request(guest.name, request_id="another"))
    await guest_daemon.cancel(second["id"])
    job = await guest_daemon.wait_for(second["id"], "FAILED")
    assert job["failure"]["code"] == "cancelled"
    await assert_nothing_is_left(guest_daemon, lab, job)


async def test_the_same_request_twice_is_one_job_and_another_body_is_refused(
    lab: Lab, guest_daemon: Daemon
) -> None:
    (guest,) = lab.start()
    await guest_daemon.start()
    body = request(guest.name)
    replies = await asyncio.gather(*(guest_daemon.post(body) for _ in range(5)))
    assert sorted(reply.status_code for reply in replies) == [200, 200, 200, 200, 202]
    assert len({reply.json()["id"] for reply in replies}) == 1
    for change in ({"hostname": "other"}, {"password": "other"}, {"deadline_seconds": 77}):
        conflict = await guest_daemon.post(request(guest.name, **change))
        assert (conflict.status_code, conflict.json()["code"]) == (409, "request_conflict")
    job = await guest_daemon.wait_for(replies[0].json()["id"], "SUCCEEDED")
    assert (await guest_daemon.post(body)).json()["id"] == job["id"]
    assert len((await guest_daemon.get("/v1/jobs")).json()["jobs"]) == 1


async def test_twenty_guests_at_once(lab: Lab, guest_daemon: Daemon) -> None:
    guests = lab.start(count=20)
    await guest_daemon.start()
    jobs = await asyncio.gather(*(guest_daemon.submit(request(guest.name)) for guest in guests))
    ended = await asyncio.gather(*(guest_daemon.wait_for(job["id"], "SUCCEEDED") for job in jobs))
    assert all(states(job) == STORY for job in ended)
    assert list(guest_daemon.iso_folder.iterdir()) == []
    await guest_daemon.stop()
    for guest in guests:
        assert ".iso" not in lab.xml(guest.name)


async def test_a_guest_is_provisioned_again_with_the_next_generation(
    lab: Lab, guest_daemon: Daemon
) -> None:
    (guest,) = lab.start()
    await guest_daemon.start()
    generations = []
    for name in ("first", "second"):
        job = await guest_daemon.submit(request(guest.name, request_id=name, hostname=name))
        job = await guest_daemon.wait_for(job["id"], "SUCCEEDED")
        generations.append(job["generation"])
        assert (await in_guest(guest, "hostname")).strip() == name
    assert generations[1] > generations[0]

    old = await guest_daemon.submit(
        request(guest.name, request_id="old", hostname="old", generation=generations[0])
    )
    job = await guest_daemon.wait_for(old["id"], "FAILED")
    assert (job["failure"]["code"], job["failure"]["step"]) == ("guest_failed", "config")
    assert (await in_guest(guest, "hostname")).strip() == "second"


@pytest.mark.parametrize("state", ["ISO_WRITTEN", "ISO_ATTACHED"])
async def test_a_killed_daemon_goes_on_where_it_was(
    lab: Lab, guest_daemon: Daemon, state: str
) -> None:
    (guest,) = lab.start("--delay", "8")
    guest_daemon.settings["ready_seconds"] = 1 if state == "ISO_ATTACHED" else 60
    await guest_daemon.start()
    job = await guest_daemon.submit(request(guest.name))
    await guest_daemon.wait_for(job["id"], state)
    await guest_daemon.kill()
    assert [path.name for path in guest_daemon.iso_folder.iterdir()] == [f"{job['id']}.iso"]
    await guest_daemon.start()
    job = await guest_daemon.wait_for(job["id"], "SUCCEEDED")
    assert states(job) == STORY
    await assert_nothing_is_left(guest_daemon, lab, job)


async def test_a_daemon_killed_before_the_iso_was_written_ends_the_job_as_interrupted(
    lab: Lab, guest_daemon: Daemon
) -> None:
    guests = lab.start("--silent", count=2)
    guest_daemon.settings |= {"max_jobs": 1, "ready_seconds": 1}
    await guest_daemon.start()
    working = await guest_daemon.submit(request(guests[0].name))
    await guest_daemon.wait_for(working["id"], "ISO_ATTACHED")
    waiting = await guest_daemon.submit(request(guests[1].name))
    assert (await guest_daemon.job(waiting["id"]))["state"] == "ACCEPTED"
    await guest_daemon.kill()
    await guest_daemon.start()
    await guest_daemon.cancel(working["id"])
    job = await guest_daemon.wait_for(waiting["id"], "FAILED")
    assert job["failure"]["code"] == "interrupted"
    assert "request_id" in job["failure"]["hint"]
    await guest_daemon.wait_for(working["id"], "FAILED")
    assert list(guest_daemon.iso_folder.iterdir()) == []


async def test_a_lost_state_file_leaves_no_secret_behind(lab: Lab, guest_daemon: Daemon) -> None:
    (guest,) = lab.start("--silent")
    guest_daemon.settings["ready_seconds"] = 1
    await guest_daemon.start()
    job = await guest_daemon.submit(request(guest.name))
    await guest_daemon.wait_for(job["id"], "ISO_ATTACHED")
    await guest_daemon.kill()
    shutil.rmtree(guest_daemon.state_file.parent)
    await guest_daemon.start()
    assert list(guest_daemon.iso_folder.iterdir()) == []
    assert (await in_guest(guest, "tr -d '\\000' </dev/sr0 | wc -c")).strip() == "0"
    left = await guest_daemon.post(request(guest.name))
    assert (left.status_code, left.json()["code"]) == (409, "disk_still_attached")
    assert job["target"] is None
    assert f"virsh detach-disk {guest.name} sda" in left.json()["hint"]


async def test_an_iso_that_was_lost_with_the_hosts_memory_interrupts_the_job(
    lab: Lab, guest_daemon: Daemon
) -> None:
    """As after the host's reboot, when libvirt has started the domain again: tmpfs is empty."""
    (guest,) = lab.start("--silent")
    guest_daemon.settings["ready_seconds"] = 1
    await guest_daemon.start()
    job = await guest_daemon.submit(request(guest.name))
    job = await guest_daemon.wait_for(job["id"], "ISO_ATTACHED")
    await guest_daemon.kill()
    (iso,) = guest_daemon.iso_folder.iterdir()
    lab.detach(guest.name, iso, target=job["target"])
    iso.unlink()
    await guest_daemon.start()
    job = await guest_daemon.wait_for(job["id"], "FAILED")
    assert job["failure"]["code"] == "interrupted"
    await assert_nothing_is_left(guest_daemon, lab, job)


async def test_a_cancel_survives_a_killed_daemon(lab: Lab, guest_daemon: Daemon) -> None:
    (guest,) = lab.start("--silent")
    guest_daemon.settings["ready_seconds"] = 1
    await guest_daemon.start()
    job = await guest_daemon.submit(request(guest.name))
    await guest_daemon.wait_for(job["id"], "ISO_ATTACHED")
    assert (await guest_daemon.cancel(job["id"])).status_code == 202
    await guest_daemon.kill()
    await guest_daemon.start()
    job = await guest_daemon.wait_for(job["id"], "FAILED")
    assert job["failure"]["code"] == "cancelled"
    await assert_nothing_is_left(guest_daemon, lab, job)


async def test_a_guest_that_dies_while_it_is_configured_is_reported_at_once(
    lab: Lab, guest_daemon: Daemon
) -> None:
    (guest,) = lab.start("--silent")
    guest_daemon.settings["ready_seconds"] = 1
    await guest_daemon.start()
    job = await guest_daemon.submit(request(guest.name))
    await guest_daemon.wait_for(job["id"], "ISO_ATTACHED")
    os.kill(qemu_pid(lab, guest), signal.SIGKILL)
    job = await guest_daemon.wait_for(job["id"], "FAILED")
    assert job["failure"]["code"] == "guest_lost"
    assert list(guest_daemon.iso_folder.iterdir()) == []
    off = await guest_daemon.post(request(guest.name, request_id="again"))
    assert (off.status_code, off.json()["code"]) == (409, "domain_not_running")


def qemu_pid(lab: Lab, guest: Running) -> int:
    return int((lab.root / f"run/qemu/{guest.name}.pid").read_text())


@pytest.fixture
def small_tmpfs(guest_daemon: Daemon) -> Iterator[Path]:
    """The runtime directory on a tmpfs of its own: 120 KiB hold one ISO (72 KiB), not two."""
    run = guest_daemon.folder / "run"
    run.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=120k", "tmpfs", run], check=True)
    try:
        yield run
    finally:
        subprocess.run(["umount", "--lazy", run], check=True)


async def test_a_full_tmpfs_fails_the_job_and_the_next_one_works(
    lab: Lab, guest_daemon: Daemon, small_tmpfs: Path
) -> None:
    (guest,) = lab.start()
    await guest_daemon.start()
    (small_tmpfs / "filler").write_bytes(b"x" * 100 * 1024)
    job = await guest_daemon.submit(request(guest.name))
    job = await guest_daemon.wait_for(job["id"], "FAILED")
    assert job["failure"]["code"] == "iso_not_written"
    assert "No space left" in job["failure"]["message"]
    assert list(guest_daemon.iso_folder.iterdir()) == []
    (small_tmpfs / "filler").unlink()
    job = await guest_daemon.submit(request(guest.name, request_id="again"))
    job = await guest_daemon.wait_for(job["id"], "SUCCEEDED")
    await assert_nothing_is_left(guest_daemon, lab, job)


async def test_a_taken_target_is_refused_and_a_free_one_is_used(
    lab: Lab, guest_daemon: Daemon
) -> None:
    (guest,) = lab.start()
    other = lab.root / "other.iso"
    other.write_bytes(bytes(64 * 1024))
    lab.attach(guest.name, other, target="sda")
    await guest_daemon.start()
    taken = await guest_daemon.post(request(guest.name, target="sda"))
    assert (taken.status_code, taken.json()["code"]) == (409, "no_free_target")
    assert "sda" in taken.json()["message"]
    job = await guest_daemon.submit(request(guest.name))
    job = await guest_daemon.wait_for(job["id"], "SUCCEEDED")
    assert job["target"] == "sdb"
    await guest_daemon.stop()
    assert str(other) in lab.xml(guest.name)


async def test_a_domain_without_a_scsi_controller_gets_one(lab: Lab, guest_daemon: Daemon) -> None:
    (guest,) = lab.start("--no-scsi")
    await guest_daemon.start()
    job = await guest_daemon.submit(request(guest.name))
    job = await guest_daemon.wait_for(job["id"], "SUCCEEDED")
    await assert_nothing_is_left(guest_daemon, lab, job)


async def test_events_go_on_after_the_last_one_that_was_seen(
    lab: Lab, guest_daemon: Daemon
) -> None:
    (guest,) = lab.start()
    await guest_daemon.start()
    async with guest_daemon.events("/v1/events") as live:
        job = await guest_daemon.submit(request(guest.name))
        seen = []
        async for event in live:
            seen.append(event)
            if event["state"] == "ISO_ATTACHED":
                break
    await guest_daemon.wait_for(job["id"], "SUCCEEDED")
    async with guest_daemon.events(f"/v1/jobs/{job['id']}/events", after=seen[-1]["seq"]) as rest:
        seen += [event async for event in rest]
    assert [event["state"] for event in seen] == STORY
    assert seen == (await guest_daemon.job(job["id"]))["history"]


async def test_the_queue_is_bounded(lab: Lab, guest_daemon: Daemon) -> None:
    guests = lab.start("--silent", count=3)
    guest_daemon.settings |= {"max_jobs": 1, "max_jobs_waiting": 1, "ready_seconds": 1}
    await guest_daemon.start()
    jobs = [await guest_daemon.submit(request(guest.name)) for guest in guests[:2]]
    full = await guest_daemon.post(request(guests[2].name))
    assert (full.status_code, full.json()["code"]) == (503, "too_many_jobs")
    assert full.headers["retry-after"]
    for job in reversed(jobs):
        await guest_daemon.cancel(job["id"])
        await guest_daemon.wait_for(job["id"], "FAILED")
    await guest_daemon.submit(request(guests[2].name))


async def test_the_done_of_a_guest_that_is_being_cancelled_counts_or_is_never_seen(
    lab: Lab, guest_daemon: Daemon
) -> None:
    """Whoever is first wins, at whatever moment the cancel comes."""
    (guest,) = lab.start()
    await guest_daemon.start()
    for attempt in range(6):
        job = await guest_daemon.submit(request(guest.name, request_id=f"race-{attempt}"))
        await guest_daemon.wait_for(job["id"], "ISO_ATTACHED")
        await asyncio.sleep(attempt * 0.5)  # the moment is what varies
        await guest_daemon.cancel(job["id"])
        job = await guest_daemon.wait_for(job["id"], "SUCCEEDED", "FAILED")
        won = "GUEST_CONFIGURED" in states(job)
        assert (job["state"] == "SUCCEEDED") == won
        assert (job["failure"] is None) == won
        assert list(guest_daemon.iso_folder.iterdir()) == []
        applied = await in_guest(guest, "cat /var/lib/provision-guest/applied 2>/dev/null; true")
        if won:
            assert job["id"] in applied
