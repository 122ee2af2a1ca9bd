"""Installation ISOs: what they are, how they are installed, and what was built of them before."""

import asyncio
import fcntl
import hashlib
import io
import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from pycdlib import PyCdlib

from provisiond.errors import DownloadFailed, ImageRefused, NotReady
from provisiond.images.build_folder import opened
from provisiond.images.download import download
from provisiond.images.from_iso import find_key
from provisiond.images.iso import (
    answers_of,
    fetch_iso,
    guest_name,
    install_argv,
    kernel_arguments,
    write_answers,
)
from provisiond.images.phases import Phase
from provisiond.images.recipe import IsoRecipe
from provisiond.images.results import Results
from provisiond.iso.installation import (
    InstallationIso,
    Installer,
    parse_treeinfo,
    read_installation,
)
from tests.daemon.command import PROVISIONCTL

DEBIAN = {
    ".disk/info": b'Debian GNU/Linux 12.5.0 "Bookworm" - Official amd64 NETINST with firmware\n',
    ".disk/base_installable": b"",
    "install.amd/vmlinuz": b"kernel",
    "install.amd/initrd.gz": b"initrd",
}
TREEINFO = b"""[release]
name = AlmaLinux
version = 9.4
[general]
family = AlmaLinux
"""
RED_HAT = {
    ".treeinfo": TREEINFO,
    "images/pxeboot/vmlinuz": b"kernel",
    "images/pxeboot/initrd.img": b"initrd",
    "media.repo": b"[media]\n",
}


def write_iso(path: Path, files: Mapping[str, bytes]) -> Path:
    """A real ISO with these files, as the distributions make theirs: with Rock Ridge."""
    iso = PyCdlib()
    iso.new(interchange_level=3, rock_ridge="1.09")
    made: set[str] = set()
    for number, (name, content) in enumerate(files.items()):
        folders = name.split("/")[:-1]
        inner = ""
        for depth, folder in enumerate(folders):
            parent, inner = inner, "/".join(folders[: depth + 1])
            if inner not in made:
                made.add(inner)
                iso.add_directory(iso_path(inner), rr_name=folder)
            assert parent in made | {""}
        path_in_iso = f"{iso_path(inner) if inner else ''}/F{number}.;1"
        iso.add_fp(io.BytesIO(content), len(content), path_in_iso, rr_name=name.split("/")[-1])
    iso.write(str(path))
    iso.close()
    return path


def iso_path(folder: str) -> str:
    return "/" + "/".join("D" + part.upper().replace(".", "_") for part in folder.split("/"))


def silent(_line: str) -> None:
    pass


# ---------------------------------------------------------------- what it is
def test_debians_installer_is_recognised(tmp_path: Path) -> None:
    found = read_installation(write_iso(tmp_path / "debian.iso", DEBIAN))
    assert found == InstallationIso(
        installer=Installer.DEBIAN,
        title="Debian GNULinux 12.5.0 Bookworm",
        kernel="install.amd/vmlinuz",
        initrd="install.amd/initrd.gz",
        has_packages=True,
    )


def test_red_hats_installer_is_recognised(tmp_path: Path) -> None:
    found = read_installation(write_iso(tmp_path / "alma.iso", RED_HAT))
    assert (found.installer, found.title, found.has_packages) == (
        Installer.RED_HAT,
        "AlmaLinux 9.4",
        True,
    )
    boot = {name: RED_HAT[name] for name in list(RED_HAT)[:3]}
    assert not read_installation(write_iso(tmp_path / "boot.iso", boot)).has_packages


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"readme": b"x"}, "neither"),
        ({".disk/info": DEBIAN[".disk/info"]}, "no installer's kernel"),
        ({".disk/info": b"Debian " + b"x" * 70_000, **dict(list(DEBIAN.items())[2:])}, "neither"),
    ],
    ids=["nothing", "live", "long"],
)
def test_an_iso_that_nobody_can_drive_is_refused(
    tmp_path: Path, files: dict[str, bytes], why: str
) -> None:
    with pytest.raises(ImageRefused, match=why):
        read_installation(write_iso(tmp_path / "other.iso", files))


