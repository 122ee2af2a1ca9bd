"""What a Xen guest's tools write is found, bounded, and believed as an address or not at all."""

import asyncio

from provisiond.guest.addresses import MAX_ADDRESSES, GuestAddress, read_xenstore_addresses
from provisiond.xenstore.client import Xenstore
from tests.xenstore.daemon import XenDomain, Xenstored

MAC = "00:16:3e:01:02:03"


def told(address: str, mac: str | None = None) -> GuestAddress:
    return GuestAddress(address, mac, "xenstore")


async def test_a_guest_that_tells_nothing_has_no_address(
    xenstore: Xenstore, domain: XenDomain
) -> None:
    assert await read_xenstore_addresses(xenstore, domid=domain.domid) == []
    assert await read_xenstore_addresses(xenstore, domid=77) == []


async def test_what_the_tools_of_today_write_is_found_with_the_mac(
    xenstored: Xenstored, xenstore: Xenstore, domain: XenDomain
) -> None:
    xenstored.dom0.write(f"{domain.home}/device/vif/0/mac", MAC.upper().encode())
    with domain.connect() as guest:
        guest.write("attr/vif/1/ipv4/0", b"198.51.100.7")
        guest.write("attr/vif/0/ipv6/0", b"fe80::216:3eff:fe01:203")
        guest.write("attr/vif/0/ipv6/1", b"2001:DB8:0::5")
        guest.write("attr/vif/0/ipv4/10", b"192.0.2.11")
        guest.write("attr/vif/0/ipv4/9", b"192.0.2.10")
    assert await read_xenstore_addresses(xenstore, domid=domain.domid) == [
        told("192.0.2.10", MAC),
        told("192.0.2.11", MAC),
        told("2001:db8::5", MAC),
        told("198.51.100.7"),
    ]


async def test_what_older_tools_write_is_found(xenstore: Xenstore, domain: XenDomain) -> None:
    with domain.connect() as guest:
        guest.write("attr/eth0/ip", b"192.0.2.10")
        guest.write("attr/eth0/ipv6/0/addr", b"2001:db8::5")
        guest.write("attr/eth1/ipv6/0/addr", b"2001:db8::6")
        guest.write("attr/ethereal/ip", b"192.0.2.99")
    assert await read_xenstore_addresses(xenstore, domid=domain.domid) == [
        told("192.0.2.10"),
        told("2001:db8::5"),
        told("2001:db8::6"),
    ]


async def test_what_is_no_address_reaches_nobody(xenstore: Xenstore, domain: XenDomain) -> None:
    values = [
        b"",
        b"192.0.2.10\n",
        b"-oProxyCommand=reboot",
        b"192.0.2.010",
        b"2001:db8::5%\x1b[31m",
        b"\xff\xfe",
        b"1" * 2000,
        b"127.0.0.1",
        b"0.0.0.0",
        b"::ffff:192.0.2.1",
    ]
    with domain.connect() as guest:
        for number, value in enumerate(values):
            guest.write(f"attr/vif/0/ipv4/{number}", value)
        guest.write("attr/vif/0/ipv4/x", b"192.0.2.98")
        guest.write("attr/vif/-1/ipv4/0", b"192.0.2.97")
        guest.write("attr/vif/00/ipv4/0", b"192.0.2.96")
        guest.write("attr/vif/1/ipv4/0", b"192.0.2.10")
        guest.write("attr/vif/1/ipv5/0", b"192.0.2.95")
    assert await read_xenstore_addresses(xenstore, domid=domain.domid) == [told("192.0.2.10")]


async def test_a_guest_that_fills_its_store_is_read_in_bounds(
    xenstore: Xenstore, domain: XenDomain
) -> None:
    with domain.connect() as guest:
        for number in range(300):
            guest.write(f"attr/vif/{number % 30}/ipv4/{number}", b"192.0.2.%d" % (number % 250 + 1))
            guest.write(f"attr/eth{number}", b"")
    found = await read_xenstore_addresses(xenstore, domid=domain.domid)
    assert 0 < len(found) <= MAX_ADDRESSES


async def test_a_domain_that_dies_meanwhile_has_no_address(
    xenstore: Xenstore, domain: XenDomain
) -> None:
    with domain.connect() as guest:
        guest.write("attr/vif/0/ipv4/0", b"192.0.2.10")
    reading = asyncio.create_task(read_xenstore_addresses(xenstore, domid=domain.domid))
    await asyncio.to_thread(domain.shut_down)
    assert await reading in ([], [told("192.0.2.10")])
    assert await read_xenstore_addresses(xenstore, domid=domain.domid) == []
