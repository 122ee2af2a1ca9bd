"""provisionctl base and disk over real files: imported, listed, verified, removed."""

import hashlib
import json
import re
from pathlib import Path

import pytest

from provisiond.api.image_manifest import ImageManifest, Package, manifest_path
from provisiond.api.replies import BaseList, BaseView, DiskList, ErrorReply, JobState, JobView
from tests.daemon.command import Command, Ended, facts, rows
from tests.daemon.images import MIB, called, chain_of, flip_last_bit, raw_image
from tests.daemon.program import Daemon

SIZE = 8 * MIB


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return raw_image(tmp_path / "image.raw")


async def import_base(command: Command, image: Path, *more: str, name: str = "debian12") -> Ended:
    said = await command.run("base", "import", name, image, "--source-format", "raw", *more)
    assert said.status == 0, said
    return said


# ---------------------------------------------------------------- bases
async def test_a_base_is_imported_listed_shown_verified_and_removed(
    command: Command, image: Path
) -> None:
    said = await import_base(command, image)
    assert facts(said.out) == ["ACCEPTED", "IMAGE_WRITTEN", "SUCCEEDED"]
    assert re.search(r"^debian12: SUCCEEDED in ", said.out, re.MULTILINE)

    (row,) = rows((await command.run("base", "list")).out)
    assert (row["BASE"], row["FORMAT"], row["SIZE"]) == ("debian12", "qcow2", str(SIZE))
    assert (row["PARENT"], row["OVERLAYS"], row["STATE"]) == ("-", "0", "ok")
    listed = BaseList.model_validate_json((await command.run("base", "list", "--json")).out)
    shown = BaseView.model_validate_json(
        (await command.run("base", "show", "debian12", "--json")).out
    )
    assert listed.bases == [shown]
    plain = await command.run("base", "show", "debian12")
    assert f"sha256:       {shown.sha256}\n" in plain.out
    assert f"size:         8.0 MiB ({SIZE} bytes)\n" in plain.out

    verified = await command.run("base", "verify", "debian12", "--json")
    assert verified.status == 0
    assert JobView.model_validate_json(verified.out).state is JobState.SUCCEEDED

    removed = await command.run("base", "remove", "debian12")
    assert (removed.status, removed.out) == (0, "debian12: base removed\n")
    assert rows((await command.run("base", "list")).out) == []