@pytest.mark.parametrize("content", [b"", b"x" * 100_000, bytes(200_000)])
def test_what_is_no_iso_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "no.iso"
    path.write_bytes(content)
    with pytest.raises(ImageRefused, match="no ISO"):
        read_installation(path)


@pytest.mark.parametrize("text", ["", "[release", "[a]\nb=c", "[release]\nname=%(x)s", "\0"])
def test_a_treeinfo_of_any_shape_is_read_without_an_error(text: str) -> None:
    assert isinstance(parse_treeinfo(text), str)


# ---------------------------------------------------------------- how it is installed
DEBIAN_ISO = InstallationIso(
    installer=Installer.DEBIAN,
    title="Debian",
    kernel="install.amd/vmlinuz",
    initrd="install.amd/initrd.gz",
    has_packages=True,
)
ALMA_ISO = InstallationIso(
    installer=Installer.RED_HAT,
    title="AlmaLinux",
    kernel="images/pxeboot/vmlinuz",
    initrd="images/pxeboot/initrd.img",
    has_packages=False,
)


def recipe_of(**more: object) -> IsoRecipe:
    return IsoRecipe.model_validate({"name": "web", "iso": "/srv/a.iso", **more})


def unfilled(text: str) -> list[str]:
    return re.findall(r"@[A-Z_]+@", text)


def test_the_preseed_names_mirror_host_name_and_packages() -> None:
    recipe = recipe_of(packages=("less", "vim"), tree="http://mirror.example:8080/debian")
    text = answers_of(recipe, DEBIAN_ISO)
    assert unfilled(text) == []
    assert "d-i mirror/http/hostname string mirror.example:8080\n" in text
    assert "d-i mirror/http/directory string /debian\n" in text
    assert "d-i netcfg/get_hostname string web\n" in text
    assert "cloud-guest-utils less vim\n" in text


def test_the_kickstart_takes_packages_from_the_iso_or_from_the_tree() -> None:
    with pytest.raises(NotReady, match="no packages"):
        answers_of(recipe_of(), ALMA_ISO)
    text = answers_of(recipe_of(tree="https://mirror.example/9/BaseOS"), ALMA_ISO)
    assert '\nurl --url="https://mirror.example/9/BaseOS"\n' in text
    whole = InstallationIso(
        installer=Installer.RED_HAT,
        title="AlmaLinux",
        kernel=ALMA_ISO.kernel,
        initrd=ALMA_ISO.initrd,
        has_packages=True,
    )
    text = answers_of(recipe_of(packages=("less", "vim")), whole)
    assert "\ncdrom\n" in text
    assert "\nless\nvim\n%end" in text
    assert unfilled(text) == []


def test_the_installer_is_told_where_its_answers_are_and_to_ask_nobody() -> None:
    words = kernel_arguments(DEBIAN_ISO, answers=Path("/w/preseed.cfg")).split()
    assert {"auto=true", "priority=critical", "preseed/file=/preseed.cfg"} <= set(words)
    words = kernel_arguments(ALMA_ISO, answers=Path("/w/kickstart.cfg")).split()
    assert {"inst.ks=file:/kickstart.cfg", "inst.text"} <= set(words)


def test_answers_may_hold_passwords_and_nobody_else_may_read_them(tmp_path: Path) -> None:
    write_answers(tmp_path / "preseed.cfg", "d-i passwd/root-password password x")
    assert (tmp_path / "preseed.cfg").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "preseed.cfg").read_text().endswith("password x")


def test_every_option_of_virt_install_has_its_value() -> None:
    argv = install_argv(
        recipe_of(size=6 * 2**30),
        DEBIAN_ISO,
        guest="provisiond-build-web-0",
        iso=Path("/srv/a.iso"),
        disk=Path("/w/image.qcow2"),
        answers=Path("/w/preseed.cfg"),
        console=Path("/w/console.log"),
    )
    words = [str(word) for word in argv]
    assert words[words.index("--disk") + 1].split(",")[1] == "size=6"
    assert words[words.index("--location") + 1] == (
        "/srv/a.iso,kernel=install.amd/vmlinuz,initrd=install.amd/initrd.gz"
    )


