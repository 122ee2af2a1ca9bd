"""provisionctl disk attach and detach, at real guests; what the tab key proposes for them."""

import re
from pathlib import Path

import pytest
import pytest_asyncio

from provisiond.api.replies import ErrorReply, JobState, JobView
from tests.daemon.command import Command, facts, rows
from tests.daemon.host import Host, in_guest, with_guests
from tests.daemon.images import MIB, import_of, raw_image, run_job
from tests.lab.program import Running

COLOURS = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def web(host: Host) -> Running:
    """The guest that works: once its shell answers, its kernel hears of disks as well."""
    await in_guest(host.web, "true")
    return host.web


@pytest.fixture
def command(host: Host) -> Command:
    return host.command


def before_and_after(plain: str) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """The two tables of the domain's disks."""
    _, before, after = re.split(r"^web1: disks (?:before|after):\n", plain, flags=re.MULTILINE)
    tables = (
        "".join(f"{row}\n" for row in one.splitlines() if "\t" in row) for one in (before, after)
    )
    first, second = map(rows, tables)
    return first, second


async def attach(command: Command, *words: str) -> JobView:
    """The job of a disk that was attached to web1."""
    said = await command.run("disk", "attach", "web1", *words, "--json")
    assert (said.status, said.err) == (0, ""), said
    return JobView.model_validate_json(said.out)


async def detach_and_remove(command: Command, target: str) -> None:
    said = await command.run("disk", "detach", "web1", target, "--remove")
    assert said.status == 0, said


async def disks_of(command: Command) -> list[dict[str, str]]:
    return rows((await command.run("disk", "list")).out)


# ---------------------------------------------------------------- attached and detached
@with_guests
async def test_a_new_disk_is_told_with_what_the_domain_had_before_and_has_after(
    command: Command, web: Running
) -> None:
    said = await command.run("disk", "attach", "web1", "--size", "16M", "--name", "data")
    assert said.status == 0, said
    before, after = before_and_after(said.out)
    assert before == []
    (row,) = after
    assert (row["TARGET"], row["DISK"], row["FORMAT"], row["ACCESS"]) == (
        "vda",
        "data",
        "qcow2",
        "read-write",
    )
    assert facts(said.out) == ["ACCEPTED", "DISKS_CREATED", "DISK_ATTACHED", "SUCCEEDED"]
    assert said.out.endswith(f"web1: {row['FILE']} is attached as vda\n")
    seen = "until [ -b /dev/vda ]; do usleep 10000; done; cat /sys/block/vda/size"
    assert int(await in_guest(web, seen)) == 16 * MIB // 512
    (listed,) = await disks_of(command)
    assert (listed["DISK"], listed["SIZE"], listed["DOMAIN"]) == ("data", str(16 * MIB), "web1")

    said = await command.run("disk", "detach", "web1", "vda")
    assert said.status == 0, said
    before, after = before_and_after(said.out)
    assert (before, after) == ([row], [])
    assert facts(said.out) == ["ACCEPTED", "DISK_DETACHED", "SUCCEEDED"]
    assert said.out.endswith("web1: vda is detached\n")
    assert "vda" not in await in_guest(web, "ls /sys/block")
    (kept,) = await disks_of(command)
    assert (kept["DISK"], kept["DOMAIN"]) == ("data", "-")
    assert (await command.run("disk", "remove", "data")).status == 0
    assert await disks_of(command) == []


@with_guests
async def test_a_disk_that_exists_keeps_its_data_and_goes_where_it_is_told(
    command: Command, web: Running
) -> None:
    first = await attach(command, "--size", "16M", "--format", "raw")
    assert (first.state, first.target) == (JobState.SUCCEEDED, "vda")
    assert first.disk is not None
    (name,) = [one["DISK"] for one in await disks_of(command)]
    assert name == f"web1-{first.id[:8]}"
    wait = "until [ -b /dev/vda ]; do usleep 10000; done"
    await in_guest(web, f"{wait}; echo kept | dd of=/dev/vda conv=fsync")
    assert (await command.run("disk", "detach", "web1", "vda")).status == 0
    assert Path(first.disk).read_bytes().startswith(b"kept\n")

    again = await attach(command, "--disk", name, "--target", "vdc")
    assert (again.target, again.disk) == ("vdc", first.disk)
    assert "kept" in await in_guest(web, f"{wait}; dd if=/dev/vda bs=512 count=1")
    said = await command.run("disk", "attach", "web1", "--disk", name)
    assert said.status == 3
    assert f"error: disk_in_use: {name}: the domain web1 has it" in said.err

    said = await command.run("disk", "detach", "web1", "vdc", "--remove")
    assert said.status == 0, said
    assert re.search(r" web1 SUCCEEDED .* removed$", said.out, re.MULTILINE)
    assert await disks_of(command) == []
    assert not Path(first.disk).exists()


@with_guests
async def test_on_a_terminal_the_tables_stand_around_the_live_view(
    command: Command, web: Running
) -> None:
    words = ("disk", "attach", web.uuid, "--size", "16M", "--name", "data")
    async with command.on_terminal(*words) as terminal:
        said = await terminal.ended()
    assert said.status == 0
    shown = COLOURS.sub("", said.out)
    order = [
        shown.index(text)
        for text in ("web1: disks before:", "✔ DISK_ATTACHED", "web1: disks after:", "is attached")
    ]
    assert order == sorted(order)
    assert re.search(r"^vda +data +qcow2 +read-write +/", shown[order[2] :], re.MULTILINE)
    await detach_and_remove(command, "vda")


