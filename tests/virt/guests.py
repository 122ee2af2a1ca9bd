"""What the tests of the hypervisor are done with: images, a template, domains of libvirtd's."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import libvirt

from provisiond.api.requests import DiskFormat
from provisiond.disk.chain import DiskChain, DiskImage
from tests.lab.console import open_console
from tests.lab.domain import Guest, domain_xml, kernel_words, shell_socket
from tests.lab.libvirtd import Libvirtd

MIB = 2**20
QEMU_IMG_NAMES = {DiskFormat.VHD: "vpc"}


def make_image(path: Path, disk_format: DiskFormat, *, over: DiskChain | None = None) -> DiskChain:
    """A new image of 16 MiB, or an overlay; and all that it stands on."""
    name = QEMU_IMG_NAMES.get(disk_format, disk_format.value)
    argv = ["qemu-img", "create", "-q", "-f", name]
    if over is not None:
        below = over.images[0]
        argv += ["-b", str(below.path), "-F", QEMU_IMG_NAMES.get(below.format, below.format.value)]
    if name == "vpc":
        argv += ["-o", "force_size=on"]
    size = [] if over is not None else ["16M"]
    subprocess.run([*argv, str(path), *size], check=True)
    image = DiskImage(
        path=path,
        format=disk_format,
        virtual_size=16 * MIB,
        file_size=path.stat().st_size,
        backing=None if over is None else over.images[0].path,
        backing_format=None if over is None else over.images[0].format,
    )
    return DiskChain((image, *(over.images if over is not None else ())))


def bytes_of(chain: DiskChain) -> bytes:
    """What a guest would read from the image."""
    image = chain.images[0]
    name = QEMU_IMG_NAMES.get(image.format, image.format.value)
    raw = image.path.with_name("read.raw")
    subprocess.run(
        ["qemu-img", "convert", "-q", "-f", name, "-O", "raw", str(image.path), str(raw)],
        check=True,
    )
    try:
        return raw.read_bytes()
    finally:
        raw.unlink()


def template_of(libvirtd: Libvirtd, name: str = "golden") -> str:
    """The definition of a guest without a disk, as an operator would keep one."""
    guest = Guest(name, kernel_words=kernel_words(silent=True))
    return domain_xml(guest, files=libvirtd._files, folder=libvirtd.folder)


async def in_guest(shell: Path, command: str) -> str:
    """What the command says in the guest; it has to succeed."""
    async with open_console(shell) as console:
        answer = await console.run(command)
    assert answer.status == 0, answer
    return answer.output


def shell_of(libvirtd: Libvirtd, name: str = "golden") -> Path:
    """Where the guest made from the template answers."""
    return shell_socket(libvirtd.folder, name)


@contextmanager
def domain(libvirtd: Libvirtd, uuid: str) -> Iterator[Any]:
    """libvirt's own object, over another connection than that of what is tested."""
    connection = libvirt.open(libvirtd.uri)
    try:
        yield connection.lookupByUUIDString(uuid)
    finally:
        connection.close()
