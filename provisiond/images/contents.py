"""What an image is made of, read out of it: its system, the guest's script, its packages.

The image is not booted and not changed. Whatever it says of itself was written by others.
"""

import asyncio
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from pydantic import JsonValue

from provisiond.api.image_manifest import (
    MAX_PACKAGES,
    ImageManifest,
    Package,
    manifest_path,
)
from provisiond.api.requests import DiskFormat
from provisiond.disk.fingerprint import hash_file
from provisiond.disk.folder import write_whole
from provisiond.disk.image_file import opened
from provisiond.disk.manifest import read_image_manifest
from provisiond.errors import ImageNotFound, ImageRefused
from provisiond.images.agent_files import parse_version
from provisiond.images.file_tree import FileTree, Kind, find
from provisiond.images.root_system import recognise
from provisiond.images.root_tree import opened_root
from provisiond.threads import Threads

_SCRIPT = "/usr/sbin/provision-guest"
_LONGEST_SCRIPT = 2**20
_LONGEST_DATABASE = 64 * 2**20
# Where distributions keep what is installed, and how an entry says it. RPM's is a database of its
# own, which only rpm reads.
_DPKG, _APK = "/var/lib/dpkg/status", "/lib/apk/db/installed"
_WORD = re.compile(r"[!-~]{1,255}")


async def describe(
    image: Path,
    *,
    disk_format: DiskFormat,
    builder: str | None = None,
    recipe: dict[str, JsonValue] | None = None,
    said: Callable[[str], None],
) -> ImageManifest:
    """Write the manifest of `image` beside it; `builder` and `recipe` are what is known of both.

    Raises as `opened_root` does.
    """
    path = image.resolve()
    async with opened_root(path, disk_format=disk_format, writable=False, said=said) as tree:
        system = await recognise(tree)
        script = await _read(tree, _SCRIPT, limit=_LONGEST_SCRIPT)
        packages = await _packages(tree)
    manifest = ImageManifest(
        sha256=await _hash(path),
        made_at=datetime.fromtimestamp(path.stat().st_mtime, UTC),
        builder=builder,
        recipe=recipe,
        distribution=system.name,
        init=system.init,
        agent_version=None if script is None else parse_version(script),
        agent_sha256=None if script is None else hashlib.sha256(script).hexdigest(),
        packages=packages,
    )
    place = manifest_path(path)
    part = place.with_name(f"{place.name}.part")
    await asyncio.to_thread(write_whole, place, manifest.to_json(), part=part)
    count = "packages that cannot be read" if packages is None else f"{len(packages)} packages"
    said(f"{place}: {system.name}, {count}")
    return manifest


async def manifest_of(image: Path) -> ImageManifest | None:
    """The manifest beside the image; None where there is none, or not of this image."""
    path = image.resolve()
    try:
        made_of = await asyncio.to_thread(read_image_manifest, manifest_path(path))
        return made_of if await _hash(path) == made_of.sha256 else None
    except (ImageNotFound, ImageRefused):
        return None


async def _hash(path: Path) -> str:
    threads = Threads(size=1, name="hash")
    try:
        with opened(path):
            return await hash_file(path, threads=threads, progress=lambda _fraction: None)
    finally:
        threads.close()


async def _packages(tree: FileTree) -> tuple[Package, ...] | None:
    for path, parse in ((_DPKG, parse_dpkg), (_APK, parse_apk)):
        database = await _read(tree, path, limit=_LONGEST_DATABASE)
        if database is not None:
            return _sorted(parse(database.decode(errors="replace")), path)
    return None


def _sorted(found: Iterable[Package], path: str) -> tuple[Package, ...]:
    packages = sorted(found, key=lambda package: package.name)
    if len(packages) > MAX_PACKAGES:
        raise ImageRefused(f"{path} in the image names more than {MAX_PACKAGES} packages")
    return tuple(packages)


def parse_dpkg(untrusted: str) -> Iterator[Package]:
    """The installed packages of dpkg's status file (deb-control(5)): stanzas of fields."""
    for stanza in untrusted.split("\n\n"):
        fields = {
            name: value.strip()
            for name, colon, value in (line.partition(":") for line in stanza.splitlines())
            if colon and not name.startswith((" ", "\t"))
        }
        if fields.get("Status", "").endswith(" installed"):
            yield from _package(fields.get("Package"), fields.get("Version"))


def parse_apk(untrusted: str) -> Iterator[Package]:
    """The packages of Alpine's database (apk-v2(5)): stanzas of lines with one letter."""
    for stanza in untrusted.split("\n\n"):
        fields = dict(line.split(":", 1) for line in stanza.splitlines() if line[1:2] == ":")
        yield from _package(fields.get("P"), fields.get("V"))


def _package(untrusted_name: str | None, untrusted_version: str | None) -> Iterator[Package]:
    """The package, where both are words that distributions have."""
    name, version = untrusted_name or "", untrusted_version or ""
    if _WORD.fullmatch(name) and _WORD.fullmatch(version):
        yield Package(name=name, version=version)


async def _read(tree: FileTree, path: str, *, limit: int) -> bytes | None:
    file = await find(tree, path)
    entry = None if file is None else await tree.look(file)
    if file is None or entry is None or entry.kind is not Kind.FILE:
        return None
    return await tree.read(file, limit=limit)
