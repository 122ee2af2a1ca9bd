"""Real apt over a repository of two tiny packages on the local disk; no network."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.initramfs import PROJECT
from tests.lab.packages import (
    PackageUnavailable,
    fetch_package,
    parse_candidates,
    parse_real_package,
    real_package,
)

APT_CONF = """\
Dir "{root}";
Dir::State::status "{root}/status";
Dir::Etc::sourcelist "{root}/sources.list";
Dir::Etc::sourceparts "{root}/none";
Dir::Etc::trusted "{root}/none";
Dir::Etc::trustedparts "{root}/none";
Dir::State::lists "{root}/lists";
Dir::Cache "{root}/cache";
APT::Sandbox::User "root";
APT::Architecture "amd64";
"""


class Repository:
    """A folder of packages that apt takes as its only source."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in ("lists/partial", "cache/archives/partial", "packages"):
            (root / folder).mkdir(parents=True)
        (root / "status").touch()
        (root / "sources.list").write_text(f"deb [trusted=yes] file:{root}/packages ./\n")
        (root / "apt.conf").write_text(APT_CONF.format(root=root))

    def publish(self, name: str, version: str, *, content: str) -> None:
        tree = self.root / f"{name}-{version}"
        (tree / "DEBIAN").mkdir(parents=True)
        control = f"Package: {name}\nVersion: {version}\nArchitecture: amd64\nMaintainer: x <x@x>\n"
        control += "Description: test\n"
        (tree / "DEBIAN/control").write_text(control)
        (tree / "content").write_text(content)
        (tree / "content").chmod(0o644)
        deb = self.root / f"packages/{name}_{hashlib.sha256(version.encode()).hexdigest()[:8]}.deb"
        argv = ["dpkg-deb", "--root-owner-group", "--build", str(tree), str(deb)]
        subprocess.run(argv, check=True, capture_output=True)
        data = deb.read_bytes()
        with (self.root / "packages/Packages").open("a") as index:
            index.write(f"{control}Filename: ./{deb.name}\nSize: {len(data)}\n")
            index.write(f"SHA256: {hashlib.sha256(data).hexdigest()}\n\n")
        subprocess.run(["apt-get", "update"], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    root = tmp_path / "apt"
    monkeypatch.setenv("APT_CONFIG", str(root / "apt.conf"))
    monkeypatch.setenv("LAB_CACHE", str(tmp_path / "our-cache"))
    return Repository(root)


def test_a_package_is_unpacked_once_and_then_needs_no_source(repository: Repository) -> None:
    repository.publish("tiny", "1:2.0+b1", content="two")
    tree = fetch_package("tiny")
    assert (tree / "content").read_text() == "two"
    for package in repository.root.glob("packages/*.deb"):
        package.unlink()
    assert fetch_package("tiny") == tree


def test_the_newest_version_is_taken_and_the_older_one_stays(repository: Repository) -> None:
    repository.publish("tiny", "1.0", content="one")
    older = fetch_package("tiny")
    repository.publish("tiny", "1.1", content="one more")
    assert (fetch_package("tiny") / "content").read_text() == "one more"
    assert (older / "content").read_text() == "one"


def test_four_processes_at_once_get_one_whole_tree(repository: Repository, tmp_path: Path) -> None:
    repository.publish("tiny", "1.0", content="one")
    program = "from tests.lab.packages import fetch_package; print(fetch_package('tiny'))"
    argv = [sys.executable, "-c", program]
    started = [
        subprocess.Popen(argv, cwd=PROJECT, stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    trees = {process.communicate()[0] for process in started}
    assert [process.returncode for process in started] == [0, 0, 0, 0]
    assert trees == {f"{tmp_path}/our-cache/packages/tiny_1.0\n"}
    left = sorted(path.name for path in (tmp_path / "our-cache/packages").iterdir())
    assert left == ["tiny_1.0", "tiny_1.0.lock"]


def test_a_source_that_lost_the_package_is_named_and_leaves_nothing(
    repository: Repository, tmp_path: Path
) -> None:
    repository.publish("tiny", "1.0", content="one")
    for package in repository.root.glob("packages/*.deb"):
        package.unlink()
    with pytest.raises(PackageUnavailable, match=r"apt-get --quiet download tiny failed.*"):
        fetch_package("tiny")
    left = [path.name for path in (tmp_path / "our-cache/packages").iterdir()]
    assert left == ["tiny_1.0.lock"]


@pytest.mark.usefixtures("repository")
def test_a_package_that_apt_does_not_know_says_what_to_do() -> None:
    with pytest.raises(PackageUnavailable, match=r"no package tiny\. Run: apt-get update"):
        fetch_package("tiny")


def test_a_system_without_apt_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PackageUnavailable, match=r"apt-cache is not there\..*Debian 12"):
        fetch_package("tiny")


def test_the_candidate_is_read_and_its_absence_too() -> None:
    text = "tzdata:\n  Installed: 2025b\n  Candidate: 2026f-0+deb12u1\n  Version table:\n"
    unknown = "x:\n  Installed: (none)\n  Candidate: (none)\n  Version table:\n"
    assert parse_candidates(unknown + text) == {"tzdata": "2026f-0+deb12u1"}
    assert parse_candidates("") == {}


def test_the_first_record_names_the_kernel() -> None:
    text = "Package: linux-image-cloud-amd64\nDepends: linux-image-{0} (= 6.1.{1})\n\n"
    both = text.format("6.1.0-56-cloud-amd64", 192) + text.format("6.1.0-50-cloud-amd64", 176)
    assert parse_real_package(both, "linux-image-") == "linux-image-6.1.0-56-cloud-amd64"
    assert parse_real_package(both, "xen-hypervisor-") is None


@pytest.mark.usefixtures("repository")
def test_a_metapackage_that_apt_does_not_know_says_what_to_do() -> None:
    with pytest.raises(PackageUnavailable, match="apt-get update"):
        real_package("xen-system", "xen-hypervisor-")
