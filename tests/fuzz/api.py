"""schemathesis against a daemon that serves: requests out of its OpenAPI, replies compared with it.

The daemon is the real one, on a port with mutual TLS; below it is libvirt's test driver with some
domains that take no disk, so that jobs are accepted, fail half-way and are undone. In a second run
the names in the document are narrowed to those that exist, or requests would come no further than
to a 404.
"""

import asyncio
import json
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from provisiond.plan import CHANNEL_NAME
from tests.daemon.certificates import (
    Certificate,
    make_authority,
    make_certificate,
    tls_port,
    tls_settings,
)
from tests.daemon.fixtures import fresh_folder
from tests.daemon.images import files_of, import_of, overlay_of, raw_image, run_job
from tests.daemon.program import Daemon, Json

SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")
MASTER = "master.example.org"
DOMAINS = [f"web{number}" for number in range(40)]
ENDLESS = "/v1/events"  # a stream that nobody ends

# A schema cannot tell every rule of a configuration: that a gateway is in its subnet, for one.
CONFIG = """
[[operations]]
include-path = "/v1/jobs"
include-method = "POST"
generation.max-examples = {requests}
checks.positive_data_acceptance.expected-statuses = ["2xx", 403, 404, 409, 422, 429]
"""


@dataclass(frozen=True, slots=True)
class Campaign:
    """One run of schemathesis: on the document as it is, or narrowed to what exists."""

    name: str
    narrowed: bool
    options: Sequence[str]


CAMPAIGNS = (
    Campaign("whatever the document allows", narrowed=False, options=()),
    Campaign(
        "of what exists",
        narrowed=True,
        options=("--phases", "fuzzing,stateful", "--mode", "positive"),
    ),
)


@dataclass(frozen=True, slots=True)
class ApiHost:
    """The daemon, its folder for other things, and the certificates of a client."""

    daemon: Daemon
    folder: Path
    authority: Certificate
    master: Certificate
    images: tuple[Path, ...]

    @property
    def url(self) -> str:
        """Where it serves over TLS."""
        return f"https://127.0.0.1:{tls_port(self.daemon)}"


@asynccontextmanager
async def api_host() -> AsyncIterator[ApiHost]:
    """A daemon with domains, a base, an overlay, a template, and images to import."""
    with fresh_folder() as folder:
        authority = make_authority(folder)
        own = make_certificate(folder, "host", by=authority, ip="127.0.0.1")
        settings = tls_settings(own, clients=authority) | {
            "libvirt_uri": f"test://{_node(folder)}",
            "requests_per_second": 1e6,
            "max_requests": 1000,
            "max_jobs_waiting": 100_000,
            "deadline_seconds": 5,
            "ready_seconds": 0.1,
            "attach_seconds": 0.5,
            "detach_seconds": 0.5,
        }
        environment = {"PROVISIOND_OPERATORS": json.dumps([MASTER])}
        daemon = Daemon(folder, settings, environment)
        daemon.template_dir.mkdir()
        (daemon.template_dir / "default.xml").write_text("<domain type='qemu'/>")
        images = _images(folder)
        try:
            await daemon.start()
            await run_job(daemon, import_of(images[0]))
            await run_job(daemon, overlay_of("debian", name="spare"))
            master = make_certificate(folder, MASTER, by=authority)
            yield ApiHost(daemon, folder, authority, master, images)
        finally:
            await daemon.kill()


def _node(folder: Path) -> Path:
    """What libvirt's test driver begins with: running domains with a channel."""
    domains = "".join(
        f"<domain type='test'><name>{name}</name><memory>1024</memory><os><type>hvm</type></os>"
        "<devices><controller type='scsi' index='0' model='virtio-scsi'/><channel type='unix'>"
        f"<source mode='bind' path='{folder}/{name}.sock'/>"
        f"<target type='virtio' name='{CHANNEL_NAME}'/></channel></devices></domain>"
        for name in DOMAINS
    )
    path = folder / "node.xml"
    path.write_text(f"<node>{domains}</node>")
    return path


def _images(folder: Path) -> tuple[Path, ...]:
    broken = folder / "broken.qcow2"
    broken.write_bytes(b"QFI\xfb\0\0\0\3".ljust(2**16, b"\xff"))
    return raw_image(folder / "whole.raw", mib=1), broken, folder / "absent.raw"


