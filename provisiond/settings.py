"""The operator's settings: a TOML file, and `PROVISIOND_…` in the environment, which wins.

Every setting has a default that is right on a dom0 or a QEMU host; README.md lists them all.
"""

import os
import re
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)
from pydantic_settings import SettingsError as NoJson

from provisiond.api.guest_config import printable
from provisiond.errors import SettingsError

DEFAULT_CONFIG = Path("/etc/provisiond/provisiond.toml")
DEFAULT_SOCKET = Path("/run/provisiond/provisiond.sock")

# sockaddr_un.sun_path has 108 bytes, the final NUL among them (unix(7)).
_MAX_SOCKET_PATH = 107

_ADDRESS = re.compile(
    r"(\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<v4>[0-9.]+)):(?P<port>[0-9]{1,5})", re.ASCII
)
_HIGHEST_PORT = 65535

Seconds = Annotated[float, Field(gt=0, le=86400)]


def _absolute(path: Path) -> Path:
    if not path.is_absolute():
        raise ValueError("must be an absolute path")
    printable(str(path))
    return path


def _short_enough(path: Path) -> Path:
    if len(str(path).encode()) > _MAX_SOCKET_PATH:
        raise ValueError(f"must have at most {_MAX_SOCKET_PATH} bytes, the most a socket may have")
    return _absolute(path)


def _is_address(text: str) -> str:
    parse_address(text)
    return text


def parse_address(text: str) -> tuple[str, int]:
    """The IP address and port of `192.0.2.1:8443` or `[::1]:8443`; raises ValueError."""
    form = _ADDRESS.fullmatch(text)
    try:
        if form is None or int(form["port"]) > _HIGHEST_PORT:
            raise ValueError(text)
        address = IPv6Address(form["v6"]) if form["v6"] else IPv4Address(form["v4"])
    except ValueError:
        raise ValueError("is no address and port: 192.0.2.1:8443, [2001:db8::1]:8443") from None
    return str(address), int(form["port"])


def _file_or_credential(path: Path) -> Path:
    """An absolute path; a plain name is that of a credential (systemd.exec(5), LoadCredential)."""
    printable(str(path))
    if path.is_absolute():
        return path
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if len(path.parts) != 1:
        raise ValueError("must be an absolute path, or the name of a systemd credential")
    if folder is None:
        raise ValueError("names a systemd credential, but systemd has passed none")
    return Path(folder) / path


Text = Annotated[str, AfterValidator(printable)]
ListenAddress = Annotated[str, AfterValidator(_is_address)]
PemPath = Annotated[Path, AfterValidator(_file_or_credential)]
AbsolutePath = Annotated[Path, AfterValidator(_absolute)]
SocketPath = Annotated[Path, AfterValidator(_short_enough)]


