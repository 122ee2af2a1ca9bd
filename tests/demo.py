"""`make demo`: the real daemon makes and provisions a real guest; all that it claims is checked.

Nothing is simulated: libvirt's QEMU driver runs inside provisiond (qemu:///embed), QEMU boots
Debian's cloud kernel with a busybox root and the real guest script, and provisionctl asks for the
guest. What the demo makes is in one directory of its own on tmpfs, and is gone at its end.
"""

import asyncio
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from passlib.hash import sha512_crypt

from provisiond.disk.folder import make_mutable
from provisiond.virt.kvm import probe_kvm
from tests.daemon.canary import files_below, found
from tests.daemon.program import Daemon
from tests.lab.console import Console, open_console
from tests.lab.disk import disk_guest_files
from tests.lab.domain import Guest, template_xml
from tests.lab.embed import lab_folder, prepare_root
from tests.lab.fixtures import TMPFS
from tests.lab.program import Lab

PROVISIONCTL = Path(sys.executable).with_name("provisionctl")
# A guest boots in under a second where KVM works; where it does not, it may just stay silent.
KVM_PROBE_SECONDS = 3
GUEST_SECONDS = 120
ADDRESS = "10.0.2.15/24"
GATEWAY = "10.0.2.2"
NAME = "web1"
BASE = "tiny"
HOST_NAME = "web1.example.org"
DATA_SIZE, DATA_TARGET = "64M", "vdb"


class DemoFailed(Exception):
    """Something is not as it was claimed."""


def main() -> None:
    """Run the demo; exit 0 only if every check was made and held."""
    password = secrets.token_urlsafe(18)
    try:
        with _folder() as folder:
            last_line = asyncio.run(_demo(folder, password))
    except DemoFailed as failure:
        sys.exit(f"demo: FAILED: {failure}")
    print(last_line)


async def _demo(folder: Path, password: str) -> str:
    files = disk_guest_files()
    kvm = await probe_kvm(files.boot.kernel, within=KVM_PROBE_SECONDS)
    accelerator: Literal["qemu", "kvm"] = "kvm" if kvm.works else "qemu"
    _say(f"guests run with {'KVM' if kvm.works else f'TCG (KVM: {kvm.reason})'}")
    lab = Lab(root=folder / "libvirt", files=files.boot)
    prepare_root(lab.root)
    daemon = Daemon(folder / "provisiond", {"libvirt_uri": lab.uri})
    daemon.template_dir.mkdir(parents=True)
    model = Guest("template", accelerator=accelerator)
    template = template_xml(model, files=files.boot, folder=lab_folder(lab.root))
    (daemon.template_dir / "default.xml").write_text(template)
    try:
        await daemon.start()
        _say(f"provisiond serves on {daemon.socket}; a golden base for it:")
        imported = ("base", "import", BASE, files.image, "--source-format", "raw")
        await _provisionctl(daemon, *imported)
        _say("and a guest out of that base, by one request:")
        started = time.monotonic()
        job = await _create(daemon, password)
        seconds = time.monotonic() - started
        guest = lab.running(NAME)
        async with asyncio.timeout(GUEST_SECONDS), open_console(guest.shell) as console:
            hashed = await _check_guest(console, password)
            await _use_data_disk(daemon, console)
        _say("what the host knows of it:")
        await _provisionctl(daemon, "domains")
        await _provisionctl(daemon, "ip", NAME)
        await _provisionctl(daemon, "base", "verify", BASE)
        print("  the base is unchanged, as its hash says")
        await daemon.stop()
        _check_host(folder, daemon, lab, job)
        _check_secrets(folder, password=password, hashed=hashed)
    finally:
        await daemon.kill()
        lab.destroy()
        for path in daemon.image_dir.glob("bases/*"):
            make_mutable(path)
    return (
        f"demo: created and provisioned {NAME} in {seconds:.1f} s; config ISO attached for "
        f"{job['iso_attached_seconds']:.1f} s, now detached and destroyed"
    )


async def _create(daemon: Daemon, password: str) -> dict[str, Any]:
    """`provisionctl create … --wait`, as a person would type it; its job."""
    await _provisionctl(
        daemon,
        *("create", NAME),
        *("--base", BASE),
        *("--ip", ADDRESS),
        *("--gateway", GATEWAY),
        *("--hostname", HOST_NAME),
        "--password-stdin",
        "--wait",
        stdin=password.encode() + b"\n",
    )
    jobs = (await daemon.get("/v1/jobs")).json()["jobs"]
    return await daemon.job(jobs[0]["id"])


