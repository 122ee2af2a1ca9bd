"""A disk of a Xen domain as xenstore and the kernel show it: dom0's end, and the guest's.

libxl's attach returns before the guest has looked, and libvirt tells of no device that comes or
goes. So whether a disk is really there, and really gone, is read here. Keys and states are those of
Xen's public/io/blkif.h and public/io/xenbus.h.
"""

import asyncio
import contextlib
import fcntl
import os
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

from provisiond.xenstore.client import Transaction, Xenstore

_R = TypeVar("_R")

_CONNECTED = b"4"  # XenbusStateConnected
# dom0's ends of disks: of the kernel and of tapdisk, and of QEMU (libxl's names for them).
_BACK_ENDS = ("/local/domain/0/backend/vbd", "/local/domain/0/backend/qdisk")
_READ_AGAIN_SECONDS = 30.0
_BLOCK_DEVICES = Path("/sys/block")
_LOOP_CLR_FD = 0x4C01  # linux/loop.h


# ---------------------------------------------------------------- paths
def vdev_number(target: str) -> int:
    """The number of `xvda` to `xvdp` in xenstore: major 202, 16 minors a disk (public/io/blkif.h).

    Raises ValueError for any other target.
    """
    letter = target.removeprefix("xvd")
    if not (target.startswith("xvd") and len(letter) == 1 and "a" <= letter <= "p"):
        raise ValueError(f"{target} is none of xvda to xvdp")
    return 202 << 8 | (ord(letter) - ord("a")) << 4


def frontend_state(*, domid: int, target: str) -> str:
    """Where a guest's driver tells its state of a disk."""
    return f"/local/domain/{domid}/device/vbd/{vdev_number(target)}/state"


# ---------------------------------------------------------------- the guest's end
async def await_connected(xenstore: Xenstore, *, domid: int, target: str) -> bool:
    """Wait until the guest's driver has the disk; False where disk or domain are gone instead.

    To be called after an attach has returned: from then on the path is there while the disk is.
    """
    path = frontend_state(domid=domid, target=target)
    is_connected = await _is_connected(xenstore, path)  # a quick guest is spared the watch
    if is_connected is not None:
        return is_connected
    async with xenstore.watch(path) as changed:
        while True:
            changed.clear()
            is_connected = await _is_connected(xenstore, path)
            if is_connected is not None:
                return is_connected
            with contextlib.suppress(TimeoutError):  # a watch is a hint, and may be lost
                async with asyncio.timeout(_READ_AGAIN_SECONDS):
                    await changed.wait()


async def _is_connected(xenstore: Xenstore, path: str) -> bool | None:
    """None: not yet."""
    (state,) = await xenstore.read_all(path)
    return None if state not in (None, _CONNECTED) else state == _CONNECTED


# ---------------------------------------------------------------- dom0's end
async def back_ends_of(xenstore: Xenstore, file: Path) -> list[str]:
    """The back ends that serve `file` to any domain, also to one that is just being destroyed."""
    return [
        path
        for folder in _BACK_ENDS
        for domid in await xenstore.children_if_any(folder)
        for path in await _back_ends_in(xenstore, f"{folder}/{domid}")
        if await _serves(xenstore, path, file)
    ]


class BackEnds:
    """dom0's ends of disks, looked at without those of other domains: there may be thousands.

    A domid belongs to one domain for all its life, so whose it is need be read only once.
    """

    def __init__(self, xenstore: Xenstore) -> None:
        self._xenstore = xenstore
        self._owners: dict[str, bytes] = {}  # by domid, of the domids that have back ends
        self._looks: _Looks[Mapping[bytes | None, list[str]]] = _Looks(self._list)

    async def of(self, file: Path, *, uuid: str) -> list[str]:
        """The back ends that serve `file` to this domain, under any domid that it has or had, or to
        one that is not known to be another's: it may be just being destroyed."""
        folders = await self._looks.take()
        return [
            path
            for owner in (f"/vm/{uuid}".encode(), None)
            for folder in folders.get(owner, ())
            for path in await _back_ends_in(self._xenstore, folder)
            if await _serves(self._xenstore, path, file)
        ]

    async def _list(self) -> Mapping[bytes | None, list[str]]:
        """The folders of back ends of all domids, by whose domid it is; None where nobody knows."""
        folders: dict[bytes | None, list[str]] = {}
        seen: set[str] = set()
        for folder in _BACK_ENDS:
            for domid in await self._xenstore.children_if_any(folder):
                seen.add(domid)
                owner = self._owners.get(domid) or await self._owner(domid)
                folders.setdefault(owner, []).append(f"{folder}/{domid}")
        for domid in self._owners.keys() - seen:  # its number may be given to another domain
            del self._owners[domid]
        return folders

    async def _owner(self, domid: str) -> bytes | None:
        """Whose a domid is; None where nobody knows, as of a domain that is being destroyed."""
        with contextlib.suppress(FileNotFoundError):
            owner = await self._xenstore.read(f"/local/domain/{domid}/vm")
            if owner.startswith(b"/vm/"):
                self._owners[domid] = owner
                return owner
        return None


