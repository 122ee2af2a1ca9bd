"""Golden images of tiny systems: the folders and files by which a layout is known, on real ext4."""

import os
import shutil
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

from provisiond.api.requests import DiskFormat
from provisiond.disk.chain import QEMU_NAMES
from tests.disk.images import MIB, tool

SIZE = 16 * MIB
PARTITION_START = MIB
_RELEASE = 'NAME=x\nID={id}\nVERSION_ID="{version}"\nPRETTY_NAME="{id} {version}"\n'


@dataclass(frozen=True, slots=True)
class Layout:
    """A distribution's tree: `files` by path, whose text `->X` is a link to X and `/` a folder."""

    distribution: str
    version: str
    files: dict[str, str]
    merged_usr: bool = True


_DEPEND = "TARGETS = rsyslog cron\nINTERACTIVE =\ncron: rsyslog\n"
LAYOUTS = {
    "systemd": Layout(
        "debian",
        "12",
        {
            "usr/lib/systemd/systemd": "ELF",
            "usr/sbin/init": "->../lib/systemd/systemd",
            "etc/systemd/system/multi-user.target.wants/cron.service": "->/lib/systemd/cron",
        },
    ),
    "upstart": Layout(
        "ubuntu",
        "14.04",
        {"sbin/init": "ELF", "etc/init/mountall.conf": "x", "usr/sbin/cron": "ELF"},
        merged_usr=False,
    ),
    "openrc": Layout(
        "alpine",
        "3.20",
        {
            "bin/busybox": "ELF",
            "sbin/init": "->/bin/busybox",
            "etc/init.d/hostname": "#!/sbin/openrc-run",
            "etc/runlevels/default/hostname": "->/etc/init.d/hostname",
        },
        merged_usr=False,
    ),
    "sysv-insserv": Layout(
        "debian",
        "11",
        {
            "usr/sbin/init": "ELF",
            "etc/init.d/cron": "#!/bin/sh",
            "etc/init.d/.depend.start": _DEPEND,
            "etc/init.d/.depend.stop": "TARGETS = sendsigs umountfs\numountfs: sendsigs\n",
            **{f"etc/rc{level}.d": "/" for level in "0123456S"},
        },
    ),
    "sysv-chkconfig": Layout(
        "centos",
        "6",
        {
            "sbin/init": "ELF",
            "etc/init/rcS.conf": "x",  # it has upstart too, without mountall
            "etc/rc.d/init.d/crond": "#!/bin/sh",
            "etc/init.d": "->rc.d/init.d",
            **{f"etc/rc.d/rc{level}.d": "/" for level in "0123456"},
            **{f"etc/rc{level}.d": f"->rc.d/rc{level}.d" for level in "0123456"},
        },
        merged_usr=False,
    ),
    "rc.local": Layout(
        "own",
        "1",
        {"sbin/init": "ELF", "etc/rc.local": "#!/bin/sh -e\nstart_it\nexit 0\n", "usr/sbin": "/"},
        merged_usr=False,
    ),
}


def make_tree(folder: Path, layout: Layout) -> Path:
    """The layout's files in `folder`, with users and the name of the distribution."""
    folder.mkdir()
    if layout.merged_usr:
        for name in ("bin", "sbin", "lib"):
            (folder / "usr" / name).mkdir(parents=True)
            (folder / name).symlink_to(f"usr/{name}")
    for path, text in layout.files.items():
        put(folder, path, text)
    for name in ("usr/lib", "usr/share/doc", "var/lib", "etc"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    release = _RELEASE.format(id=layout.distribution, version=layout.version)
    put(folder, "usr/lib/os-release", release)
    put(folder, "etc/os-release", "->../usr/lib/os-release")
    put(folder, "etc/passwd", "root:x:0:0::/root:/bin/sh\n")
    return folder


def put(folder: Path, path: str, text: str) -> None:
    """One file, link or folder of a layout."""
    place = folder / path
    place.parent.mkdir(parents=True, exist_ok=True)
    if text == "/":
        place.mkdir(exist_ok=True)
    elif text.startswith("->"):
        place.symlink_to(text[2:])
    else:
        place.write_text(text)
        place.chmod(0o755 if text.startswith(("#!", "ELF")) else 0o644)


def make_golden(
    path: Path,
    tree: Path,
    *,
    disk_format: DiskFormat = DiskFormat.RAW,
    table: str | None = None,
    size: int = SIZE,
    kind: str = "ext4",
) -> Path:
    """An image of the tree: on the bare disk, or in the last partition of `table`, for sfdisk."""
    raw = path.with_name(f"{path.name}.raw-part")
    with raw.open("wb") as file:
        file.truncate(size)
    start = 0
    if table is not None:
        words = ["sfdisk", "--quiet", str(raw)]
        subprocess.run(words, input=table, text=True, check=True, capture_output=True)
        start = _last_start(raw)
    blocks = (size - start - (MIB if table else 0)) // 1024
    extended = f"root_owner=0:0,offset={start}" if start else "root_owner=0:0"
    tool("mke2fs", "-q", "-F", "-t", kind, "-E", extended, "-d", tree, raw, f"{blocks}k")
    if disk_format is DiskFormat.RAW:
        return raw.rename(path)
    options = ["-o", "force_size=on"] if disk_format is DiskFormat.VHD else []
    name = QEMU_NAMES[disk_format]
    tool("qemu-img", "convert", "-f", "raw", "-O", name, *options, raw, path)
    raw.unlink()
    return path


def _last_start(raw: Path) -> int:
    told = tool("sfdisk", "--dump", raw).splitlines()[-1]
    return int(told.partition("start=")[2].partition(",")[0]) * 512


def debugfs(image: Path, *commands: str, start: int = 0) -> str:
    """What debugfs says; the commands may write."""
    place = f"{image}?offset={start}"
    words = ["debugfs", "-w", "-f", "-", place]
    text = "".join(f"{command}\n" for command in commands)
    said = subprocess.run(words, input=text, text=True, capture_output=True, check=True)
    errors = [line for line in said.stderr.splitlines() if not line.startswith("debugfs 1.")]
    assert not errors, errors
    return said.stdout


Snapshot = dict[str, tuple[int, int, int, bytes]]


def snapshot(image: Path, work: Path, *, disk_format: DiskFormat = DiskFormat.RAW) -> Snapshot:
    """Every path of the image with mode, owner, group and content (of a link: its target), read by
    other means than the program's: qemu-img, then one `rdump` as root."""
    raw, out = work / "snapshot.raw", work / "snapshot"
    tool("qemu-img", "convert", "-f", QEMU_NAMES[disk_format], "-O", "raw", image, raw)
    start = 0 if raw.read_bytes()[1080:1082] == b"\x53\xef" else _last_start(raw)
    tool("e2fsck", "-f", "-n", f"{raw}?offset={start}")
    out.mkdir()
    debugfs(raw, f"rdump / {out}", start=start)
    found: Snapshot = {}
    for folder, folders, files in os.walk(out):
        for name in (*folders, *files):
            path = Path(folder, name)
            status = path.lstat()
            content = b""
            if stat.S_ISLNK(status.st_mode):
                content = os.fsencode(path.readlink())
            elif stat.S_ISREG(status.st_mode):
                content = path.read_bytes()
            key = "/" + str(path.relative_to(out))
            found[key] = (status.st_mode, status.st_uid, status.st_gid, content)
    shutil.rmtree(out)
    raw.unlink()
    return found
