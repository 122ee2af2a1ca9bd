"""What may be asked: every rule of every field, and what a refusal says and never says."""

import base64
import contextlib
import json
import string
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr, TypeAdapter, ValidationError

from provisiond.api.guest_config import MAX_KEY_BYTES, GuestConfig
from provisiond.api.replies import DomainList, ErrorReply, EventView, HealthView, JobList, JobView
from provisiond.api.requests import DiskFormat, JobKind, ProvisionRequest, Request

PASSWORD = "correct horse battery staple"
HASH = "$6$saltsalt$" + "a" * 86


def ssh_key(kind: str = "ssh-ed25519", *, inner: str | None = None, comment: str = "me@box") -> str:
    """A public key as ssh-keygen prints it."""
    name = (inner or kind).encode()
    blob = struct.pack(">I", len(name)) + name + struct.pack(">I", 32) + bytes(range(32))
    return f"{kind} {base64.b64encode(blob).decode()} {comment}".strip()


def request(**config: Any) -> dict[str, Any]:
    """The minimum request as a master would send it, with more or other fields in its config."""
    whole = {"hostname": "web1", "ip": "192.0.2.10/24", "password": PASSWORD} | config
    absent = [key for key, value in whole.items() if value is None]
    return {
        "request_id": "r-1",
        "domain": "web1",
        "config": {key: value for key, value in whole.items() if key not in absent},
    }


def nic(**fields: Any) -> dict[str, Any]:
    return {"addresses": ["192.0.2.10/24", "2001:db8::10/64"]} | fields


def parse(body: dict[str, Any]) -> ProvisionRequest:
    """Through JSON, as every request comes."""
    return ProvisionRequest.model_validate_json(json.dumps(body))


def config_of(**fields: Any) -> GuestConfig:
    return parse(request(**fields)).config


def refusals(body: dict[str, Any]) -> dict[str, str]:
    """The refused fields by their path, as the server writes it, and the reasons."""
    with pytest.raises(ValidationError) as caught:
        parse(body)
    return {path_of(one["loc"]): one["msg"] for one in caught.value.errors()}


def path_of(location: tuple[int | str, ...]) -> str:
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return "".join(parts).removeprefix(".")


def assert_refused(field: str, because: str, body: dict[str, Any]) -> None:
    found = refusals(body)
    assert list(found) == [field]
    assert because in found[field]


# ---------------------------------------------------------------- what is taken
def test_address_host_name_and_password_are_enough() -> None:
    asked = parse(request())
    (only,) = asked.config.all_interfaces()
    assert [str(address) for address in only.addresses] == ["192.0.2.10/24"]
    assert (only.mac, only.name, only.gateway4, only.gateway6) == (None, None, None, None)
    assert asked.config.user == "root"
    assert asked.config.password is not None
    assert asked.config.password.get_secret_value() == PASSWORD


@pytest.mark.parametrize(
    ("ip", "gateway", "gateway4", "gateway6"),
    [
        ("192.0.2.10/24", "192.0.2.1", "192.0.2.1", "None"),
        ("2001:db8::10/64", "2001:db8::1", "None", "2001:db8::1"),
        ("2001:db8::10/64", "2001:db8::", "None", "2001:db8::"),  # any router of that network
        ("2001:db8::10/64", "fe80::1", "None", "fe80::1"),
        ("192.0.2.0/31", "192.0.2.1", "192.0.2.1", "None"),
    ],
)
def test_the_gateway_goes_where_its_version_says(
    ip: str, gateway: str, gateway4: str, gateway6: str
) -> None:
    (only,) = config_of(ip=ip, gateway=gateway).all_interfaces()
    assert (str(only.gateway4), str(only.gateway6)) == (gateway4, gateway6)


def test_a_full_request_survives_its_own_json() -> None:
    body = request(
        ip=None,
        hostname="WEB1.Example.ORG",
        interfaces=[
            nic(mac="52-54-00-AB-CD-EF", gateway4="192.0.2.1", gateway6="fe80::1", mtu=9000),
            {
                "name": "eth1",
                "addresses": ["198.51.100.7/25"],
                "routes": [{"to": "203.0.113.0/24", "via": "198.51.100.1", "metric": 0}],
            },
        ],
        nameservers=["192.0.2.53", "2001:db8::53"],
        search=["Example.ORG"],
        user="operator",
        password=None,
        ssh_authorized_keys=[ssh_key(), ssh_key("ssh-rsa", comment="")],
        timezone="America/Argentina/Buenos_Aires",
    ) | {"deadline_seconds": 30, "generation": 7, "target": "sdz"}
    asked = parse(body)
    assert parse(asked.public()) == asked
    assert asked.config.hostname == "web1.example.org"
    assert asked.config.interfaces[0].mac == "52:54:00:ab:cd:ef"
    assert asked.config.search == ["example.org"]


