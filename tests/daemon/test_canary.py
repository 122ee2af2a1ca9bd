"""The search for a secret finds one, wherever it rests and in whatever form."""

import base64
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.daemon.canary import (
    Canary,
    Place,
    files_below,
    forms,
    found,
    memory,
    open_files,
    processes,
    replies,
    traced,
    xenstore,
)
from tests.daemon.images import import_of, raw_image, run_job
from tests.daemon.program import Daemon
from tests.xenstore.daemon import Xenstored


@pytest.fixture
def canary() -> Canary:
    return Canary()


@contextmanager
def paused(*argv: str, environment: dict[str, str] | None = None) -> Iterator[int]:
    """The PID of a process that has started."""
    process = subprocess.Popen(
        ["sh", "-c", "echo started; read -r _", *argv],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
    finally:
        process.communicate()


@pytest.mark.parametrize("offset", [0, 1, 2])
def test_in_base64_it_is_found_wherever_it_begins(canary: Canary, offset: int) -> None:
    for secret in (canary.password, canary.hash):
        whole = base64.b64encode(b"GET / "[:offset] + secret.encode() + b" and more")
        assert found([secret], [Place("a", whole)], known={}, hashes=False) == ["a"]


def test_every_form_is_another_one_and_none_is_short(canary: Canary) -> None:
    for secret in (canary.password, canary.hash):
        assert len(forms(secret)) == 7
        assert min(map(len, forms(secret))) > 24
    assert len(set(forms(canary.hash))) == 7


def test_a_hash_that_nobody_knows_is_found_by_its_shape(canary: Canary) -> None:
    place = Place("a", b"root:" + canary.hash.encode() + b":1:")
    assert found(["another secret"], [place], known={}) == ["a"]
    assert found(["another secret"], [place], known={}, hashes=False) == []


def test_a_search_that_could_not_find_anything_fails(canary: Canary, tmp_path: Path) -> None:
    (tmp_path / "log").write_text("web1: done")
    for known in ({"*/log": "web2"}, {"*/state": "web1"}):
        with pytest.raises(AssertionError, match="not searched"):
            found([canary.password], files_below(tmp_path), known=known)
    assert found([canary.password], files_below(tmp_path), known={"*/log": "web1"}) == []


def test_it_is_found_in_files_but_not_in_those_left_out(canary: Canary, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    file = tmp_path / "in" / ".hidden"
    file.write_text(f"x{canary.password}x")
    assert found([canary.password], files_below(tmp_path), known={}) == [str(file)]
    assert found([canary.password], files_below(tmp_path, but=file.parent), known={}) == []


def test_it_is_found_in_arguments_and_in_the_environment(canary: Canary, tmp_path: Path) -> None:
    secret, folder = [canary.password], str(tmp_path)
    with paused(folder, f"--password={canary.password}") as pid:
        assert found(secret, processes(tmp_path), known={}) == [f"arguments of {pid}"]
    environment = {"PATH": os.environ["PATH"], "PASSWORD": canary.password}
    with paused(folder, environment=environment) as pid:
        assert found(secret, processes(tmp_path), known={}) == [f"environment of {pid}"]


def test_it_is_found_in_a_file_that_has_no_name_any_more(canary: Canary) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(canary.password.encode())
        file.flush()
        (place,) = found([canary.password], open_files(os.getpid()), known={})
    assert place.endswith("(deleted)")


def test_it_is_found_in_memory(canary: Canary) -> None:
    kept = canary.password.encode() * 2
    assert found([canary.password], memory(os.getpid()), known={}, hashes=False)
    assert kept


def test_it_is_found_in_the_arguments_of_what_a_traced_command_starts(
    canary: Canary, tmp_path: Path
) -> None:
    trace = tmp_path / "execs"
    script = f"true {canary.password}; env PASSWORD={canary.password[::-1]} true; exit 3"
    ended = subprocess.run([*traced(trace), "sh", "-c", f"sh -c '{script}'"], check=False)
    assert ended.returncode == 3
    arguments, environment = canary.password, f"PASSWORD={canary.password[::-1]}"
    assert found([arguments], files_below(tmp_path), known={"*": environment}) == [str(trace)]


async def test_it_is_found_in_what_the_api_answers(
    canary: Canary, daemon: Daemon, tmp_path: Path
) -> None:
    name = canary.password
    job = await run_job(daemon, import_of(raw_image(tmp_path / "image"), name=name))
    assert set(found([name], await replies(daemon), known={})) == {
        "GET /v1/jobs",
        "GET /v1/bases",
        f"GET /v1/jobs/{job['id']}",
        f"GET /v1/jobs/{job['id']}/events",
    }


def test_it_is_found_in_xenstore(canary: Canary, xenstored: Xenstored) -> None:
    value, key = canary.hash, canary.password
    xenstored.dom0.write("/local/domain/7/data/x", value.encode())
    xenstored.dom0.write(f"/tool/{key}", b"")
    found_in = found([value, key], xenstore(xenstored.dom0), known={"* /local/*": value})
    assert found_in == ["xenstore /local/domain/7/data/x", f"xenstore /tool/{key}"]