@with_guests
async def test_json_is_the_job_alone_and_without_waiting_it_is_only_accepted(
    command: Command, web: Running
) -> None:
    words = ("--size", "16M", "--name", "data", "--request-id", "order-1", "--no-wait")
    accepted = await attach(command, *words)
    assert accepted.request["size"] == 16 * MIB
    plain = await command.run("disk", "attach", "web1", *words)
    assert re.search(rf"^web1: job {accepted.id} [A-Z_]+$", plain.out, re.MULTILINE)
    assert "disks after" not in plain.out
    assert (await command.run("watch", accepted.id)).status == 0

    ending = ("vda", "--remove", "--request-id", "order-2", "--no-wait")
    said = await command.run("disk", "detach", "web1", *ending, "--json")
    assert (said.status, said.err) == (0, "")
    detaching = JobView.model_validate_json(said.out)
    plain = await command.run("watch", detaching.id)
    assert (plain.status, facts(plain.out)[-1]) == (0, "SUCCEEDED")
    shown = await command.run("show", detaching.id)
    assert re.search(r"^proof: +disk absent from the live XML: yes", shown.out, re.MULTILINE)
    assert web.name == detaching.subject


@with_guests
async def test_what_a_persistent_disk_is_asked_for_reaches_the_request(
    command: Command, host: Host, web: Running
) -> None:
    job = await attach(command, "--size", "16M", "--persistent", "--deadline", "77")
    assert job.request["persistent"] is True
    assert job.request["deadline_seconds"] == 77
    assert job.target == "vda"
    said = await command.run("disk", "detach", "web1", job.target, "--persistent", "--remove")
    assert said.status == 0, said
    (newest, *_) = (await host.daemon.get("/v1/jobs")).json()["jobs"]
    assert newest["domain_uuid"] == web.uuid
    assert newest["request"]["persistent"] is newest["request"]["remove"] is True


# ---------------------------------------------------------------- refused
@with_guests
async def test_what_cannot_be_attached_or_detached_is_3_and_nothing_was_done(
    command: Command, web: Running
) -> None:
    size = ("--size", "16M")
    for words, code in (
        (("attach", "none", *size), "domain_not_found"),
        (("attach", "web1"), "invalid_request"),
        (("attach", "web1", *size, "--disk", "data"), "invalid_request"),
        (("attach", "web1", "--size", "1000"), "invalid_request"),
        (("attach", "web1", *size, "--target", "hda"), "invalid_request"),
        (("attach", "web1", *size, "--name", "../data"), "invalid_request"),
        (("attach", "web1", "--disk", "data", "--name", "data"), "invalid_request"),
        (("attach", "web1", "--disk", "none"), "disk_not_found"),
        (("detach", "none", "vda"), "domain_not_found"),
        (("detach", web.uuid, "vda"), "disk_not_found"),
        (("detach", "web1", "hda"), "invalid_request"),
    ):
        said = await command.run("disk", *words, "--json")
        assert (said.status, said.err) == (3, ""), words
        assert ErrorReply.model_validate_json(said.out).code == code, words
    assert await disks_of(command) == []
    plain = await command.run("disk", "attach", "web1")
    assert plain.status == 3
    assert re.search(r"^  size: .*give one of them$", plain.err, re.MULTILINE)


@with_guests
async def test_a_target_that_is_taken_fails_the_job_with_1_and_its_disk_is_gone(
    command: Command, web: Running
) -> None:
    await attach(command, "--size", "16M", "--name", "data")
    said = await command.run(
        "disk", "attach", web.name, "--size", "16M", "--name", "more", "--target", "vda"
    )
    assert said.status == 1
    assert "web1: failure: no_free_target: " in said.out
    assert "disks after" not in said.out
    assert [one["DISK"] for one in await disks_of(command)] == ["data"]
    removed = await command.run("disk", "remove", "data")
    assert removed.status == 3
    assert "error: disk_in_use: " in removed.err
    await detach_and_remove(command, "vda")


# ---------------------------------------------------------------- the tab key
@with_guests
async def test_the_tab_key_proposes_domains_bases_disks_and_the_targets_of_a_domain(
    host: Host, command: Command, web: Running, tmp_path: Path
) -> None:
    await run_job(host.daemon, import_of(raw_image(tmp_path / "image.raw"), name="debian12"))
    await attach(command, "--size", "16M", "--name", "data")
    for words, proposed in (
        (("disk", "attach"), ["web1"]),
        (("disk", "detach"), ["web1"]),
        (("disk", "detach", "web1"), ["vda"]),
        (("disk", "detach", web.uuid), ["vda"]),
        (("disk", "detach", "none"), []),
        (("disk", "attach", "web1", "--disk"), ["data"]),
        (("disk", "remove"), ["data"]),
        (("disk", "create", "web2", "--base"), ["debian12"]),
        (("create", "web2", "--base"), ["debian12"]),
        (("base", "show"), ["debian12"]),
        (("base", "verify"), ["debian12"]),
        (("base", "remove"), ["debian12"]),
        (("base", "import", "web", "/image", "--parent"), ["debian12"]),
        (("destroy",), ["web1"]),
        (("ip",), ["web1"]),
        (("ips",), ["web1"]),
        (("ssh",), ["web1"]),
    ):
        assert await command.press_tab(*words) == proposed, words
    await detach_and_remove(command, "vda")
    assert (await command.run("base", "remove", "debian12")).status == 0
