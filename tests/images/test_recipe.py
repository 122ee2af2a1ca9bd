"""What an image is built of: what may be asked for, and what it becomes in command lines."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisiond.errors import RecipeRefused
from provisiond.images.agent_files import InitSystem
from provisiond.images.debian_tree import packages_of
from provisiond.images.dib import build_argv as dib_argv
from provisiond.images.dib import build_environment
from provisiond.images.mmdebstrap import build_argv, parse_status
from provisiond.images.recipe import (
    Builder,
    DebianInit,
    DibRecipe,
    IsoRecipe,
    KiwiRecipe,
    MmdebstrapRecipe,
    NetworkStack,
    make_iso_recipe,
    make_recipe,
    parse_recipe,
)

PACKAGE = st.from_regex(r"[a-z0-9][a-z0-9+.-]{0,20}", fullmatch=True)
NAME = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,30}", fullmatch=True)
MEBIBYTES = st.integers(512, 2**20).map(lambda count: count * 2**20)


INITS: list[DebianInit] = [InitSystem.SYSTEMD, InitSystem.SYSV, InitSystem.OPENRC]


@st.composite
def debian_recipes(draw: st.DrawFn) -> MmdebstrapRecipe:
    init = draw(st.sampled_from(INITS))
    stacks = list(NetworkStack) if init is InitSystem.SYSTEMD else [NetworkStack.IFUPDOWN]
    with_mirror = draw(st.booleans())
    return MmdebstrapRecipe(
        name=draw(NAME),
        size=draw(MEBIBYTES),
        suite="trixie" if with_mirror else None,
        mirror="http://mirror.example/debian" if with_mirror else None,
        packages=tuple(draw(st.lists(PACKAGE, max_size=4))),
        init=init,
        network_stack=draw(st.sampled_from(stacks)),
    )


RECIPES = st.one_of(
    debian_recipes(),
    st.builds(DibRecipe, name=NAME, size=MEBIBYTES, packages=st.just(("less",))),
    st.builds(KiwiRecipe, name=NAME, description=st.none() | st.just(Path("/srv/description"))),
    st.builds(
        IsoRecipe,
        name=NAME,
        iso=st.sampled_from([Path("/srv/a.iso"), "https://mirror.example/a.iso"]),
        minutes=st.integers(1, 1440),
    ),
)


@given(RECIPES)
def test_a_recipe_is_the_same_after_it_was_stored(recipe: Any) -> None:
    assert parse_recipe(recipe.model_dump_json()) == recipe


@given(st.binary() | st.text() | st.recursive(st.none() | st.text(), st.lists).map(json.dumps))
def test_what_is_no_recipe_is_refused(text: str | bytes) -> None:
    with pytest.raises(RecipeRefused):
        parse_recipe(text)


@given(st.sampled_from(Builder), st.dictionaries(st.text(), st.text()))
def test_a_field_that_no_recipe_has_is_refused(builder: Builder, more: dict[str, Any]) -> None:
    wanted = {"iso": "/srv/a.iso"} if builder is Builder.ISO else {}
    known = {"name": "web", "builder": builder, **wanted}
    if more and not set(more) <= {"size", "suite", "mirror", "iso", "tree"}:
        with pytest.raises(RecipeRefused):
            make_recipe({**more, **known})
    else:
        assert make_recipe(known).builder is builder


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"packages": ("--option=x",)}, "packages.0: "),
        ({"packages": ("a,b",)}, "packages.0: "),
        ({"packages": ("a\nb",)}, "packages.0: "),
        ({"suite": "-o", "mirror": "http://x/"}, "suite: "),
        ({"suite": "bookworm"}, "'suite' and 'mirror' go together"),
        ({"suite": "bookworm", "mirror": "deb http://x/ y"}, "mirror: "),
        ({"suite": "bookworm", "mirror": "http://x/\ndeb http://y/"}, "mirror: "),
        ({"size": 100 * 2**20}, "size: "),
        ({"size": 2**30 + 512}, "size: "),
        ({"kernel": "../../etc/passwd"}, "kernel: "),
        ({"name": "../x"}, "name: "),
        ({"name": ".hidden"}, "name: "),
        ({"init": "upstart"}, "init: "),
        ({"init": "openrc", "network_stack": "netplan"}, "must be ifupdown with openrc"),
        ({"elements": ("debian",)}, "elements: "),
    ],
)
def test_a_bad_field_is_refused_by_its_name(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(RecipeRefused) as caught:
        make_recipe({"builder": "mmdebstrap", "name": "web", **fields})
    assert why in caught.value.message


@pytest.mark.parametrize(
    "fields",
    [
        {"builder": "mmdebstrap", "suite": "trixie", "mirror": "https://u:secret@mirror/debian"},
        {"builder": "dib", "security_mirror": "https://secret@mirror/debian"},
        {"builder": "iso", "iso": "https://u:secret@mirror/a.iso"},
        {"builder": "iso", "iso": "/srv/a.iso", "tree": "http://u:secret@mirror?x"},
    ],
)
def test_a_password_in_a_url_is_refused_and_not_repeated(fields: dict[str, Any]) -> None:
    with pytest.raises(RecipeRefused, match=r"auth\.conf") as caught:
        make_recipe({"name": "web", **fields})
    assert "secret" not in caught.value.message
    with pytest.raises(RecipeRefused, match=r"auth\.conf"):
        parse_recipe(json.dumps({"name": "web", **fields}))


def test_an_at_sign_in_a_path_is_no_password() -> None:
    tree = "https://mirror.example/@eaDir/debian"
    recipe = make_recipe({"builder": "iso", "name": "web", "iso": tree, "tree": tree})
    assert isinstance(recipe, IsoRecipe)
    assert recipe.tree == tree


@pytest.mark.parametrize(
    "iso", ["", "relative.iso", "/srv/../a.iso", "/srv/a,b.iso", "ftp://x/a.iso", "https://x/a b"]
)
def test_a_strange_iso_is_refused(iso: str) -> None:
    with pytest.raises(RecipeRefused, match="iso") as caught:
        make_recipe({"builder": "iso", "name": "web", "iso": iso})
    with pytest.raises(RecipeRefused) as again:
        make_iso_recipe({"name": "web", "iso": iso})
    assert again.value.message == caught.value.message
    assert all(reason.startswith("iso: ") for reason in caught.value.message.split("; "))


# ---------------------------------------------------------------- command lines
@given(debian_recipes())
def test_no_word_of_mmdebstraps_command_line_can_become_an_option(recipe: MmdebstrapRecipe) -> None:
    sources = [Path("/srv/sources.list")]
    argv = [str(word) for word in build_argv(recipe, Path("/srv/tree"), sources=sources)]
    options = [word for word in argv[1:] if word.startswith("-")]
    assert len(options) == len(argv) - 4  # its name, suite, tree, sources
    (include,) = (word for word in options if word.startswith("--include="))
    packages = include.partition("=")[2].split(",")
    assert len(packages) == len(set(packages))
    assert set(recipe.packages) <= set(packages)
    assert recipe.kernel in packages


@pytest.mark.parametrize("stack", NetworkStack)
def test_each_network_stack_brings_its_own_packages_alone(stack: NetworkStack) -> None:
    packages = set(packages_of(MmdebstrapRecipe(name="web", network_stack=stack)))
    owners = {
        NetworkStack.IFUPDOWN: {"ifupdown"},
        NetworkStack.NETWORKD: set[str](),
        NetworkStack.NETWORK_MANAGER: {"network-manager"},
        NetworkStack.NETPLAN: {"netplan.io"},
    }
    assert packages & {"ifupdown", "network-manager", "netplan.io"} == owners[stack]


def test_diskimage_builder_is_told_the_mirrors_that_were_asked_for_and_no_others() -> None:
    folder = Path("/srv/build")

    def environment(recipe: DibRecipe) -> dict[str, str | Path]:
        program = folder / "bin" / "disk-image-create"
        return build_environment(recipe, elements=folder, work=folder, program=program)

    told = build_environment(
        DibRecipe(name="web"), elements=folder, work=folder, program=folder / "dib"
    )
    assert not [name for name in told if "MIRROR" in name]
    recipe = DibRecipe(name="web", mirror="http://m/d", security_mirror="http://m/s")
    told = environment(recipe)
    assert told["DIB_DISTRIBUTION_MIRROR"] == "http://m/d"
    assert told["DIB_DEBIAN_SECURITY_MIRROR"] == "http://m/s"
    argv = dib_argv(recipe, folder / "root.tar", program=folder / "dib")
    assert argv[-2:] == ["debian-minimal", "provision-guest"]
    assert folder / "root" in argv


# ---------------------------------------------------------------- what is installed
def test_only_installed_packages_are_listed_with_their_versions() -> None:
    status = Path("/var/lib/dpkg/status").read_text(errors="replace")
    listed = dict(line.split(" ", 1) for line in parse_status(status))
    assert "dpkg" in listed
    assert listed["dpkg"][0].isdigit()
    gone = "Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n\n"
    assert list(parse_status(gone)) == []
