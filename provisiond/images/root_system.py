"""Which file system of a disk is a guest's root, and what boots there: all of it is found by names
and small files, nothing of the image is run."""

import re
import shlex
from dataclasses import dataclass

from provisiond.errors import ImageRefused
from provisiond.images.agent_files import InitSystem
from provisiond.images.ext_files import ExtFiles, check_ext
from provisiond.images.file_tree import (
    INITS,
    RELEASES,
    FileTree,
    find,
    first_of,
    is_folder,
    is_root,
    read_text,
)
from provisiond.images.image_disk import ImageDisk
from provisiond.images.partitions import FileSystem, Partition, read_partitions

# What bake writes and what a boot reads lies below these: all of it has to be in one file system.
_OURS = ("/usr", "/etc", "/var", "/usr/sbin", "/usr/share", "/usr/share/doc", "/var/lib")


@dataclass(frozen=True, slots=True)
class System:
    """What is known of the system in an image. `version` may be empty; `networks` are the programs
    that may configure its network, those that are there."""

    distribution: str
    version: str
    name: str
    init: InitSystem | None
    networks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Why the root cannot be worked on as an ext file system."""

    reason: str


# ---------------------------------------------------------------- the root
async def find_ext_root(disk: ImageDisk) -> tuple[Partition, ExtFiles] | Elsewhere:
    """The root of the disk where it is an ext file system that holds all that a guest's root is.

    It was checked and is whole. Raises ImageRefused for damaged ones, more than one root, and none.
    """
    partitions = read_partitions(disk.descriptor, size=disk.size)
    roots = []
    for partition in partitions:
        if partition.file_system is FileSystem.EXT:
            await check_ext(disk, partition)
            tree = ExtFiles(disk, partition)
            if await is_root(tree):
                roots.append((partition, tree))
    if len(roots) > 1:
        numbers = ", ".join(str(partition.number) for partition, _ in roots)
        raise ImageRefused(
            f"the disk has more than one root file system: the partitions {numbers}",
            hint="Make an image of one system.",
        )
    if roots:
        spread = await _mounted_below(roots[0][1])
        return Elsewhere(f"{spread} is a file system of its own") if spread else roots[0]
    others = [one for one in partitions if one.file_system is not FileSystem.EXT]
    if not others:
        raise ImageRefused("no file system of the disk is a guest's root: no /etc and /sbin/init")
    kinds = ", ".join(sorted({str(one.file_system) for one in others}))
    return Elsewhere(f"no ext file system of the disk is a guest's root; it has {kinds}")


async def _mounted_below(tree: FileTree) -> str | None:
    """The first of our folders that the image's fstab mounts."""
    for line in (await read_text(tree, "/etc/fstab") or "").splitlines():
        fields = line.split()
        if len(fields) > 2 and fields[0][:1] != "#" and fields[2] not in ("tmpfs", "swap", "none"):
            point = fields[1].rstrip("/")
            if point in _OURS:
                return point
    return None


# ---------------------------------------------------------------- the system
async def recognise(tree: FileTree) -> System:
    """What the image says of its system, and what starts programs there, as far as that is seen."""
    release = await _release(tree)
    return System(
        distribution=release.get("ID", "unknown"),
        version=release.get("VERSION_ID", ""),
        name=release.get("PRETTY_NAME", release.get("ID", "unknown")),
        init=await _init(tree),
        networks=await _networks(tree),
    )


async def _release(tree: FileTree) -> dict[str, str]:
    """/etc/os-release, os-release(5); of older systems the one file that they have."""
    for path in RELEASES:
        if (text := await read_text(tree, path)) is not None:
            return parse_release(text)
    for path, distribution in (
        ("/etc/redhat-release", "rhel"),
        ("/etc/debian_version", "debian"),
        ("/etc/alpine-release", "alpine"),
        ("/etc/SuSE-release", "suse"),
    ):
        if (text := await read_text(tree, path)) is not None:
            line = _shown(text.partition("\n")[0])
            return {"ID": distribution, "PRETTY_NAME": f"{distribution} ({line})"}
    return {}


def parse_release(untrusted: str) -> dict[str, str]:
    """The values of an os-release file that are fit to be shown."""
    found = {}
    for line in untrusted.splitlines():
        key, equals, value = line.partition("=")
        if equals and re.fullmatch(r"[A-Z_]+", key):
            try:
                words = shlex.split(value)
            except ValueError:  # a quote without an end
                continue
            found[key] = _shown(" ".join(words))
    return {key: value for key, value in found.items() if value}


def _shown(untrusted: str) -> str:
    return "".join(one for one in untrusted if one.isprintable())[:100]


async def _init(tree: FileTree) -> InitSystem | None:
    """By what is run as /sbin/init first: a system can hold the files of more than one."""
    init = await find(tree, "/sbin/init")
    if init is None or init.parts[-2:] == ("systemd", "systemd"):
        return InitSystem.SYSTEMD if await first_of(tree, INITS) is not None else None
    # local-filesystems is mountall's event: Red Hat's upstart knows no such, and runs SysV scripts.
    if await find(tree, "/etc/init/mountall.conf") is not None:
        return InitSystem.UPSTART
    if await _folder(tree, "/etc/runlevels/default"):
        return InitSystem.OPENRC
    if await _folder(tree, "/etc/init.d") and await _folder(tree, *RUNLEVEL_2):
        return InitSystem.SYSV
    if await first_of(tree, RC_LOCAL) is not None:
        return InitSystem.RC_LOCAL
    return None


RUNLEVEL_2 = ("/etc/rc2.d", "/etc/rc.d/rc2.d", "/etc/init.d/rc2.d")
RC_LOCAL = ("/etc/rc.local", "/etc/rc.d/rc.local")


async def _folder(tree: FileTree, *paths: str) -> bool:
    found = await first_of(tree, paths)
    return found is not None and await is_folder(tree, found)


_NETWORKS = {
    "netplan": ("/usr/sbin/netplan", "/sbin/netplan"),
    "NetworkManager": ("/usr/sbin/NetworkManager", "/usr/bin/NetworkManager"),
    "systemd-networkd": (
        "/etc/systemd/system/multi-user.target.wants/systemd-networkd.service",
        "/etc/systemd/system/dbus-org.freedesktop.network1.service",
    ),
    "ifupdown": ("/sbin/ifup", "/usr/sbin/ifup"),
    "ifcfg": ("/etc/sysconfig/network-scripts",),
    "wicked": ("/usr/sbin/wicked",),
}


async def _networks(tree: FileTree) -> tuple[str, ...]:
    return tuple(
        [name for name, paths in _NETWORKS.items() if await first_of(tree, paths) is not None]
    )
