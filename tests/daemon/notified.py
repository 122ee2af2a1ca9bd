"""What a daemon tells systemd, without one."""

import asyncio
import socket

from tests.daemon.program import Daemon


class Notified:
    """systemd's end of the daemon's notifications (sd_notify(3))."""

    def __init__(self, daemon: Daemon, *, watchdog: str) -> None:
        """`watchdog` is WatchdogSec, in microseconds."""
        path = daemon.folder / "notify"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)
        daemon.environment = {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": watchdog}

    async def next(self) -> list[str]:
        """The assignments of one message."""
        loop = asyncio.get_running_loop()
        return (await loop.sock_recv(self._socket, 4096)).decode().split("\n")

    async def wait_for(self, *assignments: str) -> None:
        """Returns when one message has all of them."""
        async with asyncio.timeout(30):
            while not set(assignments) <= set(await self.next()):
                pass

    def close(self) -> None:
        self._socket.close()
