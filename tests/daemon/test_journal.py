"""Under a real journald, the lines about a job have fields to filter by, and never a secret."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.daemon.canary import Canary, Place, found
from tests.daemon.program import Daemon, request
from tests.lab.program import Lab

PASSWORD = Canary().password
JOURNALD = "/lib/systemd/systemd-journald"
# A journal of its own: the folders that journald and its clients meet in are this namespace's.
SET_UP = f"""
set -e
mkdir -p /run/systemd /run/log /var/log/journal
for folder in /run/systemd /run/log /var/log/journal; do mount -t tmpfs tmpfs $folder; done
mkdir /run/systemd/journal
exec {JOURNALD}
"""
# systemd names the stream like this to what it starts (systemd.exec(5)).
NAME_STREAM = 'JOURNAL_STREAM=$(stat --dereference --format %d:%i /proc/self/fd/2) exec "$@"'


@pytest.fixture
async def in_journal() -> AsyncIterator[tuple[str, ...]]:
    """The words that run a command beside a journald that nobody else uses."""
    journald = await asyncio.create_subprocess_exec("unshare", "--mount", "sh", "-c", SET_UP)
    beside = ("nsenter", "--mount", "--target", str(journald.pid))
    socket = Path(f"/proc/{journald.pid}/root/run/systemd/journal/stdout")
    try:
        async with asyncio.timeout(20):
            while not socket.exists():
                assert journald.returncode is None
                await asyncio.sleep(0.02)
        yield beside
    finally:
        journald.kill()
        await journald.wait()


async def test_the_journal_has_job_id_and_domain_and_no_secret(
    lab: Lab, guest_daemon: Daemon, in_journal: tuple[str, ...]
) -> None:
    (guest,) = lab.start()
    guest_daemon.prefix = (*in_journal, "systemd-cat", "sh", "-c", NAME_STREAM, "sh")
    await guest_daemon.start()
    job = await guest_daemon.submit(request(guest.name, password=PASSWORD))
    await guest_daemon.wait_for(job["id"], "SUCCEEDED")
    await guest_daemon.stop()

    await run(*in_journal, "journalctl", "--sync")
    of_job = await run(*in_journal, "journalctl", "--output=json", f"JOB_ID={job['id']}")
    lines = [json.loads(line) for line in of_job.splitlines()]
    assert {line["DOMAIN"] for line in lines if "CALLER" not in line} == {guest.name}
    assert {line["SYSLOG_IDENTIFIER"] for line in lines} == {"provisiond"}
    messages = [line["MESSAGE"] for line in lines]
    assert f"{guest.name}: config ISO detached (guest reported done)" in messages
    whole = await run(*in_journal, "journalctl", "--output=export")
    known = {"journal": f"serves on {guest_daemon.socket}"}
    assert found([PASSWORD], [Place("journal", whole.encode())], known=known) == []


async def run(*argv: str) -> str:
    process = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    assert process.returncode == 0
    return output.decode(errors="replace")
