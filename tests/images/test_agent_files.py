"""The shipped folder: what an installation from a wheel puts into images."""

import subprocess
import sys
import zipfile
from pathlib import Path

from provisiond.images.agent_files import InitSystem, agent_folder, read_agent

ROOT = Path(__file__).resolve().parents[2]


def test_the_wheel_has_the_folder_that_an_auditor_reads(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "hatchling", "build", "--target", "wheel"]
    subprocess.run([*argv, "--directory", tmp_path], cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    installed = tmp_path / "installed/provisiond/guest-agent"
    for path in (ROOT / "guest-agent").rglob("*"):
        if path.is_file():
            copy = installed / path.relative_to(ROOT / "guest-agent")
            assert copy.read_bytes() == path.read_bytes()
    found = subprocess.run(
        [sys.executable, "-c", _WHERE],
        cwd=tmp_path / "installed",
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert Path(found.strip()) == installed


_WHERE = "from provisiond.images.agent_files import agent_folder; print(agent_folder())"


def test_the_script_says_its_version_and_each_init_system_has_its_file() -> None:
    agent = read_agent()
    assert f"version={agent.version}\n".encode() in agent.script
    assert agent_folder() == ROOT / "guest-agent"
    assert all(b"/usr/sbin/provision-guest" in agent.start_up(init) for init in InitSystem)
