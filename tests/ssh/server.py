"""Debian's own sshd, unpacked and never installed: a host of the test's own on 192.0.2.1.

It has a network and a mount namespace: its port is nobody else's, and root's home there is a folder
of the test, so whoever runs ssh inside reads and writes nothing of this machine's users.
"""

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.lab.packages import fetch_package

IPV4 = "192.0.2.1"
IPV6 = "2001:db8::1"
# Whatever else sshd needs, its client needs as well, and that one is installed.
LIBRARIES = ("libwrap0",)

SET_UP = r"""
set -e
folder=$1 tree=$2
shift 2
ip link set lo up
ip address add 192.0.2.1/32 dev lo
ip address add 2001:db8::1/128 dev lo nodad
{ printf 'root:x:0:0::%s:/bin/sh\n' "$folder/home"; grep -v ^root: /etc/passwd
  printf 'sshd:x:65533:65534::/run/sshd:/bin/false\n'; } >"$folder/passwd"
mount --bind "$folder/passwd" /etc/passwd
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -m 755 /run/sshd
mount --bind "$tree/usr/lib/openssh" /usr/lib/openssh  # newer ones start helpers from here
exec "$@"
"""

CONFIG = """\
HostKey {folder}/host-key
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
StrictModes no
PermitRootLogin yes
PidFile none
Subsystem sftp internal-sftp
"""


@dataclass(frozen=True, slots=True)
class Server:
    """A running sshd; `home` is its root's, `key` the private key that may log in."""

    home: Path
    key: Path
    pid: int

    def run(self, argv: Sequence[str | Path]) -> subprocess.CompletedProcess[str]:
        """Run a program as root of this host, from where sshd is reached."""
        inside = ("nsenter", f"--target={self.pid}", "--mount", "--net", "--")
        return subprocess.run(
            [*inside, *argv],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(self.home)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )


def make_key(path: Path) -> Path:
    """A new key pair without a passphrase; `path` is the private one."""
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", path.name, "-f", path], check=True
    )
    return path


@contextmanager
def running_server(folder: Path) -> Iterator[Server]:
    """It listens when the block begins, and is gone with all that it started when that ends."""
    tree = fetch_package("openssh-server")
    libraries = ":".join(
        str(next(fetch_package(n).glob("usr/lib/*/*.so*")).parent) for n in LIBRARIES
    )
    home = folder / "home"
    (home / ".ssh").mkdir(parents=True, mode=0o700)
    make_key(folder / "host-key")
    key = make_key(folder / "first-key")
    (home / ".ssh" / "authorized_keys").write_bytes(key.with_suffix(".pub").read_bytes())
    config = folder / "sshd_config"
    config.write_text(CONFIG.format(folder=folder))
    process = subprocess.Popen(
        [
            *("unshare", "--mount", "--net", "sh", "-c", SET_UP, "sh", folder, tree),
            *("setpriv", "--pdeathsig", "KILL"),
            *("env", f"LD_LIBRARY_PATH={libraries}"),
            *(tree / "usr/sbin/sshd", "-D", "-e", "-f", config),
        ],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        await_listening(process)
        yield Server(home, key, process.pid)
    finally:
        process.terminate()
        with process:
            assert process.stderr is not None
            print(f"--- sshd\n{process.stderr.read()}")  # pytest shows it when the test failed


def await_listening(process: subprocess.Popen[str]) -> None:
    """Returns once sshd says that it listens on IPv4 and IPv6."""
    assert process.stderr is not None
    waiting = {"0.0.0.0", "::"}  # noqa: S104 - every address of a namespace of its own
    said = []
    for line in process.stderr:
        said.append(line)
        waiting -= {name for name in waiting if f"listening on {name} " in line}
        if not waiting:
            return
    raise RuntimeError(f"sshd has not started:\n{''.join(said)}")
