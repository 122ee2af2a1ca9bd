"""The scenarios of the daemon's own files: its start, golden bases, overlays; without a guest."""

import asyncio
import shutil
from pathlib import Path

from provisiond.disk.folder import is_immutable, make_immutable, make_mutable
from tests.daemon.images import called, import_of, overlay_of, raw_image
from tests.daemon.program import LOOK_SECONDS, Json
from tests.faults.scenario import Cancelling, JobScenario, Scenario, differs

COPIED_FOR_LONG_MIB = 64

BASE_FILES = ["bases/debian.json", "bases/debian.qcow2"]


class Start(Scenario):
    """The first start of all: folders, state file, socket."""

    name = "start"

    async def ready(self) -> None:
        daemon = self.host.daemon
        self.host.has_room = True
        await daemon.kill()
        for path in daemon.image_dir.glob("bases/*"):
            make_mutable(path)
        for folder in (daemon.state_file.parent, daemon.iso_folder.parent, daemon.image_dir):
            shutil.rmtree(folder, ignore_errors=True)
        if self.host.volumes is not None:
            self.host.volumes.sync()

    async def act(self) -> None:
        """Without room it refuses to start, and says so."""
        self._refused = ""
        try:
            await self.host.daemon.start()
        except RuntimeError as error:
            if self.host.has_room:
                raise
            self._refused = str(error)

    async def settle(self) -> str:
        if not self._refused:
            return "serves"
        await self.host.daemon.start()
        return "refused to start, started again: serves"

    async def check(self) -> list[str]:
        modes = {
            "images": self.host.daemon.image_dir,
            "state": self.host.daemon.state_file.parent,
            "iso": self.host.daemon.iso_folder,
            "bases": self.host.daemon.image_dir / "bases",
            "disks": self.host.daemon.image_dir / "disks",
            "file": self.host.daemon.state_file,
        }
        found = {name: f"{path.stat().st_mode & 0o777:o}" for name, path in modes.items()}
        wanted = dict.fromkeys(modes, "711") | {"iso": "700", "file": "600"}
        return differs("modes", found, wanted)

    async def again(self) -> list[str]:
        job = await self.host.run(import_of(raw_image(self.host.folder / "source.raw")))
        return differs("an import", job["state"], "SUCCEEDED")


class OnImages(JobScenario):
    """What they have in common: an image to import, and base `debian` made of it."""

    @property
    def source(self) -> Path:
        return self.host.folder / "source.raw"

    async def prepare(self) -> None:
        raw_image(self.source)

    async def base_is(self, *, there: bool) -> list[str]:
        problems = differs("files", self.host.files(), BASE_FILES if there else [])
        if there and not problems:
            problems = await self.host.base_problems("debian")
        return problems

    async def remove_base(self) -> list[str]:
        return differs("removing the base", await self.host.delete("/v1/bases/debian"), 204)


class Import(OnImages):
    """A raw image becomes a qcow2 base."""

    name = "import"

    def body(self) -> Json:
        return import_of(self.source)

    async def check(self) -> list[str]:
        problems = await self.base_is(there=self.succeeded)
        if self.succeeded and not problems:
            path = self.host.daemon.image_dir / BASE_FILES[1]
            called("qemu-img", "compare", "-f", "raw", "-F", "qcow2", self.source, path)
            # The folder's file system may know no such flag: then none is there at any time.
            problems = differs("immutable", is_immutable(path), self._can_be_immutable())
        return problems

    def _can_be_immutable(self) -> bool:
        probe = self.host.folder / "probe"
        probe.touch()
        try:
            return make_immutable(probe)
        finally:
            make_mutable(probe)
            probe.unlink()

    async def again(self) -> list[str]:
        problems = await self.remove_base() if self.succeeded else []
        return [*problems, *await super().again(), *await self.remove_base()]


class CancelImport(Cancelling, OnImages):
    """An import is called off while qemu-img copies the image."""

    name = "cancel import"

    async def prepare(self) -> None:
        raw_image(self.source, mib=COPIED_FOR_LONG_MIB, data_mib=COPIED_FOR_LONG_MIB)

    def body(self) -> Json:
        return import_of(self.source)

    async def is_under_way(self, job_id: str) -> None:
        doing = None
        while doing != "converting":
            await asyncio.sleep(LOOK_SECONDS)
            progress = (await self.host.daemon.job(job_id))["progress"]
            doing = None if progress is None else progress["doing"]

    async def check(self) -> list[str]:
        return [*await self.base_is(there=self.succeeded), *self.not_cancelled()]

    async def again(self) -> list[str]:
        return await self.remove_base() if self.succeeded else []


class RemoveBase(OnImages):
    """A base is removed, which is no job: who asks hears nothing, and asks again."""

    name = "remove base"

    def body(self) -> Json:
        return import_of(self.source)

    async def ready(self) -> None:
        await super().ready()
        await self.host.run(self.body() | {"request_id": self.request_id})

    async def act(self) -> None:
        await self.host.delete("/v1/bases/debian")

    async def settle(self) -> str:
        bases = (await self.host.get("/v1/bases"))["bases"]
        status = await self.host.delete("/v1/bases/debian")
        return f"{'still there' if bases else 'gone'}, asked again: {status}"

    async def check(self) -> list[str]:
        return await self.base_is(there=False)

    async def again(self) -> list[str]:
        return [*await super().again(), *await self.remove_base()]


class Overlay(OnImages):
    """An overlay over a base, for somebody else's domain."""

    name = "overlay"

    async def prepare(self) -> None:
        await super().prepare()
        await self.host.run(import_of(self.source))

    def body(self) -> Json:
        return overlay_of("debian", name="web1")

    async def check(self) -> list[str]:
        wanted = [*BASE_FILES, *["disks/web1.qcow2"] * self.succeeded]
        problems = differs("files", self.host.files(), wanted)
        if self.succeeded and not problems:
            path = self.host.daemon.image_dir / "disks/web1.qcow2"
            called("qemu-img", "compare", "-f", "raw", "-F", "qcow2", self.source, path)
            problems = differs("number of names", path.stat().st_nlink, 1)
        return [*problems, *await self.host.base_problems("debian")]

    async def again(self) -> list[str]:
        if self.succeeded:
            problems = await self._remove()
        else:
            problems = []
        return [*problems, *await super().again(), *await self._remove()]

    async def _remove(self) -> list[str]:
        return differs("removing the disk", await self.host.delete("/v1/disks/web1"), 204)


class RemoveDisk(Overlay):
    """An overlay is removed, which is no job either."""

    name = "remove disk"

    async def ready(self) -> None:
        await super().ready()
        await self.host.run(self.body() | {"request_id": self.request_id})

    async def act(self) -> None:
        await self.host.delete("/v1/disks/web1")

    async def settle(self) -> str:
        disks = (await self.host.get("/v1/disks"))["disks"]
        status = await self.host.delete("/v1/disks/web1")
        return f"{'still there' if disks else 'gone'}, asked again: {status}"

    async def check(self) -> list[str]:
        problems = differs("files", self.host.files(), BASE_FILES)
        return [*problems, *await self.host.base_problems("debian")]


SCENARIOS = (Start, Import, CancelImport, RemoveBase, Overlay, RemoveDisk)