@pytest.mark.parametrize("scheme", ["5", "6", "7", "y", "gy", "2b", "2y"])
def test_every_hash_of_todays_crypt_is_taken(scheme: str) -> None:
    assert config_of(password=None, password_hash=f"${scheme}$" + "x" * 60).password is None


@pytest.mark.parametrize(
    "kind", ["ssh-ed25519", "ssh-rsa", "ecdsa-sha2-nistp256", "sk-ssh-ed25519@openssh.com"]
)
def test_a_public_key_is_kept_on_one_line_with_single_spaces(kind: str) -> None:
    line = ssh_key(kind, comment="a comment of mine")
    messy = "  " + line.replace(" ", "   ", 2) + " \n"
    assert config_of(ssh_authorized_keys=[messy]).ssh_authorized_keys == [line]


def test_the_longest_key_of_ssh_keygen_is_taken() -> None:
    # RSA with 16,384 bits: e is 65537, n has 2,049 bytes with its leading zero.
    blob = b"".join(
        struct.pack(">I", len(part)) + part
        for part in (b"ssh-rsa", b"\1\0\1", b"\0" + b"\xff" * 2048)
    )
    line = f"ssh-rsa {base64.b64encode(blob).decode()} somebody@somewhere.example.org"
    assert config_of(ssh_authorized_keys=[line]).ssh_authorized_keys == [line]


# ---------------------------------------------------------------- what is refused, and where
LONG_LABEL = "a" * 64


@pytest.mark.parametrize(
    ("hostname", "because"),
    [
        ("", "RFC 1123"),
        ("-web", "RFC 1123"),
        ("web-", "RFC 1123"),
        ("we_b", "RFC 1123"),
        ("web1.", "RFC 1123"),
        ("web..org", "RFC 1123"),
        ("web1\n", "RFC 1123"),
        ("wéb", "RFC 1123"),
        ("\N{KELVIN SIGN}elvin", "RFC 1123"),  # str.lower() makes an ASCII k of it
        (LONG_LABEL, "RFC 1123"),
        (".".join(["a" * 49] * 6), "RFC 1123"),
        ("192.0.2.1", "looks like an address"),
        ("12", "looks like an address"),
    ],
)
def test_what_is_no_host_name_is_refused(hostname: str, because: str) -> None:
    assert_refused("config.hostname", because, request(hostname=hostname))
    assert_refused("config.search[1]", because, request(search=["example.org", hostname]))


@pytest.mark.parametrize(
    ("ip", "because"),
    [
        ("192.0.2.10", "prefix length"),
        ("2001:db8::1", "prefix length"),
        ("192.0.2.300/24", "CIDR"),
        ("192.0.2.010/24", "CIDR"),
        ("192.0.2.10/33", "CIDR"),
        ("192.0.2.10/24/1", "CIDR"),
        (" 192.0.2.10/24", "CIDR"),
        ("192.0.2.10/24\n", "CIDR"),
        ("192.0.2.10/0", "prefix length 0"),
        ("192.0.2.0/24", "network itself"),
        ("2001:db8::/64", "network itself"),
        ("192.0.2.255/24", "broadcast"),
        ("255.255.255.255/32", "broadcast"),
        ("0.0.0.0/32", "unspecified"),
        ("127.0.0.1/8", "loopback"),
        ("224.0.0.5/24", "multicast"),
        ("::1/128", "loopback"),
        ("ff02::1/64", "multicast"),
        ("::ffff:192.0.2.10/96", "IPv6 notation"),
        ("::192.0.2.10/96", "IPv6 notation"),
        ("192.0.2.10/255.255.255.0", "CIDR"),
        ("192.0.2.10/0.0.0.255", "CIDR"),
        ("192.0.2.10/024", "CIDR"),
        ("fe80::1%eth0/64", "zone"),
        ("fe80::1%x\nUSER=mallory/64", "zone"),
        (3221225994, "string"),
        (["192.0.2.10/24"], "string"),
        (True, "string"),
    ],
)
def test_what_is_no_address_of_a_host_is_refused(ip: object, because: str) -> None:
    assert_refused("config.ip", because, request(ip=ip))
    body = request(ip=None, interfaces=[{"addresses": ["198.51.100.1/24", ip]}])
    assert_refused("config.interfaces[0].addresses[1]", because, body)


