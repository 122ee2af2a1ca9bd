"""The scenarios of guests, which go on running when the daemon dies."""

import asyncio
import uuid
from pathlib import Path
from typing import ClassVar

from tests.daemon.data_disks import SIZE, attach_of, detach_of, seen
from tests.daemon.host import in_guest
from tests.daemon.images import import_of
from tests.daemon.program import Json, request
from tests.faults.hypervisor import GuestHost
from tests.faults.scenario import UNKNOWN, Cancelling, JobScenario, differs, ends_well, outcome
from tests.faults.world import LIBVIRTS_OWN
from tests.lab.disk import disk_guest_files
from tests.lab.domain import kernel_words
from tests.lab.program import Running

# False in a proof where the daemon that overwrote the ISO died before it could say so.
OVERWRITTEN = "iso_overwritten_and_unlinked"
DEADLINE_SECONDS = 90  # a boot on a busy machine and no more
# A guest whose host was started anew is lost before its failure is known.
MAY_END_AN_UNDO = ("FAILED guest_failed", "FAILED interrupted", "FAILED guest_lost", UNKNOWN)
BASE_FILES = ["bases/tiny.json", "bases/tiny.qcow2"]


class OnGuest(JobScenario):
    """What they have in common: a guest that runs through all cuts."""

    with_guests = True
    silent: ClassVar[bool] = True
    guest: Running

    def start_guests(self, guests: GuestHost) -> None:
        self.guest = guests.start(silent=self.silent)

    async def prepare(self) -> None:
        async with asyncio.timeout(120):
            await in_guest(self.guest, "true")

    async def after_reboot(self) -> None:
        """The same guest, as it was defined at first, is started again; it has no other disk."""
        assert self.host.guests is not None
        await self.host.daemon.kill()
        self.start_guests(self.host.guests)
        await self.host.daemon.start()
        for disk in (await self.host.get("/v1/disks"))["disks"]:
            await self.host.delete(f"/v1/disks/{disk['name']}")
        await super().after_reboot()
        await self.prepare()

    async def disks(self) -> list[Json]:
        return list((await self.host.domains())[self.guest.name]["disks"])


# ---------------------------------------------------------------- data disks
class AttachDisk(OnGuest):
    """A new disk for a running guest, and for its next start."""

    name = "attach disk"

    def body(self) -> Json:
        return attach_of(self.guest.name, size=SIZE, name="data", persistent=True)

    async def check(self) -> list[str]:
        return await self.disk_is(there=self.succeeded)

    async def disk_is(self, *, there: bool) -> list[str]:
        problems = differs("files", self.host.files(), ["disks/data.qcow2"] * there)
        disks = await self.disks()
        problems += differs("disks", [disk["name"] for disk in disks], ["data"] * there)
        if there and not problems and not self.host.rebooted:
            await seen(self.guest, disks[0]["target"])
        return problems

    async def again(self) -> list[str]:
        if self.host.rebooted:
            return []
        problems = await self._detach() if self.succeeded else []
        return [*problems, *await super().again(), *await self._detach()]

    async def _detach(self) -> list[str]:
        problems: list[str] = []
        for disk in await self.disks():
            body = detach_of(self.guest.name, disk["target"], persistent=True, remove=True)
            problems += ends_well("the detach", await self.host.run(body))
        return problems


class DetachDisk(AttachDisk):
    """A data disk is taken away and removed."""

    name = "detach disk"

    async def ready(self) -> None:
        await super().ready()
        job = await self.host.run(super().body())
        assert job["state"] == "SUCCEEDED", job["failure"]
        await seen(self.guest, job["target"])
        self._target = job["target"]

    def body(self) -> Json:
        return detach_of(self.guest.name, self._target, persistent=True, remove=True)

    async def check(self) -> list[str]:
        return await self.disk_is(there=not self.succeeded)

    async def again(self) -> list[str]:
        if self.host.rebooted:
            return []
        problems = [] if self.succeeded else await self._detach()
        job = await self.host.run(super().body())
        return [*problems, *ends_well("the next", job), *await self._detach()]


