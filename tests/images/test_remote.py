"""Builds on another machine: a real sshd, the real provisionctl there, and what comes back."""

import hashlib
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisiond.api.requests import DiskFormat
from provisiond.errors import BuildFailed, RecipeRefused
from provisiond.images.agent_files import read_agent
from provisiond.images.build_folder import opened
from provisiond.images.own_wheel import NAME, make_wheel
from provisiond.images.phases import Phase
from provisiond.images.recipe import MmdebstrapRecipe
from provisiond.images.remote import INSTALL, OtherMachine, require_own_agent
from provisiond.images.steps import Result
from tests.daemon.command import PROVISIONCTL
from tests.images.golden import LAYOUTS, make_golden, make_tree
from tests.ssh.server import IPV4, Server, running_server

RECIPE = MmdebstrapRecipe(name="web")
THERE = Path(".cache/provisiond/builds/web")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@pytest.fixture
def installed(server: Server) -> Iterator[Server]:
    """provisionctl is in a place of the user's there."""
    programs = server.home / ".local" / "bin"
    programs.mkdir(parents=True)
    (programs / "provisionctl").symlink_to(PROVISIONCTL)
    yield server
    (programs / "provisionctl").unlink()
    programs.rmdir()


def build(
    server: Server, folder: Path, *more: str | Path, host: str = f"root@{IPV4}"
) -> subprocess.CompletedProcess[str]:
    """The command, run where that sshd is reached."""
    argv = [
        *(PROVISIONCTL, "image", "build", "web", "--folder", folder),
        *("--on", host),
        *("--ssh-option", "StrictHostKeyChecking=accept-new"),
        *("--ssh-option", f"IdentityFile={server.key}"),
        *more,
    ]
    return server.run(argv)


def test_a_phase_runs_there_and_is_recorded_and_logged_here(
    installed: Server, tmp_path: Path
) -> None:
    ended = build(installed, tmp_path, "--from", "mmdebstrap", "--phase", "init")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    with opened(tmp_path) as folder:
        assert folder.ended()[Phase.INIT].result["on"] == f"root@{IPV4}"
        assert "init: begins" in folder.log(Phase.INIT).read_text()
    assert (installed.home / THERE / "recipe.json").exists()
    assert list(json.loads((installed.home / THERE / "phases.json").read_text())) == ["init"]


def test_what_fails_there_fails_here_with_its_own_words(installed: Server, tmp_path: Path) -> None:
    """There is no network beyond that host: apt cannot fetch its lists."""
    words = ("--from", "mmdebstrap", "--suite", "bookworm", "--mirror", "http://192.0.2.99/debian")
    ended = build(installed, tmp_path, *words, "--until", "update")
    assert ended.returncode == 1
    assert f"build_failed: update on root@{IPV4} ended with status" in ended.stderr
    assert "192.0.2.99" in ended.stderr
    with opened(tmp_path) as folder:
        assert list(folder.ended()) == [Phase.INIT]


def test_an_image_baked_there_comes_back_with_the_same_hash(
    installed: Server, tmp_path: Path
) -> None:
    """Up to `build` it was done before; the image is a tiny system's."""
    tree = make_tree(tmp_path / "tree", LAYOUTS["systemd"])
    there = installed.home / THERE
    there.mkdir(parents=True, exist_ok=True)
    make_golden(there / "image.qcow2", tree, disk_format=DiskFormat.QCOW2)
    for path in (there, tmp_path / "build"):
        with opened(path) as folder:
            folder.keep_recipe(RECIPE)
            for phase in (Phase.INIT, Phase.UPDATE, Phase.PRECHECK, Phase.BUILD):
                folder.end(phase, seconds=1.0, result={})
    (there.parent / "web.json").write_text(RECIPE.model_dump_json())
    ended = build(installed, tmp_path / "build", "--phase", "bake")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    with opened(tmp_path / "build") as folder:
        result = folder.ended()[Phase.BAKE].result
        digest = hashlib.sha256(folder.image.read_bytes()).hexdigest()
    assert result["sha256"] == digest
    assert result["sha256"] == hashlib.sha256((there / "image.qcow2").read_bytes()).hexdigest()
    assert result["agent_sha256"] == read_agent().sha256


def test_a_host_that_cannot_be_reached_is_told(server: Server, tmp_path: Path) -> None:
    words = ("--from", "mmdebstrap", "--phase", "init")
    ended = build(server, tmp_path, *words, host="root@192.0.2.9")
    assert ended.returncode != 0
    assert "root@192.0.2.9: cannot be reached" in ended.stderr


def test_nothing_is_installed_beside_the_place_for_it(tmp_path: Path) -> None:
    """The folder is gone between the copy and the installation."""
    ended = subprocess.run(["sh", "-c", INSTALL, "sh", "sent/0"], cwd=tmp_path, check=False)
    assert ended.returncode != 0
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "sent" / "0").mkdir(parents=True)
    (tmp_path / "sent" / "0" / "whole").touch()
    subprocess.run(["sh", "-c", INSTALL, "sh", "sent/0"], cwd=tmp_path, check=True)


@given(st.text(max_size=20))
def test_no_target_becomes_an_option_of_sshs(target: str) -> None:
    try:
        machine = OtherMachine(target)
    except RecipeRefused:
        return
    argv = [str(word) for word in machine.argv(["true"])]
    assert argv[argv.index("--") + 1] == target
    assert not target.startswith("-")
    assert not set(target) & set(" \t\n;|&$`'\"\\/")


@pytest.mark.parametrize(
    "target", ["-oProxyCommand=x", "root@-oX", "a b", "", "root@", "x\n", "@x"]
)
def test_a_strange_target_is_refused(target: str) -> None:
    with pytest.raises(RecipeRefused):
        OtherMachine(target)


def test_an_image_with_another_script_is_refused() -> None:
    require_own_agent({"agent_sha256": read_agent().sha256}, where="builder")
    others: list[Result] = [{"agent_sha256": "0" * 64}, {}]
    for other in others:
        with pytest.raises(BuildFailed, match="builder: baked the script"):
            require_own_agent(other, where="builder")


# ---------------------------------------------------------------- what is sent
def test_the_wheel_is_this_provisiond_and_runs(tmp_path: Path) -> None:
    wheel = tmp_path / NAME
    wheel.write_bytes(make_wheel())
    install = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    where: list[str | Path] = ["--no-deps", "--no-index", "--target", tmp_path / "site"]
    subprocess.run([*install, *where, wheel], check=True)
    ask = (
        "import provisiond, sys; from provisiond.images.agent_files import read_agent; "
        "print(provisiond.__file__, read_agent().sha256)"
    )
    said = subprocess.run(
        [sys.executable, "-c", ask],
        env={"PYTHONPATH": str(tmp_path / "site")},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    assert said.split() == [str(tmp_path / "site/provisiond/__init__.py"), read_agent().sha256]
    assert (tmp_path / "site/bin/provisionctl").exists()


def test_the_same_files_make_the_same_wheel(tmp_path: Path) -> None:
    wheel = tmp_path / NAME
    wheel.write_bytes(make_wheel())
    assert make_wheel() == wheel.read_bytes()
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert len(names) == len(set(names))
    assert "provisiond/guest-agent/dib/provision-guest/element-deps" in names
    assert not [name for name in names if "__pycache__" in name]
