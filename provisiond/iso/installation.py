"""What an installation ISO says of itself: whose installer it has, and where its kernel is.

The ISO is others' work: what is read of it is bounded, and becomes a name only in a form that
nothing can be hidden in. The functions block.
"""

import io
import re
from configparser import ConfigParser, Error
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pycdlib import PyCdlib
from pycdlib.pycdlibexception import PyCdlibException

from provisiond.errors import ImageRefused

_LONGEST = 65536  # bytes of a file that tells of the ISO
_PLAIN = re.compile(r"[^A-Za-z0-9 ._+-]")


class Installer(StrEnum):
    """How an installer is told what to install."""

    DEBIAN = "debian"
    """By a preseed."""
    RED_HAT = "red-hat"
    """By a kickstart."""


@dataclass(frozen=True, slots=True)
class InstallationIso:
    """`title` as the ISO has it; `kernel` and `initrd` are paths in the ISO; `has_packages` tells
    that it installs without any network."""

    installer: Installer
    title: str
    kernel: str
    initrd: str
    has_packages: bool


# Where the installers for amd64 have them; a netinst of Debian's is like a full one.
_DEBIAN_BOOT = (("install.amd/vmlinuz", "install.amd/initrd.gz"),)
_RED_HAT_BOOT = (("images/pxeboot/vmlinuz", "images/pxeboot/initrd.img"),)


def read_installation(path: Path) -> InstallationIso:
    """What the ISO is. Raises ImageRefused where it is none, or one that nobody here can drive."""
    iso = PyCdlib()
    try:
        iso.open(str(path))
    except (OSError, PyCdlibException) as error:
        raise ImageRefused(
            f"{path}: is no ISO that can be read: {error}", hint="Is it whole? Compare its hash."
        ) from error
    try:
        return _recognise(_Files(iso), path)
    finally:
        iso.close()


def _recognise(files: "_Files", path: Path) -> InstallationIso:
    if (info := files.text(".disk/info")) is not None and "Debian" in info:
        title = info.partition(" - ")[0]
        packages = files.text(".disk/base_installable") is not None
        installer, boot = Installer.DEBIAN, _DEBIAN_BOOT
    elif (tree := files.text(".treeinfo")) is not None:
        title = parse_treeinfo(tree)
        packages = files.has("media.repo") or files.has("BaseOS/repodata/repomd.xml")
        installer, boot = Installer.RED_HAT, _RED_HAT_BOOT
    else:
        raise ImageRefused(
            f"{path}: has neither Debian's .disk/info nor Red Hat's .treeinfo",
            hint="Install it by hand with virt-install, then: provisionctl image bake.",
        )
    for kernel, initrd in boot:
        if files.has(kernel) and files.has(initrd):
            return InstallationIso(
                installer=installer,
                title=_PLAIN.sub("", title)[:80].strip(),
                kernel=kernel,
                initrd=initrd,
                has_packages=packages,
            )
    raise ImageRefused(
        f"{path}: has no installer's kernel for amd64 where {installer} keeps it",
        hint="Is it a live image? An installation image is needed, such as Debian's netinst.",
    )


def parse_treeinfo(untrusted_text: str) -> str:
    """Name and version of the release in a .treeinfo; '' where it has none."""
    tree = ConfigParser(interpolation=None, strict=False)
    try:
        tree.read_string(untrusted_text)
    except (Error, ValueError):
        return ""
    for section in ("release", "general"):
        if tree.has_section(section):
            name = tree.get(section, "name", fallback=tree.get(section, "family", fallback=""))
            version = tree.get(section, "version", fallback="")
            return name if version in name else f"{name} {version}".strip()
    return ""


class _Files:
    """The files of an ISO by their paths, as Rock Ridge has the names, or Joliet."""

    def __init__(self, iso: PyCdlib) -> None:
        self._iso = iso
        self._key = "rr_path" if iso.has_rock_ridge() else "joliet_path"

    def has(self, path: str) -> bool:
        """Whether there is such a file."""
        return self._length(path) is not None

    def text(self, path: str) -> str | None:
        """What the file says; None where there is none, or one too long to tell anything."""
        length = self._length(path)
        if length is None or length > _LONGEST:
            return None
        out = io.BytesIO()
        self._iso.get_file_from_iso_fp(out, **{self._key: f"/{path}"})
        return out.getvalue().decode(errors="replace")

    def _length(self, path: str) -> int | None:
        try:
            record = self._iso.get_record(**{self._key: f"/{path}"})
        except PyCdlibException:
            return None
        length: int = record.get_data_length()
        return length if record.is_file() else None