# ---------------------------------------------------------------- the config ISO
class Provision(OnGuest):
    """A running guest is configured; its script waits for the next generation."""

    name = "provision"
    silent = False
    settings: ClassVar[dict[str, object]] = {"ready_seconds": 5}

    async def ready(self) -> None:
        await super().ready()
        self._host_name = f"h{uuid.uuid4().hex[:8]}"

    def body(self) -> Json:
        return request(self.guest.name, hostname=self._host_name)

    async def settle(self) -> str:
        said = await super().settle()
        proof = None if self.job is None else self.job["proof"]
        if self.succeeded and proof and not proof[OVERWRITTEN]:
            return f"{said}, its ISO was gone already"
        return said

    async def check(self) -> list[str]:
        problems = await self.nothing_is_attached()
        if self.succeeded and self.job is not None:
            if not self.host.rebooted:
                found = (await in_guest(self.guest, "hostname")).strip()
                problems += differs("host name", found, self._host_name)
            proof = {name for name, held in self.job["proof"].items() if not held}
            problems += differs("what the proof lacks", proof - {OVERWRITTEN}, set())
        return problems

    async def nothing_is_attached(self) -> list[str]:
        """A drive that libvirt forgot when it died may be in the guest for ever: it is empty then,
        since the ISO was overwritten."""
        problems = differs("disks", await self.disks(), [])
        if self.host.rebooted:
            return problems
        look = "for disk in /dev/sr*; do [ ! -b $disk ] || tr -d '\\000' <$disk | wc -c; done"
        left = (await in_guest(self.guest, look)).split()
        if any(size != "0" for size in left):
            problems.append("the guest can still read its configuration")
        elif left:
            problems.append(f"{LIBVIRTS_OWN}: a drive, empty, that it forgot")
        return problems

    async def again(self) -> list[str]:
        # After a success the next cut's own job is the next one.
        return [] if self.succeeded or self.host.rebooted else await super().again()


class Undo(Provision):
    """A guest that fails a step: an older generation than it has."""

    name = "undo"

    async def prepare(self) -> None:
        await super().prepare()
        body = request(self.guest.name, request_id=uuid.uuid4().hex, hostname="first")
        job = await self.host.run(body)
        assert job["state"] == "SUCCEEDED", job["failure"]

    def body(self) -> Json:
        return request(self.guest.name, hostname="never", generation=1)

    async def check(self) -> list[str]:
        problems = await self.nothing_is_attached()
        if not self.host.rebooted:
            found = (await in_guest(self.guest, "hostname")).strip()
            problems += differs("host name", found, "first")
        if outcome(self.job) in MAY_END_AN_UNDO:
            return problems
        return [*problems, *(["it succeeded"] if self.succeeded else ends_well("it", self.job))]

    async def again(self) -> list[str]:
        return []


class Cancel(Cancelling, Provision):
    """The guest, which never answers, is somebody else's: the ISO goes."""

    name = "cancel"
    silent = True
    settings: ClassVar[dict[str, object]] = {"ready_seconds": 0.2}

    async def check(self) -> list[str]:
        return [*await self.nothing_is_attached(), *self.not_cancelled()]


