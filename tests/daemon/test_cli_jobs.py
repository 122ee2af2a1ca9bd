"""provisionctl and the jobs of real guests: what it shows, how it ends, what it never shows."""

import asyncio
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from passlib.hash import sha512_crypt

from provisiond.api.replies import DomainList, EventView, JobList, JobState, JobView
from tests.daemon.command import PASSWORD, TYPED, Command, end, facts, without_reader
from tests.daemon.host import HOSTILE_NAME, Host, in_guest, provision, with_guests
from tests.daemon.program import STORY, Daemon

OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]")


# ---------------------------------------------------------------- a guest that works
@with_guests
async def test_on_a_terminal_the_way_is_shown_live_and_the_password_is_asked_for(
    host: Host,
) -> None:
    async with host.command.on_terminal(*provision(host.web), "--wait") as terminal:
        await terminal.until("Password of the guest: ")
        terminal.type(TYPED)
        await terminal.until("Repeat for confirmation: ")
        terminal.type(TYPED)
        said = await terminal.ended()
    assert said.status == 0
    assert "\x1b[?25l" in said.out  # the cursor is hidden while lines are drawn again
    assert "\x1b[?25h" in said.out  # and shown at the end
    assert "the guest configures itself" in said.out
    last_drawn = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", said.out.rpartition("\x1b[2K")[2])
    assert re.search(r"web1: SUCCEEDED in \d+\.\d s\r\n$", last_drawn)
    for state in STORY:
        assert f"✔ {state}" in said.out

    hashed = (await in_guest(host.web, "grep ^root: /etc/shadow")).split(":")[1]
    assert sha512_crypt.verify(PASSWORD, hashed)


@with_guests
async def test_a_failure_in_the_guest_is_told_in_plain_lines_with_step_and_hint(host: Host) -> None:
    await in_guest(host.web, "rm -f /etc/hostname && mkdir /etc/hostname")
    try:
        said = await host.command.run(*provision(host.web), "--wait", stdin=TYPED)
    finally:
        await in_guest(host.web, "rmdir /etc/hostname && echo web1 >/etc/hostname")
    assert said.status == 1
    assert facts(said.out) == [*STORY[:5], "UNDOING", "FAILED"]
    assert "web1: guest's step: hostname\n" in said.out
    assert re.search(
        r"^web1: failure: guest_failed: .*/etc/hostname is a directory", said.out, re.MULTILINE
    )
    assert re.search(r"^web1: hint: .*provisionctl show", said.out, re.MULTILINE)
    assert re.search(r"^web1: guest log: .*hostname", said.out, re.MULTILINE)
    assert not OBEYED.search(said.out + said.err)

    (newest, *_) = JobList.model_validate_json(
        (await host.command.run("jobs", "--limit", "1", "--json")).out
    ).jobs
    shown = await host.command.run("show", newest.id[:8])
    assert shown.status == 0
    assert re.search(rf"^job: +{newest.id}$", shown.out, re.MULTILINE)
    assert re.search(r"^kind: +provision$", shown.out, re.MULTILINE)
    assert re.search(r"^guest's step: +hostname$", shown.out, re.MULTILINE)
    as_json = JobView.model_validate_json(
        (await host.command.run("show", newest.id[:8], "--json")).out
    )
    assert as_json.failure is not None
    assert (as_json.id, as_json.failure.step) == (newest.id, "hostname")
    again = await host.command.run("watch", newest.id[:8])
    assert again.status == 1
    assert again.out == said.out
    told = await host.command.run("watch", newest.id[:8], "--json")
    assert told.status == 1
    events = [EventView.model_validate_json(line) for line in told.out.splitlines()]
    assert events == as_json.history


# ---------------------------------------------------------------- a guest that never answers
@with_guests
async def test_ctrl_c_ends_the_waiting_and_the_job_goes_on(host: Host) -> None:
    job_id = await host.ask(host.mute)
    async with host.command.on_terminal("watch", job_id[:8]) as terminal:
        await terminal.until("✔ ISO_ATTACHED")
        said = await terminal.interrupted()
    assert said.status == 130
    assert f"job {job_id} goes on" in said.out
    assert f"provisionctl watch {job_id}" in said.out
    assert "\x9b" not in said.out + host.daemon.said()
    assert (await host.daemon.job(job_id))["state"] == "ISO_ATTACHED"

    listed = await host.command.run("domains")
    assert re.search(rf"\trunning\t.*\t{job_id}\t{host.mute.uuid}$", listed.out, re.MULTILINE)
    found = DomainList.model_validate_json((await host.command.run("domains", "--json")).out)
    assert {one.name: one.job_id for one in found.domains} == {
        host.web.name: None,
        host.mute.name: job_id,
    }
    await host.undo(job_id)


@with_guests
async def test_cancel_ends_a_job_that_somebody_waits_for(host: Host) -> None:
    async with host.daemon.events("/v1/events") as events:
        waiting = await host.command.start(*provision(host.mute), "--wait", "--json")
        ending = asyncio.create_task(end(waiting, TYPED))
        job_id = (await anext(aiter(events)))["job_id"]
    for secret_place in (f"/proc/{waiting.pid}/cmdline", f"/proc/{waiting.pid}/environ"):
        assert PASSWORD.encode() not in Path(secret_place).read_bytes()

    cancelled = await host.command.run("cancel", job_id[:8], "--json")
    assert cancelled.status == 0
    assert JobView.model_validate_json(cancelled.out).cancel_requested is True
    async with asyncio.timeout(30):
        said = await ending
    assert said.status == 1
    job = JobView.model_validate_json(said.out)
    assert job.failure is not None
    assert (job.id, job.failure.code) == (job_id, "cancelled")
    assert said.err == ""

    again = await host.command.run("cancel", job_id)
    assert (again.status, again.out) == (3, "")
    assert "job_ended" in again.err


@with_guests
async def test_watch_tells_of_every_job_until_ctrl_c(host: Host) -> None:
    watching = await host.command.start("watch", "--json")
    assert watching.stdout is not None
    reading = asyncio.create_task(watching.stdout.readline())
    while not reading.done():  # what happens before it has asked is not for it
        await host.undo(await host.ask(host.mute))
    event = EventView.model_validate_json(await reading)
    assert event.subject == host.mute.name
    watching.send_signal(signal.SIGINT)
    said = await end(watching)
    assert (said.status, said.err) == (130, "")
    for line in said.out.splitlines():
        EventView.model_validate_json(line)


@with_guests
async def test_what_a_hostile_guest_says_never_reaches_the_terminal_raw(host: Host) -> None:
    job_id = await host.ask(host.mute)
    await host.daemon.wait_for(job_id, "ISO_ATTACHED")
    await in_guest(
        host.mute,
        r"""
        set -e
        mkdir -p /mnt
        until mount -t iso9660 -o ro /dev/sr0 /mnt; do usleep 100000; done
        nonce=$(sed -n 's/^NONCE=//p' /mnt/provision.conf)
        umount /mnt
        for port in /sys/class/virtio-ports/*; do
            [ "$(cat $port/name)" != org.provisiond.0 ] || device=/dev/${port##*/}
        done
        printf "$nonce log \033]0;owned\007 \302\23331m and \342\200\256\n" >$device
        printf "$nonce failed hostname \033[2J\r owned\n" >$device
        """,
    )
    await host.daemon.wait_for(job_id, "FAILED")
    outputs = [
        await host.command.run(*words)
        for words in (
            ("watch", job_id),
            ("show", job_id, "--json"),
            ("jobs",),
            ("domains", "--json"),
        )
    ]
    for said in outputs:
        assert not OBEYED.search(said.out + said.err), said
    assert "]0;owned" in outputs[0].out
    assert "[2J" in outputs[0].out
    assert DomainList.model_validate_json(outputs[-1].out).domains[0].name.startswith(HOSTILE_NAME)
    async with host.command.on_terminal("show", job_id) as terminal:
        shown = (await terminal.ended()).out
    assert not OBEYED.search(re.sub(r"\x1b\[[0-9;]*m|\r\n", "", shown))  # colours are our own
    assert "]0;owned" in shown


@with_guests
async def test_where_the_reply_was_lost_the_request_id_is_told_and_gives_the_same_job(
    host: Host,
) -> None:
    async with losing_replies(host.daemon) as socket:
        lost = await Command(socket).run(*provision(host.mute), stdin=TYPED)
    assert lost.status == 4
    assert "reply_lost" in lost.err
    (request_id,) = re.findall(r"--request-id ([0-9a-f]{32})", lost.err)
    (accepted, *_) = (await host.daemon.get("/v1/jobs")).json()["jobs"]
    assert accepted["request_id"] == request_id
    words = (*provision(host.mute), "--request-id", request_id, "--json")
    again = await host.command.run(*words, stdin=TYPED)
    assert again.status == 0
    assert JobView.model_validate_json(again.out).id == accepted["id"]
    await host.undo(accepted["id"])


@asynccontextmanager
async def losing_replies(daemon: Daemon) -> AsyncIterator[Path]:
    """A socket that carries every request to the daemon and breaks off where its reply begins."""
    socket = daemon.folder / "losing.sock"

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_daemon, to_daemon = await asyncio.open_unix_connection(daemon.socket)

        async def forward() -> None:
            while chunk := await reader.read(65536):
                to_daemon.write(chunk)

        forwarding = asyncio.create_task(forward())
        await from_daemon.read(1)
        forwarding.cancel()
        for one in (writer, to_daemon):
            one.close()
            await one.wait_closed()

    async with await asyncio.start_unix_server(carry, socket):
        yield socket


@with_guests
async def test_nobody_who_reads_ends_the_waiting_without_a_word(host: Host) -> None:
    with without_reader() as pipe:
        waiting = await host.command.start(*provision(host.mute), "--wait", stdout=pipe)
        said = await end(waiting, TYPED)
    assert (said.status, said.err) == (141, "")
    (job, *_) = (await host.daemon.get("/v1/jobs")).json()["jobs"]
    assert JobState(job["state"]).ended is False
    await host.undo(job["id"])
