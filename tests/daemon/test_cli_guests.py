"""provisionctl create and destroy, and looking at real guests: domains, ip, ips, ssh."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from provisiond.api.replies import DomainList, DomainView, ErrorReply, JobState, JobView
from tests.daemon.command import PASSWORD, PROVISIONCTL, TYPED, Command, facts, rows
from tests.daemon.host import Host, with_guests
from tests.daemon.images import import_of, run_job
from tests.daemon.program import STORY
from tests.daemon.test_create import told, write_template
from tests.lab.disk import DiskGuestFiles
from tests.ssh.server import IPV4, IPV6, Server, make_key, running_server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def making(host: Host, disk_guest_files: DiskGuestFiles) -> Host:
    """The host, with the base `tiny` and the templates of guests that boot from it."""
    write_template(host.daemon, host.lab, disk_guest_files, "lab.silent")
    await run_job(host.daemon, import_of(disk_guest_files.image, name="tiny"))
    return host


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def reachable(host: Host) -> Host:
    """The host, whose guest web1 was given the addresses on which an sshd answers."""
    config = host.daemon.folder / "config.json"
    config.write_text(
        f'{{"hostname": "web1", "interfaces": [{{"mac": "{host.web.mac}",'
        f' "addresses": ["{IPV4}/24", "{IPV6}/64"]}}]}}'
    )
    said = await host.command.run("provision", host.web.uuid, "--config", config, "--wait")
    assert said.status == 0, said
    return host


@pytest.fixture
def command(host: Host) -> Command:
    return host.command


def create(name: str, *more: str | Path) -> tuple[str | Path, ...]:
    """The words that ask for a new guest."""
    asked = ("--base", "tiny", "--hostname", f"{name}.example.org", "--password-stdin")
    return ("create", name, *asked, "--ip", "192.0.2.20/24", *more)


async def domains_of(command: Command) -> dict[str, dict[str, str]]:
    """What `domains` tells, by name."""
    return {row["DOMAIN"]: row for row in rows((await command.run("domains")).out)}


async def disks_of(command: Command) -> set[str]:
    return {row["DISK"] for row in rows((await command.run("disk", "list")).out)}


# ---------------------------------------------------------------- create and destroy
@with_guests
async def test_a_guest_is_made_shown_and_destroyed_by_a_person_who_is_asked_first(
    making: Host, command: Command
) -> None:
    said = await command.run(
        *create("new1", "--size", "64M", "--memory", "112M", "--wait"), stdin=TYPED
    )
    assert (said.status, said.err) == (0, "")
    assert facts(said.out) == STORY
    assert re.search(r"^new1: SUCCEEDED in \d+\.\d s$", said.out, re.MULTILINE)
    assert (await told(making.lab, "new1", "hostname")).strip() == "new1"
    row = (await domains_of(command))["new1"]
    assert (row["STATE"], row["ADDRESSES"], row["DISKS"], row["JOB"]) == (
        "running",
        "192.0.2.20 (job)",
        "vda (new1)",
        "-",
    )
    assert (await command.run("ip", "new1")).out == "192.0.2.20\tjob\n"
    root = await command.run("disk", "detach", "new1", "vda")
    assert root.status == 3
    assert "error: disk_in_use: new1: vda is what the domain was made with" in root.err
    attached = await command.run("disk", "attach", "new1", "--size", "16M", "--name", "data")
    assert attached.out.endswith(" is attached as vdb\n")

    async with command.on_terminal("destroy", "new1") as terminal:
        await terminal.until("Destroy it? [y/N]: ")
        terminal.type(b"n\n")
        said = await terminal.ended()
    assert said.status == 1
    assert said.out.rstrip().endswith("new1: nothing was done")
    async with command.on_terminal("destroy", "new1") as terminal:
        await terminal.until("Destroy it? [y/N]: ")
        said = await terminal.interrupted()
    assert said.status == 130
    assert "^C" in said.out.splitlines()[-1]
    assert (await domains_of(command))["new1"]["STATE"] == "running"
    async with command.on_terminal("destroy", "new1", "--remove-data") as terminal:
        await terminal.until("Destroy it? [y/N]: ")
        terminal.type(b"y\n")
        said = await terminal.ended()
    assert said.status == 0
    assert "new1 is running. Its overlay and its data disks are removed with it." in said.out
    assert "✔ DOMAIN_REMOVED" in said.out
    assert "new1" not in await domains_of(command)
    assert not {"new1", "data"} & await disks_of(command)


@with_guests
@pytest.mark.usefixtures("making")
async def test_json_is_one_document_and_a_pipe_is_not_asked(command: Command) -> None:
    said = await command.run(*create("new2", "--wait", "--json"), stdin=TYPED)
    assert (said.status, said.err) == (0, "")
    job = JobView.model_validate_json(said.out)
    assert (job.subject, job.state) == ("new2", JobState.SUCCEEDED)
    assert [event.state for event in job.history or []] == STORY
    assert job.proof is not None
    data = await command.run("disk", "attach", "new2", "--size", "16M", "--name", "kept")
    assert data.status == 0, data

    said = await command.run("destroy", "new2", "--json")
    assert (said.status, said.err) == (0, "")
    ended = JobView.model_validate_json(said.out)
    assert (ended.domain_uuid, ended.state) == (job.domain_uuid, JobState.SUCCEEDED)
    assert {"new2", "kept"} & await disks_of(command) == {"kept"}
    assert (await command.run("disk", "remove", "kept")).status == 0
    again = await command.run("destroy", "new2")
    assert again.status == 3
    assert "error: domain_not_found: " in again.err


@with_guests
async def test_every_option_reaches_the_request_and_a_failure_leaves_nothing(
    making: Host, command: Command, tmp_path: Path
) -> None:
    public = make_key(tmp_path / "key").with_suffix(".pub")
    said = await command.run(
        *create("new3", "--gateway", "192.0.2.1", "--nameserver", "192.0.2.53"),
        *("--nameserver", "2001:db8::53", "--search", "example.org", "--user", "ops"),
        *("--ssh-key", public, "--timezone", "Europe/Vienna", "--target", "sdc"),
        *("--format", "qcow2", "--size", "64M", "--memory", "1G", "--vcpus", "2"),
        *("--bridge", "none0", "--mac", "52:54:00:00:00:01", "--template", "odd"),
        *("--deadline", "77", "--request-id", "order-1", "--wait", "--json"),
        stdin=TYPED,
    )
    assert (said.status, said.err) == (1, ""), said  # the host has no such bridge
    job = JobView.model_validate_json(said.out)
    assert job.failure is not None
    assert "none0" in job.failure.message
    assert job.request == {
        "kind": "provision",
        "request_id": "order-1",
        "deadline_seconds": 77,
        "domain": "new3",
        "create": {
            "base": "tiny",
            "format": "qcow2",
            "size": 64 * 2**20,
            "memory_mib": 1024,
            "vcpus": 2,
            "bridge": "none0",
            "mac": "52:54:00:00:00:01",
            "template": "odd",
        },
        "config": {
            "hostname": "new3.example.org",
            "ip": "192.0.2.20/24",
            "gateway": "192.0.2.1",
            "interfaces": [],
            "nameservers": ["192.0.2.53", "2001:db8::53"],
            "search": ["example.org"],
            "user": "ops",
            "ssh_authorized_keys": [public.read_text().strip()],
            "timezone": "Europe/Vienna",
        },
        "target": "sdc",
    }
    assert PASSWORD not in making.daemon.said()
    assert "new3" not in await domains_of(command)
    assert "new3" not in await disks_of(command)
    for words, field in (
        (("--network", "a", "--bridge", "b"), "create.bridge"),
        (("--vcpus", "0"), "create.vcpus"),
        (("--memory", "1M"), "create.memory_mib"),
    ):
        said = await command.run(*create("new3", *words), stdin=TYPED)
        assert said.status == 3
        assert re.search(rf"^  {re.escape(field)}: ", said.err, re.MULTILINE), said.err


@with_guests
async def test_a_domain_of_somebody_else_is_destroyed_by_force_alone(
    host: Host, command: Command
) -> None:
    for words in (("destroy", host.mute.uuid), ("destroy", host.mute.uuid, "--remove-data")):
        said = await command.run(*words)
        assert said.status == 3
        assert "error: not_made_here: " in said.err
    assert host.mute.name in await names_of(command)
    async with command.on_terminal("destroy", host.mute.uuid, "--force") as terminal:
        await terminal.until("Destroy it? [y/N]: ")
        terminal.type(b"\n")
        said = await terminal.ended()
    assert said.status == 1
    assert "\x9b" not in said.out
    assert " is running. Its disks stay. Destroy it?" in said.out
    sure = ("--force", "--yes", "--no-wait")
    async with command.on_terminal("destroy", host.mute.uuid, *sure) as terminal:
        said = await terminal.ended()
    assert said.status == 0
    assert "Destroy it?" not in said.out
    (job_id,) = re.findall(r": job ([0-9a-f]{32}) [A-Z_]+\r\n$", said.out)
    assert (await command.run("watch", job_id)).status == 0
    assert host.mute.name not in await names_of(command)


async def names_of(command: Command) -> list[str]:
    said = await command.run("domains", "--json")
    return [one.name for one in DomainList.model_validate_json(said.out).domains]


# ---------------------------------------------------------------- looking at guests
@with_guests
async def test_addresses_are_told_with_their_sources_the_best_first(
    reachable: Host, command: Command
) -> None:
    said = await command.run("ip", "web1")
    assert (said.status, said.out) == (0, f"{IPV4}\tjob\n{IPV6}\tjob\n")
    said = await command.run("ip", reachable.web.uuid, "--json")
    view = DomainView.model_validate_json(said.out)
    assert (view.name, view.made_here) == ("web1", False)
    assert [(one.address, one.mac, one.source) for one in view.addresses] == [
        (IPV4, reachable.web.mac, "job"),
        (IPV6, reachable.web.mac, "job"),
    ]
    plain = (await domains_of(command))["web1"]
    assert plain["ADDRESSES"] == f"{IPV4} (job), {IPV6} (job)"
    assert plain["UUID"] == reachable.web.uuid
    said = await command.run("domains", "--json")
    assert view in DomainList.model_validate_json(said.out).domains
    async with command.on_terminal("domains") as terminal:
        shown = (await terminal.ended()).out
    assert IPV4 in shown
    assert "\t" not in shown
    assert reachable.web.uuid not in shown
    async with command.on_terminal("ip", "web1") as terminal:
        assert (await terminal.ended()).out == f"{IPV4}\tjob\r\n{IPV6}\tjob\r\n"


@with_guests
async def test_a_pattern_takes_many_guests_and_leaves_out_those_without_an_address(
    reachable: Host, command: Command
) -> None:
    lines = f"web1\t{IPV4}\tjob\nweb1\t{IPV6}\tjob\n"
    for pattern in ("web*", "web?", "[mw]*", "web1"):
        said = await command.run("ips", pattern)
        assert (said.status, said.out) == (0, lines), pattern
    said = await command.run("ips", "w*", "--json")
    assert [one.name for one in DomainList.model_validate_json(said.out).domains] == [
        reachable.web.name
    ]


@with_guests
async def test_where_nobody_knows_an_address_it_is_1_and_told(
    making: Host, command: Command
) -> None:
    asked = await command.run(*create("mute2", "--template", "odd"), stdin=TYPED)
    assert asked.status == 0, asked
    (job_id,) = re.findall(r": job ([0-9a-f]{32}) [A-Z_]+\n$", asked.out)
    await making.daemon.wait_for(job_id, "ISO_ATTACHED")
    for words, told_of in (
        (("ip", "mute2"), "mute2: "),
        (("ips", "mute?"), "mute?: "),
        (("ips", "none*"), "none*: no domain has such a name"),
        (("ssh", "mute2", "--", "true"), "mute2: "),
    ):
        said = await command.run(*words)
        assert (said.status, said.out) == (1, ""), words
        assert said.err.startswith(f"error: no_address: {told_of}")
        as_json = await command.run(words[0], "--json", *words[1:])
        assert (as_json.status, as_json.err) == (1, ""), words
        assert ErrorReply.model_validate_json(as_json.out).code == "no_address"
    for words in (("ip", "none"), ("ssh", "none")):
        said = await command.run(*words)
        assert said.status == 3
        assert "error: domain_not_found: " in said.err
    busy = await command.run("destroy", "mute2")
    assert busy.status == 3
    assert f"error: busy: mute2: job {job_id} is at work on it" in busy.err
    await making.undo(job_id)


# ---------------------------------------------------------------- ssh
@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """An sshd at the addresses of web1; ssh there takes host keys that are new."""
    with running_server(tmp_path) as server:
        options = ("StrictHostKeyChecking accept-new", "BatchMode yes", "HashKnownHosts no")
        (server.home / ".ssh/config").write_text("\n".join(options))
        yield server


@with_guests
async def test_ssh_runs_a_command_at_the_guests_address_and_ends_as_it_does(
    reachable: Host, server: Server
) -> None:
    ssh = (PROVISIONCTL, "--socket", reachable.daemon.socket, "ssh", "web1", "--key", server.key)
    ended = server.run([*ssh, "--", "echo", "$SSH_CONNECTION;", "exit", "7"])
    assert ended.returncode == 7, ended.stderr
    assert f" {IPV4} 22" in ended.stdout
    known = (server.home / ".ssh/known_hosts").read_text()
    assert known.startswith(f"{reachable.web.uuid} ")  # under the domain's name, not the address
    refused = server.run([*ssh, "--user", "nobody-here", "--", "true"])
    assert refused.returncode == 255
    assert "Permission denied" in refused.stderr


@with_guests
async def test_a_key_is_copied_to_the_guest_first_where_that_is_asked_for(
    reachable: Host, server: Server, tmp_path: Path
) -> None:
    ssh = (PROVISIONCTL, "--socket", reachable.daemon.socket, "ssh", "web1")
    nobody = server.run([*ssh, "--copy-key", "--", "true"])
    assert nobody.returncode == 2
    assert "make one with ssh-keygen" in nobody.stderr
    own = make_key(server.home / ".ssh" / "id_ed25519")
    assert server.run([*ssh, "--", "true"]).returncode == 255  # the guest does not know it yet
    add = 'ssh-add -q "$1" && shift && exec "$@"'
    by_agent: tuple[str | Path, ...] = ("ssh-agent", "sh", "-c", add, "sh", server.key)
    copied = server.run([*by_agent, *ssh, "--copy-key", "--", "echo", "inside"])
    assert copied.returncode == 0, copied.stderr
    assert copied.stdout.endswith("inside\n")
    assert server.run([*ssh, "--", "true"]).returncode == 0
    keys = (server.home / ".ssh/authorized_keys").read_text()
    assert own.with_suffix(".pub").read_text() in keys

    second = make_key(tmp_path / "second-key")
    with_it = (*ssh, "--key", second, "--copy-key", "--", "true")
    assert server.run([*by_agent, *with_it]).returncode == 0
    assert "second-key" in (server.home / ".ssh/authorized_keys").read_text()
