"""provisionctl as its users meet it: exit statuses, doctor, lists, pipes, the tab key."""

import json
import re
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from provisiond.api.replies import DomainList, ErrorReply, JobList
from provisiond.doctor import Check, Level
from tests.daemon.command import TYPED, Command, Ended, without_reader
from tests.daemon.program import Daemon

IP = "10.0.2.15/24"
NO_KERNEL = ("--kernel", "/none")  # the doctor need not boot one here


# ---------------------------------------------------------------- exit codes, without a guest
TO_WEB1 = ("provision", "web1", "--hostname", "web1")
CREATE = ("create", "web1", "--hostname", "web1", "--base", "debian12")
FROM_STDIN = ("provision", "web1", "--config", "-")
WRONG_USAGE: list[tuple[tuple[str, ...], bytes, str]] = [
    ((), b"", "Usage"),
    (("provision", "web1"), b"", "--hostname"),
    ((*TO_WEB1, "--password-stdin"), b"\n", "empty"),
    ((*TO_WEB1, "--password-stdin"), b"caf\xe9\n", "is not UTF-8"),
    ((*TO_WEB1, "--password-stdin"), b"x" * 9999, "too long"),
    ((*FROM_STDIN, "--password-stdin"), b'{"hostname": "a"}', "taken"),
    (FROM_STDIN, b'{"hostname": "caf\xe9"}', "is not UTF-8"),
    (("create", "web1", "--hostname", "web1"), b"", "--base"),
    ((*CREATE, "--size", "1.5G"), b"", "is no size"),
    ((*CREATE, "--size", "10GB"), b"", "--size"),
    ((*CREATE, "--memory", "1000000"), b"", "no multiple of 1M"),
    ((*CREATE, "--format", "vmdk"), b"", "vmdk"),
    (("base", "import", "debian12", "/image"), b"", "--source-format"),
    (("disk", "create", "web1"), b"", "--base"),
    (("disk", "detach", "web1"), b"", "TARGET"),
    (("ssh", "web1", "-x"), b"", "-x"),
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
        assert (await terminal.interrupted()).status == 130


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
    assert {"image_dir", "image_dir space", "templates"} <= set(checks)
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
    assert head == ["DOMAIN", "ID", "STATE", "ADDRESSES", "DISKS", "JOB", "UUID"]
    assert row[:3] == ["test", "1", "running"]
    async with command.on_terminal("domains") as terminal:
        shown = (await terminal.ended()).out
    assert "\t" not in shown
    assert "\x1b[" in shown
    assert row[0] in shown
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


async def test_bash_is_given_the_domains_but_no_name_that_it_would_not_take_as_it_stands(
    idle_daemon: Daemon,
) -> None:
    names = ["web 2", "web$(reboot)", "web1", "web\u009b31m"]
    node = idle_daemon.folder / "node.xml"
    node.write_text(f"<node>{''.join(map(DOMAIN.format, names))}</node>")
    idle_daemon.settings["libvirt_uri"] = f"test://{node}"
    await idle_daemon.start()
    command = Command(idle_daemon.socket)
    listed = await command.run("domains", "--json")
    found = DomainList.model_validate_json(listed.out).domains
    assert [one.name for one in found] == names
    assert await command.press_tab("provision") == ["web1"]
