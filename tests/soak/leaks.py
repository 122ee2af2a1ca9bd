"""Work and rest in turns: what the daemon has at each rest, and whether that is level."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic

from tests.daemon.certificates import make_authority, make_certificate, tls_port, tls_settings
from tests.daemon.fixtures import fresh_folder
from tests.daemon.host import in_guest
from tests.daemon.images import import_of, raw_image
from tests.daemon.program import Daemon
from tests.lab.disk import disk_guest_files
from tests.lab.domain import Guest, kernel_words, template_xml
from tests.lab.embed import lab_folder
from tests.lab.fixtures import fresh_root
from tests.lab.initramfs import guest_files
from tests.lab.program import Lab, Running
from tests.soak.figures import Figures, read_figures
from tests.soak.work import TINY, WITH_GUESTS, WITHOUT_GUESTS, Site

MASTER = "master.example.org"
KEPT_JOBS = 50
REST_SECONDS = 15  # far more than it takes to let go of what was cut off
BOOT_SECONDS = 180


@asynccontextmanager
async def site(*, with_guests: bool) -> AsyncIterator[Site]:
    """A daemon that serves on its socket and over TLS, with a base, and with guests if wanted."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(fresh_folder())
        guests: Sequence[Running] = ()
        settings: dict[str, object] = {"libvirt_uri": "test:///default"}
        if with_guests:
            lab = Lab(root=stack.enter_context(fresh_root()), files=guest_files())
            guests = [*lab.start("--silent", count=3, prefix="mute"), *lab.start()]
            settings["libvirt_uri"] = lab.uri
            model = Guest("any", kernel_words=kernel_words(silent=True))
            boot = disk_guest_files().boot
            template = template_xml(model, files=boot, folder=lab_folder(lab.root))
            (folder / "templates").mkdir()
            (folder / "templates/default.xml").write_text(template)
        made = await _start(folder, settings, guests)
        try:
            for name in ("kept", "verified"):
                image = raw_image(folder / f"{name}.raw", mib=2)
                await made.succeed(import_of(image, name=name))
            if with_guests:
                await made.succeed(import_of(disk_guest_files().image, name=TINY))
            async with asyncio.timeout(BOOT_SECONDS):
                for guest in guests:
                    await in_guest(guest, "true")
            yield made
        finally:
            await made.daemon.kill()


async def _start(folder: Path, settings: dict[str, object], guests: Sequence[Running]) -> Site:
    authority = make_authority(folder)
    own = make_certificate(folder, "host", by=authority, ip="127.0.0.1")
    daemon = Daemon(
        folder,
        settings
        | tls_settings(own, clients=authority)
        | {
            "requests_per_second": 10000,
            "ready_seconds": 1,
            "keep_jobs": KEPT_JOBS,
            "log_level": "info",
        },
        environment={"PROVISIOND_OPERATORS": f'["{MASTER}"]'},
    )
    await daemon.start()
    return Site(
        daemon=daemon,
        port=tls_port(daemon),
        authority=authority,
        master=make_certificate(folder, MASTER, by=authority),
        guests=guests,
    )


async def soak(made: Site, *, rounds: int, seconds: float) -> AsyncIterator[Figures]:
    """The figures at the rest after each round of so many seconds (each worker once at least)."""
    kinds = [*WITHOUT_GUESTS, *(WITH_GUESTS if made.guests else ())]
    workers = [kind(made) for kind in kinds]
    began = monotonic()
    usual: Figures | None = None
    for _ in range(rounds):
        end = asyncio.get_running_loop().time() + seconds
        async with asyncio.TaskGroup() as tasks:
            for worker in workers:
                tasks.create_task(worker.work(end))
        usual = await _rest(made.daemon, began, usual)
        yield usual


async def _rest(daemon: Daemon, began: float, usual: Figures | None) -> Figures:
    """What the daemon has when it has let go of what it had for the last round.

    That is when it has no more than at the rest before; where it keeps something, after a while.
    """
    end = monotonic() + REST_SECONDS
    now = await read_figures(daemon, seconds=monotonic() - began)
    while monotonic() < end:
        await asyncio.sleep(0.2)
        before, now = now, await read_figures(daemon, seconds=monotonic() - began)
        level = (now.files, now.tasks) == (before.files, before.tasks)
        if level and (usual is None or (now.files <= usual.files and now.tasks <= usual.tasks)):
            break
    return now
