"""ssh and ssh-copy-id, run as provisionctl runs them, against a real sshd."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisiond.api.replies import AddressView
from provisiond.errors import NoAddress
from provisiond.reach import choose_address, copy_key_argv, match_names, ssh_argv
from tests.ssh.server import IPV4, IPV6, Server, make_key, running_server

UUID = "5f0a2a3e-6d0f-4a6c-9d6a-1f9a4a3b2c1d"
ACCEPT = ("StrictHostKeyChecking=accept-new", "BatchMode=yes")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("sshd")) as server:
        yield server


# ---------------------------------------------------------------- ssh
@pytest.mark.parametrize("address", [IPV4, IPV6])
def test_a_command_runs_in_the_guest_and_its_status_comes_back(
    server: Server, address: str
) -> None:
    argv = ssh_argv(
        address,
        user="root",
        key=server.key,
        known_as=UUID,
        options=ACCEPT,
        command=["echo", "$SSH_CONNECTION;", "exit", "7"],
    )
    ended = server.run(argv)
    assert ended.returncode == 7, ended.stderr
    assert f" {address} 22" in ended.stdout


def test_an_address_that_was_another_guests_alarms_nobody(server: Server, tmp_path: Path) -> None:
    """ssh knows a host key for this address already, and it is another guest's."""
    public = make_key(tmp_path / "other-host").with_suffix(".pub").read_text()
    (tmp_path / "known").write_text(f"{IPV4} {public}gone-guest {public}")
    options = (*ACCEPT, f"UserKnownHostsFile={tmp_path / 'known'}")

    def status(known_as: str | None) -> int:
        argv = ssh_argv(
            IPV4,
            user="root",
            key=server.key,
            known_as=known_as,
            options=options,
            command=["true"],
        )
        return server.run(argv).returncode

    assert status(None) == status("gone-guest") == 255
    assert status(UUID) == status(UUID) == 0


def test_an_option_in_the_command_is_the_commands(server: Server) -> None:
    argv = ssh_argv(
        IPV4, user="root", key=server.key, options=ACCEPT, command=["-oProxyCommand=false", "-V"]
    )
    ended = server.run(argv)
    assert ended.returncode != 255, "ssh itself has taken it"
    assert ended.stderr.splitlines()[-1].startswith("sh: ")


@pytest.mark.parametrize("user", ["-oProxyCommand=touch${IFS}made", "root;touch made", "a b", ""])
def test_a_strange_user_name_does_nothing_here(server: Server, tmp_path: Path, user: str) -> None:
    key = make_key(tmp_path / "key")
    for argv in (
        ssh_argv(IPV4, user=user, key=server.key, options=ACCEPT, command=["true"]),
        copy_key_argv(IPV4, user=user, key=key.with_suffix(".pub"), options=ACCEPT),
    ):
        ended = server.run(["sh", "-c", 'cd "$1" && shift && exec "$@"', "sh", tmp_path, *argv])
        assert ended.returncode != 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["key", "key.pub"]


@pytest.mark.parametrize("address", ["-oProxyCommand=false", "web1", "192.0.2.1 ", "", "::1\n"])
def test_only_an_address_is_ever_a_host(address: str) -> None:
    with pytest.raises(ValueError, match="address"):
        ssh_argv(address, user="root")
    with pytest.raises(ValueError, match="address"):
        copy_key_argv(address, user="root", key=Path("key.pub"))


def test_what_the_caller_asks_of_ssh_counts() -> None:
    argv = ssh_argv(IPV4, user="root", options=["Port=2222"], known_as=UUID)
    asked = subprocess.run(
        [argv[0], "-G", *argv[1:]], stdout=subprocess.PIPE, check=True, text=True
    )
    told = asked.stdout.splitlines()
    assert {"port 2222", "user root", f"hostname {IPV4}", f"hostkeyalias {UUID}"} <= set(told)


# ---------------------------------------------------------------- ssh-copy-id
def test_a_key_is_copied_once_and_then_opens_the_guest(server: Server, tmp_path: Path) -> None:
    second = make_key(tmp_path / "second-key")
    with_it = ssh_argv(
        IPV4,
        user="root",
        key=second,
        options=(*ACCEPT, "IdentitiesOnly=yes"),
        command=["true"],
    )
    assert server.run(with_it).returncode == 255
    copy = copy_key_argv(IPV4, user="root", key=second.with_suffix(".pub"), options=ACCEPT)
    add = 'ssh-add -q "$1" && shift && exec "$@"'
    by_agent: list[str | Path] = ["ssh-agent", "sh", "-c", add, "sh", server.key]
    for _ in range(2):
        ended = server.run([*by_agent, *copy])
        assert ended.returncode == 0, ended.stderr
    assert server.run(with_it).returncode == 0
    keys = (server.home / ".ssh" / "authorized_keys").read_text()
    assert keys.count("second-key") == 1


# ---------------------------------------------------------------- addresses and names
def test_the_first_address_is_chosen_and_none_is_an_error() -> None:
    told = [
        AddressView(address=IPV6, mac=None, source="job"),
        AddressView(address=IPV4, mac=None, source="lease"),
    ]
    assert choose_address("web1", told) == IPV6
    with pytest.raises(NoAddress, match="web1"):
        choose_address("web1", [])


def test_names_match_as_in_a_shell() -> None:
    names = ["web1", "web2", "web10", "Web3", "db1", "we.b"]
    assert match_names("web?", names) == ["web1", "web2"]
    assert match_names("web*", names) == ["web1", "web2", "web10"]
    assert match_names("*[12]", names) == ["web1", "web2", "db1"]
    assert match_names("we.b", names) == ["we.b"]
    assert match_names("*", names) == names
    assert match_names("nobody", names) == []


@given(st.text(), st.lists(st.text(), max_size=5))
def test_whatever_the_pattern_is_it_takes_some_of_the_names(pattern: str, names: list[str]) -> None:
    assert set(match_names(pattern, names)) <= set(names)
    assert match_names("*", names) == names
