"""Who may call: real processes of other users on the socket, real clients over mutual TLS."""

import asyncio
import json
import signal
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path

import httpx
import pytest

from provisiond.sockets import _listen_to
from provisiond.store import Fact, Store
from tests.daemon.certificates import (
    Certificate,
    make_authority,
    make_certificate,
    tls_port,
    tls_settings,
)
from tests.daemon.program import Daemon, request
from tests.unit.test_store import failed, job_of

SOON = 20  # seconds; far more than any of this takes
USER = 54003  # an id that nobody has
NOGROUP = 65534
# With nothing but Python's own library: another user need not come to this tree.
ASK = """
import http.client, socket, sys
address, method, path, body = sys.argv[1:]
connection = http.client.HTTPConnection("localhost")
connection.sock = socket.socket(socket.AF_UNIX)
connection.sock.connect(address)
connection.request(method, path, body, {"Content-Type": "application/json"})
reply = connection.getresponse()
print(reply.status, reply.read().decode())
"""
NOTHING = {"kind": "destroy", "request_id": "r", "domain": "absent"}


async def ask(
    daemon: Daemon, method: str, path: str, body: object = None, *, uid: int, groups: list[int]
) -> tuple[int, str]:
    """Status and code (or nothing) that a process of this user gets."""
    process = await asyncio.create_subprocess_exec(
        *("/usr/bin/python3", "-I", "-c", ASK),
        *(daemon.socket, method, path, json.dumps(body)),
        stdout=asyncio.subprocess.PIPE,
        user=uid,
        group=uid,
        extra_groups=groups,
        cwd="/",
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    status, _, text = out.decode().partition(" ")
    return int(status), json.loads(text).get("code", "")


# ---------------------------------------------------------------- the Unix socket
async def test_members_of_the_sockets_group_may_do_everything_and_the_record_names_them(
    idle_daemon: Daemon,
) -> None:
    idle_daemon.folder.chmod(0o755)
    idle_daemon.settings["socket_group"] = "nogroup"
    await idle_daemon.start()
    groups = [idle_daemon.socket.stat().st_gid]
    assert await ask(idle_daemon, "GET", "/v1/domains", uid=USER, groups=groups) == (200, "")
    asked = await ask(idle_daemon, "POST", "/v1/jobs", NOTHING, uid=USER, groups=groups)
    assert asked == (404, "domain_not_found")
    assert f"unix:{USER} (operator; uid {USER}, pid " in idle_daemon.said()
    assert ") POST /v1/jobs: 404" in idle_daemon.said()
    with pytest.raises(AssertionError):  # the socket's mode keeps all others out
        await ask(idle_daemon, "GET", "/v1/domains", uid=USER, groups=[])


async def test_a_viewer_reads_and_changes_nothing(idle_daemon: Daemon) -> None:
    idle_daemon.folder.chmod(0o755)
    idle_daemon.settings["viewer_group"] = "nogroup"
    await idle_daemon.start()
    groups = [NOGROUP]
    for path in ("/v1/domains", "/v1/jobs", "/v1/bases", "/v1/disks", "/healthz"):
        asked = await ask(idle_daemon, "GET", path, uid=USER, groups=groups)
        assert asked == (200, ""), path
    for method, path in (
        ("POST", "/v1/jobs"),
        ("DELETE", "/v1/jobs/0123"),
        ("DELETE", "/v1/bases/debian"),
        ("DELETE", "/v1/disks/web1"),
        ("POST", "/v1/domains"),
    ):
        asked = await ask(idle_daemon, method, path, NOTHING, uid=USER, groups=groups)
        assert asked == (403, "forbidden"), path
    assert await ask(idle_daemon, "GET", "/v1/domains", uid=USER, groups=[]) == (403, "forbidden")
    assert f"unix:{USER} (nobody; " in idle_daemon.said()


# ---------------------------------------------------------------- mutual TLS
@pytest.mark.parametrize("address", ["127.0.0.1:0", "[::1]:0"])
async def test_the_kernel_holds_no_part_of_a_reply_back(address: str) -> None:
    """Nagle's algorithm would, until the client acknowledges the part before: 40 ms on Linux."""
    delay: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted = writer.get_extra_info("socket")
        delay.set_result(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    listener = _listen_to(address)
    async with await asyncio.start_server(answer, sock=listener):
        _, writer = await asyncio.open_connection(*listener.getsockname()[:2])
        assert await asyncio.wait_for(delay, SOON) == 1
        writer.close()


@pytest.fixture
def authority(tmp_path: Path) -> Certificate:
    return make_authority(tmp_path)


@pytest.fixture
async def remote(idle_daemon: Daemon, tmp_path: Path, authority: Certificate) -> Daemon:
    """A daemon that serves over TLS on a port of the kernel's choice, on loopback."""
    own = make_certificate(tmp_path, "host", by=authority, ip="127.0.0.1")
    idle_daemon.settings |= tls_settings(own, clients=authority) | {"request_seconds": 2}
    idle_daemon.environment = {
        "PROVISIOND_OPERATORS": '["master.example.org"]',
        "PROVISIOND_VIEWERS": '["watch.example.org"]',
    }
    await idle_daemon.start()
    return idle_daemon


@asynccontextmanager
async def client(
    daemon: Daemon, authority: Certificate, own: Certificate | None
) -> AsyncIterator[httpx.AsyncClient]:
    context = ssl.create_default_context(cafile=str(authority.certificate))
    if own is not None:
        context.load_cert_chain(own.certificate, own.key)
    base = f"https://127.0.0.1:{tls_port(daemon)}"
    async with httpx.AsyncClient(verify=context, base_url=base, timeout=SOON) as http:
        yield http


async def test_a_client_has_the_role_of_its_certificates_name(
    remote: Daemon, authority: Certificate, tmp_path: Path
) -> None:
    for name, reads, changes in (
        ("master.example.org", 200, 404),
        ("watch.example.org", 200, 403),
        ("other.example.org", 403, 403),
    ):
        own = make_certificate(tmp_path, name, by=authority)
        async with client(remote, authority, own) as http:
            assert (await http.get("/v1/domains")).status_code == reads
            assert (await http.post("/v1/jobs", json=NOTHING)).status_code == changes
    assert "tls:master.example.org (operator; 127.0.0.1 port " in remote.said()
    assert "tls:other.example.org (nobody; " in remote.said()


async def test_no_path_reads_like_another_outcome_in_the_record(idle_daemon: Daemon) -> None:
    await idle_daemon.start()
    async with idle_daemon.http() as http:
        assert (await http.delete("/x%3a%20202,%20job%200123abcd")).status_code == 404
        assert (await http.delete("/v1/jobs/%30123")).status_code == 404
    assert await idle_daemon.stop() == 0  # a line is written after its reply
    assert "DELETE /x%3a%20202,%20job%200123abcd: 404\n" in idle_daemon.said()
    assert "DELETE /v1/jobs/%30123: 404, job 0123\n" in idle_daemon.said()


async def test_a_job_says_who_has_asked_for_it(
    remote: Daemon, authority: Certificate, tmp_path: Path
) -> None:
    own = make_certificate(tmp_path, "master.example.org", by=authority)
    async with client(remote, authority, own) as http:
        source = tmp_path / "image"
        source.write_bytes(bytes(2**20))
        asked = {"kind": "import_base", "request_id": "b", "name": "b", "source": str(source)}
        reply = await http.post("/v1/jobs", json=asked | {"source_format": "raw"})
    assert reply.status_code == 202
    job = await remote.wait_for(reply.json()["id"], "SUCCEEDED")
    assert job["requested_by"] == "tls:master.example.org"
    assert job["history"][0]["detail"] == "request accepted from tls:master.example.org"
    assert f"POST /v1/jobs: 202, job {job['id']}" in remote.said()


async def test_without_a_certificate_of_the_authority_nobody_is_heard(
    remote: Daemon, authority: Certificate, tmp_path: Path
) -> None:
    (tmp_path / "strangers").mkdir()
    stranger = make_authority(tmp_path / "strangers", "authority")
    forged = make_certificate(tmp_path / "strangers", "master.example.org", by=stranger)
    for own in (None, forged):
        with pytest.raises(httpx.TransportError):
            async with client(remote, authority, own) as http:
                await http.get("/v1/domains")
    for version in ("-tls1", "-tls1_1"):
        address = f"127.0.0.1:{tls_port(remote)}"
        process = await asyncio.create_subprocess_exec(
            *("openssl", "s_client", version, "-cipher", "ALL:@SECLEVEL=0", "-connect", address),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        out, _ = await process.communicate()
        assert b"Cipher is (NONE)" in out


async def test_a_hangup_reads_the_certificates_again_and_wrong_ones_change_nothing(
    remote: Daemon, authority: Certificate, tmp_path: Path
) -> None:
    own = make_certificate(tmp_path, "master.example.org", by=authority)
    (tmp_path / "next").mkdir()
    later = make_authority(tmp_path / "next", "next")
    new = make_certificate(tmp_path / "next", "master.example.org", by=later)
    server = make_certificate(tmp_path / "next", "host", by=later, ip="127.0.0.1")
    old = {name: Path(str(remote.settings[name])).read_bytes() for name in TLS_FILES}

    Path(str(remote.settings["tls_client_ca"])).write_text("nonsense")
    await hang_up(remote, "the certificates stay as they were: ")
    Path(str(remote.settings["tls_client_ca"])).write_bytes(old["tls_client_ca"])
    async with client(remote, authority, own) as http:
        assert (await http.get("/v1/domains")).status_code == 200

    for setting, path in (
        ("tls_certificate", server.certificate),
        ("tls_key", server.key),
        ("tls_client_ca", later.certificate),
    ):
        Path(str(remote.settings[setting])).write_bytes(path.read_bytes())
    await hang_up(remote, "the certificates are read again")
    async with client(remote, later, new) as http:
        assert (await http.get("/v1/domains")).status_code == 200
    with pytest.raises(httpx.TransportError):
        async with client(remote, later, own) as http:
            await http.get("/v1/domains")


TLS_FILES = ("tls_certificate", "tls_key", "tls_client_ca")


async def test_a_session_of_before_is_not_resumed_with_other_certificates(
    remote: Daemon, authority: Certificate, tmp_path: Path
) -> None:
    own = make_certificate(tmp_path, "master.example.org", by=authority)
    (tmp_path / "next").mkdir()
    later = make_authority(tmp_path / "next", "next")
    context = ssl.create_default_context(cafile=str(authority.certificate))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(own.certificate, own.key)

    def shake_hands(session: ssl.SSLSession | None) -> ssl.SSLSession | None:
        with (
            socket.create_connection(("127.0.0.1", tls_port(remote)), timeout=SOON) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1", session=session) as peer,
        ):
            peer.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert peer.recv(100).startswith(b"HTTP/1.1 200")
            return peer.session

    session = await asyncio.to_thread(shake_hands, None)
    path = Path(str(remote.settings["tls_client_ca"]))
    path.write_bytes(later.certificate.read_bytes())
    await hang_up(remote, "the certificates are read again")
    for old in (session, None):
        with pytest.raises((OSError, AssertionError)):
            await asyncio.to_thread(shake_hands, old)


async def test_connections_that_say_nothing_are_few_and_keep_no_client_out(
    remote: Daemon, authority: Certificate, tmp_path: Path
) -> None:
    own = make_certificate(tmp_path, "master.example.org", by=authority)
    assert remote.process is not None
    descriptors = Path(f"/proc/{remote.process.pid}/fd")
    address = ("127.0.0.1", tls_port(remote))
    silent = [await asyncio.open_connection(*address) for _ in range(300)]
    async with client(remote, authority, own) as http:
        assert (await http.get("/healthz")).status_code == 200
    assert len(list(descriptors.iterdir())) < 150
    assert await silent[0][0].read() == b""
    assert await remote.stop() == 0
    for _, writer in silent:
        writer.close()


async def test_a_plain_name_is_that_of_a_systemd_credential(
    remote: Daemon, authority: Certificate, tmp_path: Path
) -> None:
    await remote.stop()
    remote.settings |= {
        name: Path(str(remote.settings[name])).name for name in ("tls_certificate", "tls_key")
    }
    remote.environment = {**remote.environment, "CREDENTIALS_DIRECTORY": str(tmp_path)}
    remote.log.unlink()
    await remote.start()
    own = make_certificate(tmp_path, "watch.example.org", by=authority)
    async with client(remote, authority, own) as http:
        assert (await http.get("/v1/domains")).status_code == 200


async def test_the_sockets_that_systemd_passes_are_taken_and_left(idle_daemon: Daemon) -> None:
    idle_daemon.prefix = ("systemd-socket-activate", f"--listen={idle_daemon.socket}")
    idle_daemon.settings["socket"] = str(idle_daemon.folder / "unused.sock")
    address = idle_daemon.socket
    await idle_daemon.spawn()
    async with asyncio.timeout(SOON):
        for _ in iter(address.exists, True):
            await asyncio.sleep(0.02)
        asked = await ask(idle_daemon, "GET", "/v1/domains", uid=0, groups=[])
    assert asked == (200, "")
    assert not (idle_daemon.folder / "unused.sock").exists()
    assert await idle_daemon.stop() == 0
    assert address.exists()


async def hang_up(daemon: Daemon, said: str) -> None:
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGHUP)
    async with asyncio.timeout(SOON):
        for _ in iter(lambda: said in daemon.said(), True):
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("absent", TLS_FILES)
async def test_tls_without_one_of_its_files_is_refused_at_the_start(
    idle_daemon: Daemon, absent: str
) -> None:
    idle_daemon.settings |= dict.fromkeys(TLS_FILES, "/nowhere") | {"listen": "127.0.0.1:0"}
    del idle_daemon.settings[absent]
    status, said = await idle_daemon.run_to_its_end()
    assert status == 1
    assert "listen needs tls_certificate, tls_key and tls_client_ca" in said


# ---------------------------------------------------------------- limits
async def test_a_request_that_does_not_come_to_its_end_is_cut_off(idle_daemon: Daemon) -> None:
    idle_daemon.settings["request_seconds"] = 0.5
    await idle_daemon.start()
    half = b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{"
    for said, replies in (
        (b"", 0),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: ", 0),
        (half, 0),
        (2 * b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" + half, 2),
    ):
        reader, writer = await asyncio.open_unix_connection(idle_daemon.socket)
        writer.write(said)
        got = b""
        async with asyncio.timeout(SOON):
            with suppress(ConnectionResetError):
                while part := await reader.read(2**16):
                    got += part
        assert got.count(b"HTTP/1.1 200") == replies
        writer.close()
    assert (await idle_daemon.get("/healthz")).status_code == 200


async def test_a_follower_of_events_is_not_cut_off(idle_daemon: Daemon) -> None:
    idle_daemon.settings["request_seconds"] = 0.2
    await idle_daemon.start()
    async with idle_daemon.events("/v1/events") as events:
        await asyncio.sleep(1)  # longer than a request may take to come in
        (idle_daemon.folder / "image").write_bytes(bytes(2**20))
        asked = {"kind": "import_base", "request_id": "b", "name": "b", "source_format": "raw"}
        await idle_daemon.submit(asked | {"source": str(idle_daemon.folder / "image")})
        async with asyncio.timeout(SOON):
            async for event in events:
                assert event["subject"] == "b"
                break


async def test_a_caller_that_asks_too_fast_is_told_so_and_another_is_not(
    idle_daemon: Daemon,
) -> None:
    idle_daemon.folder.chmod(0o755)
    idle_daemon.settings |= {"requests_per_second": 0.01, "viewer_group": "nogroup"}
    await idle_daemon.start()
    async with idle_daemon.http() as http:
        replies = [await http.get("/healthz") for _ in range(3)]
    refused = [reply for reply in replies if reply.status_code == 429]
    assert len(refused) >= 2  # one in 100 s
    assert refused[-1].json()["code"] == "too_many_requests"
    assert 50 < int(refused[-1].headers["Retry-After"]) <= 100
    assert (await ask(idle_daemon, "GET", "/healthz", uid=USER, groups=[NOGROUP]))[0] == 200


async def test_whoever_has_no_role_floods_neither_the_api_nor_the_log(
    idle_daemon: Daemon,
) -> None:
    idle_daemon.folder.chmod(0o755)
    idle_daemon.settings |= {"requests_per_second": 1, "viewer_group": "nogroup"}
    await idle_daemon.start()
    kinds = (
        b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"\0\r\n\r\n",
    )
    flood = """
import socket, sys
for kind in sys.argv[2:]:
    for _ in range(2):
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(sys.argv[1])
            peer.sendall(bytes.fromhex(kind) * 50 + b"no request\\r\\n\\r\\n")
            while got := peer.recv(65536):
                sys.stdout.buffer.write(got)
"""
    process = await asyncio.create_subprocess_exec(
        *("/usr/bin/python3", "-I", "-c", flood),
        *(str(idle_daemon.socket), *(kind.hex() for kind in kinds)),
        stdout=asyncio.subprocess.PIPE,
        user=USER,
        group=USER,
        extra_groups=[],
        cwd="/",
    )
    said, _ = await process.communicate()
    assert said.count(b"HTTP/1.1 403") in range(10, 20)  # ten at once, then one a second
    assert said.count(b"HTTP/1.1 429") > 150
    lines = [line for line in idle_daemon.said().splitlines() if "INFO provisiond " not in line]
    assert len(lines) < 40, lines
    assert (await idle_daemon.get("/healthz")).status_code == 200


async def test_long_lists_keep_nobody_from_what_is_short(idle_daemon: Daemon) -> None:
    store = Store(idle_daemon.state_file)
    await store.open()
    for number in range(1, 1001):
        await store.insert(job_of(number), "accepted")
        ended = failed(job_of(number))
        await store.save(ended, [Fact(ended.state, "ended")])
    await store.close()
    await idle_daemon.start()
    ask = b"GET /v1/jobs?limit=1000 HTTP/1.1\r\nHost: x\r\n\r\n"

    async def list_again_and_again() -> None:
        reader, writer = await asyncio.open_unix_connection(idle_daemon.socket)
        with closing(writer):
            while True:
                writer.write(ask)
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200")
                await reader.readexactly(int(head.lower().partition(b"length: ")[2].split()[0]))

    lists = [asyncio.create_task(list_again_and_again()) for _ in range(90)]
    await asyncio.sleep(1)
    async with asyncio.timeout(5):
        for _ in range(3):
            assert (await idle_daemon.get("/v1/bases")).status_code == 200
    assert not any(task.done() for task in lists)
    for task in lists:
        task.cancel()
    await asyncio.wait(lists)


async def test_a_caller_has_so_many_connections_and_requests_and_no_more(
    idle_daemon: Daemon,
) -> None:
    idle_daemon.settings |= {"max_requests": 2, "max_connections": 4}
    await idle_daemon.start()
    async with idle_daemon.events("/v1/events"), idle_daemon.events("/v1/events"):
        reply = await idle_daemon.post(request("absent"))
        assert (reply.status_code, reply.json()["code"]) == (503, "overloaded")
        more = [await asyncio.open_unix_connection(idle_daemon.socket) for _ in range(3)]
        ends = [asyncio.create_task(reader.read(1)) for reader, _ in more]
        async with asyncio.timeout(SOON):
            done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        assert len(done) < 3  # two of four are the followers', two more are taken
        for end in ends:
            end.cancel()
        for _, writer in more:
            writer.close()


async def test_a_head_that_is_too_large_is_refused(daemon: Daemon) -> None:
    async with daemon.http() as http:
        with suppress(httpx.TransportError):  # it is refused before all of it has come
            reply = await http.get("/healthz", headers={"X-Large": "x" * 2**20})
            assert reply.status_code == 400
            assert reply.text == "Invalid HTTP request received."
