"""Certificates for tests, made by openssl: an authority, and those that it has signed."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.daemon.program import Daemon

_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc")


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate and its key, both PEM."""

    certificate: Path
    key: Path


def make_authority(folder: Path, name: str = "authority") -> Certificate:
    """An authority of its own."""
    return _make(folder, name, "-addext", "basicConstraints=critical,CA:TRUE")


def make_certificate(
    folder: Path, name: str, *, by: Certificate, ip: str | None = None
) -> Certificate:
    """A certificate for the DNS name `name`, and for `ip`, signed by an authority."""
    names = f"DNS:{name}" + ("" if ip is None else f",IP:{ip}")
    return _make(
        folder,
        name,
        *("-CA", str(by.certificate)),
        *("-CAkey", str(by.key)),
        *("-addext", f"subjectAltName={names}"),
        *("-addext", "basicConstraints=critical,CA:FALSE"),
    )


def tls_settings(own: Certificate, *, clients: Certificate) -> dict[str, object]:
    """A daemon's that serves over TLS on loopback, on a port of the kernel's choice, for whom this
    authority knows."""
    return {
        "listen": "127.0.0.1:0",
        "tls_certificate": str(own.certificate),
        "tls_key": str(own.key),
        "tls_client_ca": str(clients.certificate),
    }


def tls_port(daemon: Daemon) -> int:
    """The port that a daemon with these settings says it serves on."""
    line = next(line for line in daemon.said().splitlines() if "127.0.0.1 port" in line)
    return int(line.rpartition(" ")[2])


def _make(folder: Path, name: str, *more: str) -> Certificate:
    made = Certificate(folder / f"{name}.crt", folder / f"{name}.key")
    argv = (
        *("openssl", "req", "-x509"),
        *_NEW_KEY,
        *("-subj", f"/CN={name}"),
        *("-days", "2"),
        *("-keyout", str(made.key)),
        *("-out", str(made.certificate)),
        *more,
    )
    subprocess.run(argv, check=True, capture_output=True)
    return made