# ---------------------------------------------------------------- whole guests
class Create(JobScenario):
    """A guest is made of a base, booted and configured."""

    name = "create"
    with_guests = True
    silent: ClassVar[bool] = False
    broken_step: ClassVar[str | None] = None

    async def prepare(self) -> None:
        assert self.host.guests is not None
        self.host.daemon.template_dir.mkdir(exist_ok=True)
        template = self.host.guests.template(
            *kernel_words(silent=self.silent, broken_step=self.broken_step)
        )
        (self.host.daemon.template_dir / "default.xml").write_text(template)
        job = await self.host.run(import_of(disk_guest_files().image, name="tiny"))
        assert job["state"] == "SUCCEEDED", job["failure"]

    def body(self) -> Json:
        """QEMU stops a guest that writes to a full disk: its job ends by the deadline."""
        limit = {} if self.host.volumes is None else {"deadline_seconds": DEADLINE_SECONDS}
        return request("web1", **limit) | {"create": {"base": "tiny"}}

    async def check(self) -> list[str]:
        return await self.guest_is(there=self.succeeded)

    async def guest_is(self, *, there: bool) -> list[str]:
        files = [*BASE_FILES, *["disks/web1.qcow2"] * there]
        problems = differs("files", self.host.files(), files)
        domains = await self.host.domains()
        problems += differs("domains", list(domains), ["web1"] * there)
        if there and not problems:
            problems += await self._problems_inside()
            (disk,) = domains["web1"]["disks"]
            path = Path(disk["source"])
            problems += differs("number of names of the overlay", path.stat().st_nlink, 1)
        return [*problems, *await self.host.base_problems("tiny")]

    async def _problems_inside(self) -> list[str]:
        if self.host.rebooted:
            return []
        assert self.host.guests is not None
        web1 = self.host.guests.running("web1")
        return differs("host name", (await in_guest(web1, "hostname")).strip(), "web1")

    async def again(self) -> list[str]:
        if self.succeeded:
            return await self.destroy()
        # The same name once more; it is called off before it boots.
        job = await self.host.daemon.submit(self.body() | {"request_id": uuid.uuid4().hex})
        await self.host.daemon.wait_for(job["id"], "ISO_WRITTEN")
        await self.host.daemon.cancel(job["id"])
        ended = outcome(await self.host.daemon.ended(job["id"]))
        return [*differs("the next one", ended, "FAILED cancelled")]

    async def destroy(self) -> list[str]:
        body = {"kind": "destroy", "request_id": uuid.uuid4().hex, "domain": "web1"}
        ended = outcome(await self.host.run(body))
        return [*differs("the destroy", ended, "SUCCEEDED"), *await self.guest_is(there=False)]


class CancelCreate(Cancelling, Create):
    """The guest was made for the job and never answers: its domain and its disk go too."""

    name = "cancel create"
    silent = True
    settings: ClassVar[dict[str, object]] = {"ready_seconds": 0.2}

    async def check(self) -> list[str]:
        return [*await self.guest_is(there=False), *self.not_cancelled()]


class CancelCreateEarly(CancelCreate):
    """The same before the guest has the ISO: it is waited for."""

    name = "cancel create early"
    settings: ClassVar[dict[str, object]] = {"ready_seconds": 600}

    async def is_under_way(self, job_id: str) -> None:
        await self.host.daemon.wait_for(job_id, "ISO_WRITTEN")


class UndoCreate(Create):
    """A guest that was made fails a step: nothing of it is left."""

    name = "undo create"
    broken_step = "hostname"

    async def check(self) -> list[str]:
        problems = await self.guest_is(there=False)
        return [*problems, *(["it succeeded"] if self.succeeded else [])]

    async def again(self) -> list[str]:
        return []  # the next one's own job


class Destroy(Create):
    """A guest that was made here is ended, with its disk."""

    name = "destroy"

    async def ready(self) -> None:
        await super().ready()
        if "web1" not in await self.host.domains():
            job = await self.host.run(super().body() | {"request_id": uuid.uuid4().hex})
            assert job["state"] == "SUCCEEDED", job["failure"]

    def body(self) -> Json:
        return {"kind": "destroy", "domain": "web1"}

    async def check(self) -> list[str]:
        return await self.guest_is(there=not self.succeeded)

    async def again(self) -> list[str]:
        return [] if self.succeeded else await self.destroy()


SCENARIOS = (
    AttachDisk,
    DetachDisk,
    Provision,
    Undo,
    Cancel,
    Create,
    UndoCreate,
    CancelCreate,
    CancelCreateEarly,
    Destroy,
)
