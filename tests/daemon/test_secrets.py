"""A canary password goes through everything that can happen to a job, with all that can be logged
switched on: it and its hash are on the config ISO alone, and then nowhere."""

import asyncio
import signal
from collections.abc import Sequence
from pathlib import Path

from passlib.hash import sha512_crypt

from tests.daemon.canary import (
    SHA512CRYPT,
    Canary,
    Place,
    files_below,
    found,
    memory,
    open_files,
    processes,
    replies,
    traced,
)
from tests.daemon.command import Command, Ended, end
from tests.daemon.host import in_guest
from tests.daemon.program import Daemon, Json, request
from tests.lab.program import Lab, Running

HOST_NAME = "witness7"


def talkative(daemon: Daemon) -> Daemon:
    """Says all that it can: its own log level is DEBUG; asyncio, warnings and libvirt too."""
    daemon.environment = {
        "PYTHONDEVMODE": "1",
        "LIBVIRT_DEBUG": "1",
        "LIBVIRT_LOG_OUTPUTS": f"1:file:{daemon.folder}/libvirt-debug.log",
        "TMPDIR": str(daemon.folder),
        "WITNESS": "of-the-environment",
    }
    daemon.prefix = traced(daemon.folder / "execs")
    daemon.settings["ready_seconds"] = 1
    return daemon


async def secret_places(
    daemon: Daemon, lab: Lab, secrets: Sequence[str], *, said: Sequence[Ended] = ()
) -> list[str]:
    """Where the secrets are, but for the config ISOs; a daemon that is gone answers nothing."""
    isos = daemon.iso_folder
    places = [
        *files_below(daemon.folder, lab.root, but=isos),
        *processes(daemon.folder, lab.root),
        *(Place("output of provisionctl", (one.out + one.err).encode()) for one in said),
    ]
    known = {
        f"{daemon.log}": "serves on",
        f"{daemon.folder}/libvirt-debug.log": "virDomain",
        f"{daemon.folder}/execs": '"WITNESS=of-the-environment"',
        f"{daemon.state_file}*": HOST_NAME,
        f"{lab.root}/run/qemu/*.xml": "<devices>",
        f"{lab.root}/log/qemu/*.log": "-device",
        "arguments of *": str(lab.root),
        "environment of *": "PATH=",
    }
    if daemon.process is not None and daemon.process.returncode is None:
        places += [*open_files(daemon.process.pid, but=isos), *await replies(daemon)]
        known |= {
            "open in *sqlite*": "SQLite format 3",
            "GET /v1/jobs": "requested_by",
            "GET /v1/jobs/*": '"history"',
            "GET /v1/domains": "running",
            "GET /metrics": "provisiond_jobs",
        }
    return found(secrets, places, known=known)


def hash_on(iso: Path) -> str:
    held = SHA512CRYPT.search(iso.read_bytes())
    assert held is not None
    return held[0].decode()


async def hash_in(guest: Running) -> str:
    return (await in_guest(guest, "grep ^root: /etc/shadow")).split(":")[1]


def wanted(guest: Running, name: str, **changes: object) -> Json:
    return request(guest.name, request_id=name, hostname=HOST_NAME, **changes)


async def ask_by_command(daemon: Daemon, guest: Running, canary: Canary) -> Ended:
    """`provisionctl provision … --password-stdin --wait`, its own processes written down too."""
    command = Command(daemon.socket, prefix=traced(daemon.folder / "execs-of-provisionctl"))
    asked = await command.start(
        *("provision", guest.uuid),
        *("--hostname", HOST_NAME),
        *("--ip", "10.0.2.15/24"),
        *("--password-stdin", "--wait"),
    )
    try:
        return await end(asked, canary.password.encode() + b"\n")
    finally:
        if asked.returncode is None:  # the test has failed meanwhile
            asked.kill()


async def test_the_secret_of_a_job_is_on_its_iso_alone_and_nowhere_once_it_has_ended(
    lab: Lab, guest_daemon: Daemon
) -> None:
    """Success, failure, cancel and deadline; as a clear password, and as a hash of the master's."""
    (works,) = lab.start(prefix="works")
    (breaks,) = lab.start("--break", "password", prefix="breaks")
    silent, late = lab.start("--silent", count=2, prefix="silent")
    to_work, to_break, to_cancel, to_be_late = (Canary() for _ in range(4))
    daemon = talkative(guest_daemon)
    await daemon.start()
    succeeding = asyncio.create_task(ask_by_command(daemon, works, to_work))
    failing = await daemon.submit(
        wanted(breaks, "breaks", password=None, password_hash=to_break.hash)
    )
    passing = await daemon.submit(
        wanted(late, "late", password=None, password_hash=to_be_late.hash, deadline_seconds=12)
    )
    cancelled = await daemon.submit(wanted(silent, "silent", password=to_cancel.password))
    await daemon.wait_for(cancelled["id"], "ISO_ATTACHED")

    hash_made_here = hash_on(daemon.iso_folder / f"{cancelled['id']}.iso")
    secrets = [
        *(to_work.password, to_cancel.password, hash_made_here),
        *(to_break.hash, to_be_late.hash),
    ]
    assert await secret_places(daemon, lab, secrets) == []

    await daemon.cancel(cancelled["id"])
    said = await succeeding
    assert said.status == 0, said
    for job, code in (
        (failing, "guest_failed"),
        (passing, "deadline_exceeded"),
        (cancelled, "cancelled"),
    ):
        ended = await daemon.wait_for(job["id"], "FAILED")
        assert ended["failure"]["code"] == code
    secrets.append(await hash_in(works))
    assert list(daemon.iso_folder.iterdir()) == []
    assert await secret_places(daemon, lab, secrets, said=[said]) == []
    await daemon.stop()
    assert await secret_places(daemon, lab, secrets) == []
    live = lab.xml(works.name)
    assert found(secrets, [Place("live XML", live.encode())], known={"live XML": works.uuid}) == []


async def test_a_secret_outlives_no_crash_no_abort_and_no_stop_but_on_its_iso(
    lab: Lab, guest_daemon: Daemon
) -> None:
    """Whoever resumes the jobs never has it, not even in memory; and the guests have it applied."""
    guests = lab.start("--delay", "8", count=2)
    to_hash, hashed = Canary(), Canary()
    daemon = talkative(guest_daemon)
    await daemon.start()
    asked = (
        wanted(guests[0], "to-hash", password=to_hash.password),
        wanted(guests[1], "hashed", password=None, password_hash=hashed.hash),
    )
    jobs = [await daemon.submit(body) for body in asked]
    for job in jobs:
        await daemon.wait_for(job["id"], "ISO_ATTACHED")
    isos = list(daemon.iso_folder.iterdir())
    secrets = [to_hash.password, *map(hash_on, isos)]
    assert hashed.hash in secrets
    for number in (signal.SIGKILL, signal.SIGABRT, signal.SIGTERM):
        await daemon.end(number)
        assert await secret_places(daemon, lab, secrets) == [], number
        assert {hash_on(iso) for iso in isos} < set(secrets)
        await daemon.start()
    assert daemon.process is not None
    resumed = memory(daemon.process.pid)
    assert found(secrets, resumed, known={"memory *": HOST_NAME}, hashes=False) == []
    for job in jobs:
        await daemon.wait_for(job["id"], "SUCCEEDED")
    assert sha512_crypt.verify(to_hash.password, await hash_in(guests[0]))
    assert await hash_in(guests[1]) == hashed.hash
    assert list(daemon.iso_folder.iterdir()) == []
    assert await secret_places(daemon, lab, secrets) == []