async def _provisionctl(daemon: Daemon, *words: str | Path, stdin: bytes = b"") -> None:
    print("$ provisionctl", *words, flush=True)
    argv: tuple[str | Path, ...] = (PROVISIONCTL, "--socket", daemon.socket, *words)
    process = await asyncio.create_subprocess_exec(*argv, stdin=asyncio.subprocess.PIPE)
    await process.communicate(stdin)
    if process.returncode != 0:
        raise DemoFailed(f"provisionctl ended with {process.returncode}\n{daemon.log.read_text()}")


async def _check_guest(console: Console, password: str) -> str:
    """Look from inside the guest, through its console; return the password's hash found there."""
    _say("inside the guest, through its console:")
    short_name = HOST_NAME.partition(".")[0]
    await _inside(console, "hostname", expected=short_name)
    await _inside(console, "ip -o -4 addr show eth0", expected=f"inet {ADDRESS}")
    await _inside(console, "ip route", expected=f"default via {GATEWAY}")
    await _inside(console, "cat /etc/hosts", expected=HOST_NAME)
    shadow = (await console.run("grep ^root: /etc/shadow")).output
    hashed = shadow.split(":")[1] if ":" in shadow else ""
    if not hashed.startswith("$6$") or not sha512_crypt.verify(password, hashed):
        raise DemoFailed("root's hash in the guest is not the hash of the password")
    print("  /etc/shadow: root's hash is sha512crypt of the password that was set")
    if "iso9660" in (await console.run("cat /proc/mounts")).output:
        raise DemoFailed("the config ISO is still mounted in the guest")
    print("  no config ISO is mounted")
    return hashed


async def _use_data_disk(daemon: Daemon, console: Console) -> None:
    """A disk is hot-added, written in the guest, and taken away with its data."""
    _say("a data disk for the running guest:")
    await _provisionctl(daemon, "disk", "attach", NAME, "--size", DATA_SIZE)
    wait = f"until [ -b /dev/{DATA_TARGET} ]; do usleep 10000; done; echo {DATA_TARGET} is there"
    await _inside(console, wait, expected="is there")
    mebibytes = f"expr $(cat /sys/block/{DATA_TARGET}/size) / 2048"
    await _inside(console, mebibytes, expected=DATA_SIZE.removesuffix("M"))
    await _inside(console, f"date >/dev/{DATA_TARGET} && echo written", expected="written")
    await _provisionctl(daemon, "disk", "detach", NAME, DATA_TARGET, "--remove")


async def _inside(console: Console, command: str, *, expected: str) -> None:
    answer = await console.run(command)
    if answer.status != 0 or expected not in answer.output:
        raise DemoFailed(f"in the guest, {command!r} says {answer.output!r}, not {expected!r}")
    print(f"  $ {command}", *(f"    {line}" for line in answer.output.splitlines()), sep="\n")


def _check_host(folder: Path, daemon: Daemon, lab: Lab, job: dict[str, Any]) -> None:
    """Look from the host: no ISO, no attachment, and a proof in the job that says the same."""
    _say("on the host:")
    if isos := [path for path in folder.rglob("*.iso*") if path.is_file()]:
        raise DemoFailed(f"config ISOs are left: {isos}")
    if any(daemon.iso_folder.iterdir()):
        raise DemoFailed(f"{daemon.iso_folder} is not empty")
    print(f"  {daemon.iso_folder} is empty")
    if ".iso" in lab.xml(NAME):
        raise DemoFailed("the config ISO still stands in the domain's live XML")
    print(f"  no config ISO stands in the live XML of {NAME}")
    proof = job["proof"]
    if not all(held for name, held in proof.items() if name != "at"):
        raise DemoFailed(f"the job's proof does not hold: {proof}")
    print(f"  the job's proof says the same, at {proof['at']}")


def _check_secrets(folder: Path, *, password: str, hashed: str) -> None:
    """Read every file of the demo (state, logs, settings, libvirt's own) for the two secrets."""
    places = list(files_below(folder))
    known = {"*/provisiond.sqlite": HOST_NAME, "*/log": NAME, "*/qemu/*.xml": "<domain"}
    # The guest's own disk holds its /etc/shadow, and with that the hash: never the password.
    others = [place for place in places if Path(place.name).parent.name != "disks"]
    if holding := [
        *found([password], places, known=known, hashes=False),
        *found([hashed], others, known=known),
    ]:
        raise DemoFailed(f"the secret stands in {', '.join(holding)}")
    print(
        f"  neither password nor hash is in any of {len(places)} files: state, logs, libvirt's; "
        "the hash stands on the guest's own disk alone"
    )


def _say(text: str) -> None:
    print(f"demo: {text}", flush=True)


@contextmanager
def _folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="demo-", dir=TMPFS))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
