"""Images by diskimage-builder, with the element that comes with provisiond.

diskimage-builder makes the root as a tar archive, and bootable_disk.py the disk of it: so neither
the device mapper nor GRUB's own probing of devices is needed. What it mounts ends with its
namespaces; the loop device that it takes, after a kill, by the next run.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

from provisiond.errors import BuildFailed, NotReady
from provisiond.images.agent_files import InitSystem, read_agent
from provisiond.images.bootable_disk import (
    GRUB_PACKAGES,
    grub_argv,
    link_newest_kernel,
    new_uuid,
    write_boot_files,
    write_disk,
)
from provisiond.images.build_folder import BuildFolder
from provisiond.images.confined import USUAL_PATH, require_root, run_confined, run_said
from provisiond.images.debian_tree import STACK_PACKAGES, configure_network, forget_identity
from provisiond.images.download import download
from provisiond.images.readiness import (
    COMMON_TOOLS,
    is_at_least,
    require_space,
    require_tools,
    version_of,
)
from provisiond.images.recipe import DibRecipe
from provisiond.images.steps import Result
from provisiond.process import require_tool

_TOOLS = {
    # It calls all of these, sudo as root as well.
    "sudo": "sudo",
    "debootstrap": "debootstrap",
    "rsync": "rsync",
    "git": "git",
    "losetup": "mount",
    "tar": "tar",
}
_LEAST_VERSION = "3.30"
_ROOM = 6 * 2**30
_ELEMENT = "provision-guest"
_INIT_FILES = {
    InitSystem.SYSTEMD: "systemd/provision-guest.service",
    InitSystem.UPSTART: "upstart/provision-guest.conf",
    InitSystem.OPENRC: "openrc/provision-guest",
    InitSystem.SYSV: "sysv/provision-guest",
}
# A file system on a loop device, without partitions: the tar archive is taken from it.
_BLOCK_DEVICE = """
- local_loop: {name: image0}
- mkfs: {base: image0, name: mkfs_root, mount: {mount_point: /}}
"""


class Dib:
    """Builds one recipe in one folder."""

    def __init__(self, recipe: DibRecipe, folder: BuildFolder, said: Callable[[str], None]) -> None:
        self._recipe = recipe
        self._folder = folder
        self._said = said
        self._venv = folder.path / "diskimage-builder"

    async def init(self) -> Result:
        """The programs; diskimage-builder itself comes from PyPI where it is not installed."""
        require_tools(COMMON_TOOLS | _TOOLS)
        if shutil.which("disk-image-create") is None and not self._program().exists():
            require_tool("python3", package="python3")
            await run_said(
                ["python3", "-m", "venv", "--clear", self._venv], name="venv", said=self._said
            )
            await run_said(
                [self._venv / "bin" / "pip", "install", "diskimage-builder"],
                name="pip",
                said=self._said,
            )
        return {"diskimage-builder": await self._version()}

    async def update(self) -> Result:
        """The newest diskimage-builder, where it is the folder's own; the mirrors answer."""
        if self._program().is_relative_to(self._venv):
            await run_said(
                [self._venv / "bin" / "pip", "install", "--upgrade", "diskimage-builder"],
                name="pip",
                said=self._said,
            )
        result: Result = {"diskimage-builder": await self._version()}
        for url in release_files(self._recipe):
            file = self._folder.work / "InRelease"
            digest = await download(url, file, said=self._said)
            self._said(f"{digest}  {url}")
            result[url] = digest
        return result

    async def precheck(self) -> Result:
        """The rights, the version, the elements and the room."""
        require_root("diskimage-builder")
        version = await self._version()
        if not is_at_least(version, _LEAST_VERSION):
            raise NotReady(f"diskimage-builder is {version}, and {_LEAST_VERSION} is the least")
        require_space(self._folder.path, _ROOM)
        return {"diskimage-builder": version}

    async def build(self) -> Result:
        """The image, in its place."""
        work = self._folder.work
        elements, archive, tree = work / "elements", work / "root.tar", work / "tree"
        part, root_uuid = work / "image.qcow2", new_uuid()
        elements.mkdir()
        write_element(elements / _ELEMENT)
        await run_confined(
            build_argv(self._recipe, archive, program=self._program()),
            folder=self._folder,
            said=self._said,
            environment=build_environment(
                self._recipe, elements=elements, work=work, program=self._program()
            ),
        )
        tree.mkdir()
        await self._confined(*unpack_argv(archive, tree))
        archive.unlink()
        for name in ("proc", "sys"):  # are not in the archive
            (tree / name).mkdir(mode=0o555, exist_ok=True)
        (tree / "etc/fstab").write_text(f"UUID={root_uuid} / ext4 errors=remount-ro 0 1\n")
        configure_network(tree, self._recipe.network_stack)
        forget_identity(tree)
        link_newest_kernel(tree)
        write_boot_files(tree, root_uuid=root_uuid, title=self._recipe.elements[0])
        await self._confined(*grub_argv(tree))
        await write_disk(tree, part, size=self._recipe.size, root_uuid=root_uuid, said=self._said)
        self._folder.place_image(part)
        return {"root_uuid": root_uuid}

    async def _confined(self, *argv: str | Path) -> None:
        await run_confined(argv, folder=self._folder, said=self._said)

    def _program(self) -> Path:
        found = shutil.which("disk-image-create")
        return Path(found) if found else self._venv / "bin" / "disk-image-create"

    async def _version(self) -> str:
        version = await version_of([self._program(), "--version"])
        if not version:
            raise BuildFailed(f"{self._program()} does not say its version")
        return version


