"""Images by kiwi: a description of its own or the operator's, and our files as its overlay tree."""

import shutil
from collections.abc import Callable
from pathlib import Path

from provisiond.errors import BuildFailed, NotReady
from provisiond.images.agent_files import InitSystem, read_agent
from provisiond.images.build_folder import BuildFolder
from provisiond.images.confined import require_root, run_confined
from provisiond.images.readiness import (
    COMMON_TOOLS,
    is_at_least,
    require_space,
    require_tools,
    version_of,
)
from provisiond.images.recipe import KiwiRecipe
from provisiond.images.steps import Result

_LEAST_VERSION = "9.24"
_ROOM = 8 * 2**30


class Kiwi:
    """Builds one recipe in one folder."""

    def __init__(
        self, recipe: KiwiRecipe, folder: BuildFolder, said: Callable[[str], None]
    ) -> None:
        self._recipe = recipe
        self._folder = folder
        self._said = said

    async def init(self) -> Result:
        """The programs that it takes are there."""
        require_tools(COMMON_TOOLS | {"kiwi-ng": "kiwi"})
        return {"kiwi": await version_of(["kiwi-ng", "--version"])}

    async def update(self) -> Result:
        """The description is one that kiwi reads, and what it asks for can be had."""
        description = self._folder.work / "description"
        write_description(description, recipe=self._recipe)
        await run_confined(
            info_argv(self._recipe, description), folder=self._folder, said=self._said
        )
        return {"description": str(self._recipe.description or "provisiond's own")}

    async def precheck(self) -> Result:
        """The rights, the version and the room; kiwi loads modules and writes into /sys."""
        require_root("kiwi")
        version = await version_of(["kiwi-ng", "--version"])
        if not is_at_least(version, _LEAST_VERSION):
            raise NotReady(f"kiwi is {version}, and {_LEAST_VERSION} is the least")
        if "ro" in _mount_options(Path("/sys"), Path("/proc/self/mountinfo").read_text()):
            raise NotReady(
                "/sys is read-only, and kiwi needs it otherwise",
                hint="Build on a machine that is no container: --on USER@HOST.",
            )
        require_space(self._folder.path, _ROOM)
        return {"kiwi": version}

    async def build(self) -> Result:
        """The image, in its place."""
        description, target = self._folder.work / "description", self._folder.work / "target"
        write_description(description, recipe=self._recipe)
        target.mkdir()
        await run_confined(
            build_argv(self._recipe, description, target),
            folder=self._folder,
            said=self._said,
        )
        images = list(target.glob("*.qcow2"))
        if len(images) != 1:
            raise BuildFailed(
                f"kiwi has made {len(images)} images in qcow2",
                hint='The description\'s <type> has to be a disk with format="qcow2".',
            )
        self._folder.place_image(images[0])
        return {"image": images[0].name}


def write_description(folder: Path, *, recipe: KiwiRecipe) -> None:
    """The description, with the script and its unit in the overlay tree `root/`.

    An operator's own keeps whatever of these it has; baking puts ours in its place later.
    """
    agent = read_agent()
    source = recipe.description or agent.folder / "kiwi"
    try:
        shutil.copytree(source, folder, symlinks=True)
    except OSError as error:
        raise NotReady(f"{source}: cannot be copied: {error.strerror}") from error
    if recipe.description is not None:
        return
    root = folder / "root"
    _write(root / "usr/sbin/provision-guest", agent.script, mode=0o755)
    _write(root / "usr/share/doc/provision-guest/README.md", agent.readme, mode=0o644)
    unit = root / "etc/systemd/system/provision-guest.service"
    _write(unit, agent.start_up(InitSystem.SYSTEMD), mode=0o644)


def _write(path: Path, content: bytes, *, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(mode)


def info_argv(recipe: KiwiRecipe, description: Path) -> list[str | Path]:
    """kiwi's command line that reads the description and says what it is."""
    return [*_kiwi(recipe), *("image", "info"), *("--description", description)]


def build_argv(recipe: KiwiRecipe, description: Path, target: Path) -> list[str | Path]:
    """kiwi's command line that builds."""
    return [
        *_kiwi(recipe),
        *("system", "build"),
        *("--description", description),
        *("--target-dir", target),
    ]


def _kiwi(recipe: KiwiRecipe) -> list[str]:
    profile = [] if recipe.profile is None else ["--profile", recipe.profile]
    return ["kiwi-ng", *profile]


def _mount_options(point: Path, mountinfo: str) -> list[str]:
    """The options of what is mounted at `point` last, by the text of /proc/PID/mountinfo."""
    options = [
        fields[5].split(",")
        for line in mountinfo.splitlines()
        if (fields := line.split(" "))[4] == str(point)
    ]
    return options[-1] if options else []
