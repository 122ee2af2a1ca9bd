"""Mutual TLS: the daemon's certificate, and which clients it believes; read again when told.

ssl has one importer: this module.
"""

import ssl
from dataclasses import dataclass
from pathlib import Path

from provisiond.errors import SettingsError


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """PEM files: the daemon's chain, its key, and the authorities whose clients may connect."""

    certificate: Path
    key: Path
    client_ca: Path


class ServerTls:
    """TLS 1.2 or later, only for clients with a certificate of `client_ca`."""

    def __init__(self, files: CertificateFiles) -> None:
        """Raises SettingsError where a file cannot be used."""
        self._files = files
        self.context = self._read()
        """For the next connection: what the files said last. The sessions that TLS 1.2 resumes
        without another look at the client's certificate end with it."""

    def reload(self) -> None:
        """Read the files again, for every connection from now on.

        Raises SettingsError where one cannot be used; then all stays as it is.
        """
        self.context = self._read()

    def _read(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.verify_mode = ssl.CERT_REQUIRED
        # A resumed session skips the look at the client's certificate; by its ID it still can be,
        # which Python cannot turn off.
        context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
        context.num_tickets = 0
        files = self._files
        for setting, path, load in (
            ("tls_certificate, tls_key", files.certificate, self._load_own),
            ("tls_client_ca", files.client_ca, self._load_clients),
        ):
            try:
                load(context)
            except (OSError, ssl.SSLError) as error:
                raise SettingsError(f"{setting}: {path}: {error}") from error
        return context

    def _load_own(self, context: ssl.SSLContext) -> None:
        # Without a password of its own OpenSSL would ask for one on the terminal.
        context.load_cert_chain(self._files.certificate, self._files.key, password=b"")

    def _load_clients(self, context: ssl.SSLContext) -> None:
        context.load_verify_locations(self._files.client_ca)
