"""Where could a secret rest? A canary goes through a job, and every place is searched for it.

A search says nothing unless it could have found something: `found` is told what each kind of place
is known to hold, and fails where it does not meet that.
"""

import base64
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import quote

from passlib.hash import sha512_crypt

from tests.daemon.program import Api
from tests.xenstore.wire import Connection

SHA512CRYPT = re.compile(rb"\$6\$[^\s$]{1,16}\$[./0-9A-Za-z]{8,86}")  # its beginning is enough
_API = ("/v1/jobs", "/v1/domains", "/v1/bases", "/v1/disks", "/healthz", "/metrics")


@dataclass(frozen=True, slots=True)
class Place:
    """What somebody else could read, now or later."""

    name: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Canary:
    """A password that nobody else has, and a hash of it as a master may send one."""

    password: str = field(default_factory=lambda: f"canary-{secrets.token_hex(12)}")

    @property
    def hash(self) -> str:
        """Always the same one."""
        salt = self.password[-16:]
        return str(sha512_crypt.using(rounds=5000, salt=salt).hash(self.password))


def found(
    secret: Iterable[str], places: Iterable[Place], *, known: Mapping[str, str], hashes: bool = True
) -> list[str]:
    """The names of the places that hold one of these secrets in any form, or with `hashes` any hash
    of a password as sha512crypt.

    For each pattern of `known` there has to be a place with such a name that holds the text.
    """
    needles = [form for one in secret for form in forms(one)]
    assert needles
    unmet = dict(known)
    holding = []
    for place in places:
        for pattern, text in known.items():
            if fnmatchcase(place.name, pattern) and text.encode() in place.content:
                unmet.pop(pattern, None)
        if any(needle in place.content for needle in needles) or (
            hashes and SHA512CRYPT.search(place.content)
        ):
            holding.append(place.name)
    assert not unmet, f"not searched: no such place holds that: {unmet}"
    return holding


def forms(text: str) -> list[bytes]:
    """The bytes that give it away: itself, UTF-16, hex, as in a URL, base64 wherever it begins."""
    plain = text.encode()
    in_base64 = [
        # The first and the last group of four depend on what is beside the text.
        base64.b64encode(b"\0" * before + plain)[4 : (before + len(plain)) // 3 * 4]
        for before in range(3)
    ]
    in_url = quote(text, safe="").encode()
    return [plain, text.encode("utf-16-le"), plain.hex().encode(), in_url, *in_base64]


# ---------------------------------------------------------------- places
def files_below(*folders: Path, but: Path | None = None) -> Iterator[Place]:
    """Every file: logs, state with its journals and free pages, libvirt's XML, traces, cores.

    What is below `but` is left out.
    """
    for folder in folders:
        for path in folder.rglob("*"):
            if but is not None and path.is_relative_to(but):
                continue
            try:
                if path.is_file():
                    yield Place(str(path), path.read_bytes())
            except FileNotFoundError:
                pass  # it is gone since it was listed


def processes(*folders: Path) -> Iterator[Place]:
    """Arguments and environment of each process that is there and has to do with these folders."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (process / "cmdline").read_bytes()
            if any(os.fsencode(folder) in arguments for folder in folders):
                yield Place(f"arguments of {process.name}", arguments)
                environment = (process / "environ").read_bytes()
                yield Place(f"environment of {process.name}", environment)
        except (FileNotFoundError, ProcessLookupError):
            pass  # it has ended since it was listed


def open_files(pid: int, *, but: Path | None = None) -> Iterator[Place]:
    """What a process has open, files without a name too; not what is or was below `but`."""
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            name = descriptor.readlink()
            if descriptor.is_file() and not (but is not None and name.is_relative_to(but)):
                yield Place(f"open in {pid}: {name}", descriptor.read_bytes())
        except FileNotFoundError:
            pass  # it is closed since it was listed


def memory(pid: int) -> Iterator[Place]:
    """What a process has in memory and may write: heap, stacks, all that is its own."""
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as file:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            extent, permissions, *_ = line.split(maxsplit=5)
            start, end = (int(bound, 16) for bound in extent.split("-"))
            if not permissions.startswith("rw"):
                continue
            try:
                yield Place(
                    f"memory of {pid} at {extent}", os.pread(file.fileno(), end - start, start)
                )
            except OSError:
                pass  # a device's


async def replies(api: Api) -> Iterator[Place]:
    """All that the API answers a reader, with the whole history of each job that has ended."""
    paths = [*_API]
    for job in (await api.get("/v1/jobs")).json()["jobs"]:
        paths.append(f"/v1/jobs/{job['id']}")
        if job["state"] in ("SUCCEEDED", "FAILED"):
            paths.append(f"/v1/jobs/{job['id']}/events")
    answered = [await api.get(path) for path in paths]
    return iter(
        [
            Place(f"GET {path}", str(reply.headers).encode() + reply.content)
            for path, reply in zip(paths, answered, strict=True)
        ]
    )


def xenstore(connection: Connection, path: str = "/") -> Iterator[Place]:
    """Every key and its value."""
    yield Place(f"xenstore {path}", path.encode() + b" = " + connection.read(path))
    for name in connection.directory(path):
        yield from xenstore(connection, f"{path.rstrip('/')}/{name}")


# ---------------------------------------------------------------- every process
def traced(trace: Path) -> tuple[str, ...]:
    """Stands before a command: whatever it starts, and what that starts, is written down whole.

    The command stays the child of its caller; arguments and environment are added to the file.
    """
    return (
        *("strace", "--daemonize", "--follow-forks", "--seccomp-bpf"),
        *(
            "--quiet=all",
            "--trace=execve",
            "--signal=none",
            "--no-abbrev",
            "--string-limit=1000000",
        ),
        *("--output", str(trace), "--output-append-mode"),
    )
