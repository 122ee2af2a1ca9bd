"""5. The same work by peers, in turns with ours: disk made, attached, answered, detached, gone.

All over one real libvirtd, each with a real guest of its own. virt-install --cloud-init is not
among them: it gives a domain its disk before the first boot, and never takes it away from one that
runs.
"""

import asyncio
import tempfile
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from provisiond.api.guest_config import GuestConfig
from provisiond.iso.tree import Identity, build_tree
from tests.bench.clock import now
from tests.bench.crowd import ON_DISK, PASSWORD_HASH
from tests.bench.figures import Row, Spread, Target, median_row
from tests.bench.http import kept
from tests.bench.tap import Tap, tapped
from tests.daemon.fixtures import fresh_folder
from tests.daemon.host import in_guest
from tests.daemon.program import Daemon, Json
from tests.lab.console import open_console
from tests.lab.domain import Guest, channel_socket, kernel_words
from tests.lab.fixtures import TMPFS
from tests.lab.initramfs import guest_files
from tests.lab.libvirtd import Libvirtd
from tests.lab.program import Running

GROUP = "5 against peers (real libvirtd, real guests)"
OLD_WAY = Path(__file__).with_name("old-way")
READER = Path(__file__).with_name("cidata-reader")
OURS, SCRIPT, LOCALDS = "provisiond", "genisoimage + virsh", "cloud-localds + virsh"
SECONDS = 1e9


@dataclass
class _Way(ABC):
    """One way to do the work; `walls` and `exposures` are in seconds."""

    guest: Running
    tap: Tap
    folder: Path
    walls: list[float] = field(default_factory=list)
    exposures: list[float] = field(default_factory=list)

    async def once(self, number: int) -> None:
        """From the request to the disk's end, and from the guest's done to it."""
        began = now()
        ended = await self._work(number)
        done = self.tap.first(b" done", after=began)
        self.walls.append((ended - began) / SECONDS)
        self.exposures.append((ended - done) / SECONDS)

    @abstractmethod
    async def _work(self, number: int) -> int:
        """Do it; when the disk was gone."""


@dataclass
class _Ours(_Way):
    daemon: Daemon | None = None

    async def _work(self, number: int) -> int:
        assert self.daemon is not None
        async with kept(self.daemon.socket) as http:
            body: Json = {"request_id": f"bench-{number}", "domain": self.guest.name}
            job_id = await http.submit(body | {"config": _config(number)})
        job = await self.daemon.ended(job_id)
        assert job["state"] == "SUCCEEDED", job["failure"]
        proven: str = job["proof"]["at"]  # the disk was looked for, after its end, and not found
        return int(datetime.fromisoformat(proven).timestamp() * SECONDS)


@dataclass
class _Scripted(_Way):
    make: str = "genisoimage"

    async def _work(self, number: int) -> int:
        nonce = uuid.uuid4().hex
        files = self.folder / f"files-{self.make}"
        files.mkdir(exist_ok=True)
        for name, content in self._files(number, nonce).items():
            (files / name).write_bytes(content)
        iso, words = self.folder / f"{self.make}.iso", self.folder / f"words-{self.make}"
        words.touch()
        argv: list[str | Path] = [
            OLD_WAY,
            self.make,
            self.guest.uri,
            self.guest.name,
            files,
            iso,
            words,
            nonce,
        ]
        recording = asyncio.create_task(self.tap.record(words))
        try:
            script = await asyncio.create_subprocess_exec(*argv)
            assert await script.wait() == 0
            return now()
        finally:
            recording.cancel()
            await asyncio.gather(recording, return_exceptions=True)

    def _files(self, number: int, nonce: str) -> Mapping[str, bytes]:
        """What stands on the disk: the same configuration in either case."""
        identity = Identity(nonce, self.guest.uuid, number + 1)
        config = GuestConfig.model_validate(_config(number))
        tree = build_tree(config, identity, first_mac=self.guest.mac)
        if self.make == "genisoimage":
            return tree
        return {"user-data": tree["provision.conf"], "meta-data": tree["meta-data"]}


async def measure(*, quick: bool) -> AsyncIterator[Row]:
    """Rows as they come."""
    async with _site() as ways:
        for number in range(3 if quick else 30):
            for way in ways.values():
                await way.once(number)
    ours = {"wall time": ways[OURS].walls[1:], "exposure": ways[OURS].exposures[1:]}
    for name, way in ways.items():
        theirs = {"wall time": way.walls[1:], "exposure": way.exposures[1:]}  # the first warms up
        for what, values in theirs.items():
            yield median_row(GROUP, f"{name}: {what}", values, "s")
            if name != OURS:
                ratio = Spread.of(values).median / Spread.of(ours[what]).median
                ahead = Target(1.0, "high")
                yield Row(GROUP, f"{name}: {what} over ours", ratio, "×", target=ahead)


@asynccontextmanager
async def _site() -> AsyncIterator[Mapping[str, _Way]]:
    """A libvirtd, three guests that are up, a daemon that serves."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lv-", dir=TMPFS)))
        folder.chmod(0o755)
        libvirtd = Libvirtd(folder, files=guest_files())
        stack.callback(libvirtd.close)
        libvirtd.start()
        silent = kernel_words(silent=True)
        wanted = (Guest("ours"), Guest("script"), Guest("localds", kernel_words=silent))
        guests = libvirtd.start_guests(*wanted)
        for guest in guests:
            await in_guest(guest, "true")
        await _start_reader(guests[2])
        taps = [
            await stack.enter_async_context(tapped(channel_socket(folder, guest.name)))
            for guest in guests
        ]
        own = stack.enter_context(fresh_folder())
        own.chmod(0o755)
        on_disk = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-", dir=ON_DISK))
        settings: dict[str, object] = {
            "libvirt_uri": libvirtd.uri,
            "log_level": "info",
            "state_dir": on_disk,
        }
        daemon = Daemon(own, settings)
        stack.push_async_callback(daemon.kill)
        await daemon.start()
        yield {
            OURS: _Ours(guests[0], taps[0], folder, daemon=daemon),
            SCRIPT: _Scripted(guests[1], taps[1], folder),
            LOCALDS: _Scripted(guests[2], taps[2], folder, make="cloud-localds"),
        }


async def _start_reader(guest: Running) -> None:
    """The guest gets its reader through its console, and starts it."""
    async with open_console(guest.shell) as console:
        written = f"cat >/run/reader <<'EOF'\n{READER.read_text()}EOF\n"
        assert (await console.run(f"{written}chmod 700 /run/reader")).status == 0
        started = "setsid /run/reader </dev/null >/dev/null 2>&1 &"
        assert (await console.run(started)).status == 0


def _config(number: int) -> Json:
    return {
        "hostname": f"web{number}",
        "ip": "10.0.2.15/24",
        "password_hash": PASSWORD_HASH,
    }
