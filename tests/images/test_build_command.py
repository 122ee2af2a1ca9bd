"""provisionctl image build, as it is typed: what it asks for, what it shows, what it refuses."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from provisiond.api.replies import BaseView
from provisiond.api.requests import DiskFormat
from provisiond.cli import app
from provisiond.errors import DaemonUnreachable, NotReady
from provisiond.images.agent_files import agent_folder
from provisiond.images.build_folder import opened
from provisiond.images.dib import write_element
from provisiond.images.mmdebstrap import host_sources
from provisiond.images.phases import Phase
from provisiond.images.recipe import MmdebstrapRecipe
from tests.daemon.command import Command, Ended
from tests.daemon.program import Daemon
from tests.images.golden import LAYOUTS, make_golden, make_tree

INIT = ("--from", "mmdebstrap", "--phase", "init")


@pytest.fixture
def command(tmp_path: Path) -> Command:
    return Command(tmp_path / "no-such-socket")


async def build(command: Command, folder: Path, *more: str | Path) -> Ended:
    """The command as a process of its own."""
    return await command.run("image", "build", "web", "--folder", folder, *more)


def built(folder: Path, *more: str | Path) -> Ended:
    """The same in this process, which is quicker."""
    words = ["--socket", folder / "none", "image", "build", "web", "--folder", folder, *more]
    ended = CliRunner().invoke(app, [str(word) for word in words])
    return Ended(ended.exit_code, ended.stdout, ended.stderr)


async def test_in_a_pipe_each_fact_is_a_line_and_nothing_moves(
    command: Command, tmp_path: Path
) -> None:
    ended = await build(command, tmp_path, *INIT)
    assert ended.status == 0, ended.err
    begins, ends, last = ended.out.splitlines()
    assert begins == "init: begins"
    assert re.fullmatch(r"init: ended in \d+\.\d s mmdebstrap=[\d.]+", ends)
    assert last == f"web: {tmp_path}; left: update, precheck, build, bake, verify, register"
    assert "\x1b" not in ended.out


async def test_on_a_terminal_an_ended_phase_has_its_tick(command: Command, tmp_path: Path) -> None:
    words = ("image", "build", "web", "--folder", tmp_path, *INIT)
    async with command.on_terminal(*words) as terminal:
        ended = await terminal.ended()
    assert ended.status == 0
    assert "✔ init" in ended.out


def test_as_json_one_document_tells_all(tmp_path: Path) -> None:
    ended = built(tmp_path, *INIT, "--json")
    told = json.loads(ended.out)
    assert (told["name"], told["folder"], told["image"]) == ("web", str(tmp_path), None)
    assert list(told["phases"]) == ["init"]
    assert told["phases"]["init"]["result"].keys() == {"mmdebstrap"}


def test_the_next_run_needs_no_recipe_and_another_one_begins_anew(tmp_path: Path) -> None:
    built(tmp_path, *INIT)
    again = built(tmp_path, "--phase", "init", "--json")
    assert again.status == 0, again.err
    with opened(tmp_path) as folder:
        folder.end(Phase.UPDATE, seconds=1.0, result={})
    other = built(tmp_path, *INIT, "--packages", "less,vim", "--json")
    assert list(json.loads(other.out)["phases"]) == ["init"]
    with opened(tmp_path) as folder:
        recipe = folder.recipe()
    assert isinstance(recipe, MmdebstrapRecipe)
    assert recipe.packages == ("less", "vim")


def test_a_recipe_of_another_folder_is_taken_as_a_file(tmp_path: Path) -> None:
    built(tmp_path / "one", *INIT, "--size", "1G")
    file = tmp_path / "one" / "recipe.json"
    ended = built(tmp_path / "two", "--recipe", file, "--phase", "init")
    assert ended.status == 0, ended.err
    assert (tmp_path / "two" / "recipe.json").read_bytes() == file.read_bytes()
    both = built(tmp_path / "two", "--recipe", file, "--size", "2G")
    assert "a file says all of it" in both.err


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ((), "recipe_refused"),
        (("--packages", "less"), "recipe_refused"),
        (("--from", "mmdebstrap", "--packages", "--option"), "recipe_refused"),
        (("--from", "mmdebstrap", "--elements", "vm"), "recipe_refused"),
        (("--from", "iso"), "recipe_refused"),
        (("--recipe", "/no/such/file"), "recipe_refused"),
        (("--recipe", "/dev/null"), "recipe_refused"),
        (("--from", "mmdebstrap", "--phase", "build"), "wrong_phase"),
        (("--from", "mmdebstrap", "--again", "verify"), "wrong_phase"),
        (("--from", "mmdebstrap", "--on", "-oProxyCommand=x"), "recipe_refused"),
    ],
)
def test_what_cannot_be_built_is_refused_before_anything_is_done(
    tmp_path: Path, words: tuple[str, ...], code: str
) -> None:
    ended = built(tmp_path, *words, "--json")
    assert ended.status not in (0, 1)
    assert json.loads(ended.out)["code"] == code
    assert not (tmp_path / "phases.json").exists()


@pytest.mark.parametrize("verb", ["build", "from-iso"])
def test_a_name_that_leads_elsewhere_is_refused_before_a_folder_is_made(
    tmp_path: Path, verb: str
) -> None:
    words = ["image", verb, *(["/srv/a.iso"] if verb == "from-iso" else [])]
    ended = CliRunner().invoke(app, [*words, f"../../../..{tmp_path}/x", "--json"])
    assert json.loads(ended.stdout)["code"] == "recipe_refused"
    assert list(tmp_path.iterdir()) == []


def test_two_builds_in_one_folder_do_not_meet(tmp_path: Path) -> None:
    with opened(tmp_path):
        ended = built(tmp_path, *INIT)
    assert "error: build_busy: " in ended.err


async def test_what_is_not_installed_is_named_with_its_packages(tmp_path: Path) -> None:
    bare = Command(tmp_path / "none", prefix=("env", f"PATH={tmp_path}"))
    ended = await build(bare, tmp_path / "build", *INIT)
    assert "mmdebstrap" in ended.err
    assert "hint: On Debian: apt install " in ended.err
    packages = ended.err.partition("apt install ")[2].partition(".")[0].split()
    assert {"qemu-utils", "e2fsprogs", "mmdebstrap"} <= set(packages)
    with opened(tmp_path / "build") as folder:
        assert folder.ended() == {}
        assert "tool_missing" in folder.log(Phase.INIT).read_text()


def test_the_hosts_sources_are_taken_in_their_order(tmp_path: Path) -> None:
    with pytest.raises(NotReady, match="names no sources") as caught:
        host_sources(tmp_path)
    assert "--mirror" in caught.value.hint
    (tmp_path / "sources.list.d").mkdir()
    names = ["sources.list.d/b.list", "sources.list.d/a.sources", "sources.list", "x.list"]
    for name in names:
        (tmp_path / name).write_text("")
    found = [str(path.relative_to(tmp_path)) for path in host_sources(tmp_path)]
    assert found == ["sources.list", "sources.list.d/b.list", "sources.list.d/a.sources"]


def test_the_commands_that_make_the_element_by_hand_make_the_same_one(tmp_path: Path) -> None:
    """As guest-agent/IMAGES.md has them."""
    page = (agent_folder() / "IMAGES.md").read_text()
    lines = page.partition("    mkdir elements")[2].partition("    cd ../..")[0]
    script = "set -e\nmkdir elements" + lines
    (tmp_path / "guest-agent").symlink_to(agent_folder())
    subprocess.run(["sh", "-c", script], cwd=tmp_path, check=True)
    write_element(tmp_path / "ours")
    assert listing(tmp_path / "ours") == listing(tmp_path / "elements" / "provision-guest")


def listing(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file but documentation, with its mode and content."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mode, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file() and "doc" not in path.parts
    }


def built_and_verified(tmp_path: Path) -> None:
    """A build of which `register` is left; the image is a tiny system's."""
    tree = make_tree(tmp_path / "tree", LAYOUTS["systemd"])
    with opened(tmp_path / "build") as folder:
        make_golden(folder.image, tree, disk_format=DiskFormat.QCOW2)
        folder.keep_recipe(MmdebstrapRecipe(name="web"))
        for phase in list(Phase)[:-1]:
            folder.end(phase, seconds=1.0, result={})


