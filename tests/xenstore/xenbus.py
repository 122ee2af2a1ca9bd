"""/dev/xen/xenbus of a guest: a file by FUSE whose other end is the guest's socket.

Like the device of Linux (drivers/xen/xenbus/xenbus_dev_frontend.c) it takes a request by write(),
its read() waits for a whole answer and gives as much of it as is asked for, and each open file is a
client of its own. This is the kernel's FUSE protocol itself (include/uapi/linux/fuse.h), for a
file system that is one file.
"""

import errno
import os
import select
import socket
import stat
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

from tests.guest.machine import Machine
from tests.xenstore.daemon import XenDomain
from tests.xenstore.wire import HEADER

DEVICE = "/dev/xen/xenbus"
LARGEST_REQUEST = 1 << 17

IN_HEADER = struct.Struct("=IIQQIIIHH")  # len, opcode, unique, nodeid, uid, gid, pid, …
OUT_HEADER = struct.Struct("=IiQ")  # len, error, unique
INIT_OUT = struct.Struct("=IIIIHHI")  # of version 7.22
ATTR_OUT = struct.Struct("=QII6Q10I")
OPEN_OUT = struct.Struct("=QII")
READ_OR_WRITE_IN = struct.Struct("=QQII")  # fh, offset, size, flags; then 16 bytes more
WRITE_OUT = struct.Struct("=II")
READ_OR_WRITE_SIZE = 40
DIRECT_IO, NONSEEKABLE = 1, 4


class Opcode(IntEnum):
    """What the kernel asks for, as far as it concerns a single file."""

    FORGET = 2
    GETATTR = 3
    OPEN = 14
    READ = 15
    WRITE = 16
    RELEASE = 18
    INIT = 26
    INTERRUPT = 36
    BATCH_FORGET = 42


@dataclass
class OpenFile:
    """One open file: its connection to xenstored, what came from there, and who waits for it."""

    client: socket.socket
    arriving: bytes = b""  # a message shows itself to a reader when the whole of it is there
    received: bytes = b""
    ended: bool = False
    reads: list[tuple[int, int]] = field(default_factory=list)  # the read()s by id, with their size


@contextmanager
def xenbus_of(machine: Machine, domain: XenDomain, *, device: str = DEVICE) -> Iterator[None]:
    """The machine is this guest, for as long as the context lasts."""
    path = machine.path(device)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    fuse = _open_fuse(machine)
    wake, ended = os.pipe()
    options = f"fd={fuse},rootmode={stat.S_IFREG | 0o600:o},user_id=0,group_id=0"
    place = f"{machine.folder}/root{device}"
    mount = ["mount", "--internal-only", "--types", "fuse", "--options", options, "xenbus", place]
    subprocess.run(machine.argv_outside(*mount), check=True, pass_fds=[fuse])
    server = threading.Thread(target=_Server(fuse, domain.socket).run, args=(wake,))
    server.start()
    try:
        yield
    finally:
        os.close(ended)
        server.join()
        os.close(wake)
        os.close(fuse)  # whoever still reads is let go, with an error


def _open_fuse(machine: Machine) -> int:
    """A chroot seldom has the node; the machine's own /dev may always have it."""
    node = Path("/dev/fuse")
    if not node.exists():
        node = machine.path("/dev/fuse")
        os.mknod(node, stat.S_IFCHR | 0o600, os.makedev(10, 229))
    return os.open(node, os.O_RDWR | os.O_NONBLOCK)


