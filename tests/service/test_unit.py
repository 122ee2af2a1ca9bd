"""provisiond under a real systemd: started, asked for by its socket, killed by the watchdog."""

import asyncio
import subprocess
from pathlib import Path

import pytest

from tests.daemon.certificates import Certificate, make_authority, make_certificate
from tests.daemon.program import STORY, facts, request
from tests.lab.domain import Guest, kernel_words
from tests.service.unit import Unit

pytestmark = pytest.mark.timeout(180)

WATCHDOG = "WatchdogSec=6s\n"
IMPATIENT: dict[str, object] = {"libvirt_uri": "qemu:///system", "ready_seconds": 1}
TEST_DRIVER: dict[str, object] = {"libvirt_uri": "test:///default"}


async def attached(unit: Unit, name: str, *, late: int) -> str:
    """A job that is as far as it can be without the guest's script, `late` seconds after boot."""
    unit.start_guest(Guest(name, kernel_words=kernel_words(delay=late)))
    job = await unit.submit(request(name))
    await unit.wait_for(job["id"], "ISO_ATTACHED")
    return str(job["id"])


async def succeeds(unit: Unit, job_id: str) -> None:
    """The job goes the whole way, and nothing of it is left."""
    job = await unit.wait_for(job_id, "SUCCEEDED")
    assert facts(job) == STORY
    assert job["proof"]["iso_file_absent"] is True
    assert unit.isos() == []


# ---------------------------------------------------------------- start and stop
async def test_it_starts_with_nothing_more_than_it_needs(unit: Unit) -> None:
    unit.set_up(TEST_DRIVER)
    unit.start()
    assert unit.show("StatusText") == "0 unfinished jobs"
    pid = unit.show("MainPID")
    status = dict(
        line.split(":\t", 1) for line in unit.path(f"/proc/{pid}/status").read_text().splitlines()
    )
    # linux/capability.h: chown 0, dac_override 1, fowner 3, linux_immutable 9, lease 28.
    wanted = sum(1 << number for number in (0, 1, 3, 9, 28))
    assert int(status["CapBnd"], 16) == int(status["CapEff"], 16) == wanted
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    inside = ("nsenter", f"--target={pid}", "--mount")
    for folder in ("/etc", "/usr", "/root", "/var/lib", "/run", "/sys/kernel", "/proc/sys"):
        said = unit.container.run(
            *inside, "findmnt", "--noheadings", "--output=OPTIONS", "-T", folder
        )
        assert said.startswith("ro,"), (folder, said)


async def test_a_base_is_imported_and_an_overlay_made_of_it(unit: Unit) -> None:
    unit.set_up(TEST_DRIVER | {"reserve_mib": 16})
    unit.start()
    unit.container.run("qemu-img", "create", "-q", "-f", "qcow2", "/srv/golden.qcow2", "8M")
    order = {"kind": "import_base", "request_id": "1", "name": "golden"}
    job = await unit.submit(order | {"source": "/srv/golden.qcow2", "source_format": "qcow2"})
    await unit.wait_for(job["id"], "SUCCEEDED")
    order = {"kind": "create_overlay", "request_id": "2", "name": "web1", "base": "golden"}
    job = await unit.wait_for((await unit.submit(order))["id"], "SUCCEEDED")
    assert unit.path(job["disk"]).stat().st_size > 0


async def test_an_image_dir_elsewhere_has_to_be_named_to_systemd(unit: Unit) -> None:
    settings = TEST_DRIVER | {"image_dir": "/srv/images"}
    unit.path("/srv/images/bases").mkdir(parents=True)
    unit.path("/srv/images/disks").mkdir()
    unit.set_up(settings)
    with pytest.raises(AssertionError, match="systemctl"):
        unit.start()
    assert "cannot write in /srv/images: it is read-only here" in unit.said()
    unit.set_up(settings, drop_in="ReadWritePaths=/srv/images\n")
    unit.start()
    assert unit.show("ActiveState") == "active"


async def test_the_first_request_starts_it(unit: Unit) -> None:
    unit.set_up(TEST_DRIVER)
    unit.systemctl("start", "provisiond.socket")
    assert unit.show("ActiveState") == "inactive"
    assert (await unit.get("/healthz")).status_code == 200
    assert unit.show("ActiveState") == "active"


async def test_a_request_of_the_time_of_a_restart_waits(unit: Unit) -> None:
    unit.set_up(TEST_DRIVER)
    unit.start()
    unit.systemctl("stop", "provisiond.service")
    asked = asyncio.create_task(unit.get("/healthz"))
    unit.systemctl("start", "provisiond.service")
    assert (await asked).status_code == 200


async def test_the_settings_say_who_may_use_systemds_socket(unit: Unit) -> None:
    unit.set_up(TEST_DRIVER)
    unit.start()
    found = unit.container.run("stat", "--format=%G %a", "/run/provisiond/provisiond.sock")
    assert found == "provisiond 660\n"
    unit.set_up(TEST_DRIVER | {"socket_group": "staff", "viewer_group": "users"})
    unit.start()
    found = unit.container.run("stat", "--format=%G %a", "/run/provisiond/provisiond.sock")
    assert found == "staff 666\n"


