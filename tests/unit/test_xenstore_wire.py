"""xenstore's wire: what is sent is what xenstored reads, and no bytes that come do harm."""

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisiond.xenstore import wire
from provisiond.xenstore.wire import Event, NotXenstore, Reply, Splitter

HEADER = struct.Struct("<IIII")


def packet(op: int, request_id: int, payload: bytes) -> bytes:
    return HEADER.pack(op, request_id, 0, len(payload)) + payload


# ---------------------------------------------------------------- requests
def test_a_request_is_a_header_and_its_payload() -> None:
    sent = wire.build_request(
        wire.READ, wire.path_payload("/local/domain/5"), request_id=7, transaction=3
    )
    assert sent == HEADER.pack(2, 7, 3, 16) + b"/local/domain/5\0"


def test_a_part_of_a_directory_can_be_asked_for() -> None:
    sent = wire.build_request(wire.DIRECTORY_PART, b"/vm\0000\0", request_id=0xFFFFFFFF)
    assert HEADER.unpack(sent[:16]) == (22, 0xFFFFFFFF, 0, 6)


def test_a_request_longer_than_xenstore_takes_is_not_sent() -> None:
    wire.build_request(wire.WRITE, bytes(4096), request_id=0)
    with pytest.raises(OSError, match="4096") as caught:
        wire.build_request(wire.WRITE, bytes(4097), request_id=0)
    assert caught.value.errno == errno.E2BIG


def test_a_request_that_xenstore_does_not_know_is_not_sent() -> None:
    with pytest.raises(ValueError, match="127"):
        wire.build_request(127, b"", request_id=0)


@pytest.mark.parametrize(
    "path",
    ["", "/a/", "//a", "/a//b", "/a b", "/a\n", "/a\0", "/ä", "/a.b", "/" + "x" * 3072, "/a\x7f"],
)
def test_what_is_no_path_is_not_sent(path: str) -> None:
    with pytest.raises(ValueError, match=r"xenstore path|printable"):
        wire.path_payload(path)


@given(st.text(max_size=20))
def test_a_path_cannot_smuggle_a_second_string(path: str) -> None:
    try:
        sent = wire.path_payload(path)
    except ValueError:
        return
    assert sent.count(b"\0") == 1
    assert sent == path.encode() + b"\0"


@pytest.mark.parametrize("path", ["@releaseDomain", "@introduceDomain", "/local/domain"])
def test_what_can_be_watched(path: str) -> None:
    assert wire.watch_payload(path, "t-1") == path.encode() + b"\0t-1\0"


@pytest.mark.parametrize("path", ["@other", "@releaseDomain\n", "@releaseDomain/x"])
def test_what_cannot_be_watched(path: str) -> None:
    with pytest.raises(ValueError, match=r"watch|printable"):
        wire.watch_payload(path, "t-1")


def test_permissions_name_the_owner_first() -> None:
    assert wire.permissions_payload("/a", ("n0", "b5")) == b"/a\0n0\0b5\0"


@pytest.mark.parametrize("permissions", [(), ("b",), ("x5",), ("n0", "b5\n"), ("n0", "b-1")])
def test_what_is_no_permission_is_not_sent(permissions: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"permission|printable"):
        wire.permissions_payload("/a", permissions)


# ---------------------------------------------------------------- replies
def test_an_error_is_an_oserror_with_its_errno() -> None:
    with pytest.raises(FileNotFoundError):
        Reply(1, failed=True, payload=b"ENOENT\0").result()
    with pytest.raises(PermissionError):
        Reply(1, failed=True, payload=b"EACCES\0").result()
    with pytest.raises(BlockingIOError):
        Reply(1, failed=True, payload=b"EAGAIN\0").result()


@pytest.mark.parametrize("name", [b"EQUOTA\0", b"", b"\xff", b"errorcode\0", b"__name__"])
def test_an_error_without_an_errno_is_an_error_all_the_same(name: bytes) -> None:
    with pytest.raises(OSError, match="xenstore") as caught:
        Reply(1, failed=True, payload=name).result()
    assert caught.value.errno == errno.EIO


def test_a_value_keeps_its_nuls() -> None:
    assert list(Splitter().feed(packet(wire.READ, 4, b"a\0\0"))) == [Reply(4, False, b"a\0\0")]


