"""provisionctl as its users meet it: what it shows, how it ends, and what it never shows."""

import asyncio
import json
import os
import re
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from passlib.hash import sha512_crypt
from pydantic import TypeAdapter

from provisiond.api.replies import DomainList, ErrorReply, EventView, JobList, JobState, JobView
from provisiond.doctor import Check, Level
from tests.daemon.command import PASSWORD, PROVISIONCTL, TYPED, Command, Ended, end
from tests.daemon.program import STORY, Daemon
from tests.lab.console import open_console
from tests.lab.fixtures import TMPFS, fresh_root
from tests.lab.initramfs import GuestFiles
from tests.lab.program import Lab, Running

IP = "10.0.2.15/24"
# XML, and so libvirt, takes U+009B in a name: to a terminal it is the same as ESC [.
HOSTILE_NAME = "mute\u009b31m"
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]")
NO_KERNEL = ("--kernel", "/none")  # the doctor need not boot one here
# The tests with guests share two of them and one daemon, so these share an event loop as well.
with_guests = pytest.mark.asyncio(loop_scope="module")


@dataclass(frozen=True, slots=True)
class Host:
    """A daemon over two guests: one works, one never answers and has an evil name."""

    daemon: Daemon
    web: Running
    mute: Running

    @property
    def command(self) -> Command:
        return Command(self.daemon.socket)

    async def ask(self, guest: Running) -> str:
        """`provisionctl provision` without --wait; the id of the job."""
        said = await self.command.run(*provision(guest), stdin=TYPED)
        assert said.status == 0, said
        (job_id,) = re.findall(r": job ([0-9a-f]{32}) [A-Z_]+\n$", said.out)
        return str(job_id)

    async def undo(self, job_id: str) -> None:
        """So that the next test finds the guest free."""
        await self.daemon.cancel(job_id)
        await self.daemon.wait_for(job_id, "FAILED")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def host(guest_files: GuestFiles) -> AsyncIterator[Host]:
    with fresh_root() as root, tempfile.TemporaryDirectory(prefix="pd-", dir=TMPFS) as folder:
        lab = Lab(root=root, files=guest_files)
        (web,) = lab.start()
        (mute,) = lab.start("--silent", prefix=HOSTILE_NAME)
        daemon = Daemon(Path(folder), {"libvirt_uri": lab.uri, "ready_seconds": 1})
        try:
            await daemon.start()
            yield Host(daemon, web, mute)
        finally:
            await daemon.kill()
            print(f"--- provisiond\n{daemon.log.read_text()}")


@pytest.fixture
def command(daemon: Daemon) -> Command:
    """Over libvirt's test driver, with no guest that could answer."""
    return Command(daemon.socket)


def provision(guest: Running) -> tuple[str, ...]:
    """The words that ask for this guest."""
    return ("provision", guest.uuid, "--hostname", "web1", "--ip", IP, "--password-stdin")


async def in_guest(guest: Running, script: str) -> str:
    async with open_console(guest.shell) as console:
        answer = await console.run(script)
    assert answer.status == 0, answer
    return answer.output


def facts(plain_lines: str) -> list[str]:
    """The states in lines of the form TIME DOMAIN STATE DETAIL."""
    return re.findall(r"^\d{4}-\d\d-\d\dT\S+Z \S+ ([A-Z_]+) .+$", plain_lines, re.MULTILINE)


