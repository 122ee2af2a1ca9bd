"""Golden bases and overlays through the daemon, on real files with the real qemu-img."""

import asyncio
import hashlib
import os
import stat
import time
from pathlib import Path

import pytest

from tests.daemon.images import (
    MIB,
    called,
    chain_of,
    files_of,
    flip_last_bit,
    import_of,
    overlay_of,
    qemu_io,
    raw_image,
    run_job,
)
from tests.daemon.program import LOOK_SECONDS, Daemon, Json, states

IMPORT = ["ACCEPTED", "IMAGE_WRITTEN", "SUCCEEDED"]
OVERLAY = ["ACCEPTED", "DISKS_CREATED", "SUCCEEDED"]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


async def base_of(daemon: Daemon, folder: Path, *, name: str = "debian", **fields: object) -> Json:
    await run_job(daemon, import_of(raw_image(folder / f"{name}.src"), name=name, **fields))
    return dict((await daemon.get(f"/v1/bases/{name}")).json())


async def delete(daemon: Daemon, path: str) -> tuple[int, str]:
    async with daemon.http() as http:
        reply = await http.delete(path)
    return reply.status_code, reply.json()["code"] if reply.content else ""


async def test_a_raw_image_becomes_a_base_that_is_whole_and_cannot_be_changed(
    daemon: Daemon, tmp_path: Path
) -> None:
    source = raw_image(tmp_path / "image.raw")
    job = await run_job(daemon, import_of(source))
    assert states(job) == IMPORT
    (base,) = (await daemon.get("/v1/bases")).json()["bases"]
    path = Path(base["path"])
    assert (base["name"], base["format"], base["virtual_size"]) == ("debian", "qcow2", 8 * MIB)
    assert (base["changed"], base["overlays"], base["parent"]) == (None, [], None)
    assert base["sha256"] == sha256(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
    assert job["disk"] == base["path"]
    called("qemu-img", "compare", "-f", "raw", "-F", "qcow2", source, path)
    assert files_of(daemon) == ["bases/debian.json", "bases/debian.qcow2"]


@pytest.mark.parametrize("disk_format", ["raw", "qcow2", "qcow", "vhd"])
async def test_a_base_may_have_each_format(
    daemon: Daemon, tmp_path: Path, disk_format: str
) -> None:
    base = await base_of(daemon, tmp_path, format=disk_format)
    assert (base["format"], base["virtual_size"], base["changed"]) == (disk_format, 8 * MIB, None)


async def test_a_base_is_never_replaced(daemon: Daemon, tmp_path: Path) -> None:
    before = await base_of(daemon, tmp_path)
    again = import_of(raw_image(tmp_path / "other.raw"), request_id="again")
    reply = await daemon.post(again)
    assert (reply.status_code, reply.json()["code"]) == (409, "base_exists")
    assert (await daemon.get("/v1/bases/debian")).json() == before


async def test_a_base_that_was_written_to_is_found_out_by_its_hash(
    daemon: Daemon, tmp_path: Path
) -> None:
    base = await base_of(daemon, tmp_path)
    path = Path(base["path"])
    verify = {"kind": "verify_base", "base": "debian"}
    assert states(await run_job(daemon, verify | {"request_id": "first"})) == [
        "ACCEPTED",
        "SUCCEEDED",
    ]
    flip_last_bit(path)
    assert (await daemon.get("/v1/bases/debian")).json()["changed"] is None
    job = await run_job(daemon, verify | {"request_id": "second"}, "FAILED")
    assert job["failure"]["code"] == "base_changed"


# ---------------------------------------------------------------- hostile images
def hostile_images(folder: Path) -> dict[str, tuple[Path, str]]:
    """Images that no host may take, each with the format that its sender claims."""
    secret = folder / "secret"
    secret.write_bytes(b"the host's own secret " * 5000)

    def make(name: str, *options: str) -> Path:
        path = folder / name
        called("qemu-img", "create", "-q", "-f", "qcow2", *options, path, "8M")
        return path

    feature = make("feature")
    with feature.open("r+b") as file:
        file.seek(72)
        file.write((1 << 40).to_bytes(8, "big"))
    snapshot = make("snapshot")
    called("qemu-img", "snapshot", "-c", "one", snapshot)
    cut = make("cut")
    qemu_io(cut, "write -P 1 0 4M")
    with cut.open("r+b") as file:
        file.truncate(MIB)
    probed = make("probed", "-b", str(secret), "-F", "raw")
    return {
        "backing file": (make("backing", "-b", str(secret), "-F", "raw"), "qcow2"),
        "data file": (make("data", "-o", f"data_file={folder}/else,data_file_raw=on"), "qcow2"),
        "unknown feature": (feature, "qcow2"),
        "internal snapshot": (snapshot, "qcow2"),
        "cut off": (cut, "qcow2"),
        "a raw image that is none": (probed, "raw"),
        "another format": (raw_image(folder / "plain"), "qcow2"),
    }


HOSTILE = [
    "backing file",
    "data file",
    "unknown feature",
    "internal snapshot",
    "cut off",
    "a raw image that is none",
    "another format",
]


@pytest.mark.parametrize("kind", HOSTILE)
async def test_a_hostile_image_is_refused_with_its_reason(
    daemon: Daemon, tmp_path: Path, kind: str
) -> None:
    path, claimed = hostile_images(tmp_path)[kind]
    reply = await daemon.post(import_of(path, source_format=claimed))
    error = reply.json()
    if reply.status_code == 202:  # it has to be read whole to be seen
        error = (await daemon.wait_for(error["id"], "FAILED"))["failure"]
    assert error["code"] == "image_refused"
    print(f"{kind}: {error['message']}")
    assert str(path) in error["message"]
    assert files_of(daemon) == []


async def test_what_is_no_image_at_all_is_refused(daemon: Daemon, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for source, code in (
        (tmp_path / "absent", "image_not_found"),
        (tmp_path, "image_refused"),
        (fifo, "image_refused"),
        (Path("/dev/zero"), "image_refused"),
    ):
        reply = await daemon.post(import_of(source, request_id=f"of-{source.name}"))
        assert reply.status_code in (404, 409), reply.text
        assert reply.json()["code"] == code, reply.text
    for wrong in ("relative", "/a:b", "/a/../b", "/a\nb"):
        reply = await daemon.post(import_of(Path("/x")) | {"source": wrong})
        assert reply.status_code == 422
        assert [one["field"] for one in reply.json()["fields"]] == ["source"]


async def test_an_image_that_somebody_writes_to_is_refused(daemon: Daemon, tmp_path: Path) -> None:
    source = raw_image(tmp_path / "image.raw")
    with source.open("r+b"):
        reply = await daemon.post(import_of(source))
    assert (reply.status_code, reply.json()["code"]) == (409, "image_busy")


# ---------------------------------------------------------------- overlays
async def test_an_overlay_stands_on_its_base_and_takes_what_is_written(
    daemon: Daemon, tmp_path: Path
) -> None:
    base = await base_of(daemon, tmp_path)
    job = await run_job(daemon, overlay_of("debian", name="web1", size=16 * MIB))
    assert states(job) == OVERLAY
    top, below = chain_of(job["disk"])
    assert (top["format"], top["virtual-size"]) == ("qcow2", 16 * MIB)
    assert (top["full-backing-filename"], top["backing-filename-format"]) == (
        base["path"],
        "qcow2",
    )
    assert below["format"] == "qcow2"
    (disk,) = (await daemon.get("/v1/disks")).json()["disks"]
    assert (disk["name"], disk["base"], disk["domain"]) == ("web1", "debian", None)
    assert (await daemon.get("/v1/bases/debian")).json()["overlays"] == ["web1"]
    qemu_io(Path(job["disk"]), "write -P 7 0 1M")
    assert sha256(Path(base["path"])) == base["sha256"]


async def test_what_cannot_be_an_overlay_is_refused(daemon: Daemon, tmp_path: Path) -> None:
    await base_of(daemon, tmp_path)
    await run_job(daemon, overlay_of("debian", name="web1"))
    for body, status, code in (
        (overlay_of("debian", name="web1", request_id="2"), 409, "disk_exists"),
        (overlay_of("absent", name="web2"), 404, "base_not_found"),
        (overlay_of("debian", name="web2", size=4 * MIB), 409, "size_too_small"),
        (overlay_of("debian", name="web2", format="vhd"), 409, "vhd_needs_tapdisk"),
        (overlay_of("debian", name="web2", format="raw"), 422, "invalid_request"),
        (overlay_of("debian", name="we:b2"), 422, "invalid_request"),
        (overlay_of("debian", name="../web2"), 422, "invalid_request"),
        (overlay_of("debian", name="web2", size=1000), 422, "invalid_request"),
        (overlay_of("debian", name="web2") | {"kind": "paint"}, 422, "invalid_request"),
    ):
        reply = await daemon.post(body)
        assert (reply.status_code, reply.json()["code"]) == (status, code), reply.text
    assert [path for path in files_of(daemon) if "disks/" in path] == ["disks/web1.qcow2"]


async def test_a_base_is_not_removed_while_an_overlay_stands_on_it(
    daemon: Daemon, tmp_path: Path
) -> None:
    await base_of(daemon, tmp_path)
    await run_job(daemon, overlay_of("debian", name="web1"))
    assert await delete(daemon, "/v1/bases/debian") == (409, "base_in_use")
    assert await delete(daemon, "/v1/disks/web2") == (404, "disk_not_found")
    assert await delete(daemon, "/v1/disks/web1") == (204, "")
    assert await delete(daemon, "/v1/bases/debian") == (204, "")
    assert await delete(daemon, "/v1/bases/debian") == (404, "base_not_found")
    assert files_of(daemon) == []


async def test_a_base_over_a_base_and_the_depth_of_a_chain(
    idle_daemon: Daemon, tmp_path: Path
) -> None:
    idle_daemon.settings["max_chain"] = 3
    await idle_daemon.start()
    await base_of(idle_daemon, tmp_path)
    overlay = await run_job(idle_daemon, overlay_of("debian", name="web1"))
    qemu_io(Path(overlay["disk"]), f"write -P 9 0 {MIB}")
    app = import_of(Path(overlay["disk"]), name="app", source_format="qcow2", parent="debian")
    await run_job(idle_daemon, app)
    base = (await idle_daemon.get("/v1/bases/app")).json()
    assert (base["parent"], base["changed"]) == ("debian", None)
    assert await delete(idle_daemon, "/v1/disks/web1") == (204, "")
    assert await delete(idle_daemon, "/v1/bases/debian") == (409, "base_in_use")
    top = await run_job(idle_daemon, overlay_of("app", name="web2"))
    assert len(chain_of(top["disk"])) == 3
    deeper = import_of(Path(top["disk"]), name="deep", source_format="qcow2", parent="app")
    reply = await idle_daemon.post(deeper)
    assert (reply.status_code, reply.json()["code"]) == (409, "chain_too_deep")


async def test_a_hundred_overlays_in_one_go(daemon: Daemon, tmp_path: Path) -> None:
    base = await base_of(daemon, tmp_path)
    bodies = [overlay_of("debian", name=f"web{number}") for number in range(100)]
    started = time.monotonic()
    async with daemon.http() as http:
        await asyncio.gather(*(http.post("/v1/jobs", json=body) for body in bodies))
        jobs: list[Json] = []
        while not jobs or any(job["state"] != "SUCCEEDED" for job in jobs):
            reply = await http.get("/v1/jobs", params={"limit": 100})
            jobs = [job for job in reply.json()["jobs"] if job["state"] != "FAILED"]
            assert len(jobs) == 100
            await asyncio.sleep(LOOK_SECONDS)
    ours = time.monotonic() - started
    command = 'for i in $(seq 100); do qemu-img create -q -f qcow2 -F qcow2 -b "$1" "$2/$i"; done'
    started = time.monotonic()
    plain = tmp_path / "plain"
    plain.mkdir()
    called("sh", "-c", command, "loop", base["path"], plain)
    loop = time.monotonic() - started
    print(f"100 overlays: {ours:.2f} s through the daemon, {loop:.2f} s by a shell loop")
    assert len({job["disk"] for job in jobs}) == 100
    for job in jobs[:50]:
        qemu_io(Path(job["disk"]), f"write -P 3 0 {MIB}")
    assert sha256(Path(base["path"])) == base["sha256"]
    assert (await daemon.get("/v1/bases/debian")).json()["changed"] is None


# ---------------------------------------------------------------- crashes, cancels
async def killed_at(daemon: Daemon, body: Json, state: str) -> Json:
    """The job as it ends when the daemon is killed as soon as `state` is told."""
    job = await daemon.submit(body)
    async with daemon.events(f"/v1/jobs/{job['id']}/events") as events:
        async for event in events:
            if event["state"] == state:
                break
    await daemon.kill()
    await daemon.start()
    return await daemon.wait_for(job["id"], "SUCCEEDED")


@pytest.mark.parametrize("state", IMPORT)
async def test_a_power_cut_at_any_fact_of_an_import_changes_nothing_in_the_end(
    daemon: Daemon, tmp_path: Path, state: str
) -> None:
    source = raw_image(tmp_path / "image.raw", mib=64, data_mib=32)
    job = await killed_at(daemon, import_of(source), state)
    assert set(states(job)) == set(IMPORT)
    (base,) = (await daemon.get("/v1/bases")).json()["bases"]
    assert (base["changed"], base["sha256"]) == (None, sha256(Path(base["path"])))
    assert files_of(daemon) == ["bases/debian.json", "bases/debian.qcow2"]


@pytest.mark.parametrize("state", OVERLAY)
async def test_a_power_cut_at_any_fact_of_an_overlay_changes_nothing_in_the_end(
    daemon: Daemon, tmp_path: Path, state: str
) -> None:
    await base_of(daemon, tmp_path)
    job = await killed_at(daemon, overlay_of("debian", name="web1"), state)
    assert set(states(job)) == set(OVERLAY)
    assert files_of(daemon) == ["bases/debian.json", "bases/debian.qcow2", "disks/web1.qcow2"]


async def test_a_cancelled_import_leaves_nothing(daemon: Daemon, tmp_path: Path) -> None:
    source = raw_image(tmp_path / "image.raw", mib=512, data_mib=400)
    job = await daemon.submit(import_of(source))
    progress = None
    while progress is None:
        await asyncio.sleep(LOOK_SECONDS)
        progress = (await daemon.job(job["id"]))["progress"]
    assert (await daemon.cancel(job["id"])).status_code == 202
    ended = await daemon.wait_for(job["id"], "FAILED")
    assert ended["failure"]["code"] == "cancelled"
    assert ended["progress"] is None
    assert files_of(daemon) == []
