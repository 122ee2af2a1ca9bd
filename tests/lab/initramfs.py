"""The tiny guest's root: busybox, the modules it needs, a real chpasswd, the real guest script.

`initramfs_bytes` is a pure function of a list of entries; the same input gives the same bytes.
"""

import gzip
import hashlib
import lzma
import os
import re
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tests.lab.packages import cache_directory, fetch_kernel, fetch_package

PROJECT = Path(__file__).parents[2]
GUEST_INIT = Path(__file__).with_name("guest-init")
GUEST_SCRIPT = PROJECT / "guest-agent" / "provision-guest"
# The steps of the script that change or check something, in its order; `config` comes before them.
STEPS = (
    "hostname",
    "hosts",
    "identity",
    "network",
    "persist",
    "dns",
    "password",
    "ssh-keys",
    "timezone",
    "verify",
)

# In the order in which /init loads them; what these depend on goes before each.
MODULES = (
    "virtio_pci",
    "virtio_console",
    "virtio_blk",
    "virtio_scsi",
    "sr_mod",
    "sd_mod",
    "isofs",
    "virtio_net",
    "xen_blkfront",
    "xen_netfront",
)
ZONES = ("UTC", "Europe/Vienna", "America/New_York", "Asia/Tokyo")
# Debian's busybox has no chpasswd applet; the real one comes from this system (package passwd).
CHPASSWD = Path("/usr/sbin/chpasswd")

ETC = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nops:x:1000:1000:ops:/home/ops:/bin/sh\n",
    "etc/shadow": "root:*:19000:0:99999:7:::\nops:*:19000:0:99999:7:::\n",
    "etc/group": "root:x:0:\nshadow:x:42:\nops:x:1000:\n",
    "etc/hostname": "tiny\n",
    "etc/hosts": "127.0.0.1 localhost\n",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of the archive: `mode` holds its type; a link's `data` is where it points to."""

    path: str
    mode: int
    data: bytes = b""
    owner: int = 0


@dataclass(frozen=True, slots=True)
class GuestFiles:
    """What a domain boots from."""

    kernel: Path
    initramfs: Path


def guest_files() -> GuestFiles:
    """Kernel and initramfs of the tiny guest; made once for each content, kept in the cache."""
    tree = fetch_kernel()
    (kernel,) = tree.glob("boot/vmlinuz-*")
    entries = [*system_entries(tree), file_entry("init", GUEST_INIT, 0o755)]
    return GuestFiles(kernel=kernel, initramfs=keep_initramfs(entries))


def keep_initramfs(entries: Iterable[Entry]) -> Path:
    """The archive of the entries, compressed, in the cache under the name of its content."""
    archive = initramfs_bytes(entries)
    path = cache_directory() / f"initramfs-{hashlib.sha256(archive).hexdigest()[:16]}.gz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, part = tempfile.mkstemp(prefix=".initramfs-", dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(gzip.compress(archive, compresslevel=6, mtime=0))
        Path(part).chmod(0o644)
        Path(part).rename(path)
    return path


def initramfs_bytes(entries: Iterable[Entry]) -> bytes:
    """The entries as a cpio archive in the `newc` format (the kernel's buffer-format.rst).

    Times are 0, inodes are counted.
    """
    records = [_record(entry, inode) for inode, entry in enumerate(in_order(entries), start=1)]
    return b"".join([*records, _record(Entry("TRAILER!!!", 0), 0)])


def in_order(entries: Iterable[Entry]) -> list[Entry]:
    """The entries by path, each after the folder that it is in: those that lack are added."""
    wanted = {entry.path: entry for entry in entries}
    for path in list(wanted):
        for folder in PurePosixPath(path).parents:
            if (name := str(folder)) != ".":
                wanted.setdefault(name, Entry(name, stat.S_IFDIR | 0o755))
    return [entry for _, entry in sorted(wanted.items())]


def load_order(wanted: Iterable[str], depends: Callable[[str], Iterable[str]]) -> list[str]:
    """The modules and all they depend on, each after what it needs."""
    order: list[str] = []

    def add(module: str) -> None:
        if module not in order:
            for needed in depends(module):
                add(needed)
            order.append(module)

    for module in wanted:
        add(module)
    return order


def parse_depends(module: bytes) -> list[str]:
    """What a .ko says about itself in its .modinfo section: `depends=a,b`; `-` is told as `_`."""
    found = re.search(rb"\0depends=([^\0]*)\0", module)
    if found is None:
        raise ValueError("The module holds no depends= in its .modinfo section.")
    return [name.replace("-", "_") for name in found[1].decode().split(",") if name]