class Settings(BaseSettings):
    """All settings. Times are in seconds."""

    model_config = SettingsConfigDict(
        env_prefix="PROVISIOND_", extra="forbid", frozen=True, hide_input_in_errors=True
    )
    _toml_file: ClassVar[Path | None] = None

    libvirt_uri: Annotated[Text, Field(min_length=1)] = "auto"
    """`auto`: xen:///system in a Xen dom0, else qemu:///system."""
    state_dir: AbsolutePath = Path("/var/lib/provisiond")
    """Holds the state file (SQLite); never a secret."""
    runtime_dir: AbsolutePath = Path("/run/provisiond")
    """Holds the config ISOs while they exist; must be on tmpfs."""
    allow_iso_on_disk: bool = False
    """Lets runtime_dir be on something else than tmpfs: secrets may then reach a disk."""
    image_dir: AbsolutePath = Path("/var/lib/provisiond/images")
    """Holds the golden bases (`bases/`) and the disks that stand on them (`disks/`)."""
    template_dir: AbsolutePath = Path("/etc/provisiond/templates")
    """Holds the operator's templates, libvirt domain XML: `default.xml` and others."""
    reserve_mib: Annotated[int, Field(ge=0)] = 1024
    """What is left free in image_dir: nothing is written there that would take of it."""
    max_chain: Annotated[int, Field(ge=2, le=64)] = 4
    """The most images that a disk's chain may have, itself and its lowest base included."""
    socket: SocketPath = DEFAULT_SOCKET
    """The HTTP API's Unix socket, mode 0660. One that systemd passes is taken in its place."""
    socket_group: Text | None = None
    """Its members may do everything on the socket; None leaves the daemon's own group."""
    viewer_group: Text | None = None
    """Its members may read on the socket, whose mode is then 0666: the kernel tells who comes."""
    listen: ListenAddress | None = None
    """The API over mutual TLS as well: `192.0.2.1:8443` or `[2001:db8::1]:8443`; needs the three
    files below."""
    tls_certificate: PemPath | None = None
    """The daemon's certificate and those between it and its authority. A name without `/` is one of
    a systemd credential; so for the two below. SIGHUP reads all three again."""
    tls_key: PemPath | None = None
    """Its key, without a password."""
    tls_client_ca: PemPath | None = None
    """The authorities that sign the certificates of clients, and nobody else's."""
    operators: tuple[Text, ...] = ()
    """The names in client certificates that may do everything."""
    viewers: tuple[Text, ...] = ()
    """The names in client certificates that may read."""
    requests_per_second: Annotated[float, Field(gt=0, le=1e6)] = 100
    """Of each caller; one that was quiet may ask for those of 10 s at once."""
    max_requests: Annotated[int, Field(ge=1, le=100000)] = 100
    """At work at once for each caller, followed event streams included."""
    max_connections: Annotated[int, Field(ge=1, le=60000)] = 200
    """Open at once of each caller."""
    request_seconds: Seconds = 10
    """How long a request may take to come in."""
    max_jobs: Annotated[int, Field(ge=1, le=10000)] = 100
    """Jobs at work at once; those of bases and overlays have bounds of their own."""
    max_jobs_waiting: Annotated[int, Field(ge=0, le=100000)] = 1000
    """Jobs accepted and waiting for their turn; a further one is refused (too_many_jobs)."""
    deadline_seconds: Seconds = 600
    """How long a job may take, a guest's until its verdict, where the request does not say.

    Imports and verifications of bases have a day instead.
    """
    ready_seconds: Seconds = 60
    """How long a guest may take to show that it is ready; the ISO is then attached all the same."""
    attach_seconds: Seconds = 60
    """For the attach of the ISO or a data disk, retries included; on Xen as long again for the
    guest's driver."""
    detach_seconds: Seconds = 60
    """For one try of the ISO's detach, which is tried until it is gone, or of an undo's; a job that
    detaches a data disk has failed then."""
    keep_days: Annotated[float, Field(gt=0, le=36500)] = 90
    """How long ended jobs and their history are kept; of each domain the last job that its guest
    has taken is kept longer, since its addresses are known by it."""
    keep_jobs: Annotated[int, Field(ge=1, le=10_000_000)] = 100_000
    """The most ended jobs that are kept at all: of more, those that came first go."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """What is logged, to the journal under systemd and to stderr elsewhere."""

    @model_validator(mode="after")
    def _whole_tls(self) -> Self:
        files = (self.tls_certificate, self.tls_key, self.tls_client_ca)
        if self.listen is not None and None in files:
            raise ValueError("listen needs tls_certificate, tls_key and tls_client_ca")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment, then the TOML file; nothing else."""
        del init_settings, dotenv_settings, file_secret_settings
        return (env_settings, TomlConfigSettingsSource(settings_cls, cls._toml_file))


def _refuse_unknown_names() -> None:
    """Refuse a misspelt name in the environment; pydantic refuses it in the file alone."""
    prefix = "PROVISIOND_"
    names = [name for name in os.environ if name.upper().startswith(prefix)]
    known = {f"{prefix}{field.upper()}" for field in Settings.model_fields}
    if unknown := [name for name in names if name.upper() not in known]:
        raise SettingsError(f"no setting has this name in the environment: {', '.join(unknown)}")


def read_settings(config: Path | None) -> Settings:
    """The settings from `config` (the default file, where it exists, if None) and the environment.

    Raises SettingsError, which names every setting that is wrong.
    """
    if config is None:
        config = DEFAULT_CONFIG if DEFAULT_CONFIG.exists() else None
    elif not config.is_file():
        raise SettingsError(f"{config} is no file", hint="Name an existing TOML file to --config.")

    class FromFile(Settings):
        _toml_file = config

    _refuse_unknown_names()
    try:
        return FromFile()
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, one['loc']))}: {one['msg'].removeprefix('Value error, ')}"
            for one in error.errors(include_url=False, include_context=False, include_input=False)
        )
        raise SettingsError(f"wrong setting: {wrong}") from None
    except NoJson as error:
        hint = """In the environment a list is JSON: PROVISIOND_VIEWERS='["watch.example.org"]'."""
        raise SettingsError(f"wrong setting: {error}", hint=hint) from None
    except RecursionError:
        raise SettingsError("wrong setting: one is nested too deeply to be read") from None
    except ValueError as error:  # tomllib.TOMLDecodeError
        raise SettingsError(f"{config} is no TOML file: {error}") from None
    except OSError as error:
        raise SettingsError(f"cannot read {config}: {error.strerror}") from None