class _Server:
    """Answers the kernel until `wake` is closed at its other end."""

    def __init__(self, fuse: int, guest: Path) -> None:
        self._fuse = fuse
        self._guest = guest
        self._files: dict[int, OpenFile] = {}
        self._last_handle = 0

    def run(self, wake: int) -> None:
        try:
            while True:
                listening = [file for file in self._files.values() if not file.ended]
                clients = {file.client.fileno(): file for file in listening}
                ready, _, _ = select.select([wake, self._fuse, *clients], [], [])
                if wake in ready:
                    return
                for client in set(ready) & set(clients):
                    self._receive(clients[client])
                if self._fuse in ready:
                    self._serve_next()
        finally:
            for file in self._files.values():
                file.client.close()

    def _receive(self, file: OpenFile) -> None:
        try:
            more = file.client.recv(65536)
        except ConnectionResetError:
            more = b""
        file.ended = not more
        file.arriving += more
        while len(file.arriving) >= HEADER.size:
            size = HEADER.size + HEADER.unpack_from(file.arriving)[-1]
            if len(file.arriving) < size:
                break
            file.received += file.arriving[:size]
            file.arriving = file.arriving[size:]
        self._answer_reads(file)

    def _answer_reads(self, file: OpenFile) -> None:
        while file.reads and (file.received or file.ended):
            unique, size = file.reads.pop(0)
            if file.received:
                self._reply(unique, file.received[:size])
                file.received = file.received[size:]
            else:
                self._fail(unique, errno.EIO)

    def _serve_next(self) -> None:
        try:
            request = os.read(self._fuse, LARGEST_REQUEST)
        except OSError as error:
            if error.errno in {errno.EAGAIN, errno.ENOENT, errno.EINTR}:
                return  # the request was taken back
            raise
        _, opcode, unique, *_ = IN_HEADER.unpack_from(request)
        self._serve(opcode, unique, request[IN_HEADER.size :])

    def _serve(self, opcode: int, unique: int, body: bytes) -> None:
        if opcode == Opcode.INIT:
            self._reply(unique, INIT_OUT.pack(7, 22, 0, 0, 0, 0, 8192))
        elif opcode == Opcode.GETATTR:
            inode, mode, links, block = 1, stat.S_IFREG | 0o600, 1, 512
            self._reply(
                unique,
                ATTR_OUT.pack(
                    *(0, 0, 0),
                    *(inode, 0, 0, 0, 0, 0),
                    *(0, 0, 0),
                    *(mode, links, 0, 0, 0, block, 0),
                ),
            )
        elif opcode == Opcode.OPEN:
            self._open(unique)
        elif opcode == Opcode.READ:
            handle, _, size, _ = READ_OR_WRITE_IN.unpack_from(body)
            self._files[handle].reads.append((unique, size))
            self._answer_reads(self._files[handle])
        elif opcode == Opcode.WRITE:
            self._write(unique, body)
        elif opcode == Opcode.RELEASE:
            (handle,) = struct.unpack_from("=Q", body)
            self._files.pop(handle).client.close()
            self._reply(unique, b"")
        elif opcode == Opcode.INTERRUPT:
            self._interrupt(*struct.unpack_from("=Q", body))
        elif opcode not in {Opcode.FORGET, Opcode.BATCH_FORGET}:
            self._fail(unique, errno.ENOSYS)

    def _open(self, unique: int) -> None:
        client = socket.socket(socket.AF_UNIX)
        try:
            client.connect(str(self._guest))
        except OSError:
            client.close()
            self._fail(unique, errno.ENODEV)
            return
        self._last_handle += 1
        self._files[self._last_handle] = OpenFile(client)
        self._reply(unique, OPEN_OUT.pack(self._last_handle, DIRECT_IO | NONSEEKABLE, 0))

    def _write(self, unique: int, body: bytes) -> None:
        handle, _, size, _ = READ_OR_WRITE_IN.unpack_from(body)
        try:
            self._files[handle].client.sendall(body[READ_OR_WRITE_SIZE:][:size])
        except OSError:
            self._fail(unique, errno.EIO)
        else:
            self._reply(unique, WRITE_OUT.pack(size, 0))

    def _interrupt(self, unique: int) -> None:
        """The reader has been killed, or has run out of time."""
        for file in self._files.values():
            for read in file.reads:
                if read[0] == unique:
                    file.reads.remove(read)
                    self._fail(unique, errno.EINTR)
                    return

    def _reply(self, unique: int, body: bytes) -> None:
        self._send(OUT_HEADER.pack(OUT_HEADER.size + len(body), 0, unique) + body)

    def _fail(self, unique: int, number: int) -> None:
        self._send(OUT_HEADER.pack(OUT_HEADER.size, -number, unique))

    def _send(self, message: bytes) -> None:
        try:
            os.write(self._fuse, message)
        except FileNotFoundError:
            pass  # who asked has gone
