"""A real libvirtd (`qemu:///system`) that shares nothing with the host but the kernel.

It and its guests live in namespaces of their own: processes, mounts, network. /etc is an overlay,
/run and /var are empty tmpfs: no D-Bus, no udev, no other libvirtd is there to be met. What both
sides need lies in one folder and has the same path in and outside: libvirtd's sockets, the guests'
kernel, channels, consoles. QEMU runs as the user libvirt-qemu, as Debian's packages have it.

The namespaces end with this process, however it ends, and everything that runs in them with them.
"""

import os
import select
import shutil
import signal
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import libvirt

from tests.lab.domain import Guest, console_log, domain_xml, shell_socket, template_xml
from tests.lab.embed import copy_missing, end_process, qemu_pids
from tests.lab.initramfs import GuestFiles
from tests.lab.packages import cache_directory
from tests.lab.program import Running

# The first process of the namespaces: reaps what the others leave, and ends when its input does.
SET_UP = """
set -e
folder=$1
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o mode=755 tmpfs /var
mkdir -p /var/log /var/lib /var/cache/libvirt /var/of-etc /var/work
mount --bind "$folder/cache" /var/cache/libvirt
mount -t overlay -o lowerdir=/etc,upperdir=/var/of-etc,workdir=/var/work overlay /etc
rm -rf /etc/libvirt
cp -r "$folder/etc" /etc/libvirt
# A KVM that root may use and QEMU's user may not has libvirt ask QEMU what it can do (10 s) again
# at every start of a guest.
install -m 600 /dev/null /var/no-kvm
[ ! -e /dev/kvm ] || mount --bind /var/no-kvm /dev/kvm
ip link set lo up
exec 3<&0
cat <&3 &
echo ready
wait $!
"""

SETTINGS = """\
unix_sock_dir = "{folder}/run"
auth_unix_ro = "none"
auth_unix_rw = "none"
log_outputs = "3:file:{folder}/libvirtd.log"
"""
# What this leaves out is as Debian has it: QEMU's user, and that it is given the files it opens.
QEMU_SETTINGS = """\
security_driver = "none"
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
"""


