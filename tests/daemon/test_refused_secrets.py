"""A secret that comes with a refused request, wherever it stands in it, is not repeated."""

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.daemon.canary import Canary, Place, files_below, found, processes, replies, traced
from tests.daemon.command import Command
from tests.daemon.program import Daemon, request

JSON = {"Content-Type": "application/json"}
PASSWORD = Canary().password
HASH = Canary().hash
# A valid body whose domain has no channel: refused with the secret in its place.
VALID = request("test", password=PASSWORD)


def at(place: str, value: Any) -> dict[str, Any]:
    """The valid body with a value in another place."""
    body: dict[str, Any] = json.loads(json.dumps(VALID))
    *path, last = place.split(".")
    target = body
    for part in path:
        target = target[part]
    target[last] = value
    return body


FIELDS = (
    *("config.hostname", "config.ip", "config.gateway", "config.interfaces", "config.nameservers"),
    *("config.search", "config.user", "config.password", "config.password_hash", "config.timezone"),
    *("config.ssh_authorized_keys", "config", "request_id", "deadline_seconds", "target"),
    *("generation", "kind", "create"),
)
# As it is, with what is allowed nowhere, and as what it is not.
VALUES = (f"{PASSWORD}\n", f"{PASSWORD} !", [PASSWORD], [{"x": PASSWORD}], {"x": [HASH]})


def wrong_bodies() -> list[bytes]:
    """JSON with the secret in every field in every wrong way; and what is no JSON."""
    whole = json.dumps(VALID)
    return [
        *(json.dumps(at(field, value)).encode() for field in FIELDS for value in VALUES),
        json.dumps(PASSWORD).encode(),
        json.dumps([VALID]).encode(),
        whole[:-1].encode(),
        whole.replace('"', "'").encode(),
        whole.replace('{"hostname"', "{hostname").encode(),
        whole.replace(PASSWORD, PASSWORD + "\\q").encode(),
        whole.encode().replace(PASSWORD.encode(), PASSWORD.encode() + b"\xff"),
        whole.encode("utf-16"),
        f'{{"config": {{"password": {PASSWORD}}}}}'.encode(),
        f"password={PASSWORD}&password_hash={HASH}".encode(),
        (whole + " " * 300_000).encode(),
        ("[" * 100_000 + f'"{PASSWORD}"').encode(),
    ]


def wrong_types() -> list[Mapping[str, str]]:
    return [
        {},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "multipart/form-data"},
        {"Content-Type": f"application/{PASSWORD}"},
        {"Content-Type": f"application/json; charset={PASSWORD}"},
    ]


async def search(daemon: Daemon) -> list[str]:
    """Everywhere but in the replies to those who have sent it."""
    assert daemon.process is not None
    places = [*files_below(daemon.folder), *processes(daemon.folder), *await replies(daemon)]
    known = {
        f"{daemon.log}": "POST /v1/jobs: 422",
        f"{daemon.state_file}*": "SQLite format 3",
        "arguments of *": "serve",
        "GET /metrics": "provisiond_jobs",
    }
    return found([PASSWORD, HASH], places, known=known)


@pytest.fixture
async def talkative(idle_daemon: Daemon) -> Daemon:
    idle_daemon.environment = {"PYTHONDEVMODE": "1", "TMPDIR": str(idle_daemon.folder)}
    idle_daemon.settings["requests_per_second"] = 10_000
    await idle_daemon.start()
    return idle_daemon


async def test_a_refused_request_is_not_repeated_by_the_reply_nor_anywhere(
    talkative: Daemon,
) -> None:
    async with talkative.http() as http:
        bodies = [(body, JSON) for body in wrong_bodies()]
        types = [(json.dumps(VALID).encode(), headers) for headers in wrong_types()]
        for body, headers in [*bodies, *types]:
            reply = await http.post("/v1/jobs", content=body, headers=headers)
            assert 400 <= reply.status_code < 500, (reply.status_code, body[:200])
            assert reply.headers["content-type"] == "application/problem+json"
            assert repeated_by(reply) == [], body[:300]
    assert await search(talkative) == []


