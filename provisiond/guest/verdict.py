"""The grammar of the guest's word: what the guest's script says to the host, one word a line.

    hello <version>                  the script waits for its configuration
    <nonce> log <text>               one line of the guest's log
    <nonce> done                     everything was applied and read back
    <nonce> failed <step> <message>  a step failed and nothing after it was done

A word has at most 2,048 bytes: no value that a guest may write to xenstore is longer. The nonce is
on the config ISO, so a word of an earlier job counts for nothing. All of it is written by a guest,
so it is untrusted: what does not match is no word, and text is bounded and freed of control
characters before anybody sees it. `guest-agent/provision-guest` mirrors this module.
"""

import re
from dataclasses import dataclass

from provisiond.terminal import printable

MAX_WORD = 2048
MAX_MESSAGE = 1000
MAX_LOG_LINE = 1500

_STEP = re.compile(r"[a-z][a-z0-9-]{0,31}", re.ASCII)
_CRYPT = re.compile(r"\$[0-9a-z]{1,3}\$[./A-Za-z0-9$=,]{8,}", re.ASCII)  # crypt(5)
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+~-]{0,31}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Hello:
    """The script runs and waits; `version` is its own."""

    version: str


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of the guest's log, printable."""

    text: str


@dataclass(frozen=True, slots=True)
class Done:
    """The guest is configured, and has read it back."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The guest's `step` failed; `message` is its own, printable, at most 1,000 characters."""

    step: str
    message: str


Verdict = Done | Failed
Word = Hello | LogLine | Done | Failed


def parse_word(untrusted_line: bytes, *, nonce: str) -> Word | None:
    """The word in one line (newline or not), or None where it is none of this job's."""
    untrusted_word = untrusted_line.removesuffix(b"\n")
    if len(untrusted_word) > MAX_WORD:
        return None
    line = untrusted_word.decode("utf-8", errors="replace").strip()
    first, _, rest = line.partition(" ")
    if first == "hello":
        return Hello(rest) if _VERSION.fullmatch(rest) else None
    if first != nonce:
        return None
    verb, _, rest = rest.partition(" ")
    if verb == "done" and not rest:
        return Done()
    if verb == "log":
        return LogLine(_printable(rest, MAX_LOG_LINE))
    if verb == "failed":
        step, _, message = rest.partition(" ")
        if _STEP.fullmatch(step):
            return Failed(step, _printable(message, MAX_MESSAGE))
    return None


def _printable(untrusted_text: str, limit: int) -> str:
    """What a log, a record and a terminal may show: nothing to obey, no password's hash."""
    text = _CRYPT.sub("(a password hash)", untrusted_text)
    return printable(text[:limit]).strip()
