"""docs/project/architecture.md shows the imports as they are, and names tests that exist."""

from __future__ import annotations

import ast
import re
import shutil
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from scripts import architecture
from scripts.architecture import FOLDER, GROUND, MAP, PAGE, ROOT, Box, Room

SVG = "{http://www.w3.org/2000/svg}"


def make_room(name: str, *imports: str) -> Room:
    return Room(name, "Says what it is for.", (), frozenset(imports))


HOUSE = {
    "roof": make_room("roof", "left", "right", "cellar"),
    "left": make_room("left", "cellar"),
    "right": make_room("right", "cellar"),
    "cellar": make_room("cellar"),
}


@pytest.mark.slow
def test_the_committed_map_is_of_the_imports(tmp_path):
    shutil.copy(FOLDER / PAGE, tmp_path)
    architecture.write(tmp_path)
    for name in (MAP, PAGE):
        assert (tmp_path / name).read_text() == (FOLDER / name).read_text(), "run make architecture"


def test_layers_and_arrows_by_hand():
    assert architecture.find_layers(HOUSE) == [["roof"], ["left", "right"], ["cellar"]]
    expected = [("roof", "left"), ("roof", "right"), ("left", "cellar"), ("right", "cellar")]  # roof on cellar is implied
    assert architecture.find_arrows(HOUSE) == expected
    rows = ["| roof | left, right, cellar |", "| left | cellar |", "| right | cellar |", "| cellar | nothing |"]
    assert architecture.tabulate(HOUSE)[2:] == rows


def test_a_circle_is_told():
    with pytest.raises(SystemExit, match=r"circle: \['a', 'b'\]"):
        architecture.find_layers({"a": make_room("a", "b"), "b": make_room("b", "a")})


@pytest.mark.slow
def test_rooms_of_the_package():
    rooms = architecture.read_rooms()
    assert rooms["functional"].says == "Pure functions of tensors: no state, no files, no networks."
    assert rooms["functional"].imports == {"types", GROUND}
    assert rooms["serving"].inner == ("http",)
    assert {"errors", "io"} <= set(rooms[GROUND].inner)


@pytest.mark.slow
def test_boxes_lie_apart_and_text_lies_in_them():
    rooms = architecture.read_rooms()
    boxes = architecture.place(rooms, architecture.find_layers(rooms))
    for name, box in boxes.items():
        assert box.x + box.width <= architecture.WIDTH
        assert architecture.measure(architecture.write_lines(rooms[name], box.width)) <= box.height
    for box, other in pairwise(boxes.values()):
        assert box.y + box.height < other.y or (box.y == other.y and box.x + box.width < other.x)


@pytest.mark.parametrize(
    ("source", "target", "ends"),
    [
        (Box(0, 0, 300, 40), Box(0, 90, 140, 40), "M70 40L70 88"),  # a wide one above a narrow one: upright
        (Box(0, 0, 140, 40), Box(0, 90, 300, 40), "M70 40L70 88"),
        (Box(160, 0, 140, 40), Box(0, 90, 140, 40), "M178 40L122 88"),  # beside each other: slanted, from edge to edge
    ],
)
def test_arrows_by_hand(source, target, ends):
    assert ends in architecture.draw_arrow(source, target)


def test_the_map_is_text_within_the_width_of_a_phone():
    root = ElementTree.fromstring((FOLDER / MAP).read_text())
    assert int(root.get("width")) <= 360
    words = {element.text for element in root.iter(f"{SVG}text")}
    assert {"cli", "workflow", "exitlens_runtime"} <= words
    assert "prefers-color-scheme: dark" in root.find(f"{SVG}style").text


def test_named_tests_exist():
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", "".join(path.read_text() for path in FOLDER.glob("*.md")))
    assert len(named) > 10
    for path, name in named:
        functions = {node.name for node in ast.parse((ROOT / path).read_text()).body if isinstance(node, ast.FunctionDef)}
        assert name in functions, f"{path}::{name}"
