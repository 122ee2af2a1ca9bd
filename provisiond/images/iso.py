"""Images by an installation from an ISO: virt-install, and a preseed or kickstart as its answers.

The guest that installs is libvirt's, and bound to no process of ours: after a kill it goes on, and
the next run of the phase ends it first.
"""

import asyncio
import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from provisiond.errors import BuildFailed, DownloadFailed, NotReady
from provisiond.images.agent_files import agent_folder
from provisiond.images.build_folder import BuildFolder
from provisiond.images.confined import run_said
from provisiond.images.download import download, hash_of
from provisiond.images.readiness import (
    COMMON_TOOLS,
    is_at_least,
    require_space,
    require_tools,
    version_of,
)
from provisiond.images.recipe import IsoRecipe
from provisiond.images.steps import Result
from provisiond.iso.installation import InstallationIso, Installer, read_installation
from provisiond.process import run

_TOOLS = {"virt-install": "virtinst", "virsh": "libvirt-clients"}
_LEAST_VERSION = "3.0"  # --location with a kernel of one's own, --noreboot
_ROOM = 4 * 2**30
_ANSWERS = {Installer.DEBIAN: "preseed.cfg", Installer.RED_HAT: "kickstart.cfg"}
_CONSOLES = "console=tty0 console=ttyS0,115200"


class IsoInstallation:
    """Builds one recipe in one folder."""

    def __init__(self, recipe: IsoRecipe, folder: BuildFolder, said: Callable[[str], None]) -> None:
        self._recipe = recipe
        self._folder = folder
        self._said = said

    async def init(self) -> Result:
        """The programs that it takes are there."""
        require_tools(COMMON_TOOLS | _TOOLS)
        return {"virt-install": await version_of(["virt-install", "--version"])}

    async def update(self) -> Result:
        """The ISO is here, is the one that was asked for, and somebody knows its installer."""
        iso, digest = await fetch_iso(self._recipe, self._folder, self._said)
        found = await asyncio.to_thread(read_installation, iso)
        self._said(f"{found.title}: {found.installer}, SHA-256 {digest}")
        return {"sha256": digest, "title": found.title, "installer": found.installer}

    async def precheck(self) -> Result:
        """The version, the room, libvirt, and answers for this installer."""
        version = await version_of(["virt-install", "--version"])
        if not is_at_least(version, _LEAST_VERSION):
            raise NotReady(f"virt-install is {version}, and {_LEAST_VERSION} is the least")
        require_space(self._folder.path, _ROOM)
        found = await asyncio.to_thread(read_installation, iso_file(self._recipe, self._folder))
        answers_of(self._recipe, found)
        finished = await run(["virsh", "--connect", self._recipe.libvirt_uri, "uri"], check=False)
        if finished.returncode != 0:
            words = finished.stderr.decode(errors="replace").strip()
            raise NotReady(
                f"{self._recipe.libvirt_uri} does not answer: {words}",
                hint="Start libvirtd, or name another with --libvirt-uri.",
            )
        return {"virt-install": version}

    async def build(self) -> Result:
        """The image, in its place."""
        iso = iso_file(self._recipe, self._folder)
        found = await asyncio.to_thread(read_installation, iso)
        answers = self._folder.work / _ANSWERS[found.installer]
        write_answers(answers, answers_of(self._recipe, found))
        part, console = self._folder.work / "image.qcow2", self._folder.path / "console.log"
        self._folder.work.chmod(0o711)  # QEMU runs as another user
        await self._end_guest()
        try:
            await run_said(
                install_argv(
                    self._recipe,
                    found,
                    guest=guest_name(self._recipe, self._folder),
                    iso=iso,
                    disk=part,
                    answers=answers,
                    console=console,
                ),
                name="virt-install",
                said=self._said,
            )
        finally:
            await self._end_guest()
        if not part.exists():
            raise BuildFailed("virt-install has ended without a disk")
        self._folder.place_image(part)
        return {"title": found.title, "console": str(console)}

    async def _end_guest(self) -> None:
        """End what an earlier run has left of the guest that installs, or this one."""
        connect = ("virsh", "--connect", self._recipe.libvirt_uri)
        name = guest_name(self._recipe, self._folder)
        await run([*connect, "destroy", name], check=False)
        await run([*connect, "undefine", name], check=False)


