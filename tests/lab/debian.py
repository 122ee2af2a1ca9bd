"""Debian's root file system of this machine's release, as its apt knows it; by mmdebstrap."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.lab.initramfs import module_files


def install_debian(root: Path, packages: Sequence[str], *options: str) -> None:
    """Makes `root` of the packages and what they need: nothing recommended, no documentation.

    The options are more of mmdebstrap's. It binds this machine's /dev/shm into the root; killed, it
    would leave it there, and who then removes the root empties /dev/shm. So its mounts and its
    processes are in namespaces that end with it.
    """
    sources = [
        *Path("/etc/apt").glob("sources.list"),
        *sorted(Path("/etc/apt/sources.list.d").glob("*.list")),
        *sorted(Path("/etc/apt/sources.list.d").glob("*.sources")),
    ]
    run_tool(
        *("setpriv", "--pdeathsig=KILL"),
        *("unshare", "--mount", "--propagation=private"),
        *("--pid", "--fork", "--kill-child", "--mount-proc"),
        "mmdebstrap",
        "--mode=root",
        "--format=directory",
        "--variant=minbase",
        "--aptopt=APT::Install-Recommends false",
        "--dpkgopt=path-exclude=/usr/share/doc/*",
        "--dpkgopt=path-exclude=/usr/share/locale/*",
        "--dpkgopt=path-exclude=/usr/share/man/*",
        f"--include={','.join(packages)}",
        *options,
        "",  # the release is the one that the sources name
        root,
        *sources,
    )


def copy_modules(root: Path, kernel_tree: Path, wanted: Sequence[str]) -> None:
    """Modules of an unpacked kernel, with all that they need, where modprobe looks in `root`."""
    (tree,) = (folder for folder in kernel_tree.glob("**/lib/modules/*") if folder.is_dir())
    files = module_files(kernel_tree, wanted).values()
    for file in (*files, *tree.glob("modules.builtin*"), tree / "modules.order"):
        copy = root / "lib/modules" / tree.name / file.relative_to(tree)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    run_tool("chroot", root, "depmod", tree.name)


def run_tool(*argv: str | Path) -> None:
    """Runs a tool; RuntimeError with what it said where it fails."""
    ended = subprocess.run(
        argv,
        env={**os.environ, "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if ended.returncode != 0:
        raise RuntimeError(f"{argv[0]} ended with {ended.returncode}:\n{ended.stdout[-4000:]}")
