"""A machine for the script: a root file system, host name, network and processes of its own.

Namespaces and a chroot, no virtual machine: the script's real tools change real files, addresses
and routes, in 0.1 s, and nothing of this host. Two roots are used: an overlay over this host's own
system (dash, bash, GNU tools, iproute2), and one that has nothing but busybox and chpasswd.
"""

import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Self

from tests.lab.initramfs import GUEST_SCRIPT
from tests.lab.packages import fetch_package

package = cache(fetch_package)  # apt is asked once a test run, not once a machine

NONCE = "0123456789abcdef0123456789abcdef"
INSTANCE = "6ec0bd7f-11c0-43da-975e-2a8ad9ebae0b"
SECRET = "$6$saltsalt$" + "Ab0./" * 17 + "x"
MACS = ("52:54:00:00:00:01", "52:54:00:00:00:02")
STATE_FILE = "/var/lib/provision-guest/applied"
LOG_FILE = "/var/log/provision-guest.log"

# What a shell is called, the root it runs in, and how it is started there.
SHELLS = {"dash": "system", "bash": "system", "ash": "busybox"}

ETC = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nops:x:1000:1000:Ops:/home/ops:/bin/sh\n",
    "etc/shadow": "root:*:19000:0:99999:7:::\nops:!:19000:0:99999:7:::\n",
    "etc/group": "root:x:0:\nshadow:x:42:\nops:x:1000:\n",
    "etc/hostname": "golden\n",
    "etc/hosts": "127.0.0.1 localhost\n10.9.9.9 a-line-of-the-customer\n",
}

MARK = "/.a-machine-under-test"

# Runs as the first process of the new namespaces; $1 is the folder, $2 the kind of root, $3 the
# token of this machine. It says "ready" from inside the new root, never before.
SET_UP = r"""
set -e
cd "$1"
if [ "$2" = system ]; then
    mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work root
fi
mkdir -p root/proc root/sys root/dev root/run root/tmp
mount -t proc proc root/proc
mount -t sysfs sysfs root/sys
mount -t tmpfs tmpfs root/dev
mount -t tmpfs tmpfs root/run
for node in null zero urandom; do
    touch "root/dev/$node" && mount --bind "/dev/$node" "root/dev/$node"
done
hostname golden
ip link set lo up
# The tests wait for no duplicate address detection: nobody else is on these links.
echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad
ip link add eth0 address 52:54:00:00:00:01 type veth peer name peer0
ip link add eth1 address 52:54:00:00:00:02 type veth peer name peer1
for nic in peer0 peer1; do ip link set "$nic" up; done
echo "$3" >root/.a-machine-under-test
exec chroot root /bin/sh -c 'cd / && echo ready && exec sleep 1000000'
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one run of the script ended; `log` is what it printed."""

    status: int
    log: str

    @property
    def failed_step(self) -> str | None:
        found = re.search(r"provision-guest: (\S+) failed: ", self.log)
        return found[1] if found else None


def configuration(values: Mapping[str, str] | None = None, /, **more: str) -> str:
    """A provision.conf: the five keys that must be there, then those that are given."""
    pairs = {
        "FORMAT": "1",
        "NONCE": NONCE,
        "INSTANCE": INSTANCE,
        "GENERATION": "1",
        "HOSTNAME": "web1",
        **(values or {}),
        **more,
    }
    return "".join(f"{key}={value}\n" for key, value in pairs.items())