@pytest.mark.parametrize(
    ("gateway", "because"),
    [
        ("192.0.2.10", "own address"),
        ("198.51.100.1", "outside the subnet"),
        ("2001:db8:1::1", "outside the subnet"),
        ("192.0.2.0", "network itself"),
        ("192.0.2.255", "broadcast"),
        ("192.0.2.1/24", "no IP address"),
        ("router", "no IP address"),
        ("", "no IP address"),
        ("::", "unspecified"),
        ("fe80::1%eth0", "zone"),
        ("fe80::1%\nUSER=mallory", "zone"),
        (1, "must be a string"),
    ],
)
def test_a_gateway_that_cannot_be_reached_is_refused(gateway: object, because: str) -> None:
    assert_refused("config.gateway", because, request(gateway=gateway))
    key = "gateway6" if ":" in str(gateway) else "gateway4"
    body = request(ip=None, interfaces=[nic(name="eth0", **{key: gateway})])
    assert_refused(f"config.interfaces[0].{key}", because, body)


def test_a_gateway_belongs_to_the_form_that_has_the_address() -> None:
    body = request(ip=None, interfaces=[nic()], gateway="192.0.2.1")
    assert_refused("config.gateway", "goes with 'ip'", body)
    body = request(ip=None, interfaces=[nic(gateway4="fe80::1")])
    assert_refused("config.interfaces[0].gateway4", "IPv4", body)
    body = request(ip=None, interfaces=[nic(gateway6="192.0.2.1")])
    assert_refused("config.interfaces[0].gateway6", "IPv6", body)


@pytest.mark.parametrize(
    ("interfaces", "because"),
    [
        ([nic(), nic(name="eth1")], "each need"),
        ([nic(name="eth1"), nic(name="eth1")], "twice"),
        ([nic(mac="52:54:00:00:00:01"), nic(mac="52-54-00-00-00-01")], "twice"),
        (
            [nic(name="eth0", gateway4="192.0.2.1"), nic(name="eth1", gateway4="192.0.2.2")],
            "one default route",
        ),
        (
            [nic(name="eth0", gateway6="fe80::1"), nic(name="eth1", gateway6="fe80::1")],
            "one default route",
        ),
        ([nic(name=f"eth{number}") for number in range(17)], "16"),
        ([nic(routes=[{"to": "203.0.113.0/24", "via": "192.0.2.1"}] * 2)], "two routes"),
        (
            [
                nic(name="eth0", routes=[{"to": "203.0.113.0/24", "via": "192.0.2.1"}]),
                nic(name="eth1", routes=[{"to": "203.0.113.0/24", "via": "192.0.2.2"}]),
            ],
            "two routes",
        ),
    ],
)
def test_interfaces_that_cannot_be_told_apart_are_refused(
    interfaces: list[dict[str, Any]], because: str
) -> None:
    assert_refused("config.interfaces", because, request(ip=None, interfaces=interfaces))


def test_one_gateway_of_each_version_may_be_on_any_interface() -> None:
    first, second = nic(name="eth0", gateway6="fe80::1"), nic(name="eth1", gateway4="192.0.2.1")
    assert len(config_of(ip=None, interfaces=[first, second]).all_interfaces()) == 2


def test_the_short_form_and_the_long_one_exclude_each_other() -> None:
    assert_refused("config.interfaces", "two forms", request(interfaces=[nic()]))


