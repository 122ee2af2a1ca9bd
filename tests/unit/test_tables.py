"""Domains, disks and bases as they are shown, on a terminal and in a pipe."""

from provisiond.api.replies import AddressView, BaseView, DiskView, DomainDiskView, DomainView
from provisiond.api.requests import DiskFormat
from provisiond.tables import (
    show_addresses,
    show_base,
    show_bases,
    show_disks,
    show_disks_of,
    show_domains,
)
from tests.unit.test_display import AT, HOSTILE, JOB_ID, TAMED, console

UUID = "5f3a0f5e-2a6b-4d5c-9d8e-0f6a1c2b3d4e"
GIB = 2**30


def domain_of(text: str) -> DomainView:
    return DomainView(
        name=text,
        uuid=UUID,
        state="running",
        domid=3,
        job_id=JOB_ID,
        made_here=True,
        addresses=[
            AddressView(address="192.0.2.10", mac=None, source="job"),
            AddressView(address=text, mac=None, source="agent"),
        ],
        disks=[
            DomainDiskView(target="vda", source=text, format=text, read_only=False, name=text),
            DomainDiskView(target="sda", source=None, format=None, read_only=True, name=None),
        ],
    )


def base_of(text: str, *, changed: str | None = None) -> BaseView:
    return BaseView(
        name=text,
        path=text,
        format=DiskFormat.QCOW2,
        virtual_size=10 * GIB,
        file_size=GIB // 2,
        sha256="0" * 64,
        source=text,
        parent=text,
        imported_at=AT,
        immutable=True,
        changed=changed,
        overlays=[text, "web2"],
    )


def disk_of(text: str) -> DiskView:
    return DiskView(
        name=text,
        path=text,
        format=DiskFormat.RAW,
        virtual_size=10 * GIB,
        file_size=196_616,
        base=None,
        domain=text,
    )


def everything(text: str, *, terminal: bool) -> str:
    target, out = console(terminal=terminal)
    domain = domain_of(text)
    show_domains(target, [domain])
    show_addresses(target, domain.addresses, of=text)
    show_disks_of(target, domain.disks)
    show_disks(target, [disk_of(text)])
    show_bases(target, [base_of(text, changed=text)])
    show_base(target, base_of(text, changed=text))
    return out.getvalue()


def test_what_a_terminal_could_obey_is_replaced() -> None:
    shown = everything(HOSTILE, terminal=False)
    assert not set(shown) & set(HOSTILE) - set(TAMED) - set("\n\t")
    assert TAMED in shown

    def escapes(text: str) -> int:
        return everything(text, terminal=True).count("\x1b")

    assert escapes("x" * len(HOSTILE)) == escapes(HOSTILE) > 0


def test_in_a_pipe_a_domain_is_a_line_with_whole_ids_and_the_source_of_each_address() -> None:
    target, out = console(terminal=False)
    show_domains(target, [domain_of("web1")])
    head, row = (line.split("\t") for line in out.getvalue().splitlines())
    assert dict(zip(head, row, strict=True)) == {
        "DOMAIN": "web1",
        "ID": "3",
        "STATE": "running",
        "ADDRESSES": "192.0.2.10 (job), web1 (agent)",
        "DISKS": "vda (web1), sda",
        "JOB": JOB_ID,
        "UUID": UUID,
    }


def test_a_domain_that_is_off_and_bare_is_shown_with_dashes() -> None:
    target, out = console(terminal=False)
    nothing: dict[str, object] = {
        "domid": None,
        "job_id": None,
        "addresses": [],
        "disks": [],
        "state": "shut off",
    }
    show_domains(target, [domain_of("web1").model_copy(update=nothing)])
    assert out.getvalue().splitlines()[1] == f"web1\t-\tshut off\t-\t-\t-\t{UUID}"


def test_an_address_is_a_line_on_a_terminal_too() -> None:
    for terminal in (True, False):
        target, out = console(terminal=terminal)
        show_addresses(target, domain_of("2001:db8::1").addresses)
        assert out.getvalue() == "192.0.2.10\tjob\n2001:db8::1\tagent\n"
        show_addresses(target, domain_of("x").addresses[:1], of="web1")
        assert out.getvalue().endswith("\nweb1\t192.0.2.10\tjob\n")


def test_a_size_is_exact_in_a_pipe_and_readable_on_a_terminal() -> None:
    target, out = console(terminal=False)
    show_disks(target, [disk_of("data1")])
    assert out.getvalue().splitlines()[1] == (f"data1\traw\t{10 * GIB}\t196616\t-\tdata1\tdata1")
    target, out = console(terminal=True)
    show_disks(target, [disk_of("data1")])
    assert "10.0 GiB" in out.getvalue()
    assert "192.0 KiB" in out.getvalue()


def test_a_base_that_differs_from_its_manifest_says_how() -> None:
    target, out = console(terminal=False)
    show_bases(target, [base_of("debian12"), base_of("old", changed="its size is another")])
    _, well, changed = (line.split("\t") for line in out.getvalue().splitlines())
    assert well[-2:] == ["2", "ok"]
    assert changed[-1] == "its size is another"


def test_all_that_is_known_of_a_base_is_shown() -> None:
    target, out = console(terminal=False)
    show_base(target, base_of("debian12"))
    facts = dict(line.split(":", 1) for line in out.getvalue().splitlines())
    assert {name: value.strip() for name, value in facts.items()} == {
        "base": "debian12",
        "state": "ok",
        "file": "debian12",
        "format": "qcow2",
        "size": f"10.0 GiB ({10 * GIB} bytes)",
        "used": f"512.0 MiB ({GIB // 2} bytes)",
        "sha256": "0" * 64,
        "immutable": "yes",
        "imported": "2025-03-01T12:00:00.250Z from debian12",
        "parent": "debian12",
        "overlays": "debian12, web2",
    }


def test_the_disks_of_a_domain_say_whether_they_can_be_written_and_where_they_are() -> None:
    target, out = console(terminal=False)
    show_disks_of(target, domain_of("web1").disks)
    assert [line.split("\t") for line in out.getvalue().splitlines()] == [
        ["TARGET", "DISK", "FORMAT", "ACCESS", "FILE"],
        ["vda", "web1", "web1", "read-write", "web1"],
        ["sda", "-", "-", "read-only", "-"],
    ]
