"""What the suite in dom0 stands on: the installed service, guests, and the transcript."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.daemon.program import Json
from tests.xen.dom0 import host
from tests.xen.dom0.guests import Guests
from tests.xen.dom0.service import Service, set_up

TRANSCRIPT = Path("/laboratory/results/transcript.txt")
CONSOLES = Path("/var/log/xen/console")
CONSOLE_TAIL = 2000


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A failure is told at once, with what the service and systemd said: the rest of the suite may
    take minutes, and may never come to its end."""
    if report.failed:
        print(f"\n{report.longreprtext}\n{report.capstdout}\n{Service().said()}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The transcript, before the names of the tests that failed: those are to be read last."""
    if TRANSCRIPT.exists():
        terminalreporter.write_line(TRANSCRIPT.read_text())


@pytest.fixture(scope="session", name="_bridge", autouse=True)
def bridge() -> None:
    """The network of the guests and of dom0."""
    host.make_bridge()


@pytest.fixture
def service() -> Service:
    """provisiond, as it was installed and started by README.md's commands."""
    return Service()


@pytest.fixture
async def guests(service: Service) -> AsyncIterator[Guests]:
    """Starts guests of the test's own; at the end they are gone and their jobs are told."""
    known = set(await service.job_ids())
    started = Guests()
    try:
        yield started
    finally:
        for job_id in await service.job_ids():
            if job_id not in known:
                job = await service.job(job_id)
                _tell(job, started.domids.get(job["subject"], []))
        for name in started.domids:  # pytest shows it when the test failed
            log = CONSOLES / f"guest-{name}.log"
            text = log.read_text(errors="replace") if log.exists() else ""
            print(f"--- console of {name}\n{text[-CONSOLE_TAIL:]}")
        started.destroy()


@pytest.fixture(scope="session", name="_impatience")
def impatience() -> None:
    """From the first test that asks for it: a start of the service is slow under emulation."""
    set_up(ready_seconds=2)


@pytest.fixture
async def impatient(_impatience: None) -> Service:
    """The service, which waits two seconds for a guest's hello; then the ISO comes all the same."""
    service = Service()
    await service.answered()
    return service


def _tell(job: Json, domids: list[int]) -> None:
    """One job, for the transcript: every fact with its time."""
    numbers = ", then ".join(map(str, domids))
    lines = [f"{job['subject']}: domid {numbers}, target {job['target']}, job {job['id']}"]
    lines += [
        f"    {event['at'][11:23]}  {event['state']:<17} {event['detail']}"
        for event in job["history"]
    ]
    lines.append(f"    proof: {job['proof']}")
    with TRANSCRIPT.open("a") as transcript:
        transcript.write("\n".join(lines) + "\n\n")
