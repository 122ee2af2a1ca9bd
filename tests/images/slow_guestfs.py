"""Images that debugfs cannot read, by the real libguestfs: `make test-libguestfs` runs this, and
`make test` does not, as each look into an image boots a guest of libguestfs' own (20 s and more).
"""

import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from provisiond.api.requests import DiskFormat
from provisiond.images.agent_files import agent_folder
from provisiond.images.baking import bake
from provisiond.images.extraction import extract
from provisiond.images.guestfs_files import environment
from tests.disk.images import tool
from tests.images.golden import LAYOUTS, make_tree, put
from tests.lab.packages import cache_directory, fetch_kernel

MODULES = Path("/lib/modules")
LABEL = "system_u:object_r:bin_t:s0"


@pytest.fixture(autouse=True)
def appliance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """libguestfs makes its guest of this host's kernel; where there is none, of the lab's."""
    cache_directory().mkdir(parents=True, exist_ok=True)
    monkeypatch.setenv("LIBGUESTFS_CACHEDIR", str(cache_directory()))
    if MODULES.exists() and any(MODULES.iterdir()):
        yield
        return
    tree = fetch_kernel("linux-image-amd64")
    (kernel,) = tree.glob("boot/vmlinuz-*")
    version = kernel.name.removeprefix("vmlinuz-")
    tool("cp", "--archive", "--link", tree, tmp_path / "kernel")
    tool("depmod", "--basedir", tmp_path / "kernel", version)
    monkeypatch.setenv("SUPERMIN_KERNEL", str(kernel))
    monkeypatch.setenv("SUPERMIN_KERNEL_VERSION", version)
    monkeypatch.setenv("SUPERMIN_MODULES", str(tmp_path / "kernel/lib/modules" / version))
    made = not MODULES.exists()
    MODULES.mkdir(exist_ok=True)  # it looks at the folder's time in any case
    yield
    if made:
        MODULES.rmdir()


def make_xfs(image: Path, tree: Path) -> None:
    """An image of the tree on XFS, in the first partition, with one SELinux label."""
    archive = image.with_suffix(".tar")
    tool("tar", "--create", "--file", archive, "--directory", tree, ".")
    commands = [
        "part-disk /dev/sda gpt",
        "mkfs xfs /dev/sda1",
        "mount /dev/sda1 /",
        f"tar-in {archive} /",
        f"lsetxattr security.selinux {LABEL} {len(LABEL)} /usr/sbin",
    ]
    subprocess.run(
        [*environment(), "guestfish", "-N", f"{image}=disk:400M"],
        input="\n".join(commands),
        text=True,
        check=True,
    )


@pytest.mark.timeout(1800)
async def test_an_image_on_xfs_is_baked_and_taken_apart(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree", LAYOUTS["systemd"])
    put(tree, "var/lib/provision-guest/applied", "INSTANCE=1")
    put(tree, "boot/vmlinuz-6.1.9", "kernel")
    image = tmp_path / "a.raw"
    make_xfs(image, tree)
    said: list[str] = []
    baked = await bake(image, disk_format=DiskFormat.RAW, said=said.append)
    assert baked.init == "systemd"
    assert any("xfs: libguestfs is asked" in line for line in said)
    root, kernel = tmp_path / "root.tar", tmp_path / "kernel-file"
    await extract(image, disk_format=DiskFormat.RAW, kernel=kernel, rootfs=root, said=said.append)
    assert kernel.read_text() == "kernel"
    with tarfile.open(root) as archive:
        found = {one.name.removeprefix("."): one for one in archive}
        script = found["/usr/sbin/provision-guest"]
        content = archive.extractfile(script)
        assert content is not None
        assert content.read() == (agent_folder() / "provision-guest").read_bytes()
    assert (script.mode, script.uid, script.gid) == (0o755, 0, 0)
    assert script.pax_headers["SCHILY.xattr.security.selinux"] == LABEL
    wants = "/etc/systemd/system/multi-user.target.wants/provision-guest.service"
    assert found[wants].linkname == "/etc/systemd/system/provision-guest.service"
    assert not [name for name in found if name.startswith("/var/lib/provision-guest")]
    assert found["/etc/passwd"].size == (tree / "etc/passwd").stat().st_size
