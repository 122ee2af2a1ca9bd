"""A guest's addresses: each once, from its best source, and none that is not one."""

from ipaddress import ip_address
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from provisiond.api.replies import AddressSource, AddressView
from provisiond.api.requests import ProvisionRequest
from provisiond.guest.addresses import (
    MAX_ADDRESSES,
    GuestAddress,
    gather_addresses,
    libvirt_addresses,
    parse_xenstore_addresses,
    request_addresses,
)

MAC = "52:54:00:12:34:56"
OTHER_MAC = "52:54:00:12:34:57"

sources = st.sampled_from(["job", "xenstore", "lease", "agent"])
addresses = st.builds(
    GuestAddress,
    st.sampled_from(["192.0.2.1", "192.0.2.2", "2001:db8::1"]),
    st.sampled_from([None, MAC]),
    sources,
)
texts = st.one_of(
    st.text(max_size=60),
    st.ip_addresses().map(str),
    st.sampled_from(["192.0.2.1/24", "::1", "fe80::1%eth0", "169.254.0.1", "ff02::1"]),
)


def asked(config: dict[str, Any], **more: Any) -> list[GuestAddress]:
    """The addresses of a request as the store keeps it: valid, and without its secrets."""
    whole = {"request_id": "1", "domain": "web1", "config": {"hostname": "web1", **config}, **more}
    return request_addresses(ProvisionRequest.model_validate(whole).public())


def of(source: AddressSource, address: str, mac: str | None = None) -> GuestAddress:
    return GuestAddress(address, mac, source)


# ---------------------------------------------------------------- sources together
@given(st.lists(addresses), st.lists(addresses))
def test_each_address_is_there_once_from_its_best_source(
    some: list[GuestAddress], more: list[GuestAddress]
) -> None:
    gathered = gather_addresses(some, more)
    order = ["job", "xenstore", "lease", "agent"]
    told = [*some, *more]
    assert {one.address for one in gathered} == {one.address for one in told}
    assert len({one.address for one in gathered}) == len(gathered)
    ranks = [order.index(one.source) for one in gathered]
    assert ranks == sorted(ranks)
    for one in gathered:
        assert one in told
        best = min(order.index(other.source) for other in told if other.address == one.address)
        assert order.index(one.source) == best


def test_addresses_of_one_source_stay_in_their_order() -> None:
    lease = [of("lease", "192.0.2.9"), of("lease", "192.0.2.1")]
    job = [of("job", "192.0.2.1", MAC)]
    assert gather_addresses(lease, job) == (job[0], lease[0])


def test_what_is_gathered_can_be_told_to_a_master() -> None:
    for one in gather_addresses([of("agent", "192.0.2.1", MAC)], [of("job", "2001:db8::1")]):
        view = AddressView(address=one.address, mac=one.mac, source=one.source)
        assert view.address == one.address


# ---------------------------------------------------------------- the job's own
def test_the_short_form_has_one_address_and_the_mac_of_what_is_made() -> None:
    assert asked({"ip": "192.0.2.10/24"}) == [of("job", "192.0.2.10")]
    create = {"base": "golden", "mac": MAC}
    assert asked({"ip": "192.0.2.10/24"}, create=create) == [of("job", "192.0.2.10", MAC)]


def test_the_long_form_has_each_interfaces_addresses_with_its_mac() -> None:
    interfaces = [
        {"mac": MAC.upper(), "addresses": ["192.0.2.10/24", "2001:DB8::10/64"]},
        {"name": "eth1", "addresses": ["198.51.100.1/24"]},
    ]
    assert asked({"interfaces": interfaces}, create={"base": "golden", "mac": OTHER_MAC}) == [
        of("job", "192.0.2.10", MAC),
        of("job", "2001:db8::10", MAC),
        of("job", "198.51.100.1"),
    ]


def test_the_only_interface_is_the_one_that_is_made() -> None:
    config = {"interfaces": [{"addresses": ["192.0.2.10/24"]}]}
    assert asked(config, create={"base": "golden", "mac": MAC}) == [of("job", "192.0.2.10", MAC)]


def test_a_request_that_configures_no_guest_has_no_address() -> None:
    assert asked({}) == []
    assert request_addresses({"kind": "destroy", "domain": "web1"}) == []


# ---------------------------------------------------------------- libvirt
def test_leases_and_the_agents_word_are_read() -> None:
    found = {
        "lo": {"addrs": [{"addr": "127.0.0.1", "prefix": 8, "type": 0}], "hwaddr": None},
        "eth0": {
            "addrs": [
                {"addr": "192.0.2.5", "prefix": 24, "type": 0},
                {"addr": "fe80::5054:ff:fe12:3456", "prefix": 64, "type": 1},
                {"addr": "2001:DB8::5", "prefix": 64, "type": 1},
            ],
            "hwaddr": MAC.upper(),
        },
        "eth1": {"addrs": None, "hwaddr": OTHER_MAC},
    }
    assert libvirt_addresses(found, source="agent") == [
        of("agent", "192.0.2.5", MAC),
        of("agent", "2001:db8::5", MAC),
    ]
    assert libvirt_addresses({}, source="lease") == []


@given(
    st.dictionaries(
        st.text(max_size=5),
        st.fixed_dictionaries(
            {
                "hwaddr": st.none() | st.text(max_size=20) | st.just(MAC),
                "addrs": st.none() | st.lists(st.fixed_dictionaries({"addr": texts}), max_size=80),
            }
        ),
    )
)
def test_whatever_an_agent_says_becomes_usable_addresses_or_nothing(found: dict[str, Any]) -> None:
    assert_usable(libvirt_addresses(found, source="agent"))


# ---------------------------------------------------------------- xenstore
@given(
    st.dictionaries(
        st.one_of(
            st.text(max_size=20),
            st.builds("attr/vif/{}/ipv4/{}".format, st.integers(0, 99), st.integers(0, 99)),
            st.builds("attr/eth{}/ip".format, st.integers(0, 99)),
            st.builds("device/vif/{}/mac".format, st.integers(0, 99)),
        ),
        st.one_of(st.binary(max_size=60), texts.map(lambda text: text.encode(errors="replace"))),
        max_size=100,
    )
)
def test_whatever_a_guest_writes_becomes_usable_addresses_or_nothing(
    untrusted: dict[str, bytes],
) -> None:
    assert_usable(parse_xenstore_addresses(untrusted))


def test_a_mac_that_a_guest_invents_is_no_mac() -> None:
    values = {"attr/vif/0/ipv4/0": b"192.0.2.1", "device/vif/0/mac": b"52:54:00:12:34:5\x1b"}
    assert parse_xenstore_addresses(values) == [of("xenstore", "192.0.2.1")]


def assert_usable(found: list[GuestAddress]) -> None:
    assert len(found) <= MAX_ADDRESSES
    for one in found:
        address = ip_address(one.address)
        assert str(address) == one.address
        assert not any((address.is_loopback, address.is_link_local, address.is_multicast))
        assert one.address.isprintable()
        assert one.mac is None or (one.mac.isascii() and len(one.mac) == 17)