@contextmanager
def without_reader() -> Iterator[int]:
    """The writing end of a pipe whose reader has left, as `| head -1` leaves."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        yield writer
    finally:
        os.close(writer)


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
        terminal.type(b"\x03")
        said = await terminal.ended()
    assert said.status == 130
    assert f"job {job_id} goes on" in said.out
    assert f"provisionctl watch {job_id}" in said.out
    assert "\x9b" not in said.out
    assert (await host.daemon.job(job_id))["state"] == "ISO_ATTACHED"

    listed = await host.command.run("domains")
    assert f"\trunning\t{host.mute.uuid}\t{job_id}\n" in listed.out
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


# ---------------------------------------------------------------- exit codes, without a guest
TO_WEB1 = ("provision", "web1", "--hostname", "web1")
FROM_STDIN = ("provision", "web1", "--config", "-")
WRONG_USAGE: list[tuple[tuple[str, ...], bytes, str]] = [
    ((), b"", "Usage"),
    (("provision", "web1"), b"", "--hostname"),
    ((*TO_WEB1, "--password-stdin"), b"\n", "empty"),
    ((*TO_WEB1, "--password-stdin"), b"caf\xe9\n", "is not UTF-8"),
    ((*TO_WEB1, "--password-stdin"), b"x" * 9999, "too long"),
    ((*FROM_STDIN, "--password-stdin"), b'{"hostname": "a"}', "taken"),
    (FROM_STDIN, b'{"hostname": "caf\xe9"}', "is not UTF-8"),
    ((*FROM_STDIN, "--ip", IP), b'{"hostname": "a", "interfaces": [{}]}', "'interfaces'"),
]


@pytest.mark.parametrize(("words", "stdin", "named"), WRONG_USAGE)
async def test_wrong_usage_is_2_and_told_before_anybody_is_asked(
    tmp_path: Path, words: tuple[str, ...], stdin: bytes, named: str
) -> None:
    said = await Command(tmp_path / "none").run(*words, stdin=stdin)
    assert said.status == 2
    assert named in said.err


async def test_a_refused_request_is_3_with_code_field_and_hint(
    daemon: Daemon, command: Command
) -> None:
    refused = await command.run("provision", "test", "--hostname", "web_1", "--ip", "10.0.2.15")
    assert refused.status == 3
    assert refused.err.splitlines()[0] == "error: invalid_request: the request is refused"
    assert re.search(r"^  config\.hostname: is no host name", refused.err, re.MULTILINE)
    assert re.search(r"^  config\.ip: ", refused.err, re.MULTILINE)
    assert re.search(r"^hint: ", refused.err, re.MULTILINE)

    words: tuple[str, ...]
    for words, code in (
        (("provision", "test", "--hostname", "\udcff"), "invalid_request"),
        (("provision", "test", "--hostname", "web1"), "no_guest_channel"),
        (("show", "\udcff"), "job_not_found"),
        (("watch", "00ff"), "job_not_found"),
        (("cancel", "00ff"), "job_not_found"),
    ):
        as_json = await command.run(*words, "--json")
        assert (as_json.status, as_json.err) == (3, "")
        assert ErrorReply.model_validate_json(as_json.out).code == code
    assert (await daemon.get("/v1/jobs")).json() == {"jobs": []}


async def test_the_secret_of_stdin_wins_over_the_one_of_the_config(
    command: Command, tmp_path: Path
) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"hostname": "web1", "ip": IP, "password_hash": "*"}))
    said = await command.run(
        "provision", "test", "--config", config, "--password-stdin", stdin=TYPED
    )
    assert said.err.startswith("error: no_guest_channel: "), said  # the config itself is taken


async def test_no_daemon_is_4_and_told_how_to_start_it(tmp_path: Path) -> None:
    command = Command(tmp_path / "none")
    said = await command.run("jobs")
    assert (said.status, said.out) == (4, "")
    assert "daemon_unreachable" in said.err
    assert "systemctl start provisiond" in said.err
    as_json = await command.run("watch", "--json")
    assert (as_json.status, as_json.err) == (4, "")
    assert ErrorReply.model_validate_json(as_json.out).code == "daemon_unreachable"


async def test_a_host_in_trouble_is_5(idle_daemon: Daemon) -> None:
    idle_daemon.settings["libvirt_uri"] = f"qemu+unix:///system?socket={idle_daemon.folder}/none"
    await idle_daemon.start()
    command = Command(idle_daemon.socket)
    assert (await command.run("domains")).status == 5
    as_json = await command.run(*TO_WEB1, "--json")
    assert as_json.status == 5
    assert ErrorReply.model_validate_json(as_json.out).code == "hypervisor_unavailable"


async def test_ctrl_c_at_the_question_for_the_password_is_130(tmp_path: Path) -> None:
    words = (*TO_WEB1, "--password-stdin")
    async with Command(tmp_path / "none").on_terminal(*words) as terminal:
        await terminal.until("Password of the guest: ")
        terminal.type(b"\x03")
        assert (await terminal.ended()).status == 130


# ---------------------------------------------------------------- doctor, lists, pipes, the shell
async def test_doctor_says_of_each_thing_whether_it_is_there(
    daemon: Daemon, command: Command
) -> None:
    settings = daemon.write_settings()
    said = await command.run("doctor", "--config", settings, *NO_KERNEL)
    assert said.status == 0, said
    as_json = await command.run("doctor", "--config", settings, *NO_KERNEL, "--json")
    assert as_json.status == 0
    checks = checks_of(as_json)
    assert {"daemon", "socket", "libvirt", "state_dir", "runtime_dir memory", "swap"} <= set(checks)
    assert checks["libvirt"] is Level.OK
    assert checks["runtime_dir memory"] is Level.OK
    assert re.findall(r"^(?:ok|warn|fail) +([^:]+):", said.out, re.MULTILINE) == list(checks)

    await daemon.kill()
    dead = checks_of(await command.run("doctor", "--config", settings, *NO_KERNEL, "--json"))
    assert dead["daemon"] is Level.WARN


async def test_doctor_is_1_where_something_is_missing(
    idle_daemon: Daemon, command: Command
) -> None:
    idle_daemon.settings["runtime_dir"] = "/proc"
    said = await command.run(
        "doctor", "--config", idle_daemon.write_settings(), *NO_KERNEL, "--json"
    )
    assert said.status == 1
    assert checks_of(said)["runtime_dir memory"] is Level.FAIL
    wrong = await command.run("doctor", "--config", "/none", "--json")
    assert (wrong.status, checks_of(wrong)) == (1, {"settings": Level.FAIL})


def checks_of(said: Ended) -> dict[str, Level]:
    found = TypeAdapter(dict[str, list[Check]]).validate_json(said.out)["checks"]
    return {check.name: check.level for check in found}


async def test_lists_are_tables_on_a_terminal_and_lines_with_tabs_in_a_pipe(
    command: Command,
) -> None:
    plain = await command.run("domains")
    head, row = (line.split("\t") for line in plain.out.splitlines())
    assert head == ["DOMAIN", "ID", "STATE", "UUID", "JOB"]
    assert row[:3] == ["test", "1", "running"]
    async with command.on_terminal("domains") as terminal:
        shown = (await terminal.ended()).out
    assert "\t" not in shown
    assert "\x1b[" in shown
    assert row[3] in shown
    assert (await command.run("jobs")).out == "JOB\tKIND\tSUBJECT\tSTATE\tCREATED\tFAILURE\n"
    as_json = await command.run("jobs", "--json")
    assert JobList.model_validate_json(as_json.out).jobs == []


@pytest.mark.parametrize(
    "words",
    [
        ("jobs",),
        ("domains", "--json"),
        ("doctor", *NO_KERNEL),
    ],
)
async def test_nobody_who_reads_is_no_reason_for_a_traceback(
    command: Command, words: tuple[str, ...]
) -> None:
    with without_reader() as pipe:
        said = await command.run(*words, stdout=pipe)
    assert (said.status, said.err) == (141, "")


DOMAIN = """
  <domain type='test'>
    <name>{}</name><memory>8192</memory><os><type>hvm</type></os>
  </domain>
