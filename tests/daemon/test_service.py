"""The daemon as its operator meets it: start, refuse to start, stop, tell systemd."""

import asyncio
import contextlib
import sqlite3
import stat
import sys
from pathlib import Path

from tests.daemon.hold import holding
from tests.daemon.notified import Notified
from tests.daemon.program import Daemon
from tests.xenstore.daemon import Xenstored

# Runs the program that is named after it, as Python runs it, and tells when garbage is looked for.
TELLS_OF_GARBAGE = """
import atexit, gc, runpy, sys

def tell(event, of):
    if event == "open" and not told and str(of[0]).endswith("provisiond.toml"):
        told.append(print("garbage:", gc.isenabled(), "when it reads its settings", flush=True))

told = []
sys.addaudithook(tell)
atexit.register(lambda: print("garbage:", gc.isenabled(), "at its end", flush=True))
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


async def test_the_socket_is_for_its_group_and_nobody_else(daemon: Daemon) -> None:
    assert stat.S_IMODE(daemon.socket.stat().st_mode) == 0o660
    assert stat.S_IMODE(daemon.iso_folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(daemon.state_file.stat().st_mode) == 0o600


async def test_another_user_passes_to_the_images_whatever_the_umask_is(idle_daemon: Daemon) -> None:
    idle_daemon.prefix = ("sh", "-c", 'umask 077; exec "$@"', "sh")  # as the unit has it
    idle_daemon.settings["image_dir"] = str(idle_daemon.folder / "new" / "images")
    await idle_daemon.start()
    for name in ("state", "new", "new/images", "new/images/bases", "new/images/disks"):
        assert stat.S_IMODE((idle_daemon.folder / name).stat().st_mode) == 0o711, name


async def test_sigterm_ends_it_cleanly_and_leaves_no_socket(daemon: Daemon) -> None:
    assert await daemon.stop() == 0
    assert not daemon.socket.exists()


async def test_garbage_is_not_looked_for_while_it_starts_and_is_from_then_on(
    idle_daemon: Daemon,
) -> None:
    idle_daemon.prefix = (sys.executable, "-c", TELLS_OF_GARBAGE)
    await idle_daemon.start()
    assert await idle_daemon.stop() == 0
    started, served = (line for line in idle_daemon.said().splitlines() if "garbage" in line)
    assert started == "garbage: False when it reads its settings"
    assert served == "garbage: True at its end"


async def test_it_starts_again_over_the_socket_of_a_killed_one(daemon: Daemon) -> None:
    await daemon.kill()
    assert daemon.socket.exists()
    await daemon.start()
    assert (await daemon.get("/healthz")).status_code == 200


async def test_a_stop_does_not_wait_for_those_who_follow_events(daemon: Daemon) -> None:
    async with daemon.events("/v1/events") as events:
        assert await daemon.stop() == 0
        assert [event async for event in events] == []


async def test_a_file_that_is_no_socket_is_left_alone(idle_daemon: Daemon) -> None:
    idle_daemon.socket.write_text("somebody's")
    status, said = await idle_daemon.run_to_its_end()
    assert status == 1
    assert "wrong_setting: socket: " in said
    assert idle_daemon.socket.read_text() == "somebody's"


async def test_a_second_daemon_on_the_same_socket_is_refused(daemon: Daemon) -> None:
    other = daemon.folder / "other"
    other.mkdir()
    second = Daemon(other, daemon.settings | {"socket": str(daemon.socket)})
    status, said = await second.run_to_its_end()
    assert status == 1
    assert "already_running" in said
    assert str(daemon.socket) in said
    assert (await daemon.get("/healthz")).status_code == 200


async def test_a_second_daemon_on_the_same_state_is_refused(daemon: Daemon) -> None:
    other = daemon.folder / "other"
    other.mkdir()
    second = Daemon(other, daemon.settings | {"state_dir": str(daemon.folder / "state")})
    status, said = await second.run_to_its_end()
    assert status == 1
    assert "already_running" in said


async def test_a_corrupt_state_file_is_refused_and_left_as_it_is(idle_daemon: Daemon) -> None:
    idle_daemon.state_file.parent.mkdir()
    idle_daemon.state_file.write_bytes(b"SQLite format 3\0" + b"\xff" * 5000)
    before = idle_daemon.state_file.read_bytes()
    status, said = await idle_daemon.run_to_its_end()
    assert status == 78
    assert "state_unusable" in said
    assert str(idle_daemon.state_file) in said
    assert idle_daemon.state_file.read_bytes() == before


async def test_a_state_file_of_a_newer_provisiond_is_refused(daemon: Daemon) -> None:
    await daemon.stop()
    connection = sqlite3.connect(daemon.state_file)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    daemon.log.unlink()
    status, said = await daemon.run_to_its_end()
    assert status == 78
    assert "schema version 99" in said


async def test_a_stored_job_that_cannot_be_read_stops_the_start(daemon: Daemon) -> None:
    await daemon.stop()
    with contextlib.closing(sqlite3.connect(daemon.state_file)) as state, state:
        state.execute(
            "INSERT INTO jobs (id, request_id, works_on, generation, created_at, ended, job)"
            " VALUES ('x', 'x', 'domain x', 1, 1, 0, '{}')"
        )
    daemon.log.unlink()
    status, said = await daemon.run_to_its_end()
    assert status == 78
    assert "state_unusable" in said
    assert "Traceback" not in said


async def test_a_state_directory_that_is_a_file_is_refused(idle_daemon: Daemon) -> None:
    (idle_daemon.folder / "state").write_text("")
    status, said = await idle_daemon.run_to_its_end()
    assert status == 1
    assert "state_unwritable" in said


async def test_a_read_only_state_directory_is_refused(idle_daemon: Daemon) -> None:
    state = idle_daemon.folder / "state"
    state.mkdir()
    # Root may write in any folder that is not on a read-only mount.
    script = f'mount --bind {state} {state} && mount -o remount,bind,ro {state} && exec "$@"'
    idle_daemon.prefix = ("unshare", "--mount", "sh", "-c", script, "sh")
    status, said = await idle_daemon.run_to_its_end()
    assert status == 1
    assert "state_unwritable" in said
    assert str(state) in said


async def test_a_runtime_directory_on_a_disk_is_refused(
    idle_daemon: Daemon, tmp_path: Path
) -> None:
    idle_daemon.settings["runtime_dir"] = str(tmp_path)
    status, said = await idle_daemon.run_to_its_end()
    assert status == 1
    assert "wrong_setting" in said
    assert "tmpfs" in said
    assert "allow_iso_on_disk" in said


async def test_a_runtime_directory_on_a_disk_that_is_allowed_is_warned_of_at_each_start(
    idle_daemon: Daemon, tmp_path: Path
) -> None:
    idle_daemon.settings |= {"runtime_dir": str(tmp_path), "allow_iso_on_disk": True}
    for starts in (1, 2):
        await idle_daemon.start()
        assert await idle_daemon.stop() == 0
        assert idle_daemon.said().count(f"WARNING runtime_dir: {tmp_path}/iso is on ") == starts
        assert idle_daemon.said().count("each secret reaches a disk") == starts


async def test_each_wrong_setting_is_named(idle_daemon: Daemon) -> None:
    idle_daemon.settings |= {"max_jobs": 0, "colour": "red"}
    idle_daemon.environment = {"PROVISIOND_DEADLINE_SECONDS": "soon"}
    status, said = await idle_daemon.run_to_its_end()
    assert status == 1
    assert "wrong_setting" in said
    for name in ("max_jobs", "colour", "deadline_seconds"):
        assert name in said


async def test_without_libvirt_it_serves_and_says_so(idle_daemon: Daemon) -> None:
    idle_daemon.settings["libvirt_uri"] = f"qemu+unix:///system?socket={idle_daemon.folder}/none"
    await idle_daemon.start()
    health = await idle_daemon.get("/healthz")
    assert health.status_code == 503
    assert health.json()["hypervisor_connected"] is False
    domains = await idle_daemon.get("/v1/domains")
    assert domains.status_code == 503
    assert domains.json()["code"] == "hypervisor_unavailable"


async def test_in_a_dom0_it_says_whether_xenstore_answers(
    idle_daemon: Daemon, xenstored: Xenstored
) -> None:
    idle_daemon.settings["libvirt_uri"] = "xen:///system"
    idle_daemon.environment = {"XENSTORED_PATH": str(xenstored.socket)}
    await idle_daemon.start()

    async def becomes(*, connected: bool) -> None:
        async with asyncio.timeout(30):
            while True:
                health = (await idle_daemon.get("/healthz")).json()
                if health["xenstore_connected"] is connected:
                    return
                await asyncio.sleep(0.05)

    await becomes(connected=True)
    xenstored.kill()
    await becomes(connected=False)
    assert (await idle_daemon.get("/healthz")).status_code == 503
    xenstored.start()
    await becomes(connected=True)
    assert await idle_daemon.stop() == 0


async def test_without_xen_nobody_asks_for_xenstore(daemon: Daemon) -> None:
    health = await daemon.get("/healthz")
    assert health.status_code == 200
    assert health.json()["xenstore_connected"] is None


async def test_systemd_hears_ready_status_watchdog_and_stopping(idle_daemon: Daemon) -> None:
    with contextlib.closing(Notified(idle_daemon, watchdog="200000")) as notified:
        await idle_daemon.start()
        await notified.wait_for("READY=1")
        for _ in range(3):
            await notified.wait_for("STATUS=0 unfinished jobs", "WATCHDOG=1")
        await idle_daemon.stop()
        await notified.wait_for("STOPPING=1")


async def test_systemd_hears_of_stuck_workers_and_no_watchdog_until_they_go_on(
    idle_daemon: Daemon,
) -> None:
    files = "state file, config ISOs, golden bases, disks"
    stuck = f"stuck: {files}, passwords, templates and loop devices"
    with contextlib.closing(Notified(idle_daemon, watchdog="2000000")) as notified:
        await idle_daemon.start()
        await notified.wait_for("WATCHDOG=1")
        assert idle_daemon.process is not None
        async with holding("workers", idle_daemon.process.pid):
            await notified.wait_for(f"STATUS=0 unfinished jobs; {stuck}")
            assert (await idle_daemon.get("/openapi.json")).status_code == 200  # the loop goes on
            for _ in range(3):
                assert await notified.next() == [f"STATUS=0 unfinished jobs; {stuck}"]
        await notified.wait_for("STATUS=0 unfinished jobs", "WATCHDOG=1")
    assert idle_daemon.said().count("state file: no answer for 1 s") == 1
    assert idle_daemon.said().count("state file: answers again") == 1
