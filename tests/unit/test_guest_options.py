"""provisionctl's options and the request's config that they make with what --config holds."""

from pathlib import Path

import pytest
import typer

from provisiond.guest_options import (
    Config,
    read_config,
    read_keys,
    with_network,
    with_options,
    with_secret,
)

IP = "192.0.2.10/24"
MAC = "52:54:00:00:00:01"
LONG = {"hostname": "web1", "interfaces": [{"name": "eth0", "addresses": [IP]}]}


def test_an_option_wins_over_the_file_and_one_that_was_not_given_does_not() -> None:
    config = {"hostname": "old", "user": "ops", "search": ["example.org"]}
    options: Config = {"hostname": "new", "user": None, "search": [], "timezone": "UTC"}
    assert with_options(config, options) == {
        "hostname": "new",
        "user": "ops",
        "search": ["example.org"],
        "timezone": "UTC",
    }


def test_an_empty_value_is_a_value_and_left_to_the_daemon_to_refuse() -> None:
    assert with_options({"hostname": "old"}, {"hostname": ""}) == {"hostname": ""}


# ---------------------------------------------------------------- the network
def test_without_a_mac_the_short_form_is_enough() -> None:
    whole = with_network({}, ip=IP, gateway="192.0.2.1", mac=None)
    assert whole == {"ip": IP, "gateway": "192.0.2.1"}


@pytest.mark.parametrize(
    ("gateway", "key"), [("192.0.2.1", "gateway4"), ("2001:db8::1", "gateway6")]
)
def test_a_mac_makes_it_an_interface_with_the_gateway_of_its_family(gateway: str, key: str) -> None:
    whole = with_network({}, ip=IP, gateway=gateway, mac=MAC)
    assert whole == {"interfaces": [{"mac": MAC, "addresses": [IP], key: gateway}]}


def test_options_and_file_make_one_interface_together() -> None:
    config = {"ip": IP, "gateway": "192.0.2.1"}
    assert with_network(config, ip="192.0.2.11/24", gateway=None, mac=None) == {
        "ip": "192.0.2.11/24",
        "gateway": "192.0.2.1",
    }
    assert with_network(config, ip=None, gateway=None, mac=MAC) == {
        "interfaces": [{"mac": MAC, "addresses": [IP], "gateway4": "192.0.2.1"}]
    }
    assert config == {"ip": IP, "gateway": "192.0.2.1"}


@pytest.mark.parametrize(
    ("ip", "gateway", "mac", "option"),
    [
        (IP, None, None, "--ip"),
        (None, "192.0.2.1", None, "--gateway"),
        (None, None, MAC, "--mac"),
    ],
)
def test_an_address_beside_interfaces_is_refused_and_both_are_named(
    ip: str | None, gateway: str | None, mac: str | None, option: str
) -> None:
    with pytest.raises(typer.BadParameter, match="'interfaces' of --config") as refused:
        with_network(LONG, ip=ip, gateway=gateway, mac=mac)
    assert refused.value.param_hint == option


def test_interfaces_of_the_file_are_left_alone_where_no_option_speaks_of_them() -> None:
    assert with_network(LONG, ip=None, gateway=None, mac=None) == LONG


def test_a_mac_needs_an_address() -> None:
    with pytest.raises(typer.BadParameter, match="goes with --ip") as refused:
        with_network({}, ip=None, gateway=None, mac=MAC)
    assert refused.value.param_hint == "--mac"


# ---------------------------------------------------------------- secrets
@pytest.mark.parametrize("given", ["password", "password_hash"])
@pytest.mark.parametrize("held", ["password", "password_hash"])
def test_the_secret_that_was_given_is_the_only_one(given: str, held: str) -> None:
    whole = with_secret({"hostname": "web1", held: "of the file"}, {given: "of stdin"})
    assert whole == {"hostname": "web1", given: "of stdin"}


def test_the_secret_of_the_file_stays_where_none_was_given() -> None:
    assert with_secret({"password_hash": "of the file"}, {}) == {"password_hash": "of the file"}


# ---------------------------------------------------------------- files
def test_keys_come_from_all_files_without_comments_and_empty_lines(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text("# of the team\nssh-ed25519 AAAA one\n\n  ssh-ed25519 BBBB two  \n")
    second.write_text("ssh-ed25519 CCCC drei–und\u2028mehr")
    with first.open(encoding="utf-8") as one, second.open(encoding="utf-8") as two:
        assert read_keys([one, two]) == [
            "ssh-ed25519 AAAA one",
            "ssh-ed25519 BBBB two",
            "ssh-ed25519 CCCC drei–und\u2028mehr",
        ]


def test_a_file_that_is_not_utf_8_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "latin1"
    path.write_bytes('{"hostname": "web1", "password": "Grüße"}'.encode("latin-1"))
    with path.open(encoding="utf-8") as file:
        with pytest.raises(typer.BadParameter, match="latin1 is not UTF-8"):
            read_config(file)
        file.seek(0)
        with pytest.raises(typer.BadParameter, match="latin1 is not UTF-8"):
            read_keys([file])


@pytest.mark.parametrize("text", ["", "[]", '{"password": "secret"', "[" * 100_000])
def test_what_is_no_json_object_is_refused_and_never_repeated(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with (
        path.open(encoding="utf-8") as file,
        pytest.raises(typer.BadParameter, match="holds no JSON object") as refused,
    ):
        read_config(file)
    assert "secret" not in str(refused.value)
    assert refused.value.__cause__ is None


def test_the_config_is_what_the_file_holds(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"hostname": "web1", "colour": "red"}')
    with path.open(encoding="utf-8") as file:
        assert read_config(file) == {"hostname": "web1", "colour": "red"}
    assert read_config(None) == {}
