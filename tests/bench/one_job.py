"""1 and 2. What one job costs beyond the calls that it has to make, and the secret's exposure.

A real guest under libvirt's embedded driver. Every call of libvirt's is timed where provisiond
makes it, and every word of the guest's where it comes out of QEMU; the bare ISO and the bare fsync
are measured in turns with the jobs. Ours is what is left. The ISO is made and stored before the
guest says hello, which takes longer here: that is nowhere in it, and nothing is taken away for it.
"""

import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from pydantic import SecretStr

from provisiond.iso.image import build_image
from provisiond.password import hash_password
from provisiond.plan import CHANNEL_NAME
from provisiond.virt.xml import parse_domain
from tests.bench.clock import now
from tests.bench.config_iso import a_tree
from tests.bench.crowd import ON_DISK, PASSWORD_HASH
from tests.bench.daemon import KIND
from tests.bench.figures import Row, Spread, Target, median_row, p99_row
from tests.bench.http import kept
from tests.bench.tap import Tap, tapped
from tests.bench.timed import CALLS, Call, read_calls
from tests.daemon.fixtures import fresh_folder
from tests.daemon.host import in_guest
from tests.daemon.program import Daemon, Json
from tests.lab.embed import kept_xml
from tests.lab.fixtures import fresh_root
from tests.lab.initramfs import PROJECT, guest_files
from tests.lab.program import Lab

COST = "1 one job: ours beyond libvirt, ISO, fsync (real guest)"
EXPOSURE = "2 exposure of the secret (real guest)"
MS = 1e6  # ns
# What is stored before the guest is listened to: the new job. Between the verdict and the ISO's
# end: GUEST_CONFIGURED, ISO_DETACHED. Each is so many frames of 4,120 bytes in SQLite's
# write-ahead log.
INSERT_BYTES, FACT_BYTES = 12 * 4120, 5 * 4120
FACTS_AFTER = 2
ISO_BUILT = "bare ISO (pycdlib, our tree)"


@dataclass
class _Bare:
    """The floor's calls, each by itself, in ms."""

    iso: list[float]
    insert: list[float]
    fact: list[float]
    hop: list[float]
    hashing: list[float]

    async def measure(self, folder: Path) -> None:
        """Once each."""
        self.iso.append(_timed(lambda: build_image(a_tree())))
        self.insert.append(_fsync(folder, INSERT_BYTES))
        self.fact.append(_fsync(folder, FACT_BYTES))
        await asyncio.sleep(0.05)  # as after any wait: the caches and the processors are cold
        started = perf_counter()
        await asyncio.to_thread(_nothing)
        self.hop.append(1000 * (perf_counter() - started))
        self.hashing.append(_timed(lambda: hash_password(SecretStr("correct horse"))))


async def measure(*, quick: bool) -> AsyncIterator[Row]:
    """Rows as they come."""
    bare = _Bare([], [], [], [], [])
    begun: list[int] = []
    async with _site() as (daemon, tap, calls, disk):
        for number in range(4 if quick else 100):
            await bare.measure(disk)
            begun.append(await _one(daemon, number))
        await daemon.stop()
        jobs = _split(read_calls(calls), begun)
    for row in _rows(jobs[1:], begun[1:], tap, bare):  # the first one warms up
        yield row


async def _one(daemon: Daemon, number: int) -> int:
    """One job to its end; when it was asked for."""
    async with kept(daemon.socket) as http:
        body = _body(number)
        asked = now()
        job_id = await http.submit(body)
        ended = await http.end_of(job_id)
    assert ended == "SUCCEEDED", daemon.said()
    return asked


