"""6. In the guest: provision-guest against cloud-init, the same configuration in the same Debian.

A Debian of mmdebstrap's boots under systemd-nspawn; both programs are in it. Ours gets the real
config ISO while it runs and says done by itself; its time is from the disk's coming to that word.
The disk comes as the daemon brings it: nobody listens at the port, then somebody does, the script
says hello, and the disk is attached. cloud-init is given its NoCloud files as a folder, which
spares it to find and mount a disk, and its four stages run without a pause.
"""

import asyncio
import re
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from time import perf_counter

from provisiond.api.guest_config import GuestConfig
from provisiond.guest.verdict import Done
from provisiond.iso.image import build_image
from provisiond.iso.tree import Identity, build_tree
from tests.bench.clock import TICK
from tests.bench.crowd import PASSWORD_HASH
from tests.bench.figures import Row, Spread, Target, median_row
from tests.guest.machine import INSTANCE, MACS
from tests.lab.fixtures import TMPFS
from tests.systems.golden import IFUPDOWN, SYSTEMD, WITH_SYSTEMD, System, golden_root
from tests.systems.machine import Boot, Machine, installed

GROUP = "6 in the guest (Debian under systemd-nspawn)"
PATIENCE = 120.0  # seconds, for a busy machine
SYSTEM = System(
    "systemd",
    "cloud-init",
    SYSTEMD,
    (*WITH_SYSTEMD, "cloud-init", "ifupdown"),
    IFUPDOWN,
    # What a machine image has: nothing is asked of the network, and its own list of modules stays.
    files={"etc/cloud/cloud.cfg.d/90-bench.cfg": "datasource_list: [NoCloud, None]\n"},
)
OTHERS = 1000  # a configuration of cloud-init's has a number of its own
OUR_ORDER = "/etc/cloud/cloud.cfg.d/99-provision-guest.cfg"
THEIR_NETWORK = "/etc/network/interfaces.d/50-cloud-init"
SEED = "/var/lib/cloud/seed/nocloud"
# The keys of the SSH server are no part of the configuration: ours makes none either.
NO_HOST_KEYS = b', "ssh_deletekeys": false, "ssh_genkeytypes": []}\n'
STAGES = (
    "cloud-init init --local",
    "cloud-init init",
    "cloud-init modules --mode=config",
    "cloud-init modules --mode=final",
)
# Their status is no matter: a stage ends with 1 where any of its many modules finds nothing to do
# its work on. What was asked for is looked at afterwards.
RUN_STAGES = f"{{ {'; '.join(STAGES)}; }} >/run/cloud-init.said 2>&1; times"
_TIME = re.compile(r"(\d+)m([\d.]+)s")
_PID_FILE = "/run/provision-guest.pid"


async def measure(*, quick: bool) -> AsyncIterator[Row]:
    """Rows as they come."""
    for row in await asyncio.to_thread(_measure, 2 if quick else 15):
        yield row


def _measure(rounds: int) -> list[Row]:
    ours, theirs, our_cpu, their_cpu = [], [], [], []
    with installed(SYSTEM, golden_root(SYSTEM)) as machine:
        _keep_from_booting(machine)
        with machine.booted() as boot:
            for number in range(rounds + 1):
                seconds, cpu = _by_ours(boot, number)
                ours.append(seconds)
                our_cpu.append(cpu)
                with boot.hardware.unheard():  # as between two jobs
                    seconds, cpu = _by_cloud_init(boot, number)
                theirs.append(seconds)
                their_cpu.append(cpu)
    values = {"time": (ours[1:], theirs[1:]), "CPU": (our_cpu[1:], their_cpu[1:])}
    rows = []
    for what, (mine, others) in values.items():
        rows.append(median_row(GROUP, f"provision-guest: {what}", mine, "s"))
        rows.append(median_row(GROUP, f"cloud-init: {what}", others, "s"))
        ratio = Spread.of(others).median / max(TICK, Spread.of(mine).median)
        target = Target(10.0, "high")
        rows.append(Row(GROUP, f"cloud-init over ours: {what}", ratio, "×", target=target))
    return rows


def _keep_from_booting(machine: Machine) -> None:
    """cloud-init runs when it is told to; at the boot, without a disk, it would wait for DHCP."""
    disabled = machine.folder / "upper/etc/cloud/cloud-init.disabled"
    disabled.parent.mkdir(parents=True)
    disabled.touch()


def _tree(number: int) -> dict[str, bytes]:
    """The same for both but for its number, so that each time all of it is new."""
    config = GuestConfig.model_validate(
        {
            "hostname": f"web{number}.example.org",
            "ip": f"10.0.0.{number % 200 + 5}/24",
            "gateway": "10.0.0.1",
            "password_hash": _hash(number),
        }
    )
    nonce = f"{number:032x}"
    return build_tree(config, Identity(nonce, INSTANCE, number + 1), first_mac=MACS[0])


def _hash(number: int) -> str:
    """Another one each time."""
    return f"{PASSWORD_HASH[:-4]}{number:04}"


def _by_ours(boot: Boot, number: int) -> tuple[float, float]:
    """Seconds until done, and of CPU, from its hello to the next."""
    boot.hardware.hello(within=PATIENCE)
    before = _cpu_of_script(boot)
    with tempfile.TemporaryDirectory(prefix="iso-", dir=TMPFS) as folder:
        iso = Path(folder, "config.iso")
        iso.write_bytes(build_image(_tree(number)))
        with boot.hardware.disk(boot.container, iso):
            started = perf_counter()
            said = boot.hardware.verdict(f"{number:032x}", within=PATIENCE)
            seconds = perf_counter() - started
    assert said == Done(), said
    boot.hardware.hello(within=PATIENCE)  # it waits again: the run's own process was waited for
    return seconds, _cpu_of_script(boot) - before


def _cpu_of_script(boot: Boot) -> float:
    """Of the script and of all that it has started and waited for."""
    pid = boot.read(_PID_FILE).strip()
    fields = boot.read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) * TICK


def _by_cloud_init(boot: Boot, number: int) -> tuple[float, float]:
    """Seconds that its stages took, and of CPU."""
    boot.run("cloud-init", "clean", "--logs", "--seed")
    tree = _tree(number + OTHERS)
    seed = boot.container.path(SEED)
    seed.mkdir(parents=True)
    for name in ("meta-data", "network-config"):
        (seed / name).write_bytes(tree[name])
    # cloud-init reads YAML, of which JSON is a part; ours is one object, and more may follow in it.
    user_data = tree["user-data"].rstrip().removesuffix(b"}") + NO_HOST_KEYS
    (seed / "user-data").write_bytes(user_data)
    # Ours has told it to leave the network alone.
    boot.container.path(OUR_ORDER).unlink()
    started = perf_counter()
    said = boot.run("sh", "-c", RUN_STAGES)
    seconds = perf_counter() - started
    name = boot.run("hostname").strip()
    assert name == f"web{number + OTHERS}", f"cloud-init has made it {name}"
    assert _hash(number + OTHERS) in boot.read("/etc/shadow"), "cloud-init has set no password"
    children = _TIME.findall(said.splitlines()[-1])
    # Ours would rightly refuse an interface that another file configures.
    boot.container.path(THEIR_NETWORK).unlink()
    return seconds, sum(60 * int(minutes) + float(rest) for minutes, rest in children)