async def test_with_a_daemon_the_image_becomes_a_base_once(daemon: Daemon, tmp_path: Path) -> None:
    built_and_verified(tmp_path)
    command = Command(daemon.socket)
    for _ in range(2):  # asked for twice it is the same job
        ended = await build(command, tmp_path / "build", "--phase", "register", "--json")
        assert ended.status == 0, ended.out + ended.err
        assert json.loads(ended.out)["phases"]["register"]["result"] == {"base": "web"}
    shown = BaseView.model_validate_json((await command.run("base", "show", "web", "--json")).out)
    assert shown.made_of is not None
    assert shown.made_of.builder == "mmdebstrap"
    assert (shown.made_of.recipe or {})["name"] == "web"


async def test_a_base_that_is_gone_is_registered_again(daemon: Daemon, tmp_path: Path) -> None:
    built_and_verified(tmp_path)
    command = Command(daemon.socket)

    async def register() -> Ended:
        return await build(command, tmp_path / "build", "--phase", "register", "--json")

    assert (await register()).status == 0
    assert (await command.run("base", "remove", "web")).status == 0
    assert (await register()).status == 0
    assert (await command.run("base", "show", "web")).status == 0


async def test_without_a_daemon_it_is_said_how_the_image_becomes_a_base(
    command: Command, tmp_path: Path
) -> None:
    """An image is there; nothing listens on the socket."""
    built_and_verified(tmp_path)
    ended = await build(command, tmp_path / "build")
    assert ended.status == 0, ended.err
    said = f"provisionctl base import web {tmp_path}/build/image.qcow2 --source-format qcow2"
    assert said in ended.out
    assert DaemonUnreachable.code not in ended.err