# ---------------------------------------------------------------- a run
async def run(host: ApiHost, campaign: Campaign, *, examples: int, seed: int) -> tuple[int, str]:
    """The exit status of schemathesis (0: nothing was found), and what it said."""
    place = host.folder / "schemathesis"
    place.mkdir(exist_ok=True)
    requests = examples * (25 if campaign.narrowed else 1)
    (place / "schemathesis.toml").write_text(CONFIG.format(requests=requests))
    document = f"{host.url}/openapi.json"
    if campaign.narrowed:
        narrowed = narrow((await host.daemon.get("/openapi.json")).json(), host)
        (place / "openapi.json").write_text(json.dumps(narrowed))
        document = "openapi.json"
    argv: tuple[str | Path, ...] = (
        *(SCHEMATHESIS, "run", document),
        *("--url", host.url),
        *("--request-cert", host.master.certificate),
        *("--request-cert-key", host.master.key),
        *("--tls-verify", host.authority.certificate),
        *("--request-timeout", "30"),
        *("--exclude-path", ENDLESS),
        *("--max-examples", str(examples)),
        *("--seed", str(seed)),
        *("--suppress-health-check", "all"),  # they are about time
        "--continue-on-failure",
        "--no-color",
        *campaign.options,
    )
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=place,
        env=os.environ | {"COLUMNS": "150"},
    )
    out, _ = await process.communicate()
    return process.returncode or 0, out.decode()


def narrow(document: Json, host: ApiHost) -> Json:
    """The same document, with no name in a request but of what there is (or once was)."""
    words: dict[str, list[Any]] = {
        "base": ["debian", "absent"],
        "disk": ["spare", "absent", None],
        "domain": [*DOMAINS, "new1", "new2"],
        "name": ["debian", "spare", "one", "two", "three", None],
        "parent": ["debian", None],
        "source": list(map(str, host.images)),
        "template": ["default", "absent"],
        "hostname": ["web1.example.org"],
        "ip": ["192.0.2.10/24", None],
        "gateway": ["192.0.2.1", None],
        "user": ["root"],
        "timezone": ["Europe/Vienna", None],
        "password": ["correct horse", None],
        "mac": ["52:54:00:12:34:56", None],
        "size": [512, 2**20, 2**30, None],
        **{key: [None] for key in ("password_hash", "network", "bridge", "generation")},
        **{key: [[]] for key in ("interfaces", "nameservers", "search", "ssh_authorized_keys")},
    }
    schemas = document["components"]["schemas"]
    for schema in (schemas[name] for name in schemas if name.endswith("Request")):
        _narrow(schema, words)
    for name in ("Create", "GuestConfig"):
        _narrow(schemas[name], words)
    for path, operations in document["paths"].items():
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                if parameter["name"] == "name":
                    allowed = DOMAINS if "domains" in path else words["name"][:-1]
                    parameter["schema"] = {"enum": [*allowed, "absent"]}
    return document


def _narrow(schema: Json, words: dict[str, list[Any]]) -> None:
    for name in schema["properties"].keys() & words.keys():
        allowed = words[name]
        if name in schema.get("required", ()):
            allowed = [word for word in allowed if word is not None]
        schema["properties"][name] = {"enum": allowed}


# ---------------------------------------------------------------- what became of it
async def settle(host: ApiHost) -> Counter[tuple[str, str]]:
    """Cancel what is at work, wait for every job's end: how many of each kind ended how."""
    ended: Counter[tuple[str, str]] = Counter()
    for job in await _jobs(host):
        await host.daemon.cancel(job["id"])
    for job in await _jobs(host):
        end = await host.daemon.ended(job["id"])
        code = end["failure"]["code"] if end["failure"] else "ok"
        ended[end["kind"], f"{end['state']}: {code}"] += 1
    return ended


async def _jobs(host: ApiHost) -> list[Json]:
    return list((await host.daemon.get("/v1/jobs?limit=1000")).json()["jobs"])


async def leftovers(host: ApiHost) -> list[str]:
    """What should not be there when every job has ended."""
    left = [str(path) for path in host.daemon.iso_folder.iterdir()]
    left += [f"unended job {job}" for job in await _jobs(host) if not _has_ended(job)]
    known = set()
    for what in ("bases", "disks"):
        for image in (await host.daemon.get(f"/v1/{what}")).json()[what]:
            known.add(image["path"])
            if what == "bases":
                known.add(str(Path(image["path"]).with_suffix(".json")))
    left += [
        name for name in files_of(host.daemon) if f"{host.daemon.image_dir}/{name}" not in known
    ]
    said = host.daemon.said()
    left += [line for line in said.splitlines() if "Traceback" in line or "unforeseen" in line]
    return left


def _has_ended(job: Json) -> bool:
    return job["state"] in ("SUCCEEDED", "FAILED")
