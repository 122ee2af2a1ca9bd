"""A host with thousands of Xen domains, as provisiond sees it: libvirt's calls, without libvirt.

The calls go over a Unix socket to another process (simulated_host.py), as libvirt's own go to
libvirtd, and take as long. Everything above them is provisiond's real adapter: its threads, its
look-ups, its reading of XML, its waiting for both ends of a disk in the real xenstore.
"""

import json
import os
import socket
import threading
import uuid
from typing import Any

import libvirt

from provisiond.virt.libvirt import Hypervisor
from provisiond.virt.libvirt.connection import Connection
from provisiond.xenstore.client import Xenstore

HOST = "BENCH_HOST"
"""The variable that names the other process's socket."""


class SimulatedHypervisor(Hypervisor):
    """The real one over a simulated libvirt."""

    def __init__(self, uri: str, *, threads: int, xenstore: Xenstore | None = None) -> None:
        super().__init__(uri, threads=threads, xenstore=xenstore)
        self._connection = _SimulatedConnection(uri, threads=threads)


class _SimulatedConnection(Connection):
    """One libvirt for all calls: a call apart needs no connection of its own to be opened."""

    def __init__(self, uri: str, *, threads: int) -> None:
        super().__init__("simulated:///embed", threads=threads)

    async def _open_connection(self) -> Any:
        if not self.is_open:
            self._connection = _Libvirt(os.environ[HOST])
            self.is_open = True
        return self._connection


class _Libvirt:
    """virConnect, as far as provisiond asks it. Each thread has a socket of its own."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._own = threading.local()

    def ask(self, *words: object) -> Any:
        """One question and its answer."""
        if not hasattr(self._own, "lines"):
            connected = socket.socket(socket.AF_UNIX)
            connected.connect(self._path)
            self._own.lines = connected.makefile("rwb")
        self._own.lines.write(json.dumps(words).encode() + b"\n")
        self._own.lines.flush()
        answer = json.loads(self._own.lines.readline())
        if "error" in answer:
            error = libvirt.libvirtError(answer["error"])
            error.err = (answer["code"], 0, answer["error"], 0, None, None, None, -1, -1)
            raise error
        return answer["is"]

    def isAlive(self) -> int:  # noqa: N802 - libvirt's name
        return 1

    def close(self) -> int:
        return 0

    def lookupByUUIDString(self, text: str) -> "_Domain":  # noqa: N802
        try:
            uuid.UUID(text)
        except ValueError:
            error = libvirt.libvirtError("not a UUID")
            error.err = (libvirt.VIR_ERR_INVALID_ARG, 0, "", 0, None, None, None, -1, -1)
            raise error from None
        return _Domain(self, *self.ask("look_up", text))

    def lookupByName(self, name: str) -> "_Domain":  # noqa: N802
        return _Domain(self, *self.ask("look_up", name))

    def listAllDomains(self) -> list["_Domain"]:  # noqa: N802
        return [_Domain(self, *one) for one in self.ask("list")]


class _Domain:
    """virDomain of a domain that runs."""

    def __init__(self, of: _Libvirt, name: str, own_uuid: str, domid: int) -> None:
        self._of = of
        self._name, self._uuid, self._domid = name, own_uuid, domid

    def name(self) -> str:
        return self._name

    def UUIDString(self) -> str:  # noqa: N802
        return self._uuid

    def ID(self) -> int:  # noqa: N802
        return self._domid

    def connect(self) -> _Libvirt:
        return self._of

    def isActive(self) -> int:  # noqa: N802
        return int(self._of.ask("is_active", self._uuid))

    def state(self) -> list[int]:
        return [int(self._of.ask("state", self._uuid)), 1]

    def XMLDesc(self, _flags: int) -> str:  # noqa: N802
        return str(self._of.ask("xml", self._uuid))

    def attachDeviceFlags(self, xml: str, _flags: int) -> int:  # noqa: N802
        return int(self._of.ask("attach", self._uuid, xml))

    def detachDeviceFlags(self, xml: str, _flags: int) -> int:  # noqa: N802
        return int(self._of.ask("detach", self._uuid, xml))

    def jobInfo(self) -> list[int]:  # noqa: N802
        return [libvirt.VIR_DOMAIN_JOB_NONE]