def release_files(recipe: DibRecipe) -> list[str]:
    """What a build of Debian asks its mirrors for first; they change with the packages there."""
    if "debian-minimal" not in recipe.elements:
        return []
    mirror = recipe.mirror or "http://deb.debian.org/debian"
    security = recipe.security_mirror or "http://security.debian.org"
    return [
        f"{mirror.rstrip('/')}/dists/{recipe.suite}/InRelease",
        f"{security.rstrip('/')}/dists/{recipe.suite}-security/InRelease",
    ]


def write_element(folder: Path) -> None:
    """The element as diskimage-builder wants it: the shipped one, the script, what starts it."""
    agent = read_agent()
    shutil.copytree(agent.folder / "dib" / _ELEMENT, folder)
    _write(folder / "static/usr/sbin/provision-guest", agent.script, mode=0o755)
    _write(folder / "static/usr/share/doc/provision-guest/README.md", agent.readme, mode=0o644)
    for init, name in _INIT_FILES.items():
        mode = 0o755 if init in (InitSystem.OPENRC, InitSystem.SYSV) else 0o644
        _write(folder / "init-scripts" / name, agent.start_up(init), mode=mode)


def _write(path: Path, content: bytes, *, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(mode)


def build_argv(recipe: DibRecipe, archive: Path, *, program: Path) -> list[str | Path]:
    """disk-image-create's command line: the root as a tar archive."""
    # debian-minimal itself has no owner of the network, and nobody to log in to.
    own = (recipe.kernel, *GRUB_PACKAGES, *STACK_PACKAGES[recipe.network_stack], "openssh-server")
    packages = (*own, *recipe.packages)
    return [
        program,
        *("-a", "amd64"),
        *("-t", "tar"),
        *("-o", archive.with_suffix("")),
        *("-p", ",".join(packages)),
        "--no-tmpfs",
        *recipe.elements,
        _ELEMENT,
    ]


def build_environment(
    recipe: DibRecipe, *, elements: Path, work: Path, program: Path
) -> dict[str, str | Path]:
    """What diskimage-builder is told beside its command line."""
    python = program.parent / "python3"
    told: dict[str, str | Path] = {
        "ELEMENTS_PATH": elements,
        "DIB_RELEASE": recipe.suite,
        "DIB_BLOCK_DEVICE_CONFIG": _BLOCK_DEVICE,
        "DIB_IMAGE_CACHE": work / "cache",
        # By its path: sudo has a PATH of its own, and a virtual environment is in none.
        "DIB_PYTHON_EXEC": python if python.exists() else "python3",
        "PATH": f"{program.parent}:{USUAL_PATH}",
        "TMP_DIR": work,
    }
    if recipe.mirror is not None:
        told["DIB_DISTRIBUTION_MIRROR"] = recipe.mirror
    if recipe.security_mirror is not None:
        told["DIB_DEBIAN_SECURITY_MIRROR"] = recipe.security_mirror
    return told


def unpack_argv(archive: Path, tree: Path) -> list[str | Path]:
    """tar's command line: owners by number, extended attributes as they are."""
    return [
        "tar",
        "--extract",
        "--numeric-owner",
        *("--xattrs", "--xattrs-include=*"),
        *("--directory", tree),
        *("--file", archive),
    ]