@pytest.mark.parametrize(
    ("field", "value", "because"),
    [
        ("mac", "52:54:00:12:34", "no MAC"),
        ("mac", "52:54:00:12:34:5g", "no MAC"),
        ("mac", "01:00:5e:00:00:01", "multicast"),
        ("mac", "00:00:00:00:00:00", "zeros"),
        ("mac", "52:54:00:12:34:56\n", "no MAC"),
        ("name", "lo", "not lo"),
        ("name", "..", "interface name"),
        ("name", "a/b", "interface name"),
        ("name", "eth0 ", "interface name"),
        ("name", "", "interface name"),
        ("name", "abcdefghijklmnop", "interface name"),
        ("mtu", 575, "576"),
        ("mtu", 65536, "65535"),
        ("mtu", 1279, "1280"),
        ("addresses", [], "1 item"),
        ("addresses", ["192.0.2.10/24", "192.0.2.10/25"], "twice"),
        ("addresses", [f"192.0.2.{number}/24" for number in range(1, 18)], "16"),
        ("routes", [{"to": "203.0.113.0/24", "via": "198.51.100.1"}], "outside the subnet"),
        ("routes", [{"to": "203.0.113.0/24", "via": "192.0.2.1"}] * 33, "32"),
        ("typo", 1, "not permitted"),
    ],
)
def test_a_wrong_field_of_an_interface_is_named(field: str, value: object, because: str) -> None:
    body = request(ip=None, interfaces=[nic(**{field: value})])
    assert_refused(f"config.interfaces[0].{field}", because, body)


def test_an_interface_is_found_by_one_thing() -> None:
    body = request(ip=None, interfaces=[nic(mac="52:54:00:00:00:01", name="eth0")])
    assert_refused("config.interfaces[0].name", "must be absent", body)


@pytest.mark.parametrize(
    ("field", "value", "because"),
    [
        ("to", "203.0.113.1/24", "no network"),
        ("to", "somewhere", "no network"),
        ("to", "203.0.113.1", "no network"),
        ("to", "203.0.113.0/255.255.255.0", "no network"),
        ("to", "0.0.0.0/0", "default route"),
        ("to", "::/0", "default route"),
        ("to", "::ffff:203.0.113.0/120", "IPv6 notation"),
        ("to", "2001:db8::%\nUSER=mallory/64", "zone"),
        ("to", 7, "string"),
        ("via", "2001:db8::1", "same IP version"),
        ("via", "nobody", "no IP address"),
        ("metric", -1, "0"),
        ("metric", 2**32, "4294967295"),
        ("typo", 1, "not permitted"),
    ],
)
def test_a_wrong_field_of_a_route_is_named(field: str, value: object, because: str) -> None:
    route = {"to": "203.0.113.0/24", "via": "192.0.2.1"} | {field: value}
    body = request(ip=None, interfaces=[nic(routes=[route])])
    assert_refused(f"config.interfaces[0].routes[0].{field}", because, body)


@pytest.mark.parametrize(
    ("field", "value", "because"),
    [
        ("nameservers", ["192.0.2.53"] * 9, "8"),
        ("search", ["example.org"] * 17, "16"),
        ("ssh_authorized_keys", [ssh_key()] * 33, "32"),
        ("ssh_authorized_keys", [ssh_key(comment="x" * 2900)] * 17, "49152 bytes together"),
        ("user", "Root", "user name"),
        ("user", "", "user name"),
        ("user", "root:x", "user name"),
        ("user", "root\n", "user name"),
        ("user", "a" * 33, "user name"),
        ("timezone", "", "time zone"),
        ("timezone", "../etc/shadow", "time zone"),
        ("timezone", "/etc/shadow", "time zone"),
        ("timezone", "Europe/Vienna\n", "time zone"),
        ("timezone", "Europe/" + "V" * 60, "time zone"),
        ("typo", 1, "not permitted"),
    ],
)
def test_a_wrong_field_of_the_configuration_is_named(
    field: str, value: object, because: str
) -> None:
    assert_refused(f"config.{field}", because, request(**{field: value}))


