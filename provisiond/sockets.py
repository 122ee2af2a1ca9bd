"""Where the API listens, and who may do what there.

The sockets are the daemon's own, or those that systemd has passed (sd_listen_fds(3)).
"""

import grp
import logging
import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from provisiond import systemd
from provisiond.api.callers import LocalRoles, RemoteRoles
from provisiond.api.serving import BACKLOG, Listener, on_tcp, on_unix
from provisiond.api.tls import CertificateFiles, ServerTls
from provisiond.errors import AlreadyRunning, SettingsError
from provisiond.settings import Settings, parse_address

log = logging.getLogger(__name__)


@contextmanager
def listening(settings: Settings) -> Iterator[Sequence[Listener]]:
    """The Unix socket and, where it is wanted, the one for TLS; both take connections.

    Raises SettingsError, AlreadyRunning.
    """
    passed = {found.family: found for found in systemd.passed_sockets()}
    with ExitStack() as stack:
        local = passed.get(socket.AF_UNIX)
        if local is None:
            local = stack.enter_context(_listening_on(settings))
        else:
            _open_to_groups(Path(local.getsockname()), settings)
        listeners = [on_unix(local, _local_roles(settings, local))]
        remote = passed.get(socket.AF_INET6) or passed.get(socket.AF_INET)
        if remote is None and settings.listen is not None:
            remote = _listen_to(settings.listen)
        if remote is not None:
            stack.callback(remote.close)
            roles = RemoteRoles(settings.operators, settings.viewers)
            listeners.append(on_tcp(remote, roles, ServerTls(_certificate_files(settings))))
        yield listeners


def reload_certificates(listeners: Sequence[Listener]) -> None:
    """Read the files of TLS again; what cannot be used changes nothing, and is logged."""
    for listener in listeners:
        if listener.tls is None:
            continue
        try:
            listener.tls.reload()
        except SettingsError as error:
            log.error("the certificates stay as they were: %s", error)
        else:
            log.info("the certificates are read again")


def _local_roles(settings: Settings, listener: socket.socket) -> LocalRoles:
    """The members of the socket's own group may do everything."""
    path = Path(listener.getsockname())
    try:
        operators = path.stat().st_gid
    except OSError as error:
        raise SettingsError(f"socket: {path}: {error.strerror}") from error
    if settings.viewer_group is None:
        return LocalRoles(operators)
    try:
        return LocalRoles(operators, viewers=grp.getgrnam(settings.viewer_group).gr_gid)
    except KeyError:
        raise SettingsError(f"viewer_group: no group is called {settings.viewer_group}") from None


def _certificate_files(settings: Settings) -> CertificateFiles:
    certificate, key, client_ca = (
        settings.tls_certificate,
        settings.tls_key,
        settings.tls_client_ca,
    )
    if certificate is None or key is None or client_ca is None:
        raise SettingsError("TLS needs tls_certificate, tls_key and tls_client_ca")
    return CertificateFiles(certificate, key, client_ca)


# ---------------------------------------------------------------- the Unix socket
@contextmanager
def _listening_on(settings: Settings) -> Iterator[socket.socket]:
    """A socket that nobody answers on is a dead daemon's and replaced."""
    path = settings.socket
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        if _is_answered(path):
            raise AlreadyRunning(f"another process listens on {path}")
        if path.exists() and not path.is_socket():
            raise FileExistsError("something that is no socket is there")
        path.unlink(missing_ok=True)
        with _umask(0o117):
            listener.bind(str(path))
        listener.listen(BACKLOG)  # before READY, and before anybody could take it for a dead one
        _open_to_groups(path, settings)
    except OSError as error:
        listener.close()
        raise SettingsError(f"socket: cannot listen on {path}: {error}") from error
    except (AlreadyRunning, SettingsError):
        listener.close()
        raise
    try:
        yield listener
    finally:
        listener.close()
        path.unlink(missing_ok=True)


def _open_to_groups(path: Path, settings: Settings) -> None:
    """The settings say who may use the socket, also if systemd has made it."""
    try:
        if settings.socket_group is not None:
            shutil.chown(path, group=settings.socket_group)
        if settings.viewer_group is not None:
            path.chmod(0o666)
    except LookupError as error:
        raise SettingsError(f"socket_group: {error}") from error
    except OSError as error:
        raise SettingsError(f"socket: cannot open {path} to its group: {error}") from error


def _is_answered(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
    return True


@contextmanager
def _umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


# ---------------------------------------------------------------- the TCP socket
def _listen_to(address: str) -> socket.socket:
    host, port = parse_address(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns off Nagle's delay of small packets where a socket says that it is TCP.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise SettingsError(f"listen: cannot listen on {address}: {error}") from error
    return listener