def test_two_builds_of_one_name_have_guests_of_their_own(tmp_path: Path) -> None:
    names = []
    (tmp_path / "link").symlink_to(tmp_path / "a")
    for place in ("a", "b", "a", "link"):
        with opened(tmp_path / place) as folder:
            names.append(guest_name(recipe_of(), folder))
    assert names[0] == names[2] == names[3] != names[1]


# ---------------------------------------------------------------- fetched
@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """A web server on loopback; its URL."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


async def test_an_iso_is_fetched_once_and_its_hash_is_what_was_asked_for(tmp_path: Path) -> None:
    served = tmp_path / "served"
    served.mkdir()
    iso = write_iso(served / "debian.iso", DEBIAN)
    digest = hashlib.sha256(iso.read_bytes()).hexdigest()
    with serving(served) as url, opened(tmp_path / "build") as folder:
        wrong = recipe_of(iso=f"{url}/debian.iso", sha256="0" * 64)
        with pytest.raises(DownloadFailed, match="SHA-256"):
            await fetch_iso(wrong, folder, silent)
        assert not list(folder.path.glob("*.iso"))
        right = recipe_of(iso=f"{url}/debian.iso", sha256=digest)
        path, found = await fetch_iso(right, folder, silent)
        assert found == digest
        assert path.read_bytes() == iso.read_bytes()
    with opened(tmp_path / "build") as folder:  # the server is gone
        assert (await fetch_iso(right, folder, silent))[1] == digest


async def test_another_url_is_another_iso_and_one_is_in_the_folder(tmp_path: Path) -> None:
    first = write_iso(tmp_path / "first.iso", DEBIAN)
    second = write_iso(tmp_path / "second.iso", RED_HAT)
    with serving(tmp_path) as url, opened(tmp_path / "build") as folder:
        for iso in (first, second, first):
            path, _ = await fetch_iso(recipe_of(iso=f"{url}/{iso.name}"), folder, silent)
            assert path.read_bytes() == iso.read_bytes()
            assert list(folder.path.glob("*.iso")) == [path]


async def test_update_done_again_fetches_the_iso_again(tmp_path: Path) -> None:
    served = tmp_path / "served"
    served.mkdir()
    iso = write_iso(served / "debian.iso", DEBIAN)
    words = ["image", "build", "web", "--folder", str(tmp_path / "build")]

    def build(*more: str) -> str:
        """The hash of the ISO that `update` has found; init is done where it is left."""
        ended = subprocess.run(
            [PROVISIONCTL, *words, *more, "--json"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
        )
        return str(json.loads(ended.stdout)["phases"]["update"]["result"]["sha256"])

    with serving(served) as url:
        with opened(tmp_path / "build") as folder:
            folder.keep_recipe(recipe_of(iso=f"{url}/debian.iso"))
            folder.end(Phase.INIT, seconds=1.0, result={})
        before = await asyncio.to_thread(build, "--phase", "update")
        assert before == hashlib.sha256(iso.read_bytes()).hexdigest()
        write_iso(iso, {**DEBIAN, "more": b""})
        again = await asyncio.to_thread(build, "--again", "update", "--until", "update")
        assert again == hashlib.sha256(iso.read_bytes()).hexdigest() != before


async def test_what_cannot_be_fetched_leaves_nothing_under_its_name(tmp_path: Path) -> None:
    for url in ("http://127.0.0.1:1/a.iso", "file:///etc/passwd", "http://[::x/"):
        with pytest.raises(DownloadFailed):
            await download(url, tmp_path / "a.iso", said=silent)
    with serving(tmp_path) as url, pytest.raises(DownloadFailed, match="404"):
        await download(f"{url}/absent.iso", tmp_path / "a.iso", said=silent)
    assert not (tmp_path / "a.iso").exists()


# ---------------------------------------------------------------- built before
async def keep(tmp_path: Path, recipe: IsoRecipe, content: bytes) -> Path:
    """A store in which the result of this recipe is already; its path."""
    store, image = tmp_path / "store", tmp_path / "result"
    image.write_bytes(content)
    with opened(tmp_path / "other-build") as folder:
        await Results(store).keep(await find_key(recipe, folder, silent), image)
    return store


def from_iso(tmp_path: Path, iso: Path, *more: str | Path) -> subprocess.CompletedProcess[str]:
    """The command, where no virt-install can be found."""
    argv = [
        *(PROVISIONCTL, "image", "from-iso", iso, "web"),
        *("--folder", tmp_path / "build"),
        *("--store", tmp_path / "store"),
        *more,
        "--json",
    ]
    return subprocess.run(
        argv,
        env={"PATH": str(programs(tmp_path)), "LC_ALL": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def programs(tmp_path: Path) -> Path:
    """A folder that has what a result is copied with, and no virt-install."""
    folder = tmp_path / "bin"
    if not folder.exists():
        folder.mkdir()
        for name in ("cp", "qemu-img", "prlimit"):
            (folder / name).symlink_to(f"/usr/bin/{name}")
    return folder


async def test_the_same_iso_with_the_same_recipe_is_loaded_and_not_built(tmp_path: Path) -> None:
    iso = write_iso(tmp_path / "debian.iso", DEBIAN)
    await keep(tmp_path, recipe_of(iso=str(iso)), b"built before")
    copy = tmp_path / "copy.iso"
    copy.write_bytes(iso.read_bytes())
    ended = await asyncio.to_thread(from_iso, tmp_path, copy, "--minutes", "5")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    told = json.loads(ended.stdout)
    assert told["loaded"] is True
    assert Path(told["image"]).read_bytes() == b"built before"
    with opened(tmp_path / "build") as folder:
        assert list(folder.ended()) == ["init", "update", "precheck", "build", "bake"]


@pytest.mark.parametrize("changed", ["iso", "packages", "name"])
async def test_another_iso_or_recipe_is_built_anew(tmp_path: Path, changed: str) -> None:
    iso = write_iso(tmp_path / "debian.iso", DEBIAN)
    name = "db" if changed == "name" else "web"
    await keep(tmp_path, recipe_of(iso=str(iso), name=name), b"built before")
    if changed == "iso":
        write_iso(iso, {**DEBIAN, "more": b""})
    more = ("--packages", "less") if changed == "packages" else ()
    ended = await asyncio.to_thread(from_iso, tmp_path, iso, *more)
    assert json.loads(ended.stdout)["code"] == "tool_missing"
    assert "virt-install" in ended.stdout
    assert ended.returncode != 0


async def test_an_iso_that_was_exchanged_never_gives_the_image_of_the_old_one(
    tmp_path: Path,
) -> None:
    iso = write_iso(tmp_path / "debian.iso", DEBIAN)
    store = await keep(tmp_path, recipe_of(iso=str(iso)), b"of the old one")
    assert (await asyncio.to_thread(from_iso, tmp_path, iso)).returncode == 0
    write_iso(iso, {**DEBIAN, "more": b""})
    for _ in range(2):  # the second finds the key of the first
        ended = await asyncio.to_thread(from_iso, tmp_path, iso)
        assert json.loads(ended.stdout)["code"] == "tool_missing"
    assert len(list(store.iterdir())) == 1


async def test_a_damaged_result_is_never_loaded(tmp_path: Path) -> None:
    iso = write_iso(tmp_path / "debian.iso", DEBIAN)
    store = await keep(tmp_path, recipe_of(iso=str(iso)), b"built before")
    (image,) = store.glob("*/image.qcow2")
    image.write_bytes(b"built by whom")
    ended = await asyncio.to_thread(from_iso, tmp_path, iso)
    assert json.loads(ended.stdout)["code"] == "tool_missing"
    assert list(store.iterdir()) == []


async def test_what_a_kill_has_left_in_the_store_goes_and_what_another_is_at_stays(
    tmp_path: Path,
) -> None:
    store, image = tmp_path / "store", tmp_path / "image"
    image.write_bytes(b"x")
    left, at_work = store / ".a.123.part", store / ".b.part"
    for folder in (left, at_work):
        folder.mkdir(parents=True)
        (folder / "image.qcow2").touch()
    lock = os.open(at_work, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for key in ("b", "c"):
            await Results(store).keep(key, image)
        assert sorted(store.iterdir()) == [at_work, store / "c"]
    finally:
        os.close(lock)
    await Results(store).keep("b", image)
    assert sorted(store.iterdir()) == [store / "b", store / "c"]