@pytest.mark.parametrize(
    ("line", "because"),
    [
        ("", "no OpenSSH public key"),
        ("ssh-ed25519", "no OpenSSH public key"),
        ('command="rm -rf /" ' + ssh_key(), "no OpenSSH public key"),
        ("ssh-dss " + ssh_key().split()[1], "no OpenSSH public key"),
        (ssh_key() + "\n" + ssh_key(), "control characters"),
        (ssh_key(comment="a\tb"), "control characters"),
        ("ssh-ed25519 AAA", "damaged"),
        ("ssh-ed25519 ÄÖÜ=", "damaged"),
        ("ssh-ed25519 ====", "damaged"),
        (ssh_key("ssh-rsa", inner="ssh-ed25519"), "inner type"),
        ("ssh-ed25519 " + base64.b64encode(b"\0\0\0\x0bssh-ed25519").decode(), "inner type"),
        (ssh_key(comment="é" * (MAX_KEY_BYTES // 2)), "longer than"),
    ],
)
def test_what_is_no_public_key_is_refused(line: str, because: str) -> None:
    body = request(ssh_authorized_keys=[ssh_key(), line])
    assert_refused("config.ssh_authorized_keys[1]", because, body)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("request_id", ""),
        ("request_id", "-r"),
        ("request_id", "r 1"),
        ("request_id", "r1\n"),
        ("request_id", "r" * 129),
        ("domain", ""),
        ("domain", "web\n1"),
        ("domain", "d" * 256),
        ("deadline_seconds", 4),
        ("deadline_seconds", 86401),
        ("generation", 0),
        ("generation", 2**53 + 1),
        ("target", "vda"),
        ("target", "sda1"),
        ("target", "sda\n"),
        ("typo", 1),
    ],
)
def test_a_wrong_field_of_the_request_is_named(field: str, value: object) -> None:
    assert list(refusals(request() | {field: value})) == [field]


def test_what_is_missing_is_named() -> None:
    assert set(refusals({"config": {}})) == {"request_id", "domain", "config.hostname"}


def test_all_wrong_fields_are_named_at_once() -> None:
    found = refusals(request(hostname="-", ip="x", user="", timezone="") | {"domain": ""})
    assert set(found) == {
        *("domain", "config.hostname", "config.ip", "config.user", "config.timezone")
    }


# ---------------------------------------------------------------- secrets
def said_of(body: dict[str, Any]) -> str:
    """All that a refusal can say where nobody asks for the input itself."""
    with pytest.raises(ValidationError) as caught:
        parse(body)
    error = caught.value
    without_input = error.errors(include_input=False)
    messages = [one["msg"] for one in error.errors()]
    return "".join([str(error), repr(error), repr(without_input), *messages])


@pytest.mark.parametrize(
    ("field", "value", "because"),
    [
        ("password", "", "1 to 511 bytes"),
        ("password", "é" * 256, "1 to 511 bytes"),
        ("password", "hunter2\nroot::0", "control characters"),
        ("password", "hunter2\0", "control characters"),
        ("password", 271828, "string"),
        ("password_hash", "hunter2", "crypt(5)"),
        ("password_hash", "$1$hunter2$hunter2hunter2", "crypt(5)"),
        ("password_hash", HASH + "\nhunter2", "crypt(5)"),
        ("password_hash", HASH + ":hunter2", "crypt(5)"),
        ("password_hash", "$6$" + "hunter2/" * 61, "crypt(5)"),
    ],
)
def test_a_wrong_secret_is_refused_without_being_repeated(
    field: str, value: object, because: str
) -> None:
    body = (
        request(password=None, **{field: value})
        if field != "password"
        else request(**{field: value})
    )
    assert_refused(f"config.{field}", because, body)
    for part in ("hunter2", "271828", "é"):
        assert part not in said_of(body)


def test_password_and_hash_exclude_each_other_and_neither_is_repeated() -> None:
    body = request(password_hash=HASH)
    assert_refused("config.password_hash", "must be absent", body)
    assert PASSWORD not in said_of(body)
    assert HASH not in said_of(body)


@given(
    field=st.sampled_from(
        ["hostname", "ip", "gateway", "user", "timezone", "password_hash", "nameservers"]
    ),
    secret=st.text(string.ascii_letters, min_size=12, max_size=40),
)
def test_a_secret_in_the_wrong_field_is_not_repeated(field: str, secret: str) -> None:
    # '!' and the space keep it from being right anywhere
    value = f"{secret} !"
    body = request(**{field: [value] if field == "nameservers" else value})
    assert secret not in said_of(body)


def test_a_request_shows_no_secret_of_its_own() -> None:
    for fields in ({"password": PASSWORD}, {"password": None, "password_hash": HASH}):
        asked = parse(request(**fields))
        shown = [repr(asked), str(asked), asked.model_dump_json(), json.dumps(asked.public())]
        for text in shown:
            assert PASSWORD not in text
            assert HASH not in text
        assert "password" not in json.dumps(asked.public())


def test_the_hash_takes_the_place_of_the_password() -> None:
    hashed = config_of().with_password_hash(SecretStr(HASH))
    assert hashed.password is None
    assert hashed.password_hash is not None
    assert hashed.password_hash.get_secret_value() == HASH


def test_a_lone_surrogate_is_no_password() -> None:
    with pytest.raises(ValidationError) as caught:
        GuestConfig(hostname="web1", password=SecretStr("hunter2\ud800"))
    assert "hunter2" not in str(caught.value)
    assert "control characters" in str(caught.value)


# ---------------------------------------------------------------- the rest of the wire
def test_a_message_is_never_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        parse(request()).config.hostname = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    "message", [ProvisionRequest, JobView, JobList, EventView, DomainList, HealthView, ErrorReply]
)
def test_every_message_has_a_json_schema(message: type[BaseModel]) -> None:
    schema = message.model_json_schema()
    assert set(schema["properties"]) == set(message.model_fields)


