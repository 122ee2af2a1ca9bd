"""What the harness reads from the tools that tell it about Debian's xenstored."""

import subprocess

from tests.xenstore.program import newest_package, parse_needed, parse_versions, program

DYNAMIC = """\
 0x0000000000000001 (NEEDED)             Shared library: [libxenevtchn.so.1]
 0x0000000000000001 (NEEDED)             Shared library: [libxenctrl.so.4.17]
 0x0000000000000001 (NEEDED)             Shared library: [libc.so.6]
"""
SYMBOLS = """\
     2: 0000000000000000     0 FUNC    GLOBAL DEFAULT  UND xenevtchn_open@VERS_1.0 (3)
     4: 0000000000000000     0 FUNC    GLOBAL DEFAULT  UND getenv@GLIBC_2.2.5 (4)
     9: 0000000000000000     0 FUNC    GLOBAL DEFAULT  UND xenevtchn_notify@VERS_1.0 (3)
    18: 0000000000000000     0 FUNC    GLOBAL DEFAULT  UND xc_domain_getinfo@VERS_4.17.0 (5)
    20: 0000000000012340    80 FUNC    GLOBAL DEFAULT   14 xenstored_own
"""


def test_the_newest_xen_is_taken_by_number() -> None:
    names = ["xen-utils-4.17", "xen-utils-common", "xen-utils-4.9", "xen-utils-4.17-dbgsym"]
    assert newest_package(names) == "xen-utils-4.17"
    assert newest_package([*names, "xen-utils-4.20"]) == "xen-utils-4.20"


def test_the_libraries_of_xen_are_replaced_and_no_other() -> None:
    assert parse_needed(DYNAMIC) == ["libxenevtchn.so.1", "libxenctrl.so.4.17"]


def test_every_symbol_gets_the_version_that_is_asked_for() -> None:
    assert parse_versions(SYMBOLS) == {
        "VERS_1.0": ["xenevtchn_open", "xenevtchn_notify"],
        "VERS_4.17.0": ["xc_domain_getinfo"],
    }


def test_hypervisor_c_has_all_that_this_xenstored_asks_for() -> None:
    """The loader itself says what it misses."""
    made = program()
    ended = subprocess.run(
        ["ldd", "--function-relocs", made.xenstored],
        env={"PATH": "/usr/bin:/bin", "LD_LIBRARY_PATH": str(made.libraries)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(made.libraries) in ended.stdout
    for complaint in ("not found", "undefined symbol", "no version information"):
        assert complaint not in ended.stdout + ended.stderr