async def test_a_secret_in_the_query_or_the_headers_is_not_repeated(talkative: Daemon) -> None:
    async with talkative.http() as http:
        for method, path in (
            ("GET", "/v1/jobs"),
            ("POST", "/v1/jobs"),
            ("DELETE", "/v1/jobs/00ff"),
        ):
            for headers in (
                {"Authorization": f"Bearer {PASSWORD}", "Cookie": f"session={HASH}"},
                {"Last-Event-ID": PASSWORD, "Host": PASSWORD, "X-Password": PASSWORD},
                {"X-Password": PASSWORD * 1000},
                {"Accept": PASSWORD, "User-Agent": PASSWORD, "Expect": PASSWORD},
            ):
                query = {"limit": PASSWORD, "password": HASH}
                reply = await http.request(method, path, params=query, headers=headers)
                assert 400 <= reply.status_code < 500
                assert repeated_by(reply) == [], (method, path, headers)
    assert await search(talkative) == []


async def test_what_is_no_http_is_not_repeated(talkative: Daemon) -> None:
    await talkative.post(VALID | {"domain": 1})
    for sent in (
        f"{PASSWORD}\r\n\r\n",
        f"POST /v1/jobs {PASSWORD}\r\n\r\n",
        f"POST /v1/jobs HTTP/1.1\r\nHost: x\r\n{PASSWORD}\r\n\r\n",
        f"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{PASSWORD}\r\n",
        f"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: {PASSWORD}\r\n\r\n",
    ):
        reader, writer = await asyncio.open_unix_connection(talkative.socket)
        writer.write(sent.encode())
        writer.write_eof()
        answered = await reader.read()
        writer.close()
        await writer.wait_closed()
        assert found([PASSWORD], [Place("reply", answered)], known={}) == [], sent
    assert await search(talkative) == []


async def test_a_secret_in_the_place_of_a_name_is_told_to_its_sender_alone(
    talkative: Daemon,
) -> None:
    """What could be a name is one: the reply says which domain, field or job there is not."""
    async with talkative.http() as http:
        for body in (
            at("domain", PASSWORD),
            at(PASSWORD, "x"),
            at(f"config.{PASSWORD}", HASH),
            at("request_id", PASSWORD),
        ):
            reply = await http.post("/v1/jobs", json=body)
            assert 400 <= reply.status_code < 500
            assert HASH not in reply.text
        for path in (f"/v1/jobs/{PASSWORD}", f"/v1/domains/{PASSWORD}", f"/{PASSWORD}"):
            assert (await http.get(path)).status_code == 404
    assert await search(talkative) == []


async def test_provisionctl_repeats_no_secret_however_it_fails(
    talkative: Daemon, tmp_path: Path
) -> None:
    def config(name: str, content: bytes) -> tuple[str | Path, ...]:
        (tmp_path / name).write_bytes(content)
        return ("--config", tmp_path / name)

    secret = PASSWORD.encode()
    named, clear, hashed = ("--hostname", "web1"), "--password-stdin", "--password-hash-stdin"
    failing: list[tuple[tuple[str | Path, ...], bytes]] = [
        ((*named, clear), secret + b"\n"),  # the domain has no channel
        ((*named, "--ip", "-", clear), secret + b"\n"),
        ((*named, clear), secret + b"\xff\n"),
        ((*named, clear), secret * 1000),
        ((*named, clear, hashed), secret + b"\n"),
        ((*named, hashed), HASH.encode() + b":\n"),
        (config("broken", b'{"hostname": "web1", "password": "' + secret), b""),
        (config("latin", json.dumps(PASSWORD).encode() + b"\xff"), b""),
        (config("wrong", json.dumps({"hostname": f"{PASSWORD} !"}).encode()), b""),
    ]
    command = Command(talkative.socket, prefix=traced(tmp_path / "execs"))
    for options, typed in failing:
        words = ("provision", "test", *options, *(["--json"] if typed else []))
        said = await command.run(*words, stdin=typed)
        assert said.status > 0
        answered = Place("said", (said.out + said.err).encode())
        assert found([PASSWORD, HASH], [answered], known={}) == [], words
    (trace,) = (place for place in files_below(tmp_path) if place.name.endswith("execs"))
    assert found([PASSWORD, HASH], [trace], known={"*": '"--hostname", "web1"'}) == []
    assert found([PASSWORD, HASH], files_below(talkative.folder), known={"*/log": "422"}) == []


def repeated_by(reply: httpx.Response) -> list[str]:
    return found(
        [PASSWORD, HASH], [Place("reply", str(reply.headers).encode() + reply.content)], known={}
    )