def test_the_schema_hides_passwords_in_forms() -> None:
    config = ProvisionRequest.model_json_schema()["$defs"]["GuestConfig"]["properties"]
    for field in ("password", "password_hash"):
        assert '"format": "password"' in json.dumps(config[field])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3)
    ),
    max_leaves=8,
)


# ---------------------------------------------------------------- requests of every kind
ANY: TypeAdapter[Request] = TypeAdapter(Request)
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,9}", fullmatch=True)
ODD = st.text(max_size=12) | st.sampled_from(
    [
        "../x",
        "/x/../y",
        "/x:y",
        "a/b",
        ".x",
        "x\0",
        "x\n",
        "\x1b[2J",
        "/x\x7f",
        "vdaa",
        "\ud800",
        "٣",
    ]
)
FIELDS = {
    "request_id": NAMES | ODD,
    "deadline_seconds": st.integers(0, 99999),
    "domain": NAMES | ODD,
    "target": st.sampled_from(["vda", "sdb", "xvdc"]) | ODD,
    "name": NAMES | ODD,
    "base": NAMES | ODD,
    "disk": st.none() | NAMES | ODD,
    "parent": st.none() | NAMES,
    "source": st.just("/srv/x.raw") | ODD,
    "source_format": st.sampled_from(DiskFormat),
    "format": st.sampled_from(DiskFormat),
    "size": st.none() | st.integers(-1, 2**50) | st.sampled_from([512, 2**30, 2**46]),
    "force": st.booleans(),
    "persistent": st.booleans(),
    "config": st.builds(lambda name: {"hostname": name, "ip": "192.0.2.9/24"}, NAMES | ODD),
    "create": st.none() | st.builds(lambda base: {"base": base, "mac": None}, NAMES | ODD),
}


@given(st.sampled_from(JobKind), st.data())
def test_what_is_accepted_is_stored_as_it_reads_and_names_no_other_path(
    kind: JobKind, data: st.DataObject
) -> None:
    model = type(ANY.validate_python(SMALLEST[kind]))
    drawn = {
        name: data.draw(FIELDS[name])
        for name in sorted(model.model_fields.keys() & FIELDS.keys())
        if name not in SMALLEST[kind] or data.draw(st.booleans())
    }
    try:
        asked = ANY.validate_python(SMALLEST[kind] | drawn, strict=False)
    except ValidationError:
        return
    stored = asked.public()
    assert ANY.validate_json(json.dumps(stored)).public() == stored
    for name, value in stored.items():
        if isinstance(value, str):
            assert value.isprintable(), name
            assert name == "domain" or ".." not in value.split("/"), name
            assert name in ("domain", "source") or "/" not in value, name


SMALLEST: dict[JobKind, dict[str, Any]] = {
    JobKind.PROVISION: request(),
    JobKind.DESTROY: {"domain": "web1"},
    JobKind.ATTACH_DISK: {"domain": "web1", "disk": "data"},
    JobKind.DETACH_DISK: {"domain": "web1", "target": "vdb"},
    JobKind.CREATE_OVERLAY: {"name": "web1", "base": "debian"},
    JobKind.IMPORT_BASE: {"name": "debian", "source": "/x", "source_format": "raw"},
    JobKind.VERIFY_BASE: {"base": "debian"},
}
SMALLEST = {kind: {"kind": kind, "request_id": "r-1", **body} for kind, body in SMALLEST.items()}


@settings(max_examples=40)
@given(JSON)
def test_no_value_of_any_field_does_worse_than_a_refusal(value: object) -> None:
    body = request()
    for field in GuestConfig.model_fields:
        with contextlib.suppress(ValidationError):
            parse(body | {"config": body["config"] | {field: value}})