async def fetch_iso(
    recipe: IsoRecipe, folder: BuildFolder, said: Callable[[str], None]
) -> tuple[Path, str]:
    """The ISO and its SHA-256. Raises DownloadFailed where that is not the recipe's."""
    path = iso_file(recipe, folder)
    if isinstance(recipe.iso, str) and not path.exists():
        forget_iso(folder)  # of another URL
        digest = await download(recipe.iso, path, said=said)
    else:
        if not path.is_file():
            raise DownloadFailed(f"{path}: is no file", hint="Give an ISO or its URL.")
        digest = await asyncio.to_thread(hash_of, path)
    if recipe.sha256 not in (None, digest):
        if isinstance(recipe.iso, str):
            path.unlink()  # the next run fetches it again
        raise DownloadFailed(f"{recipe.iso}: its SHA-256 is {digest}, not {recipe.sha256}")
    return path, digest


def iso_file(recipe: IsoRecipe, folder: BuildFolder) -> Path:
    """Where the ISO is, or will be: a fetched one has its URL in its name."""
    if isinstance(recipe.iso, Path):
        return recipe.iso
    return folder.path / f"installation-{hashlib.sha256(recipe.iso.encode()).hexdigest()[:16]}.iso"


def forget_iso(folder: BuildFolder) -> None:
    """An ISO that was fetched is fetched again where it is needed."""
    for path in folder.path.glob("installation-*.iso"):
        path.unlink()


def guest_name(recipe: IsoRecipe, folder: BuildFolder) -> str:
    """The domain that installs in this folder; nothing else may have this name."""
    where = hashlib.sha256(bytes(folder.path.resolve())).hexdigest()[:12]
    return f"provisiond-build-{recipe.name}-{where}"


def install_argv(
    recipe: IsoRecipe,
    found: InstallationIso,
    *,
    guest: str,
    iso: Path,
    disk: Path,
    answers: Path,
    console: Path,
) -> list[str | Path]:
    """virt-install's command line: it ends when the installer has switched the guest off."""
    return [
        "virt-install",
        *("--connect", recipe.libvirt_uri),
        *("--name", guest),
        *("--memory", str(recipe.memory_mib)),
        *("--vcpus", str(recipe.vcpus)),
        *("--osinfo", "detect=on,require=off"),
        *("--disk", f"path={disk},size={recipe.size / 2**30:g},format=qcow2,bus=virtio"),
        *("--location", f"{iso},kernel={found.kernel},initrd={found.initrd}"),
        *("--initrd-inject", answers),
        *("--extra-args", kernel_arguments(found, answers=answers)),
        *("--network", "user" if recipe.network is None else f"network={recipe.network}"),
        *("--serial", f"file,path={console}"),
        *("--graphics", "none"),
        *("--rng", "/dev/urandom"),
        "--noautoconsole",
        *("--wait", str(recipe.minutes)),
        "--noreboot",
    ]


def kernel_arguments(found: InstallationIso, *, answers: Path) -> str:
    """What the installer's kernel is told: where its answers are, and that nobody is there."""
    if found.installer is Installer.DEBIAN:
        return (
            f"auto=true priority=critical preseed/file=/{answers.name} {_CONSOLES} --- {_CONSOLES}"
        )
    return f"inst.ks=file:/{answers.name} inst.text inst.nosave=all {_CONSOLES}"


def answers_of(recipe: IsoRecipe, found: InstallationIso) -> str:
    """The preseed or kickstart. Raises NotReady where it does not say where packages come from."""
    source = recipe.answers or agent_folder() / "iso" / _ANSWERS[found.installer]
    try:
        text = source.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise NotReady(f"{source}: cannot be read: {error}") from error
    filled = {
        "NAME": recipe.name,
        "PACKAGES": _listed(recipe, found),
        **_mirror_of(recipe, found),
    }
    return re.sub(r"@([A-Z_]+)@", lambda it: filled.get(it[1], it[0]), text)


def write_answers(path: Path, text: str) -> None:
    """Make the file, which may hold passwords: from its birth nobody else may read it."""
    path.touch(mode=0o600, exist_ok=False)
    path.write_text(text)


def _listed(recipe: IsoRecipe, found: InstallationIso) -> str:
    return (" " if found.installer is Installer.DEBIAN else "\n").join(recipe.packages)


def _mirror_of(recipe: IsoRecipe, found: InstallationIso) -> dict[str, str]:
    if found.installer is Installer.RED_HAT:
        if recipe.tree is None and not found.has_packages:
            raise NotReady(
                f"{found.title}: has an installer and no packages", hint="Say --tree URL."
            )
        return {"SOURCE": "cdrom" if recipe.tree is None else f'url --url="{recipe.tree}"'}
    url = urlsplit(recipe.tree or "http://deb.debian.org/debian")
    if url.scheme not in ("http", "https") or not url.netloc:
        raise NotReady(f"{recipe.tree}: is no mirror of Debian's", hint="Say --tree http://…")
    return {
        "MIRROR_PROTOCOL": url.scheme,
        "MIRROR_HOST": url.netloc,
        "MIRROR_DIRECTORY": url.path or "/",
    }
