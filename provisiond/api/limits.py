"""How much a caller may ask: a rate, requests at once, connections. Pure but for the counting."""

from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from provisiond.errors import Overloaded, TooManyRequests

_REMEMBERED_CALLERS = 10_000
_BURST_SECONDS = 10.0  # of its rate, what a caller that was quiet may ask for at once


@dataclass(frozen=True, slots=True)
class CallLimits:
    """Of each caller: requests a second, requests and connections at once. Seconds for a request to
    come in whole."""

    requests_per_second: float
    max_requests: int
    max_connections: int
    request_seconds: float


class Traffic:
    """What each caller asks just now."""

    def __init__(self, limits: CallLimits) -> None:
        self.limits = limits
        self._connections: Counter[str] = Counter()
        self._requests: Counter[str] = Counter()
        self._tokens: OrderedDict[str, tuple[float, float]] = OrderedDict()

    # ------------------------------------------------------------ connections
    def connect(self, caller: str) -> bool:
        """Count a connection in; False where the caller has too many, and it was not counted."""
        if self._connections[caller] >= self.limits.max_connections:
            return False
        self._connections[caller] += 1
        return True

    def disconnect(self, caller: str) -> None:
        """Count a connection out."""
        _count_out(self._connections, caller)

    # ------------------------------------------------------------ requests
    def take_turn(self, caller: str, *, now: float) -> None:
        """Count a request; `now` is a clock's that never goes back, in seconds.

        Raises TooManyRequests; then it was not counted.
        """
        rate = self.limits.requests_per_second
        full = max(1.0, rate * _BURST_SECONDS)
        tokens, since = self._tokens.pop(caller, (full, now))
        tokens = min(full, tokens + (now - since) * rate)
        allowed = tokens >= 1
        self._tokens[caller] = (tokens - 1 if allowed else tokens, now)
        if len(self._tokens) > _REMEMBERED_CALLERS:
            self._tokens.popitem(last=False)
        if not allowed:
            raise TooManyRequests(
                f"{caller}: more than {rate:g} requests a second",
                retry_after=(1 - tokens) / rate,
            )

    @contextmanager
    def request(self, caller: str) -> Iterator[None]:
        """A request is at work for the block; raises Overloaded where the caller has too many."""
        if self._requests[caller] >= self.limits.max_requests:
            raise Overloaded(f"{caller}: {self._requests[caller]} requests are at work already")
        self._requests[caller] += 1
        try:
            yield
        finally:
            _count_out(self._requests, caller)


def _count_out(counter: Counter[str], caller: str) -> None:
    counter[caller] -= 1
    if counter[caller] <= 0:
        del counter[caller]
