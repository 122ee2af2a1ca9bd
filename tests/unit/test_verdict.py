"""The guest's word: only this job's counts, and nothing that a guest writes does harm."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisiond.guest.verdict import (
    MAX_LOG_LINE,
    MAX_MESSAGE,
    MAX_WORD,
    Done,
    Failed,
    Hello,
    LogLine,
    parse_word,
)

NONCE = "0123456789abcdef0123456789abcdef"
OTHER = "f" * 32


def parse(line: str | bytes) -> object:
    return parse_word(line if isinstance(line, bytes) else line.encode(), nonce=NONCE)


@pytest.mark.parametrize(
    ("line", "word"),
    [
        (f"{NONCE} done", Done()),
        (f"{NONCE} done\n", Done()),
        (f"{NONCE} done\r\n", Done()),
        (f"  {NONCE} done  \n", Done()),
        ("hello 0.1.0\n", Hello("0.1.0")),
        ("hello 2:1+deb12~1\n", None),
        ("hello 1.0+deb12~1-2\n", Hello("1.0+deb12~1-2")),
        (f"{NONCE} log hostname is web1\n", LogLine("hostname is web1")),
        (f"{NONCE} log\n", LogLine("")),
        (f"{NONCE} failed network no route\n", Failed("network", "no route")),
        (f"{NONCE} failed ssh-keys\n", Failed("ssh-keys", "")),
        (f"{NONCE} log gr\u00fc\u00df dich\n", LogLine("gr\u00fc\u00df dich")),
    ],
)
def test_a_word_means_what_the_grammar_says(line: str, word: object) -> None:
    assert parse(line) == word


@pytest.mark.parametrize(
    "line",
    [
        "",
        "\n",
        "done",
        NONCE,
        f"{OTHER} done",
        f"{NONCE[:-1]} done",
        f"{NONCE}0 done",
        f"{NONCE.upper()} done",
        f"{NONCE}\tdone",
        f"{NONCE}  done",
        f"{NONCE} done again",
        f"{NONCE} DONE",
        f"{NONCE} doned",
        f"{NONCE} failed",
        f"{NONCE} failed Network x",
        f"{NONCE} failed ../../etc x",
        f"{NONCE} failed {'a' * 33} x",
        f"{NONCE} hello 1",
        f"hello {NONCE} done",
        f"log {NONCE} done",
        "hello",
        "hello ",
        "hello 1 2",
        f"hello {'1' * 33}",
        f"\x00{NONCE} done",
    ],
)
def test_what_does_not_match_is_no_word(line: str) -> None:
    assert parse(line) is None


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_a_word_of_the_greatest_length_counts_and_a_longer_one_does_not(end: bytes) -> None:
    longest = f"{NONCE} log ".encode().ljust(MAX_WORD, b"x")
    assert parse(longest + end) == LogLine("x" * MAX_LOG_LINE)
    assert parse(longest + b"x" + end) is None


@given(st.binary(max_size=3000))
def test_no_bytes_are_too_strange_to_be_parsed(untrusted: bytes) -> None:
    assert_harmless(parse(untrusted))
    for verb in (b" log ", b" failed step ", b" failed ", b" ", b" done"):
        assert_harmless(parse(NONCE.encode() + verb + untrusted))
    assert_harmless(parse(b"hello " + untrusted))


def assert_harmless(word: object) -> None:
    match word:
        case LogLine(text):
            assert text.isprintable()
            assert len(text) <= MAX_LOG_LINE
        case Failed(step, message):
            assert (step + message).isprintable()
            assert len(step) <= 32
            assert len(message) <= MAX_MESSAGE
        case Hello(version):
            assert version.isprintable()
            assert len(version) <= 32
        case _:
            assert word in (None, Done())


@pytest.mark.parametrize("hashed", ["$6$saltsalt$" + "x" * 86, "$y$j9T$abc$" + "./" * 20])
def test_a_hash_that_a_guest_says_is_not_repeated(hashed: str) -> None:
    assert parse(f"{NONCE} log root:{hashed}:1\n") == LogLine("root:(a password hash):1")
    assert parse(f"{NONCE} failed password {hashed}\n") == Failed("password", "(a password hash)")


@given(
    nonce=st.text("0123456789abcdef", min_size=32, max_size=32).filter(lambda it: it != NONCE),
    said=st.sampled_from(["done", "failed network x", "log x"]),
)
def test_only_this_jobs_nonce_counts(nonce: str, said: str) -> None:
    assert parse(f"{nonce} {said}\n") is None
    assert parse_word(f"{nonce} {said}\n".encode(), nonce=nonce) is not None


@given(st.text(max_size=1200))
def test_text_comes_through_without_what_could_move_a_cursor(text: str) -> None:
    word = parse(f"{NONCE} failed step {text}".encode(errors="replace"))
    if word is not None:  # more bytes than a word may have
        assert isinstance(word, Failed)
        assert not set(word.message) & set("\x00\x07\x08\x1b\n\r\t\x7f\x9b\u202e\u200b")


@given(st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=400))
def test_what_an_honest_script_says_comes_through_as_it_is(text: str) -> None:
    if "$" in text:  # what looks like a password's hash does not
        return
    said = f"{NONCE} failed network {text}\n".encode()
    assert parse_word(said, nonce=NONCE) == Failed("network", text[:MAX_MESSAGE])
    said = f"{NONCE} log {text} {text}\n".encode()
    assert parse_word(said, nonce=NONCE) == LogLine(f"{text} {text}"[:MAX_LOG_LINE])