def _rows(jobs: Sequence[Sequence[Call]], begun: Sequence[int], tap: Tap, bare: _Bare) -> list[Row]:
    insert, fact = Spread.of(bare.insert).median, Spread.of(bare.fact).median
    totals, before, after, exposed, detaches = [], [], [], [], []
    for calls, asked in zip(jobs, begun, strict=True):
        attach = next(call for call in calls if call.name == "attachDeviceFlags")
        totals.append((attach.start - asked) / MS)
        connected = next(at for at in tap.connected if asked <= at <= attach.start)
        hello = tap.first(b"hello", after=connected)
        own = connected - asked + attach.start - hello
        libvirt = _sum(calls, asked, connected) + _sum(calls, hello, attach.start)
        before.append(own / MS - libvirt - insert)
        done = tap.first(b" done", after=attach.start)
        destroyed = [call for call in calls if call.name == "lookupByUUIDString"][-1].start
        detach = next(call for call in calls if call.name == "detachDeviceFlags")
        exposed.append((destroyed - done) / MS)
        detaches.append((detach.end - detach.start) / MS)
        libvirt = _sum(calls, done, destroyed)
        after.append(exposed[-1] - libvirt - FACTS_AFTER * fact)
    ratios = [mine / bare_ for mine, bare_ in zip(exposed, detaches, strict=True)]
    at_most, worst = Target(5.0), Target(25.0)
    return [
        median_row(COST, "request → attach called, all of it", totals, "ms", note="guest included"),
        median_row(COST, "request → attach called, ours", before, "ms", target=at_most),
        p99_row(COST, "request → attach called, ours, p99", before, "ms", target=worst),
        median_row(COST, "done → ISO destroyed, ours", after, "ms", target=at_most),
        p99_row(COST, "done → ISO destroyed, ours, p99", after, "ms", target=worst),
        median_row(COST, ISO_BUILT, bare.iso, "ms"),
        median_row(COST, f"bare fsync of {INSERT_BYTES:,} bytes, a new job", bare.insert, "ms"),
        median_row(COST, f"bare fsync of {FACT_BYTES:,} bytes, a fact", bare.fact, "ms"),
        median_row(COST, "bare call in a thread, nothing done there", bare.hop, "ms"),
        median_row(COST, "hash of a clear password", bare.hashing, "ms", note="none was sent here"),
        median_row(EXPOSURE, "done → ISO destroyed", exposed, "ms"),
        median_row(EXPOSURE, "bare detach call", detaches, "ms"),
        median_row(EXPOSURE, "exposure over the bare detach", ratios, "×", target=Target(1.3)),
    ]


def _sum(calls: Sequence[Call], start: int, end: int) -> float:
    """What libvirt's calls between the two have taken together, in ms."""
    return (
        sum(call.end - call.start for call in calls if start <= call.start and call.end <= end) / MS
    )


def _split(calls: Sequence[Call], begun: Sequence[int]) -> list[list[Call]]:
    """The calls of each job: one came after the other."""
    ends = [*begun[1:], now()]
    return [
        [call for call in calls if start <= call.start < end]
        for start, end in zip(begun, ends, strict=True)
    ]


@asynccontextmanager
async def _site() -> AsyncIterator[tuple[Daemon, Tap, Path, Path]]:
    """A daemon over one guest that is up, the tap in its channel, libvirt's calls, a disk."""
    with (
        fresh_root() as root,
        fresh_folder() as folder,
        tempfile.TemporaryDirectory(prefix="bench-", dir=ON_DISK) as disk,
    ):
        lab = Lab(root=root, files=guest_files())
        (guest,) = lab.start()
        await in_guest(guest, "true")
        channel = parse_domain(kept_xml(root, guest.name)).channel(CHANNEL_NAME)
        assert channel is not None
        calls = folder / "calls"
        daemon = Daemon(
            folder,
            {"libvirt_uri": lab.uri, "log_level": "info", "state_dir": disk},
            environment={KIND: "timed", CALLS: str(calls), "PYTHONPATH": str(PROJECT)},
            prefix=(sys.executable, "-m", "tests.bench.daemon"),
        )
        try:
            async with tapped(channel) as tap:
                await daemon.start()
                yield daemon, tap, calls, Path(disk)
        finally:
            await daemon.kill()


def _body(number: int) -> Json:
    return {
        "request_id": f"bench-{number}",
        "domain": "web1",
        "config": {
            "hostname": f"web{number}.example.org",
            "ip": "10.0.2.15/24",
            "password_hash": PASSWORD_HASH,
        },
    }


def _nothing() -> None:
    """What a thread is asked for where only the asking counts."""


def _timed(function: Callable[[], object]) -> float:
    started = perf_counter()
    function()
    return 1000 * (perf_counter() - started)


def _fsync(folder: Path, size: int) -> float:
    """What so many bytes take to the disk, in ms; the file has its room already."""
    content = os.urandom(size)
    with (folder / "fsync").open("wb", buffering=0) as file:
        os.posix_fallocate(file.fileno(), 0, size)
        os.fsync(file.fileno())
        return _timed(lambda: _write_through(file.fileno(), content))


def _write_through(descriptor: int, content: bytes) -> None:
    os.pwrite(descriptor, content, 0)
    os.fdatasync(descriptor)