class Libvirtd:
    """One libvirtd over `folder`, which must be empty, short, and open to all (mode 0755)."""

    def __init__(self, folder: Path, *, files: GuestFiles) -> None:
        self.folder = folder
        self.log = folder / "libvirtd.log"
        for name in ("run", "cache", "etc"):
            (folder / name).mkdir()
        (folder / "etc/libvirtd.conf").write_text(SETTINGS.format(folder=folder))
        (folder / "etc/qemu.conf").write_text(QEMU_SETTINGS)
        copy_missing(kept_capabilities(), self._capabilities)
        # libvirt gives both to QEMU's user, who could not come to where they are kept.
        self._files = GuestFiles(kernel=folder / "kernel", initramfs=folder / "initramfs")
        shutil.copyfile(files.kernel, self._files.kernel)
        shutil.copyfile(files.initramfs, self._files.initramfs)
        self._pid = 0
        spaces = ("--mount", "--net", "--pid", "--mount-proc", "--fork", "--kill-child")
        self._holder = subprocess.Popen(
            ["unshare", *spaces, "sh", "-c", SET_UP, "sh", folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        if self._holder.stdout is None or self._holder.stdout.readline() != b"ready\n":
            raise RuntimeError("the namespaces of libvirtd cannot be made; stderr says why")

    @property
    def uri(self) -> str:
        """What provisiond is given: `qemu:///system`, at a socket of its own."""
        return f"qemu+unix:///system?socket={self._socket}"

    @property
    def inside(self) -> tuple[str, ...]:
        """What stands before a command that shall run beside libvirtd, with its /run and /var.

        The command ends with nsenter, which is its parent and hands on no signal.
        """
        children = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children")
        spaces = ("--target", children.read_text().strip(), "--mount", "--net", "--pid")
        return ("nsenter", *spaces, "setpriv", "--pdeathsig", "KILL")

    # ------------------------------------------------------------ the process
    def start(self) -> None:
        """Start it; returns when it serves. Guests that run already are taken over."""
        self._run("libvirtd", "--daemon", "--pid-file", "/run/libvirtd.pid")
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(self._socket))
            who = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        self._pid, _user, _group = struct.unpack("3i", who)

    def stop(self) -> None:
        """SIGTERM; what it is at work on comes to its end first. Its guests go on."""
        process = os.pidfd_open(self._pid)
        try:
            signal.pidfd_send_signal(process, signal.SIGTERM)
            select.select([process], [], [])
        finally:
            os.close(process)
        self._pid = 0

    def kill(self) -> None:
        """SIGKILL; returns when it is gone. Its guests go on."""
        end_process(self._pid)
        self._pid = 0

    def lose_power(self) -> None:
        """SIGKILL to it and to every guest, and what is in memory is gone: the host's power cut."""
        self.kill()
        for pid in qemu_pids(self.folder):
            end_process(pid)
        self._run("find", "/run", "-mindepth", "1", "-delete")
        # libvirt's marks that a guest has them: it knows by the time of the host's boot that they
        # are old, and the host has not booted.
        for log in set(self.folder.glob("*.log")) - {self.log}:
            log.unlink()

    def freeze(self) -> None:
        """SIGSTOP: it answers nobody, and nobody is told."""
        os.kill(self._pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        os.kill(self._pid, signal.SIGCONT)

    def reset(self) -> None:
        """No guest, and a libvirtd that runs: what the next test expects."""
        if self._pid:
            self.thaw()
        else:
            self.start()
        with self._opened() as connection:
            for domain in connection.listAllDomains():
                if domain.isActive():
                    self.thaw_qemu(domain.name())
                    domain.destroy()
                domain.undefine()
                # libvirt may have left its mark on it: that a guest has it.
                console_log(self.folder, domain.name()).unlink(missing_ok=True)

    def close(self) -> None:
        """End it and its guests."""
        copy_missing(self._capabilities, kept_capabilities())
        self._holder.communicate()

    # ------------------------------------------------------------ guests
    def start_guests(self, *guests: Guest) -> list[Running]:
        """Define and start them."""
        with self._opened() as connection:
            for guest in guests:
                xml = domain_xml(guest, files=self._files, folder=self.folder, own_channel=True)
                connection.defineXML(xml).create()
        return [self._running(guest) for guest in guests]

    def xml(self, name: str) -> str:
        """The live XML."""
        with self._opened() as connection:
            xml: str = connection.lookupByName(name).XMLDesc()
            return xml

    def destroy_guest(self, name: str) -> None:
        """Power it off."""
        with self._opened() as connection:
            connection.lookupByName(name).destroy()

    def power_on(self, name: str) -> None:
        """Start a domain that is off."""
        with self._opened() as connection:
            connection.lookupByName(name).create()

    def template(self, files: GuestFiles, *words: str) -> str:
        """The operator's template of guests on a disk that boot with these files, and with more
        words for their kernel."""
        # As with its own files: libvirt gives them to QEMU's user.
        initramfs = shutil.copyfile(files.initramfs, self.folder / "disk-initramfs")
        boot = GuestFiles(kernel=self.folder / "kernel", initramfs=initramfs)
        return template_xml(Guest("any", kernel_words=words), files=boot, folder=self.folder)

    def waits_for_monitor(self, name: str) -> bool:
        """Whether a call waits for the domain's QEMU to answer."""
        with self._opened() as connection:
            state, _details, _milliseconds = connection.lookupByName(name).controlInfo()
            return bool(state == libvirt.VIR_DOMAIN_CONTROL_OCCUPIED)

    def freeze_qemu(self, name: str) -> None:
        """SIGSTOP to the domain's QEMU: its monitor is stuck."""
        self._signal_qemu(name, "STOP")

    def thaw_qemu(self, name: str) -> None:
        """SIGCONT."""
        self._signal_qemu(name, "CONT")

    # ------------------------------------------------------------ inside
    @property
    def _socket(self) -> Path:
        return self.folder / "run/libvirt-sock"

    @property
    def _capabilities(self) -> Path:
        return self.folder / "cache/qemu/capabilities"

    @contextmanager
    def _opened(self) -> Iterator[libvirt.virConnect]:
        connection = libvirt.open(self.uri)
        try:
            yield connection
        finally:
            connection.close()

    def _run(self, *argv: str) -> None:
        subprocess.run([*self.inside, *argv], check=True)

    def _signal_qemu(self, name: str, what: str) -> None:
        self._run("sh", "-c", f"kill -{what} $(cat /run/libvirt/qemu/{name}.pid)")

    def _running(self, guest: Guest) -> Running:
        return Running(
            name=guest.name,
            uuid=guest.uuid,
            mac=guest.mac,
            uri=self.uri,
            log=console_log(self.folder, guest.name),
            shell=shell_socket(self.folder, guest.name),
        )


def kept_capabilities() -> Path:
    """What libvirt found out about QEMU as this user (10 s of probing), for the next libvirtd."""
    return cache_directory() / "libvirtd-capabilities"