async def test_a_stop_leaves_a_job_and_its_iso_to_be_taken_up_again(unit: Unit) -> None:
    unit.set_up(IMPATIENT)
    unit.start()
    job_id = await attached(unit, "stopped", late=3)
    unit.systemctl("stop", "provisiond.socket", "provisiond.service")
    assert unit.show("Result") == "success"
    assert len(unit.isos()) == 1
    unit.start()
    await succeeds(unit, job_id)


# ---------------------------------------------------------------- the watchdog
async def test_a_stuck_event_loop_is_ended_and_started_again(unit: Unit) -> None:
    unit.set_up(TEST_DRIVER, drop_in=WATCHDOG)
    unit.start()
    before = unit.show("MainPID")
    async with unit.holding("loop"):
        await unit.started_again(since=before)
    assert (await unit.get("/healthz")).status_code == 200
    assert "provisiond.service: Watchdog timeout" in unit.said()


async def test_a_stuck_worker_is_named_and_ended_and_the_job_goes_on(unit: Unit) -> None:
    unit.set_up(IMPATIENT, drop_in=WATCHDOG)
    unit.start()
    job_id = await attached(unit, "held", late=8)
    before = unit.show("MainPID")
    async with unit.holding("workers"):
        assert (await unit.get("/openapi.json")).status_code == 200  # the event loop goes on
        await unit.started_again(since=before)
    await succeeds(unit, job_id)
    said = unit.said()
    assert "state file: no answer for 3 s" in said
    assert "provisiond.service: Watchdog timeout" in said


# ---------------------------------------------------------------- TLS
TLS: dict[str, object] = {
    "listen": "127.0.0.1:8443",
    "tls_certificate": "host.crt",
    "tls_key": "host.key",
    "tls_client_ca": "clients.crt",
    "viewers": ["monitor"],
}
IN_FOLDER = {
    name: f"/etc/tls/{TLS[name]}" for name in ("tls_certificate", "tls_key", "tls_client_ca")
}


@pytest.fixture
def clients(unit: Unit, tmp_path: Path) -> Certificate:
    """The authority of clients; a viewer's certificate and the host's are in /etc/tls."""
    authority = make_authority(tmp_path, "clients")
    monitor = make_certificate(tmp_path, "monitor", by=authority)
    for made in (authority, monitor):
        put(unit, made)
    put_host(unit, tmp_path, "first")
    return authority


def put(unit: Unit, made: Certificate) -> None:
    """Both files into /etc/tls, the key for root alone."""
    for file in (made.certificate, made.key):
        unit.write(f"/etc/tls/{file.name}", file.read_text())
        unit.path(f"/etc/tls/{file.name}").chmod(0o600)


def put_host(unit: Unit, folder: Path, name: str) -> None:
    """The host's certificate, by a new authority of this name."""
    authority = make_authority(folder, name)
    put(unit, authority)
    put(unit, make_certificate(folder, "host", by=authority, ip="127.0.0.1"))


def asked_over_tls(unit: Unit, *, trusts: str) -> str:
    """What a viewer hears that trusts this authority for the host."""
    argv = (
        *("openssl", "s_client", "-quiet", "-verify_return_error"),
        *("-connect", "127.0.0.1:8443"),
        *("-CAfile", f"/etc/tls/{trusts}.crt"),
        *("-cert", "/etc/tls/monitor.crt", "-key", "/etc/tls/monitor.key"),
    )
    asked = "GET /v1/jobs HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n"
    ended = subprocess.run(
        unit.container.argv(*argv), input=asked, capture_output=True, text=True, check=False
    )
    return ended.stdout + ended.stderr


@pytest.mark.usefixtures("clients")
async def test_certificates_come_as_systemds_credentials(unit: Unit) -> None:
    names = ("host.crt", "host.key", "clients.crt")
    credentials = "".join(f"LoadCredential={name}:/etc/tls/{name}\n" for name in names)
    unit.set_up(TEST_DRIVER | TLS, drop_in=credentials)
    unit.start()
    assert "HTTP/1.1 200" in asked_over_tls(unit, trusts="first")


@pytest.mark.usefixtures("clients")
async def test_a_reload_takes_new_certificates(unit: Unit, tmp_path: Path) -> None:
    unit.set_up(TEST_DRIVER | TLS | IN_FOLDER)
    unit.start()
    before = unit.show("MainPID")
    assert "HTTP/1.1 200" in asked_over_tls(unit, trusts="first")
    put_host(unit, tmp_path, "second")
    unit.systemctl("reload", "provisiond")
    async with asyncio.timeout(30):
        while "the certificates are read again" not in await asyncio.to_thread(unit.said):
            pass
    assert "HTTP/1.1 200" in asked_over_tls(unit, trusts="second")
    assert "HTTP/1.1 200" not in asked_over_tls(unit, trusts="first")
    assert unit.show("MainPID") == before
