"""Something that provisiond is asked for, what may become of it, and when the world is right."""

import uuid
from abc import ABC, abstractmethod
from http import HTTPStatus
from typing import ClassVar

from provisiond.errors import Unforeseen
from tests.daemon.program import Json
from tests.faults.hypervisor import GuestHost
from tests.faults.world import LIBVIRTS_OWN, Host

UNKNOWN = "never accepted"


class Scenario(ABC):
    """One scenario on one host. `ready` comes before each cut, `settle`, `check` and `again` after
    it, on the daemon that was started again."""

    name: ClassVar[str]
    with_guests: ClassVar[bool] = False
    settings: ClassVar[dict[str, object]] = {}

    def __init__(self, host: Host) -> None:
        self.host = host

    def start_guests(self, guests: GuestHost) -> None:  # noqa: B027 - most have none of their own
        """Start what is there before the daemon is."""

    async def prepare(self) -> None:  # noqa: B027 - most need nothing
        """Once, on a daemon that serves."""

    async def ready(self) -> None:  # noqa: B027 - most need nothing
        """Bring the world to where the scenario begins."""

    @abstractmethod
    async def act(self) -> None:
        """Ask, and wait for the end; the daemon may die meanwhile."""

    @abstractmethod
    async def settle(self) -> str:
        """Wait until a daemon that goes on has ended what was begun; how it ended."""

    @abstractmethod
    async def check(self) -> list[str]:
        """What is not as `settle` said."""

    async def after_reboot(self) -> None:
        """What the next one needs on a host that has no guest any more."""
        self.host.rebooted = False

    async def forgotten(self) -> list[str]:
        """What whoever asked was told, and is not so any more."""
        return []

    @abstractmethod
    async def again(self) -> list[str]:
        """What is wrong with the next request for the same; then the world is as before `ready`."""


class JobScenario(Scenario):
    """A scenario that is one job."""

    job: Json | None = None
    request_id = ""
    refusal: Json | None = None
    accepted: str | None = None

    @abstractmethod
    def body(self) -> Json:
        """The request, but for its id."""

    async def ready(self) -> None:
        self.job, self.request_id = None, f"fault-{uuid.uuid4().hex}"
        self.refusal, self.accepted, self._told = None, None, list[Json]()
        self.host.has_room = True

    async def act(self) -> None:
        reply = await self.host.daemon.post(self.body() | {"request_id": self.request_id})
        if not self.host.has_room and reply.status_code == HTTPStatus.INSUFFICIENT_STORAGE:
            self.refusal = reply.json()
            return
        assert reply.status_code == HTTPStatus.ACCEPTED, reply.text
        self.accepted = reply.json()["id"]
        async with self.host.daemon.events(f"/v1/jobs/{self.accepted}/events") as events:
            async for event in events:
                self._told.append(event)

    async def settle(self) -> str:
        found = await self.host.job_of(self.request_id)
        self.job = None if found is None else await self.host.daemon.ended(found["id"])
        if self.refusal is not None:
            return f"{outcome(self.job)}: {self.refusal['code']}"
        return outcome(self.job)

    async def forgotten(self) -> list[str]:
        if self.job is None:
            return ["the job was accepted, and nobody knows it"] if self.accepted else []
        async with self.host.daemon.events(f"/v1/jobs/{self.job['id']}/events") as events:
            history = [event async for event in events]
        lost = [event["state"] for event in self._told if event not in history]
        problems = [f"{state} was told, and is not in the history" for state in lost]
        return [*problems, *unexplained(self.job)]

    async def again(self) -> list[str]:
        job = await self.host.run(self.body() | {"request_id": f"again-{uuid.uuid4().hex}"})
        return ends_well("the next one", job)

    @property
    def succeeded(self) -> bool:
        return self.job is not None and self.job["state"] == "SUCCEEDED"


class Cancelling(JobScenario):
    """A job is called off while it is under way."""

    async def is_under_way(self, job_id: str) -> None:
        """Return when it is."""
        await self.host.daemon.wait_for(job_id, "ISO_ATTACHED")

    async def ready(self) -> None:
        await super().ready()
        self.job = await self.host.daemon.submit(self.body() | {"request_id": self.request_id})
        await self.is_under_way(self.job["id"])

    async def act(self) -> None:
        assert self.job is not None
        reply = await self.host.daemon.cancel(self.job["id"])
        if self.host.has_room or reply.status_code != HTTPStatus.INSUFFICIENT_STORAGE:
            self.job = await self.host.daemon.ended(self.job["id"])

    async def settle(self) -> str:
        assert self.job is not None
        self.host.has_room = True
        found = await self.host.daemon.job(self.job["id"])
        self._heard = bool(found["cancel_requested"])
        await self.act()  # who has no answer asks again
        return f"{outcome(self.job)}{'' if self._heard else ', asked again'}"

    def not_cancelled(self) -> list[str]:
        """The problem that it ended otherwise, if it is one: it may where nobody heard the first
        cancel, and it came to its end before the second."""
        ended = outcome(self.job)
        if not self._heard and ended in ("SUCCEEDED", "FAILED interrupted", "FAILED guest_lost"):
            return []
        return differs("the job", ended, "FAILED cancelled")

    async def again(self) -> list[str]:
        return []  # the next one's own job


def outcome(job: Json | None) -> str:
    """How a job ended, in a word or two."""
    if job is None:
        return UNKNOWN
    if job["failure"] is None:
        return str(job["state"])
    why = " (libvirt forgot what QEMU has)" if is_forgotten(job) else ""
    return f"{job['state']} {job['failure']['code']}{why}"


def ends_well(what: str, job: Json | None) -> list[str]:
    """The problem that a job has not succeeded, if it is one."""
    if job is None or job["failure"] is None:
        return []
    whose = f"{LIBVIRTS_OWN}: " if is_forgotten(job) else ""
    return [f"{whose}{what}: {job['failure']['message']}"]


def unexplained(job: Json) -> list[str]:
    """The problem that a failure is a defect of provisiond, or leaves whoever asked without a
    hint."""
    failure = job["failure"]
    if failure is None or (failure["code"] != Unforeseen.code and failure["hint"]):
        return []
    return [f"its failure says too little: {failure}"]


def is_forgotten(job: Json) -> bool:
    """QEMU may have a node or a device of which libvirt, killed in mid-attach, does not know."""
    said = job["failure"]["message"]
    return "Duplicate nodes" in said or "Duplicate device ID" in said


def differs(what: str, found: object, wanted: object) -> list[str]:
    """The problem that something is not as it should be, if it is one."""
    return [] if found == wanted else [f"{what}: {found}, not {wanted}"]