async def test_a_source_may_be_named_from_where_one_stands(
    command: Command, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(image.parent)
    await import_base(command, Path("../") / image.parent.name / image.name)


async def test_a_base_has_the_format_and_the_parent_that_are_asked_for(
    command: Command, image: Path, tmp_path: Path
) -> None:
    await import_base(command, image, "--format", "raw")
    (base,) = BaseList.model_validate_json((await command.run("base", "list", "--json")).out).bases
    overlay = tmp_path / "overlay.qcow2"
    called("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base.path, overlay)
    words = ("base", "import", "web", overlay, "--source-format", "qcow2", "--parent", "debian12")
    assert (await command.run(*words)).status == 0
    by_name = {row["BASE"]: row for row in rows((await command.run("base", "list")).out)}
    assert by_name["debian12"]["FORMAT"] == "raw"
    assert by_name["web"]["PARENT"] == "debian12"


async def test_on_a_terminal_sizes_are_readable_and_the_way_is_shown(
    command: Command, image: Path
) -> None:
    words = ("base", "import", "debian12", image, "--source-format", "raw")
    async with command.on_terminal(*words) as terminal:
        said = await terminal.ended()
    assert said.status == 0
    assert "✔ IMAGE_WRITTEN" in said.out
    async with command.on_terminal("base", "list") as terminal:
        listed = (await terminal.ended()).out
    assert "8.0 MiB" in listed


async def test_a_refused_image_is_told_with_its_reason(command: Command, image: Path) -> None:
    words = ("base", "import", "debian12", image, "--source-format", "qcow2")
    said = await command.run(*words)
    assert (said.status, said.out) == (3, "")
    assert "error: image_refused: " in said.err
    as_json = await command.run(*words, "--json")
    assert ErrorReply.model_validate_json(as_json.out).code == "image_refused"
    for asked in (("base", "show", "none"), ("base", "remove", "none"), ("base", "verify", "none")):
        said = await command.run(*asked, "--json")
        assert (said.status, said.err) == (3, "")
        assert ErrorReply.model_validate_json(said.out).code == "base_not_found"


async def test_a_lost_base_fails_its_verification_with_1(
    daemon: Daemon, command: Command, image: Path
) -> None:
    await import_base(command, image, "--format", "raw")
    flip_last_bit(daemon.image_dir / "bases/debian12.raw")
    said = await command.run("base", "verify", "debian12")
    assert said.status == 1
    assert "debian12: failure: base_changed: " in said.out


# ---------------------------------------------------------------- what an image is made of
async def test_what_an_image_is_made_of_goes_with_it_and_is_shown(
    command: Command, image: Path
) -> None:
    made_of = write_manifest(image)
    said = await command.run("image", "import", "debian12", image, "--source-format", "raw")
    assert said.status == 0, said
    shown = await command.run("image", "show", "debian12", "--json")
    assert BaseView.model_validate_json(shown.out).made_of == made_of
    plain = (await command.run("image", "show", "debian12")).out
    assert "system:       Debian GNU/Linux 12 (bookworm)\n" in plain
    assert "agent:        provision-guest 0.1.0\n" in plain
    assert 'recipe:       {"suite": "bookworm"}\n' in plain
    assert "packages:     2 (--json lists them)\n" in plain
    listed = await command.run("image", "list", "--json")
    (base,) = BaseList.model_validate_json(listed.out).bases
    assert base.made_of == made_of.without_packages()
    verified = await command.run("base", "verify", "debian12")
    assert verified.status == 0
    removed = await command.run("image", "remove", "debian12")
    assert (removed.status, removed.out) == (0, "debian12: base removed\n")


async def test_a_manifest_of_another_image_is_refused_and_nothing_is_imported(
    daemon: Daemon, command: Command, image: Path
) -> None:
    write_manifest(image)
    with image.open("r+b") as file:
        file.write(b"another")
    words = ("image", "import", "debian12", image, "--source-format", "raw")
    said = await command.run(*words)
    assert said.status == 1, said
    assert "is of another image: the SHA-256 of" in said.out
    assert "hint: Write it anew with provisionctl image describe, or remove it." in said.out
    assert list(daemon.image_dir.glob("bases/*")) == []
    manifest_path(image).write_text("{}")
    said = await command.run(*words)
    assert (said.status, "is no manifest of an image" in said.err) == (3, True)
    other = write_manifest(image.with_name("other"), of=image)
    assert other.sha256 in manifest_path(image.with_name("other")).read_text()
    said = await command.run(*words, "--manifest", manifest_path(image.with_name("other")))
    assert said.status == 0, said


def write_manifest(image: Path, *, of: Path | None = None) -> ImageManifest:
    """The manifest beside an image, which is that of the file `of`."""
    manifest = ImageManifest(
        sha256=hashlib.sha256((of or image).read_bytes()).hexdigest(),
        builder="mmdebstrap",
        recipe={"suite": "bookworm"},
        distribution="Debian GNU/Linux 12 (bookworm)",
        init="systemd",
        agent_version="0.1.0",
        agent_sha256="0" * 64,
        packages=(Package(name="bash", version="5.2"), Package(name="libc6", version="2.36-9")),
    )
    manifest_path(image).write_bytes(manifest.to_json())
    return manifest


# ---------------------------------------------------------------- overlays
async def test_an_overlay_is_made_listed_and_removed(command: Command, image: Path) -> None:
    await import_base(command, image)
    made = await command.run("disk", "create", "web1", "--base", "debian12", "--size", "16M")
    assert made.status == 0, made
    (row,) = rows((await command.run("disk", "list")).out)
    assert (row["DISK"], row["FORMAT"], row["SIZE"]) == ("web1", "qcow2", str(16 * MIB))
    assert (row["BASE"], row["DOMAIN"]) == ("debian12", "-")
    overlay, _base = chain_of(row["FILE"])
    assert (overlay["format"], overlay["virtual-size"]) == ("qcow2", 16 * MIB)
    (base,) = rows((await command.run("base", "list")).out)
    assert base["OVERLAYS"] == "1"

    in_use = await command.run("base", "remove", "debian12")
    assert in_use.status == 3
    assert "base_in_use" in in_use.err
    removed = await command.run("disk", "remove", "web1", "--json")
    assert (removed.status, json.loads(removed.out)) == (0, {})
    assert (
        DiskList.model_validate_json((await command.run("disk", "list", "--json")).out).disks == []
    )
    removed = await command.run("base", "remove", "debian12", "--json")
    assert (removed.status, json.loads(removed.out)) == (0, {})


async def test_bases_and_disks_are_listed_by_name(command: Command, image: Path) -> None:
    for name in ("debian", "debian-web"):
        await import_base(command, image, name=name)
    for name in ("web1", "web1-data", "web10"):
        made = await command.run("disk", "create", name, "--base", "debian")
        assert made.status == 0, made
    bases = rows((await command.run("base", "list")).out)
    assert [row["BASE"] for row in bases] == ["debian", "debian-web"]
    disks = rows((await command.run("disk", "list")).out)
    assert [row["DISK"] for row in disks] == ["web1", "web1-data", "web10"]


async def test_what_cannot_be_made_is_3_and_names_why(command: Command, image: Path) -> None:
    await import_base(command, image)
    create = ("disk", "create", "web1", "--base")
    for words, code in (
        ((*create, "none"), "base_not_found"),
        ((*create, "debian12", "--size", "1M"), "size_too_small"),
        ((*create, "debian12", "--size", "8388609"), "invalid_request"),
        ((*create, "debian12", "--format", "raw"), "invalid_request"),
        (("disk", "create", "../web1", "--base", "debian12"), "invalid_request"),
        (("disk", "remove", "none"), "disk_not_found"),
    ):
        said = await command.run(*words, "--json")
        assert (said.status, said.err) == (3, ""), words
        assert ErrorReply.model_validate_json(said.out).code == code
    assert rows((await command.run("disk", "list")).out) == []


async def test_without_waiting_the_same_request_id_gives_the_same_job(
    command: Command, image: Path
) -> None:
    await import_base(command, image)
    words = ("disk", "create", "web1", "--base", "debian12", "--no-wait", "--request-id", "order-1")
    first = JobView.model_validate_json((await command.run(*words, "--json")).out)
    again = JobView.model_validate_json((await command.run(*words, "--json")).out)
    assert again.id == first.id
    plain = await command.run(*words)
    assert re.fullmatch(rf"web1: job {first.id} [A-Z_]+\n", plain.out)
    assert (await command.run("watch", first.id)).status == 0
