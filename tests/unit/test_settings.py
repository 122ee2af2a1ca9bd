"""The operator's settings: the file, the environment, and what a wrong one is answered with."""

import inspect
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from provisiond.errors import SettingsError
from provisiond.settings import DEFAULT_CONFIG, Settings, read_settings


@pytest.fixture(autouse=True)
def no_environment() -> Iterator[None]:
    """The environment of whoever runs the tests is put aside."""
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith("PROVISIOND_")]:
        del os.environ[name]
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "provisiond.toml"


def refusal(file: Path | None) -> str:
    with pytest.raises(SettingsError) as caught:
        read_settings(file)
    assert caught.value.hint
    return str(caught.value)


def test_nothing_needs_to_be_set(file: Path) -> None:
    file.touch()
    defaults = {name: field.default for name, field in Settings.model_fields.items()}
    assert read_settings(file).model_dump() == defaults
    if not DEFAULT_CONFIG.exists():
        assert read_settings(None).model_dump() == defaults


def test_every_setting_has_an_explanation() -> None:
    text = inspect.getsource(Settings)
    for name in Settings.model_fields:
        assert f"    {name}: " in text
        after = text.partition(f"    {name}: ")[2].splitlines()[1]
        assert after.startswith('    """'), name


def test_the_readme_names_every_setting() -> None:
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    missing = [name for name in Settings.model_fields if f"`{name}`" not in readme]
    assert not missing, f"README.md says nothing of {', '.join(missing)}"


def test_the_file_says_what_is_wanted(file: Path) -> None:
    file.write_text(
        'libvirt_uri = "xen:///system"\nmax_jobs = 7\nready_seconds = 0.5\n'
        'state_dir = "/srv/state"\nallow_iso_on_disk = true\nsocket_group = "ops"\n'
    )
    found = read_settings(file)
    assert (found.libvirt_uri, found.max_jobs, found.ready_seconds) == ("xen:///system", 7, 0.5)
    assert (found.state_dir, found.allow_iso_on_disk) == (Path("/srv/state"), True)
    assert found.socket_group == "ops"


def test_the_environment_wins_over_the_file(file: Path) -> None:
    file.write_text("max_jobs = 7\nmax_jobs_waiting = 8\n")
    os.environ["PROVISIOND_MAX_JOBS"] = "9"
    found = read_settings(file)
    assert (found.max_jobs, found.max_jobs_waiting) == (9, 8)


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("max_jobs = 0", "max_jobs"),
        ('max_jobs = "many"', "max_jobs"),
        ("max_jobs_waiting = -1", "max_jobs_waiting"),
        ("deadline_seconds = 0", "deadline_seconds"),
        ("ready_seconds = nan", "ready_seconds"),
        ("attach_seconds = inf", "attach_seconds"),
        ("detach_seconds = 86401", "detach_seconds"),
        ('state_dir = "relative"', "state_dir"),
        ('runtime_dir = "~/x"', "runtime_dir"),
        ('socket = "run/x.sock"', "socket"),
        (f'socket = "/{"x" * 107}"', "socket"),
        ('libvirt_uri = ""', "libvirt_uri"),
        ('log_level = "loud"', "log_level"),
        ('allow_iso_on_disk = "perhaps"', "allow_iso_on_disk"),
        ("max_job = 5", "max_job"),
        (r'state_dir = "/srv/\u0000"', "state_dir"),
        (r'tls_key = "/srv/\u001b"', "tls_key"),
        (r'socket_group = "ops\u0000"', "socket_group"),
        (r'operators = ["a\nb"]', "operators.0"),
        ("[section]\nmax_jobs = 5", "section"),
    ],
)
def test_a_wrong_setting_is_named(file: Path, line: str, name: str) -> None:
    file.write_text(line + "\n")
    assert refusal(file).startswith(f"wrong setting: {name}: ")


@pytest.mark.parametrize(
    ("value", "reason"),
    [("watch", 'error parsing value for field "viewers"'), ("[" * 10**5, "nested too deeply")],
)
def test_a_list_in_the_environment_that_is_no_json_is_no_fault_of_the_file(
    file: Path, value: str, reason: str
) -> None:
    file.touch()
    os.environ["PROVISIOND_VIEWERS"] = value
    said = refusal(file)
    assert said.startswith("wrong setting: ")
    assert reason in said
    assert str(file) not in said