def _record(entry: Entry, inode: int) -> bytes:
    name = entry.path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (inode, entry.mode, entry.owner, entry.owner, links, 0, len(entry.data))
    numbers = (*fields, 0, 0, 0, 0, len(name), 0)
    header = b"070701" + b"".join(b"%08X" % number for number in numbers)
    return _padded(header + name) + _padded(entry.data)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


def system_entries(kernel_tree: Path) -> Iterator[Entry]:
    """The tiny guest's root, wherever it is kept: all but its init."""
    yield from busybox_entries()
    yield from module_entries(kernel_tree, MODULES)
    yield from _zones()
    yield from _chpasswd()
    yield file_entry("usr/sbin/provision-guest", GUEST_SCRIPT, 0o755)
    for path, text in ETC.items():
        mode = 0o600 if path == "etc/shadow" else 0o644
        yield Entry(path, stat.S_IFREG | mode, text.encode())
    yield Entry("var/run", stat.S_IFLNK | 0o777, b"/run")
    yield Entry("root", stat.S_IFDIR | 0o700)
    yield Entry("home/ops", stat.S_IFDIR | 0o755, owner=1000)
    for folder in ("dev", "proc", "sys", "run", "tmp", "mnt", "etc/network", "var/lib", "var/log"):
        yield Entry(folder, stat.S_IFDIR | 0o755)


def busybox_entries() -> Iterator[Entry]:
    """busybox, and a link for each of its commands."""
    busybox = fetch_package("busybox-static") / "bin/busybox"
    yield file_entry("bin/busybox", busybox, 0o755)
    listed = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True)
    for applet in listed.stdout.split():
        if applet != "busybox":
            yield Entry(f"bin/{applet}", stat.S_IFLNK | 0o777, b"/bin/busybox")


def module_entries(kernel_tree: Path, wanted: Iterable[str]) -> Iterator[Entry]:
    """The modules by name, and `lib/modules/order`: what /init loads, line by line."""
    files = module_files(kernel_tree, wanted)
    for name, file in files.items():
        yield Entry(f"lib/modules/{name}.ko", stat.S_IFREG | 0o644, _module_bytes(file))
    listed = "".join(f"{name}\n" for name in files)
    yield Entry("lib/modules/order", stat.S_IFREG | 0o644, listed.encode())


def module_files(kernel_tree: Path, wanted: Iterable[str]) -> dict[str, Path]:
    """The files of the modules and of all that they need, each after what it needs.

    What the kernel has built in needs no file.
    """
    known = _known_modules(kernel_tree)
    built_in = _built_in(kernel_tree)
    loaded = (name for name in wanted if name not in built_in)
    order = load_order(loaded, lambda name: parse_depends(_module_bytes(known[name])))
    return {name: known[name] for name in order}


def _known_modules(kernel_tree: Path) -> dict[str, Path]:
    """Modules by the name the kernel gives them."""
    files = kernel_tree.glob("**/lib/modules/*/kernel/**/*.ko*")
    return {_module_name(path.name): path for path in files}


def _built_in(kernel_tree: Path) -> set[str]:
    (listed,) = kernel_tree.glob("**/lib/modules/*/modules.builtin")
    return {_module_name(Path(line).name) for line in listed.read_text().splitlines()}


def _module_name(file_name: str) -> str:
    """What the kernel calls it: a file's `-` is `_` there."""
    return file_name.partition(".")[0].replace("-", "_")


def _module_bytes(path: Path) -> bytes:
    """Debian 13 compresses its modules, Debian 12 does not."""
    return lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()


def _zones() -> Iterator[Entry]:
    zoneinfo = fetch_package("tzdata") / "usr/share/zoneinfo"
    for zone in ZONES:
        yield file_entry(f"usr/share/zoneinfo/{zone}", zoneinfo / zone, 0o644)


def _chpasswd() -> Iterator[Entry]:
    """chpasswd with the libraries that the loader would give it, each at its own path."""
    yield file_entry(str(CHPASSWD)[1:], CHPASSWD, 0o755)
    listed = subprocess.run(["ldd", CHPASSWD], capture_output=True, text=True, check=True)
    for library in re.findall(r"(/\S+) \(0x", listed.stdout):
        yield file_entry(library[1:], Path(library), 0o755)


def file_entry(path: str, source: Path, mode: int) -> Entry:
    """A copy of the file `source`."""
    return Entry(path, stat.S_IFREG | mode, source.read_bytes())
