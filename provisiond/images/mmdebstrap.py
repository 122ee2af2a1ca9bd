"""A Debian by mmdebstrap: a tree of packages, configured here, written as a disk that boots."""

import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from provisiond.errors import BuildFailed, NotReady
from provisiond.images.bootable_disk import (
    GRUB_PACKAGES,
    grub_argv,
    link_newest_kernel,
    new_uuid,
    write_boot_files,
    write_disk,
)
from provisiond.images.build_folder import BuildFolder
from provisiond.images.confined import require_root, run_confined
from provisiond.images.debian_tree import configure, packages_of
from provisiond.images.readiness import (
    COMMON_TOOLS,
    is_at_least,
    require_space,
    require_tools,
    version_of,
)
from provisiond.images.recipe import MmdebstrapRecipe
from provisiond.images.steps import Result

# Where apt says where packages come from.
_HOST_SOURCES = ("sources.list", "sources.list.d/*.list", "sources.list.d/*.sources")
_LEAST_VERSION = "1.0"  # the first that takes source files as arguments by name
_MERGED_USR = Path("/usr/share/mmdebstrap/hooks/maybe-merged-usr")
_ROOM = 3 * 2**30  # the tree, the sparse file and the qcow2 of it


class Mmdebstrap:
    """Builds one recipe in one folder."""

    def __init__(
        self, recipe: MmdebstrapRecipe, folder: BuildFolder, said: Callable[[str], None]
    ) -> None:
        self._recipe = recipe
        self._folder = folder
        self._said = said

    async def init(self) -> Result:
        """The programs that it takes are there."""
        require_tools(COMMON_TOOLS | {"mmdebstrap": "mmdebstrap", "apt-get": "apt"})
        return {"mmdebstrap": await version_of(["mmdebstrap", "--version"])}

    async def update(self) -> Result:
        """The lists of packages, signatures checked: what may be installed is what they name."""
        sources, state = self._folder.work / "sources", self._folder.work / "apt"
        for folder in (sources, state / "lists" / "partial", state / "archives" / "partial"):
            folder.mkdir(parents=True)
        for number, file in enumerate(self._sources()):
            (sources / f"{number:03}{file.suffix}").symlink_to(file)
        await run_confined(update_argv(sources, state=state), folder=self._folder, said=self._said)
        found = {
            file.name: hashlib.sha256(file.read_bytes()).hexdigest()
            for file in sorted((state / "lists").glob("*Release"))
        }
        if not found:
            raise BuildFailed("apt has fetched no list of packages")
        for name, digest in found.items():
            self._said(f"{digest}  {name}")
        return {"lists": len(found), "sha256": _digest_of(found)}

    async def precheck(self) -> Result:
        """The rights, the versions and the room; that the mirror answers, `update` has shown."""
        require_root("mmdebstrap")
        version = await version_of(["mmdebstrap", "--version"])
        if not is_at_least(version, _LEAST_VERSION):
            raise NotReady(f"mmdebstrap is {version}, and {_LEAST_VERSION} is the least")
        require_space(self._folder.path, _ROOM)
        return {"mmdebstrap": version}

    async def build(self) -> Result:
        """The image, in its place."""
        tree, part = self._folder.work / "tree", self._folder.work / "image.qcow2"
        root_uuid = new_uuid()
        await run_confined(
            build_argv(self._recipe, tree, sources=self._sources()),
            folder=self._folder,
            said=self._said,
        )
        installed = _installed(tree)
        self._folder.write(self._folder.path / "packages.txt", "\n".join(installed))
        self._said(f"{len(installed)} packages are installed; configuring them")
        configure(tree, recipe=self._recipe, root_uuid=root_uuid)
        link_newest_kernel(tree)
        write_boot_files(tree, root_uuid=root_uuid, title=_title(tree))
        await run_confined(grub_argv(tree), folder=self._folder, said=self._said)
        await write_disk(tree, part, size=self._recipe.size, root_uuid=root_uuid, said=self._said)
        self._folder.place_image(part)
        return {"packages": len(installed), "root_uuid": root_uuid}

    def _sources(self) -> list[Path]:
        """The files that say where packages come from: the host's, or one for the mirror."""
        if self._recipe.mirror is None:
            return host_sources(Path("/etc/apt"))
        file = self._folder.path / "mirror.list"
        self._folder.write(file, f"deb {self._recipe.mirror} {self._recipe.suite} main")
        return [file]


def host_sources(apt: Path) -> list[Path]:
    """The host's source files. Raises NotReady where it has none: it is no Debian."""
    found = [file for pattern in _HOST_SOURCES for file in sorted(apt.glob(pattern))]
    if not found:
        raise NotReady(
            f"{apt} names no sources of packages", hint="Say --suite and --mirror instead."
        )
    return found


def update_argv(sources: Path, *, state: Path) -> list[str | Path]:
    """apt-get's command line: lists of its own, and a source that does not answer is an error."""
    return [
        *("apt-get", "update"),
        *("--option", "APT::Update::Error-Mode=any"),
        *("--option", f"Dir::State={state}"),
        *("--option", f"Dir::Cache={state}"),
        *("--option", "Dir::Etc::SourceList=/dev/null"),
        *("--option", f"Dir::Etc::SourceParts={sources}"),
        *("--option", "APT::Sandbox::User=root"),  # the folder is root's alone
    ]


def build_argv(recipe: MmdebstrapRecipe, tree: Path, *, sources: list[Path]) -> list[str | Path]:
    """mmdebstrap's command line: the packages as a folder."""
    packages = (*packages_of(recipe), *GRUB_PACKAGES)
    return [
        "mmdebstrap",
        "--mode=root",
        "--format=directory",
        "--variant=minbase",
        "--aptopt=APT::Install-Recommends false",
        # Else apt installs usrmerge to do it, with all of perl.
        *([f"--hook-dir={_MERGED_USR}"] if _MERGED_USR.is_dir() else []),
        f"--include={','.join(dict.fromkeys(packages))}",
        recipe.suite or "",  # else the release is the one that the sources name
        tree,
        *sources,
    ]


def _installed(tree: Path) -> list[str]:
    """The packages of the tree with their versions, as dpkg's own record has them."""
    return sorted(parse_status((tree / "var/lib/dpkg/status").read_text(errors="replace")))


def parse_status(text: str) -> Iterator[str]:
    """`name version` of each installed package in the text of dpkg's status file."""
    for record in text.split("\n\n"):
        fields = dict(re.findall(r"^(Package|Status|Version): (.*)$", record, re.MULTILINE))
        if fields.get("Status", "").endswith(" installed"):
            yield f"{fields['Package']} {fields['Version']}"


def _title(tree: Path) -> str:
    """What the boot loader calls the system: letters, digits, blanks, dots and brackets."""
    found = re.search(
        r'^PRETTY_NAME="([\w .()/+-]+)"$', (tree / "etc/os-release").read_text(), re.MULTILINE
    )
    return found[1] if found else "Debian"


def _digest_of(found: dict[str, str]) -> str:
    return hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest()
