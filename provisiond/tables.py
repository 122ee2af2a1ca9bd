"""What provisionctl shows of what the host has: domains with their addresses and disks, bases.

In a pipe a size is in bytes and an id is whole; on a terminal both are as a person reads them.
"""

import json
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.text import Text

from provisiond.api.image_manifest import ImageManifest
from provisiond.api.replies import AddressView, BaseView, DiskView, DomainDiskView, DomainView
from provisiond.display import SHORT_ID, exact_time, show_fact, show_rows
from provisiond.sizes import show_size
from provisiond.terminal import printable

NONE = "-"


# ---------------------------------------------------------------- domains
def show_domains(console: Console, domains: Sequence[DomainView]) -> None:
    """The domains of the host; in a pipe with their UUIDs."""
    whole = not console.is_terminal
    columns = ["DOMAIN", "ID", "STATE", "ADDRESSES", "DISKS", "JOB"]
    rows = [
        [
            _text(domain.name),
            Text(NONE if domain.domid is None else str(domain.domid)),
            _text(domain.state, "" if domain.domid is None else "green"),
            _list(f"{one.address} ({one.source})" for one in domain.addresses),
            _list(map(_short_disk, domain.disks)),
            _text(domain.job_id if whole or domain.job_id is None else domain.job_id[:SHORT_ID]),
            *((_text(domain.uuid),) if whole else ()),
        ]
        for domain in domains
    ]
    show_rows(console, [*columns, "UUID"] if whole else columns, rows)


def _short_disk(disk: DomainDiskView) -> str:
    return disk.target if disk.name is None else f"{disk.target} ({disk.name})"


def show_addresses(console: Console, addresses: Sequence[AddressView], *, of: str = "") -> None:
    """One line an address, in a pipe and on a terminal: [the domain's name,] address, source."""
    for one in addresses:
        words = ([of] if of else []) + [one.address, one.source]
        print(*map(printable, words), sep="\t", file=console.file)


def show_disks_of(console: Console, disks: Sequence[DomainDiskView]) -> None:
    """The disks of one domain."""
    rows = [
        [
            _text(disk.target),
            _text(disk.name),
            _text(disk.format),
            Text("read-only" if disk.read_only else "read-write"),
            _text(disk.source),
        ]
        for disk in disks
    ]
    show_rows(console, ["TARGET", "DISK", "FORMAT", "ACCESS", "FILE"], rows)


# ---------------------------------------------------------------- disks and bases
def show_disks(console: Console, disks: Sequence[DiskView]) -> None:
    """The disks that provisiond has made."""
    rows = [
        [
            _text(disk.name),
            Text(disk.format),
            _size(console, disk.virtual_size),
            _size(console, disk.file_size),
            _text(disk.base),
            _text(disk.domain),
            _text(disk.path),
        ]
        for disk in disks
    ]
    show_rows(console, ["DISK", "FORMAT", "SIZE", "USED", "BASE", "DOMAIN", "FILE"], rows)


def show_bases(console: Console, bases: Sequence[BaseView]) -> None:
    """The golden bases, and how many overlays stand on each."""
    rows = [
        [
            _text(base.name),
            Text(base.format),
            _size(console, base.virtual_size),
            _size(console, base.file_size),
            _text(base.parent),
            Text(str(len(base.overlays))),
            Text("ok", "green") if base.changed is None else _text(base.changed, "red"),
        ]
        for base in bases
    ]
    show_rows(console, ["BASE", "FORMAT", "SIZE", "USED", "PARENT", "OVERLAYS", "STATE"], rows)


def show_base(console: Console, base: BaseView) -> None:
    """All that is known of a base."""
    show_fact(console, "base", base.name)
    show_fact(console, "state", base.changed or "ok", "red" if base.changed else "green")
    show_fact(console, "file", base.path)
    show_fact(console, "format", base.format)
    show_fact(console, "size", _exactly(base.virtual_size))
    show_fact(console, "used", _exactly(base.file_size))
    show_fact(console, "sha256", base.sha256)
    show_fact(console, "immutable", "yes" if base.immutable else "no")
    show_fact(console, "imported", f"{exact_time(base.imported_at)} from {base.source}")
    show_fact(console, "parent", base.parent or NONE)
    show_fact(console, "overlays", ", ".join(base.overlays) or NONE)
    if base.made_of is not None:
        _show_made_of(console, base.made_of)


def _show_made_of(console: Console, made_of: ImageManifest) -> None:
    agent = made_of.agent_version and f"provision-guest {made_of.agent_version}"
    show_fact(console, "system", made_of.distribution or NONE)
    show_fact(console, "init", made_of.init or NONE)
    show_fact(console, "built by", made_of.builder or NONE)
    if made_of.made_at is not None:
        show_fact(console, "built", exact_time(made_of.made_at))
    if made_of.recipe is not None:
        show_fact(console, "recipe", json.dumps(made_of.recipe))
    show_fact(console, "agent", agent or NONE)
    show_fact(console, "agent sha256", made_of.agent_sha256 or NONE)
    packages = NONE if made_of.packages is None else str(len(made_of.packages))
    show_fact(console, "packages", f"{packages} (--json lists them)")


# ---------------------------------------------------------------- cells
def _text(value: str | None, style: str = "") -> Text:
    return Text(printable(value or NONE), style)


def _list(values: Iterable[str]) -> Text:
    return _text(", ".join(values))


def _size(console: Console, count: int) -> Text:
    return Text(show_size(count) if console.is_terminal else str(count), justify="right")


def _exactly(count: int) -> str:
    return f"{show_size(count)} ({count} bytes)"
