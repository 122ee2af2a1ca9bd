"""What the operator's Prometheus reads. prometheus_client has one importer: this module."""

import asyncio

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from provisiond.job import Job

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 14400)


class Metrics:
    """Counters and times of all jobs since the daemon's start, and what its process has."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._ended = Counter(
            "provisiond_jobs_ended",
            "Jobs that have ended, by kind and outcome: succeeded, or the failure's code.",
            ["kind", "outcome"],
            registry=self._registry,
        )
        self._phase = Histogram(
            "provisiond_phase_seconds",
            "Time from the fact before to this one.",
            ["kind", "state"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._attached = Histogram(
            "provisiond_iso_attached_seconds",
            "How long a config ISO was attached to its guest.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._unfinished = Gauge(
            "provisiond_jobs_unfinished", "Jobs that have not ended.", registry=self._registry
        )
        self._connected = Gauge(
            "provisiond_hypervisor_connected",
            "1 while libvirt can be reached.",
            registry=self._registry,
        )
        self._tasks = Gauge(
            "provisiond_tasks",
            "Things that are at work at once: jobs, connections, and some of the daemon's own.",
            registry=self._registry,
        )
        ProcessCollector(registry=self._registry)

    def observe(self, before: Job, after: Job) -> None:
        """Take in one stored fact."""
        passed = max(0.0, after.updated_at - before.updated_at)
        self._phase.labels(after.kind.value, after.state.value).observe(passed)
        if after.state.ended:
            outcome = "succeeded" if after.failure is None else after.failure.code
            self._ended.labels(after.kind.value, outcome).inc()
            if after.attached_at is not None and after.detached_at is not None:
                self._attached.observe(max(0.0, after.detached_at - after.attached_at))

    def render(self, *, unfinished: int, connected: bool) -> bytes:
        """The exposition text; from inside the event loop."""
        self._tasks.set(len(asyncio.all_tasks()))
        self._unfinished.set(unfinished)
        self._connected.set(int(connected))
        return generate_latest(self._registry)
