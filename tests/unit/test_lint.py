"""The linters, run as tests: what they say is part of every run, and nothing passes by."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
SHELLS = re.compile(rb"#! ?(/usr/bin/env |/bin/|/usr/bin/)(sh|bash|dash|ash|busybox)\b")


def run_linter(*argv: str | Path) -> str:
    """What the linter says; fails the test with it where the linter is not content."""
    finished = subprocess.run(
        argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if finished.returncode != 0:
        ended = f"{' '.join(map(str, argv))} ended with {finished.returncode}"
        pytest.fail(f"{ended}:\n{finished.stdout}", pytrace=False)
    return finished.stdout


def source_files(pattern: str = ".") -> list[Path]:
    """The files that git knows or would add, in order."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", pattern],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    paths = {ROOT / name.decode() for name in listed.split(b"\0") if name}
    return sorted(path for path in paths if path.is_file())


def is_shell(path: Path) -> bool:
    with path.open("rb") as file:
        return path.suffix == ".sh" or SHELLS.match(file.readline(100)) is not None


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def test_ruff_finds_nothing() -> None:
    run_linter(BIN / "ruff", "check", "--output-format=concise")


def test_the_code_is_formatted() -> None:
    run_linter(BIN / "ruff", "format", "--check", "--quiet")


def test_the_types_hold() -> None:
    run_linter(BIN / "mypy", "--strict")


def test_imports_point_one_way() -> None:
    run_linter(BIN / "lint-imports", "--no-logo", "--no-cache")


def test_every_module_has_its_place_in_the_order_of_imports() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = contracts["contracts"][0]["layers"]
    placed = tuple(re.findall(r"provisiond[\w.]*", " ".join(layers)))
    modules = [module_name(path) for path in source_files("provisiond/*.py")]
    assert "provisiond.errors" in modules
    homeless = [
        module
        for module in modules
        if not module.endswith("__init__")
        and not any(module == layer or module.startswith(f"{layer}.") for layer in placed)
    ]
    assert not homeless, f"name them in pyproject.toml's layers: {', '.join(homeless)}"


def test_every_package_says_that_it_is_one() -> None:
    packages = {path.parent for path in source_files("*.py")} - {ROOT}
    bare = sorted(str(p.relative_to(ROOT)) for p in packages if not (p / "__init__.py").exists())
    assert not bare, f"no __init__.py in {', '.join(bare)}: mypy and import-linter miss its modules"


@pytest.mark.parametrize(
    "script", [str(p.relative_to(ROOT)) for p in source_files() if is_shell(p)]
)
def test_shellcheck_finds_nothing(script: str) -> None:
    run_linter("shellcheck", script)


@pytest.mark.parametrize(
    ("unit_file", "installed", "here"),
    [
        ("systemd/provisiond.service", "/usr/bin/provisiond", BIN / "provisiond"),
        (
            "guest-agent/init/provision-guest.service",
            "/usr/sbin/provision-guest",
            ROOT / "guest-agent" / "provision-guest",
        ),
    ],
    ids=["host", "guest"],
)
def test_systemd_finds_nothing_wrong_with_the_unit(
    unit_file: str, installed: str, here: Path, tmp_path: Path
) -> None:
    text = (ROOT / unit_file).read_text()
    assert text.count(f"={installed}") == 1
    unit = tmp_path / Path(unit_file).name
    unit.write_text(text.replace(f"={installed}", f"={here}"))
    beside = (ROOT / unit_file).with_suffix(".socket")
    units = [unit, *([shutil.copy(beside, tmp_path)] if beside.exists() else [])]
    # Of an unknown key it only tells, with exit status 0; it may tell of the host's units as well.
    said = run_linter("systemd-analyze", "verify", "--man=no", *units)
    ours = [line for line in said.splitlines() if unit.stem in line]
    assert not ours, "\n".join(ours)


def test_systemd_says_that_the_daemon_is_kept_to_what_it_does() -> None:
    unit = ROOT / "systemd" / "provisiond.service"
    said = run_linter("systemd-analyze", "security", "--offline=true", "--threshold=30", unit)
    assert "Overall exposure level" in said


@pytest.mark.parametrize("page", ["README.md", "SECURITY.md"])
def test_the_tests_that_a_promise_is_tested_by_are_there(page: str) -> None:
    named = set(re.findall(r"\btests/[\w./-]*\w", (ROOT / page).read_text()))
    assert len(named) > 1
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_systemd_makes_the_group_of_the_socket(tmp_path: Path) -> None:
    folder = tmp_path / "usr" / "lib" / "sysusers.d"
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "systemd" / "sysusers.d" / "provisiond.conf", folder)
    (tmp_path / "etc").mkdir()
    run_linter("systemd-sysusers", f"--root={tmp_path}")
    assert (tmp_path / "etc" / "group").read_text().startswith("provisiond:")