def test_a_file_that_is_nested_too_deeply_is_told(file: Path) -> None:
    file.write_text(f"max_jobs = {'[' * 10**5}")
    assert refusal(file) == "wrong setting: one is nested too deeply to be read"


# ---------------------------------------------------------------- whatever they are
values = st.recursive(
    st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["/srv", "/srv/\0", "auto", "[::1]:8443", "info", "/" + "x" * 200]),
    lambda inner: st.lists(inner, max_size=2),
    max_leaves=3,
)


@given(st.dictionaries(st.sampled_from(sorted(Settings.model_fields)), values, max_size=4))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_file_says_it_is_settings_in_their_bounds_or_refused(
    file: Path, said: dict[str, object]
) -> None:
    file.write_text("".join(f"{name} = {as_toml(value)}\n" for name, value in said.items()))
    try:
        found = read_settings(file)
    except SettingsError:
        return
    assert_in_bounds(found)
    for name in said:
        assert name in found.model_fields_set


@given(st.dictionaries(st.sampled_from(sorted(Settings.model_fields)), st.text(), max_size=4))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_the_environment_says_it_is_settings_or_refused(
    file: Path, said: dict[str, str]
) -> None:
    file.touch()
    environment = {
        f"PROVISIOND_{name.upper()}": value.replace("\0", "").encode(errors="replace").decode()
        for name, value in said.items()
    }
    os.environ.update(environment)
    try:
        assert_in_bounds(read_settings(file))
    except SettingsError as refused:
        assert str(file) not in refused.message  # noqa: PT017 - it is not the file's fault
    finally:
        for name in environment:
            del os.environ[name]


def assert_in_bounds(found: Settings) -> None:
    for name, value in found.model_dump().items():
        if isinstance(value, Path):
            assert value.is_absolute(), name
        for text in value if isinstance(value, tuple) else (value,):
            assert not isinstance(text, str | Path) or str(text).isprintable(), name
    assert 0 < found.max_jobs <= 10_000
    assert 0 < found.deadline_seconds <= 86400
    assert 2 <= found.max_chain <= 64
    assert len(str(found.socket).encode()) <= 107


def as_toml(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(as_toml, value))}]"
    if isinstance(value, str):
        return json.dumps(value).replace("\x7f", "\\u007f")
    return str(value).lower()


def test_a_misspelt_name_in_the_environment_is_named(file: Path) -> None:
    file.write_text("")
    os.environ["PROVISIOND_MAX_JOB"] = "5"
    assert "PROVISIOND_MAX_JOB" in refusal(file)


def test_all_wrong_settings_are_named_at_once(file: Path) -> None:
    file.write_text('max_jobs = 0\nlog_level = "loud"\ntypo = 1\n')
    os.environ["PROVISIOND_READY_SECONDS"] = "soon"
    said = refusal(file)
    for name in ("max_jobs", "log_level", "typo", "ready_seconds"):
        assert f"{name}: " in said


def test_the_longest_path_of_a_socket_is_taken(file: Path) -> None:
    file.write_text(f'socket = "/{"x" * 106}"\n')
    assert len(str(read_settings(file).socket)) == 107


@pytest.mark.parametrize("text", ["max_jobs =", "max_jobs = 1\nmax_jobs = 2", "= 1", "\x00"])
def test_what_is_no_toml_is_told(file: Path, text: str) -> None:
    file.write_text(text)
    assert refusal(file).startswith(f"{file} is no TOML file: ")


def test_what_is_no_text_is_told(file: Path) -> None:
    file.write_bytes(b"max_jobs = 5 # \xff\xfe\n")
    assert str(file) in refusal(file)


def test_a_file_that_was_named_must_be_there(tmp_path: Path) -> None:
    assert refusal(tmp_path / "absent.toml") == f"{tmp_path / 'absent.toml'} is no file"
    assert refusal(tmp_path) == f"{tmp_path} is no file"


def test_two_readings_do_not_mix(file: Path, tmp_path: Path) -> None:
    file.write_text("max_jobs = 7\n")
    other = tmp_path / "other.toml"
    other.write_text("max_jobs_waiting = 8\n")
    assert read_settings(file).max_jobs == 7
    assert read_settings(other).max_jobs == Settings().max_jobs


def test_settings_are_never_changed(file: Path) -> None:
    file.touch()
    with pytest.raises(ValueError, match="frozen"):
        read_settings(file).max_jobs = 3  # type: ignore[misc]
