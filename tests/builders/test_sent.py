"""A machine without any provisionctl: this one is sent there as a wheel, and pip installs it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from provisiond.images.build_folder import opened
from provisiond.images.phases import Phase
from tests.images.test_remote import build
from tests.ssh.server import IPV4, Server, running_server
from tests.xen.wheels import fetch_wheels

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """It has no network beyond itself; pip there finds what it needs in a folder."""
    wheels = fetch_wheels()
    with running_server(tmp_path_factory.mktemp("sshd")) as server:
        config = server.home / ".config" / "pip" / "pip.conf"
        config.parent.mkdir(parents=True)
        config.write_text(f"[global]\nno-index = true\nfind-links = {wheels}\n")
        yield server


def test_this_provisionctl_is_sent_once_and_does_the_work(server: Server, tmp_path: Path) -> None:
    words = ("--from", "mmdebstrap", "--phase", "init")
    first = build(server, tmp_path / "one", *words)
    assert first.returncode == 0, first.stdout + first.stderr
    assert f"root@{IPV4} has no provisionctl" in first.stdout
    with opened(tmp_path / "one") as folder:
        assert folder.ended()[Phase.INIT].result["on"] == f"root@{IPV4}"
    (sent,) = (server.home / ".cache" / "provisiond" / "sent").iterdir()
    installed = (sent / "venv" / "pyvenv.cfg").stat().st_mtime_ns
    second = build(server, tmp_path / "two", *words)
    assert second.returncode == 0, second.stdout + second.stderr
    assert (sent / "venv" / "pyvenv.cfg").stat().st_mtime_ns == installed
