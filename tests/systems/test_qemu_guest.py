"""The daemon makes a QEMU guest over a golden Debian and provisions it, by one request."""

import asyncio
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from tests.daemon.images import import_of, run_job
from tests.daemon.program import STORY, Daemon, request
from tests.lab.console import Console, logged_in
from tests.lab.disk import DiskGuestFiles
from tests.lab.domain import Guest, template_xml
from tests.lab.embed import lab_folder
from tests.lab.fixtures import TMPFS
from tests.lab.program import Lab
from tests.systems.conftest import NewRow
from tests.systems.golden import SYSTEMS, System
from tests.systems.qemu import make_image

# Debian's own way, and the one that can be tried on a real card alone.
IN_QEMU = [system for system in SYSTEMS if system.name in ("systemd-ifupdown", "systemd-netplan")]
PATIENCE = 900  # seconds; an emulated boot takes half a minute on a free core
MEMORY_MIB = 512
PASSWORD = "correct horse, battery"

pytestmark = pytest.mark.timeout(3 * PATIENCE)


@pytest.fixture
def image(system: System, golden: dict[str, Path]) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="image-", dir=TMPFS) as folder:
        yield make_image(Path(folder), system, golden[system.name])


@pytest.fixture
async def creating(
    guest_daemon: Daemon, lab: Lab, disk_guest_files: DiskGuestFiles, image: Path
) -> Daemon:
    """A daemon that serves, with the base `debian` and a template of a guest that boots from it."""
    model = Guest("any", memory_mib=MEMORY_MIB)
    template = template_xml(model, files=disk_guest_files.boot, folder=lab_folder(lab.root))
    guest_daemon.template_dir.mkdir()
    (guest_daemon.template_dir / "default.xml").write_text(template)
    guest_daemon.settings["ready_seconds"] = PATIENCE
    await guest_daemon.start()
    await run_job(guest_daemon, import_of(image, name="debian"))
    return guest_daemon


async def told(console: Console, command: str) -> str:
    answer = await console.run(command)
    assert answer.status == 0, answer
    return answer.output


async def check_network(console: Console) -> None:
    nic = (await told(console, "cd /sys/class/net && echo e*")).strip()
    route = f"ip route show dev {nic} | grep -q '^default via 10.0.2.2 '"
    # Who logs in at once may come before the last route.
    await told(console, f"until {route}; do sleep 0.2; done")
    assert "inet 10.0.2.15/24" in await told(console, f"ip -4 addr show dev {nic} scope global")


@pytest.mark.parametrize("system", IN_QEMU, ids=[system.name for system in IN_QEMU])
async def test_a_debian_is_made_and_provisioned_by_one_request_and_keeps_its_network(
    system: System, creating: Daemon, lab: Lab, new_row: NewRow
) -> None:
    row = new_row(f"{system.init} in QEMU", system.network)
    body = request(
        "web1", password=PASSWORD, gateway="10.0.2.2", user="root", deadline_seconds=PATIENCE
    )
    job = await run_job(creating, body | {"create": {"base": "debian", "template": "default"}})
    assert [event["state"] for event in job["history"]] == STORY
    assert job["proof"]["iso_overwritten_and_unlinked"] is True
    at = {event["state"]: datetime.fromisoformat(event["at"]) for event in job["history"]}
    row.booted = (at["ISO_ATTACHED"] - at["DOMAIN_STARTED"]).total_seconds()
    row.configured = (at["GUEST_CONFIGURED"] - at["ISO_ATTACHED"]).total_seconds()

    terminal = lab.running("web1").shell
    with pytest.raises(PermissionError):
        async with asyncio.timeout(PATIENCE), logged_in(terminal, user="root", password="wrong"):
            pass
    async with asyncio.timeout(PATIENCE):
        async with logged_in(terminal, user="root", password=PASSWORD) as console:
            assert (await told(console, "hostname")).strip() == "web1"
            assert "/dev/vda / ext4 rw" in await told(console, "grep ' / ' /proc/mounts")
            await check_network(console)
            before = await told(console, "cat /proc/sys/kernel/random/boot_id")
            started = time.monotonic()
            await console.order("reboot")
        async with logged_in(terminal, user="root", password=PASSWORD) as console:
            row.second_boot = time.monotonic() - started
            assert await told(console, "cat /proc/sys/kernel/random/boot_id") != before
            assert (await told(console, "hostname")).strip() == "web1"
            await check_network(console)
    row.passed = True
