"""docs/figures/design.svg is drawn from the sources as they are."""

from __future__ import annotations

import html
import importlib.util
import re
from types import ModuleType

import pytest

from builder.compile import ROOT


@pytest.fixture(scope="module")
def picture() -> ModuleType:
    spec = importlib.util.spec_from_file_location("picture", ROOT / "docs" / "site" / "picture.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_picture_has_the_folders_and_arrows_of_the_present_sources(picture: ModuleType) -> None:
    text = html.unescape(picture.FIGURE.read_text(encoding="utf-8"))
    drawn = set(re.findall(r'<g id="([\w/]+ -> [\w/]+)"', text))
    assert drawn == {f"{user} -> {used}" for user, used in picture.edges()}, "make picture draws it anew"
    assert all(f">{node}</text>" in text for node in picture.nodes())


def test_every_folder_with_sources_is_in_it_once_and_nothing_overlaps(picture: ModuleType) -> None:
    places = picture.places()
    assert sorted(places) == picture.nodes()
    assert {"builder/gate", "handler/servers", "kernels/core", "deploy"} < set(places)
    assert len(set(places.values())) == len(places)


def test_arrows_point_one_way_between_the_layers(picture: ModuleType) -> None:
    layers = {(user.split("/")[0], used.split("/")[0]) for user, used in picture.edges()}
    own = {(name, name) for name in ("builder", "handler", "kernels")}
    down = {("deploy", "builder"), ("deploy", "handler"), ("builder", "handler")}
    assert layers == own | down | {("builder", "kernels"), ("handler", "kernels")}


def test_layers_put_users_above_what_they_use(picture: ModuleType) -> None:
    arrows = {("a", "b"), ("b", "c"), ("a", "c"), ("c", "b"), ("d", "c")}
    assert picture.layers(["a", "b", "c", "d"], arrows) == [["a", "d"], ["b"], ["c"]]