class Machine:
    """One machine; everything of it goes when the context ends."""

    def __init__(self, folder: Path, shell: str) -> None:
        self.folder = folder
        self.shell = shell
        self.kind = SHELLS[shell]
        self._process: subprocess.Popen[bytes] | None = None
        self._first = 0
        self._token = secrets.token_hex(16)

    def __enter__(self) -> Self:
        if self.kind == "busybox":
            build_busybox_root(self.folder / "root")
        for name in ("root", "upper", "work"):
            (self.folder / name).mkdir(exist_ok=True)
        argv = ["unshare", "--mount", "--uts", "--net", "--ipc", "--pid", "--fork", "--kill-child"]
        self._process = subprocess.Popen(
            [*argv, "sh", "-c", SET_UP, "sh", str(self.folder), self.kind, self._token],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        try:
            assert self._process.stdout.readline() == b"ready\n", (
                "the namespaces could not be set up"
            )
            pid = self._process.pid
            self._first = int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
            self._prepare()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _prepare(self) -> None:
        """The same golden image on both roots, whatever this host has in its own /etc."""
        for name, text in ETC.items():
            self.write(f"/{name}", text)
        for name in ("/etc/resolv.conf", "/etc/localtime", "/etc/timezone", STATE_FILE, LOG_FILE):
            self.path(name).unlink(missing_ok=True)
        for name in ("/etc/network", "/etc/NetworkManager", "/etc/ssh", "/root/.ssh", "/home"):
            shutil.rmtree(self.path(name), ignore_errors=True)
        for folder in ("/etc/systemd/system", "/usr/lib/systemd/system", "/etc/runlevels"):
            for link in self.path(folder).glob("*/*"):
                if link.name.lower().startswith(("systemd-networkd.", "networkmanager")):
                    link.unlink()
        self.path("/home/ops").mkdir(parents=True)
        os.chown(self.path("/home/ops"), 1000, 1000)
        self.write("/usr/sbin/provision-guest", GUEST_SCRIPT.read_text(), mode=0o755)
        zones = package("tzdata") / "usr/share/zoneinfo"
        self.write("/usr/share/zoneinfo/Europe/Vienna", (zones / "Europe/Vienna").read_bytes())
        if self.kind == "system":
            self.enable("systemd-networkd.service")

    # ------------------------------------------------------------ its files
    def path(self, name: str) -> Path:
        """A file of the machine, seen from here. Absolute links in it lead to this host: read none.

        The token is looked at each time: a path of this host is never given out by mistake.
        """
        root = Path(f"/proc/{self._first}/root")
        if Path(f"{root}{MARK}").read_text().strip() != self._token:
            raise RuntimeError(f"{root} is not the root of this machine")
        if ".." in Path(name).parts or self._leads_out(root, Path(name).parent):
            raise RuntimeError(f"{name} leads out of this machine")
        return Path(f"{root}{name}")

    @staticmethod
    def _leads_out(root: Path, folder: Path) -> bool:
        """Whether a link on the way would be followed into this host's own files."""
        steps = [folder, *folder.parents]
        links = (Path(f"{root}{step}") for step in steps if step != Path("/"))
        return any(link.is_symlink() and link.readlink().is_absolute() for link in links)

    def read(self, name: str) -> str:
        path = self.path(name)
        assert not path.is_symlink(), f"{name} is a link"
        return path.read_text()

    def read_bytes(self, name: str) -> bytes:
        return self.path(name).read_bytes()

    def write(self, name: str, content: str | bytes, *, mode: int = 0o644) -> None:
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        path.chmod(mode)

    def enable(self, unit: str) -> None:
        """As `systemctl enable` does: the link is what counts."""
        link = self.path(f"/etc/systemd/system/multi-user.target.wants/{unit}")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(f"/lib/systemd/system/{unit}")

    def disable(self, unit: str) -> None:
        self.path(f"/etc/systemd/system/multi-user.target.wants/{unit}").unlink()

    # ------------------------------------------------------------ its processes
    def argv(self, *command: str) -> list[str]:
        target = f"--target={self._first}"
        spaces = ("--mount", "--uts", "--net", "--ipc", "--pid", "--root", "--wd")
        return ["nsenter", target, *spaces, "--", *command]

    def argv_outside(self, *command: str) -> list[str]:
        """In the machine's mount namespace, with this host's own root: its tools, its paths."""
        return ["nsenter", f"--target={self._first}", "--mount", "--", *command]

    def run(self, *command: str) -> str:
        """The output of a command that must succeed."""
        argv = self.argv(*command)
        ended = subprocess.run(argv, check=False, capture_output=True, text=True, env=ENVIRONMENT)
        assert ended.returncode == 0, f"{' '.join(command)}: {ended.stderr.strip()}"
        return ended.stdout

    def script(self, *arguments: str) -> list[str]:
        """The script's command line under the shell of this machine, as seen from here."""
        return self.argv(*self.script_inside(*arguments))

    def script_inside(self, *arguments: str) -> tuple[str, ...]:
        """The same as seen in the machine."""
        shell = ("/bin/busybox", "ash") if self.shell == "ash" else (f"/bin/{self.shell}",)
        return (*shell, "/usr/sbin/provision-guest", *arguments)

    def provision(
        self, text: str | bytes, *, environment: Mapping[str, str] | None = None
    ) -> Outcome:
        """One run of the script over this provision.conf."""
        self.write("/run/config/provision.conf", text, mode=0o600)
        ended = subprocess.run(
            self.script("--from", "/run/config"),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=60,
            env={**ENVIRONMENT, **(environment or {})},
        )
        assert ended.stdout == "", "the script has nothing to say on stdout"
        print(ended.stderr)  # for a test that fails
        return Outcome(ended.returncode, ended.stderr)

    # ------------------------------------------------------------ its network
    def addresses(self, nic: str) -> list[str]:
        shown = self.run("ip", "addr", "show", "dev", nic)
        found = re.findall(r"inet6? (\S+)", shown)
        return [address for address in found if not address.startswith("fe80:")]

    def routes(self, nic: str, family: str = "-4") -> list[str]:
        """The routes through a gateway, as `ip` prints them, blanks folded."""
        shown = self.run("ip", family, "route", "show", "dev", nic)
        return sorted(" ".join(line.split()) for line in shown.splitlines() if " via " in line)

    def mtu(self, nic: str) -> int:
        return int(self.run("cat", f"/sys/class/net/{nic}/mtu"))


ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}


def build_busybox_root(root: Path) -> None:
    """As small as a system can be: busybox under its applets' names, and chpasswd."""
    for folder in ("bin", "sbin", "usr/bin", "usr/sbin", "etc", "root", "var/log"):
        (root / folder).mkdir(parents=True)
    busybox = root / "bin/busybox"
    shutil.copy(package("busybox-static") / "bin/busybox", busybox)
    for applet in subprocess.run(
        [busybox, "--list"], check=True, capture_output=True
    ).stdout.split():
        with suppress(FileExistsError):
            (root / "bin" / applet.decode()).symlink_to("busybox")
    copy_with_libraries(Path("/usr/sbin/chpasswd"), root)


def copy_with_libraries(program: Path, root: Path) -> None:
    """A program of this host and the libraries that its loader asks for, each at its own path."""
    listed = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    for path in (str(program), *re.findall(r"(/\S+) \(0x", listed)):
        copy = root / path.lstrip("/")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
