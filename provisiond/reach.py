"""Reaching a guest by ssh: which address, and the command line that ssh or ssh-copy-id gets.

A guest's addresses and names are partly its own words: none of them can become an option here, or
anything but the host that is spoken to.
"""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from ipaddress import ip_address
from pathlib import Path

from provisiond.api.replies import AddressView
from provisiond.errors import NoAddress


def choose_address(domain: str, addresses: Sequence[AddressView]) -> str:
    """The first, which is of the best source. Raises NoAddress where there is none."""
    if not addresses:
        raise NoAddress(f"{domain}: nobody tells an address of it")
    return addresses[0].address


def match_names(pattern: str, names: Iterable[str]) -> list[str]:
    """The names that a shell's pattern (`*`, `?`, `[…]`) takes, in their order; case counts."""
    return [name for name in names if fnmatchcase(name, pattern)]


def ssh_argv(
    address: str,
    *,
    user: str,
    command: Sequence[str] = (),
    key: Path | None = None,
    known_as: str | None = None,
    options: Sequence[str] = (),
) -> list[str | Path]:
    """ssh's command line. As ssh itself does, the guest's shell gets `command` joined by blanks.

    `known_as` is the name under which ssh keeps the guest's host key, such as the domain's UUID:
    the address may be another guest's tomorrow. `options` are as in ssh_config(5), such as
    `Port=2222`. Raises ValueError where `address` is no IP address.
    """
    return [
        "ssh",
        *_options(user=user, known_as=known_as, options=options),
        *(("-i", key) if key is not None else ()),
        "--",
        _host(address),
        *command,
    ]


def copy_key_argv(
    address: str,
    *,
    user: str,
    key: Path,
    known_as: str | None = None,
    options: Sequence[str] = (),
) -> list[str | Path]:
    """ssh-copy-id's command line: the public key `key` becomes one that `user` may log in with.

    It asks for the password where no other key serves. A key that is there already is not added
    again.
    """
    return [
        "ssh-copy-id",
        *("-i", key),
        *_options(user=user, known_as=known_as, options=options),
        "--",
        _host(address),
    ]


def _options(*, user: str, known_as: str | None, options: Sequence[str]) -> list[str]:
    """As `-o` each: ssh-copy-id knows no others, and a value of an `-o` is never an option.

    Of two values ssh takes the first: what the caller's `options` say counts.
    """
    ours = [f"User={user}"]
    if known_as is not None:
        ours.append(f"HostKeyAlias={known_as}")
    return [word for option in (*options, *ours) for word in ("-o", option)]


def _host(address: str) -> str:
    return str(ip_address(address))
