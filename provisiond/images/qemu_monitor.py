"""A monitor of QEMU's that is ours alone, beside libvirt's: events with their times, the screen.

QMP as docs/interop/qmp-spec of QEMU has it: one JSON document a line.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from provisiond.errors import ToolFailed
from provisiond.images.picture import png_of

_LONGEST_LINE = 2**20


class Monitor:
    """One connection. Events that come meanwhile are kept until somebody looks."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._events: list[dict[str, Any]] = []

    async def port_opened_at(self) -> float | None:
        """When (the wall's time) the guest first opened its virtio port; None where it has not."""
        await self.ask("query-status")  # all events of before are read then
        for event in self._events:
            if event["event"] == "VSERPORT_CHANGE" and event.get("data", {}).get("open"):
                at = event["timestamp"]
                return float(at["seconds"]) + float(at["microseconds"]) / 1e6
        return None

    async def screen(self, part: Path) -> bytes:
        """The guest's screen as a PNG; QEMU writes it to `part`, which is removed."""
        try:
            await self.ask("screendump", filename=str(part))
            return png_of(part.read_bytes())
        except (OSError, ValueError) as error:
            raise ToolFailed(f"QEMU gives no picture of the screen: {error}") from error
        finally:
            part.unlink(missing_ok=True)

    async def ask(self, command: str, **arguments: object) -> Any:
        """What a command returns; raises ToolFailed, also where QEMU has ended."""
        order = {"execute": command, "arguments": arguments}
        try:
            self._writer.write(json.dumps(order).encode() + b"\n")
            await self._writer.drain()
            while "return" not in (said := await self._hear()):
                if "error" in said:
                    raise ToolFailed(f"QEMU refuses {command}: {said['error'].get('desc')}")
                if "event" in said:
                    self._events.append(said)
        except OSError as error:
            raise ToolFailed(f"QEMU's monitor has closed: {error.strerror}") from error
        return said["return"]

    async def _hear(self) -> dict[str, Any]:
        line = await self._reader.readline()
        if not line:
            raise ToolFailed("QEMU has ended")
        said = json.loads(line)
        if not isinstance(said, dict):
            raise ToolFailed("QEMU's monitor speaks no QMP")
        return said


@asynccontextmanager
async def opened(socket: Path) -> AsyncIterator[Monitor]:
    """The monitor at `socket`; raises ToolFailed where QEMU does not listen there."""
    try:
        reader, writer = await asyncio.open_unix_connection(socket, limit=_LONGEST_LINE)
    except OSError as error:
        raise ToolFailed(f"{socket}: QEMU's monitor is not there: {error.strerror}") from error
    try:
        monitor = Monitor(reader, writer)
        await monitor.ask("qmp_capabilities")
        yield monitor
    finally:
        writer.close()