"""
PRESS_TAB = """
eval "$(provisionctl --show-completion bash)"
COMP_WORDS=(provisionctl "$1" '') COMP_CWORD=2
_provisionctl_completion provisionctl
printf '%s\\n' "${COMPREPLY[@]}"
"""


async def test_bash_is_given_the_domains_but_no_name_that_it_would_not_take_as_it_stands(
    idle_daemon: Daemon,
) -> None:
    names = ["web 2", "web$(reboot)", "web1", "web\u009b31m"]
    node = idle_daemon.folder / "node.xml"
    node.write_text(f"<node>{''.join(map(DOMAIN.format, names))}</node>")
    idle_daemon.settings["libvirt_uri"] = f"test://{node}"
    await idle_daemon.start()
    listed = await Command(idle_daemon.socket).run("domains", "--json")
    found = DomainList.model_validate_json(listed.out).domains
    assert [one.name for one in found] == names
    bash = await asyncio.create_subprocess_exec(
        *("bash", "-c", PRESS_TAB, "bash", "provision"),
        stdout=asyncio.subprocess.PIPE,
        env={
            "PATH": f"{PROVISIONCTL.parent}:{os.environ['PATH']}",
            "LC_ALL": "C.UTF-8",
            "PROVISIOND_SOCKET": str(idle_daemon.socket),
        },
    )
    proposed, _ = await bash.communicate()
    assert bash.returncode == 0
    assert proposed.decode() == "web1\n"
