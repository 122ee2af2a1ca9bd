"""What guests and libvirt wrote reaches an operator's terminal on many roads, and on none raw."""

import io
import json
import logging
import sys
import unicodedata
from collections.abc import Callable, Mapping

import pytest

from provisiond.cli.asking import json_text
from provisiond.guest.verdict import MAX_LOG_LINE, MAX_MESSAGE, Failed, LogLine, parse_word
from provisiond.systemd import log_handler
from provisiond.tables import show_addresses, show_base, show_bases, show_disks, show_domains
from provisiond.terminal import printable
from tests.unit.test_display import console, everything
from tests.unit.test_progress import new_view, shown
from tests.unit.test_tables import base_of, disk_of, domain_of

NONCE = "0123456789abcdef0123456789abcdef"
ATTACKS = {
    "colours and the cursor": "\x1b[31m\x1b[2J\x1b[1;1H",
    "the window's title": "\x1b]0;owned\x07",
    "a link that leads elsewhere (OSC 8)": "\x1b]8;;http://evil.example\x1b\\click\x1b]8;;\x1b\\",
    "the clipboard (OSC 52)": "\x1b]52;c;cm0gLXJmIH4=\x07",
    "a device's report": "\x1b[6n\x1bP$q\x1b\\",
    "the same by C1 controls": "\x9b31m\x9d52;c;cm0=\x9c\x90\x85",
    "a line that is written over": "web1 failed\rweb1 is fine",
    "a line of its own": "web1\nweb2 SUCCEEDED\vx\fx\u2028x\u2029x",
    "text that runs backwards": "\u202egnp.exe\u202c\u2066x\u2069\u200fx",
    "text that is not seen": "a\u200bb\u200db\ufeff\u2060\u00ad\U000e0041",
    "erased": "secret\x08\x08\x08\x7f\x00",
    "half a character": "\ud800",
}
# What a terminal may get from us: its own colours come from rich, and are not looked at here.
HARMFUL = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def harmful(text: str, *, allowed: str = "") -> set[str]:
    """The characters in it that a terminal could obey, or that hide or turn what is shown."""
    return {c for c in text if unicodedata.category(c) in HARMFUL and c not in allowed}


def tables(text: str) -> str:
    target, out = console(terminal=False)
    show_domains(target, [domain_of(text)])
    show_disks(target, [disk_of(text)])
    show_bases(target, [base_of(text), base_of("x", changed=text)])
    show_base(target, base_of(text))
    show_addresses(target, domain_of(text).addresses, of=text)
    return out.getvalue()


def logged(text: str) -> str:
    """What a line with it, and the traceback of an error with it, are on stderr."""
    handler = log_handler()
    try:
        raise ValueError(text)
    except ValueError:
        record = logging.LogRecord(
            "provisiond", logging.ERROR, __file__, 1, "%s: %s", (text, text), sys.exc_info()
        )
    return handler.format(record)


ROADS: Mapping[str, Callable[[str], str]] = {
    "jobs, events, errors, checks": lambda text: everything(text, terminal=False),
    "tables": tables,
    "the live view": lambda text: "\n".join(shown(new_view(text))),
    "the log": logged,
    "JSON": lambda text: json_text({"log": [text], text: text}, indent=2),
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("road", ROADS)
def test_nothing_harmful_reaches_a_terminal(road: str, attack: str) -> None:
    assert harmful(ATTACKS[attack])
    assert harmful(ROADS[road](ATTACKS[attack]), allowed="\n\t") == set()


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("road", ["jobs, events, errors, checks", "tables"])
def test_nobody_makes_lines_of_his_own(road: str, attack: str) -> None:
    lines = ROADS[road](ATTACKS[attack]).count("\n")
    assert lines == ROADS[road]("plain").count("\n")


@pytest.mark.parametrize("attack", ATTACKS)
def test_nobody_makes_a_line_that_looks_like_one_of_the_log(attack: str) -> None:
    _, *traceback = logged(ATTACKS[attack]).split("\n")
    assert all(line.startswith("  ") for line in traceback)


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_a_guest_says_is_harmless_before_it_is_stored(attack: str) -> None:
    said = ATTACKS[attack].replace("\n", " ").encode(errors="surrogatepass")
    line = parse_word(b"%s log %s" % (NONCE.encode(), said), nonce=NONCE)
    assert isinstance(line, LogLine)
    assert harmful(line.text) == set()
    failed = parse_word(b"%s failed network %s" % (NONCE.encode(), said), nonce=NONCE)
    assert isinstance(failed, Failed)
    assert harmful(failed.message) == set()


def test_a_very_long_line_is_cut() -> None:
    line = parse_word(f"{NONCE} log {'x' * 2000}".encode(), nonce=NONCE)
    assert line == LogLine("x" * MAX_LOG_LINE)
    failed = parse_word(f"{NONCE} failed network {'x' * 2000}".encode(), nonce=NONCE)
    assert failed == Failed("network", "x" * MAX_MESSAGE)
    assert parse_word(f"{NONCE} log {'x' * 3000}".encode(), nonce=NONCE) is None


def test_json_says_what_was_written() -> None:
    for text in ATTACKS.values():
        assert json.loads(json_text({"text": text})) == {"text": text}


def test_a_terminal_gets_no_escape_of_a_guests() -> None:
    for text in ATTACKS.values():
        by_guest = everything(text, terminal=True)
        by_us = everything("x" * len(text), terminal=True)
        assert by_guest.count("\x1b") == by_us.count("\x1b")
        assert "\x9b" not in by_guest
        assert printable(text).isprintable()


def test_the_log_is_the_handler_that_the_daemon_writes_by() -> None:
    handler = log_handler()
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(io.StringIO())
    handler.emit(logging.makeLogRecord({"msg": "%s: gone", "args": ("mute\x9b31m",)}))
    assert handler.stream.getvalue().endswith("mute\N{REPLACEMENT CHARACTER}31m: gone\n")