class _Looks(Generic[_R]):
    """One look for all who ask in the meantime: it has begun after each of them did."""

    def __init__(self, look: Callable[[], Awaitable[_R]]) -> None:
        self._look = look
        self._at_work: asyncio.Task[_R] | None = None
        self._next: asyncio.Task[_R] | None = None

    async def take(self) -> _R:
        """What is seen from now on; raises what the look does."""
        if self._next is None:
            self._next = asyncio.create_task(self._after(self._at_work))
            self._next.add_done_callback(_see)
        return await asyncio.shield(self._next)

    async def _after(self, other: asyncio.Task[_R] | None) -> _R:
        if other is not None:
            await asyncio.wait([other])
        self._at_work, self._next = self._next, None
        try:
            return await self._look()
        finally:
            self._at_work = None


def _see(look: asyncio.Task[_R]) -> None:
    """Its error is nobody's where all who asked have gone."""
    if not look.cancelled():
        look.exception()


async def back_ends_for(xenstore: Xenstore, domid: int) -> list[str]:
    """The back ends that serve a domain, as long as there are any: also after it has ended."""
    return [
        path for folder in _BACK_ENDS for path in await _back_ends_in(xenstore, f"{folder}/{domid}")
    ]


def domid_of(back_end: str) -> int:
    """The domain that a back end serves."""
    return int(back_end.split("/")[-2])


async def remove(xenstore: Xenstore, back_end: str) -> None:
    """Take a disk away, both ends of it and libxl's record, whether the guest lets go or not.

    For one that libvirt does not know, and so does not detach. The drivers of both ends let go when
    their nodes go; a loop device stays. libxl does the same to a disk by force (libxl_device.c).
    """
    domid, number = back_end.split("/")[-2:]
    nodes = (
        f"/local/domain/{domid}/device/vbd/{number}",
        f"/libxl/{domid}/device/vbd/{number}",
        back_end,
    )

    async def rm_all(transaction: Transaction) -> None:
        await transaction.rm(*nodes)

    await xenstore.in_transaction(rm_all)


async def _back_ends_in(xenstore: Xenstore, folder: str) -> list[str]:
    return [f"{folder}/{vdev}" for vdev in await xenstore.children_if_any(folder)]


async def _serves(xenstore: Xenstore, path: str, file: Path) -> bool:
    """The kernel's back end names the file alone, QEMU's and tapdisk's its format before it."""
    name = os.fsencode(file)
    found = await xenstore.read_all(f"{path}/params", f"{path}/tapdisk-params")
    return any(served == name or served.endswith(b":" + name) for served in found if served)


class Loops:
    """The host's loop devices, looked at in a thread: there may be one for each guest."""

    def __init__(self, *, block_devices: Path = _BLOCK_DEVICES) -> None:
        look = partial(asyncio.to_thread, _backing_files, block_devices)
        self._looks: _Looks[Mapping[str, bytes]] = _Looks(look)

    async def of(self, file: Path) -> list[str]:
        """Those over `file`, such as loop0; also after the file was unlinked."""
        backing = await self._looks.take()
        return [device for device, name in backing.items() if name in _names_of(file)]


def _names_of(file: Path) -> tuple[bytes, ...]:
    """How the kernel writes a loop device's file."""
    return os.fsencode(f"{file}\n"), os.fsencode(f"{file} (deleted)\n")


def _backing_files(block_devices: Path) -> Mapping[str, bytes]:
    """The file of each loop device that has one, as the kernel writes it, by their names."""
    found = {}
    # Without pathlib: it is looked at for every disk that goes.
    for device in sorted(os.listdir(block_devices)):  # noqa: PTH208
        if device.startswith("loop"):
            with (
                contextlib.suppress(FileNotFoundError),  # it has no file
                open(f"{block_devices}/{device}/loop/backing_file", "rb", buffering=0) as backing,  # noqa: PTH123
            ):
                found[device] = backing.read()
    return found


def free_loop(name: str, file: Path) -> None:
    """Let a loop device go of this file; raises OSError (EBUSY: it goes when it is closed).

    It may have let go of that since it was looked at, or got another file, which it keeps.
    """
    descriptor = os.open(f"/dev/{name}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(FileNotFoundError):  # it has no file
            backing = (_BLOCK_DEVICES / name / "loop/backing_file").read_bytes()
            if backing in _names_of(file):
                fcntl.ioctl(descriptor, _LOOP_CLR_FD)
    finally:
        os.close(descriptor)
