"""What `make fuzz` does to the parsers, in small; what it has found; and that it does find."""

import json
from pathlib import Path

import pytest

from tests.fuzz.run import fuzz
from tests.fuzz.targets import NONCE, TARGETS

EXECUTIONS = 10_000


@pytest.mark.parametrize("name", TARGETS)
def test_no_bytes_do_worse_than_to_be_refused(name: str, tmp_path: Path) -> None:
    result = fuzz(name, tmp_path, f"-runs={EXECUTIONS}", "-seed=1")
    assert not result.problem, result
    assert result.executions >= EXECUTIONS
    assert result.kept > 1
    if TARGETS[name].compare is not None:
        assert result.compared > 0


# ---------------------------------------------------------------- what was found
IMAGE = {"filename": "/a.raw", "format": "raw", "virtual-size": 512, "actual-size": 512}


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("chain", [IMAGE | {"full-backing-filename": "/b\x95"}, IMAGE]),
        ("chain", IMAGE | {"filename": "nbd:\x1b]0;x\x07"}),
        ("chain", IMAGE | {"virtual-size": 10**300}),
    ],
)
def test_what_was_found_once_is_refused_now(name: str, found: object) -> None:
    TARGETS[name].check(json.dumps(found).encode())


# ---------------------------------------------------------------- that it finds
def test_what_is_wrong_is_found_and_shown(tmp_path: Path) -> None:
    result = fuzz("planted", tmp_path, "-max_total_time=60", module="tests.fuzz.planted")
    assert f"{NONCE} log" in result.problem, result
    assert "check_no_log_line" in result.problem