def test_children_and_numbers() -> None:
    assert wire.parse_strings(b"") == []
    assert wire.parse_strings(b"0\x005\0") == ["0", "5"]
    assert wire.parse_number(b"12\0") == 12
    for no_number in (b"x\0", b"9" * 5000, b""):
        with pytest.raises(NotXenstore):
            wire.parse_number(no_number)


@given(
    st.lists(st.from_regex(r"[a-z0-9-]{1,8}", fullmatch=True), max_size=9), st.integers(0, 2**64)
)
def test_parts_of_a_directory_make_the_whole(names: list[str], generation: int) -> None:
    """Laid out as C xenstored's send_directory_part does, three children a part."""
    heap = [name.encode() + b"\0" for name in names]
    found: list[str] = []
    offset = 0
    while True:
        left = b"".join(heap)[offset:]
        some = left.split(b"\0")[:-1][:3]
        body = b"".join(name + b"\0" for name in some)
        end = b"\0" if body == left else b""
        part = wire.parse_directory_part(str(generation).encode() + b"\0" + body + end)
        assert part.generation == str(generation)
        found += part.names
        offset += part.size
        if part.is_last:
            break
    assert found == names


@given(st.binary(max_size=60))
def test_a_part_of_a_directory_never_makes_the_client_go_round(untrusted: bytes) -> None:
    try:
        part = wire.parse_directory_part(untrusted)
    except NotXenstore:
        return
    assert part.is_last or part.size > 0


# ---------------------------------------------------------------- the stream
@given(
    st.lists(st.tuples(st.integers(0, 9), st.binary(max_size=40)), max_size=8),
    st.integers(1, 50),
)
def test_packets_may_come_in_any_pieces(sent: list[tuple[int, bytes]], size: int) -> None:
    stream = b"".join(packet(wire.READ, number, payload) for number, payload in sent)
    stream += packet(wire.WATCH_EVENT, 0, b"/a/b\0t-9\0")
    splitter = Splitter()
    found = [
        one
        for start in range(0, len(stream), size)
        for one in splitter.feed(stream[start : start + size])
    ]
    assert found == [*(Reply(number, False, payload) for number, payload in sent), Event("t-9")]


@given(st.binary(max_size=100))
def test_bytes_of_no_xenstored_are_told_or_waited_on(untrusted: bytes) -> None:
    try:
        found = list(Splitter().feed(untrusted))
    except NotXenstore:
        return
    assert all(isinstance(one, Reply | Event) for one in found)


def test_a_packet_that_would_take_all_memory_is_refused() -> None:
    with pytest.raises(NotXenstore, match="bytes"):
        list(Splitter().feed(HEADER.pack(wire.READ, 1, 0, 0xFFFFFFFF)))


def test_an_oversize_directory_of_oxenstored_is_taken() -> None:
    names = b"".join(b"%08d\0" % number for number in range(1000))
    assert list(Splitter().feed(packet(wire.DIRECTORY, 1, names))) == [Reply(1, False, names)]


def test_an_event_without_a_token_is_refused() -> None:
    with pytest.raises(NotXenstore):
        list(Splitter().feed(packet(wire.WATCH_EVENT, 0, b"/a\0")))


# ---------------------------------------------------------------- there and back
@given(
    st.sampled_from([wire.READ, wire.WRITE, wire.DIRECTORY, wire.DIRECTORY_PART]),
    st.binary(max_size=wire.MAX_PAYLOAD),
    st.integers(0, 2**32 - 1),
)
def test_a_request_is_cut_out_of_the_stream_as_it_was_built(
    op: int, payload: bytes, number: int
) -> None:
    sent = wire.build_request(op, payload, request_id=number)
    assert list(Splitter().feed(sent * 2)) == [Reply(number, False, payload)] * 2


@given(st.lists(st.text(max_size=8), max_size=4))
def test_permissions_smuggle_no_string_of_their_own(permissions: list[str]) -> None:
    try:
        sent = wire.permissions_payload("/a", tuple(permissions))
    except ValueError:
        return
    assert wire.parse_strings(sent) == ["/a", *permissions]
