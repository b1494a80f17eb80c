"""The map of the rooms, drawn from the imports: ``docs/project/architecture.svg`` and the table under it.

``make architecture`` writes both anew; do it when a room, what its docstring says, or an import between rooms has changed.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from pathlib import Path
from textwrap import wrap
from typing import NamedTuple

from benchmarks.harness import fill, table

ROOT = Path(__file__).parents[1]
SOURCE, RUNTIME = ROOT / "src" / "exitlens", ROOT / "runtime" / "src" / "exitlens_runtime"
FOLDER = ROOT / "docs" / "project"
MAP, PAGE = "architecture.svg", "architecture.md"
GROUND = "ground files"
WIDTH, MARGIN, GAP, PADDING = 360, 4, 12, 10  # pixels: a phone shows the picture as large as it is
TITLE, LINE, BETWEEN = 20, 16, 30  # heights: of a room's name, of a line of text, of the space that arrows cross
LETTER = 6.8  # pixels, of a text of 12
STYLE = """
text { font: 12px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: #24303f }
.name { font-weight: 600; font-size: 14px }
.inner { fill: #1d5a96 }
rect { fill: #eef3fb; stroke: #9db2d1 }
.apart { stroke-dasharray: 5 4 }
.ground { fill: #fff; stroke: none }
path { stroke: #7d8590; stroke-width: 1.5; fill: none }
marker path { fill: #7d8590; stroke: none }
@media (prefers-color-scheme: dark) {
text { fill: #e3eaf2 }
.inner { fill: #8fc1f3 }
rect { fill: #1c2736; stroke: #50698c }
.ground { fill: #10161e }
}
"""


class Room(NamedTuple):
    """A folder of the package, or files beside the folders."""

    name: str
    says: str  # the first sentence of its docstring
    inner: tuple[str, ...]  # rooms in it
    imports: frozenset[str]  # names of the rooms that it imports from


class Box(NamedTuple):
    """Where a room is drawn, in pixels."""

    x: float
    y: float
    width: float
    height: float


def list_modules() -> dict[str, Path]:
    files = sorted(SOURCE.rglob("*.py"))
    return {".".join(("exitlens", *p.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__"): p for p in files}


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def read_imports(path: Path) -> frozenset[str]:
    """Modules of the package that a file imports, also inside functions and under TYPE_CHECKING."""
    modules, imports = _MODULES, set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "exitlens":
            imports |= {name if (name := f"{node.module}.{alias.name}") in modules else node.module for alias in node.names}
        elif isinstance(node, ast.Import):
            imports |= {alias.name for alias in node.names if alias.name.startswith("exitlens.")}
    return frozenset(imports - {"exitlens"})


_MODULES = list_modules()


def read_rooms() -> dict[str, Room]:
    """Return the rooms by name. Files that import only one another form one room, the ground under all others."""
    reached: dict[str, set[str]] = {}
    for module, path in _MODULES.items():
        if module not in ("exitlens", "exitlens.__main__"):
            reached.setdefault(module.split(".")[1], set()).update(name.split(".")[1] for name in read_imports(path))
    files = {name for name in reached if (SOURCE / f"{name}.py").exists()}
    ground = {name for name in files if reached[name] <= files}
    names = {name: GROUND if name in ground else f"{name}.py" if name in files else name for name in reached}
    rooms = {}
    for name in sorted(set(reached) - ground):
        path = SOURCE / f"{name}.py" if name in files else SOURCE / name / "__init__.py"
        inner = tuple(sorted(path.parent.name for path in (SOURCE / name).glob("*/__init__.py")))
        imports = frozenset(names[other] for other in reached[name] - {name})
        rooms[names[name]] = Room(names[name], read_sentence(path), inner, imports)
    rooms[GROUND] = Room(GROUND, "What every room may use, and what uses no room.", tuple(sorted(ground)), frozenset())
    return rooms


def read_sentence(path: Path) -> str:
    """Return the first sentence of a file's docstring, without markup and text in brackets."""
    text = " ".join((ast.get_docstring(parse(path)) or "").split())
    sentence = re.split(r"(?<=[.!?]) (?=[A-Z:])", text)[0].removesuffix(" ::")
    sentence = re.sub(r" \([^)]*\)", "", sentence)
    return re.sub(r":\w+:`([^`]*)`|``([^`]*)``", lambda match: match[1] or match[2], sentence)


def find_layers(rooms: Mapping[str, Room]) -> list[list[str]]:
    """Return rows of rooms from the top down, each room above all that it imports and as low as that allows."""
    height: dict[str, int] = {}
    while len(height) < len(rooms):
        for name, room in rooms.items():
            if name not in height and room.imports <= height.keys():
                height[name] = 1 + max((height[other] for other in room.imports), default=-1)
                break
        else:
            raise SystemExit(f"rooms import one another in a circle: {sorted(set(rooms) - set(height))}")
    return [sorted(name for name in rooms if height[name] == i) for i in range(max(height.values()), -1, -1)]


def find_arrows(rooms: Mapping[str, Room]) -> list[tuple[str, str]]:
    """Return the imports between rooms that no others imply (the transitive reduction)."""

    def reach(name: str) -> set[str]:
        return set().union(*({other} | reach(other) for other in rooms[name].imports))

    implied = {name: set().union(*(reach(other) for other in room.imports)) for name, room in rooms.items()}
    return [(name, other) for name, room in rooms.items() for other in sorted(room.imports - implied[name])]


def write_lines(room: Room, width: float) -> list[tuple[str, str]]:
    """Classes and texts of the lines in a room's box."""
    letters = int((width - 2 * PADDING) / LETTER)
    named = wrap(room.name, int(letters * 0.8), break_long_words=False)
    says, inner = wrap(room.says, letters), wrap(", ".join(room.inner), letters)
    return [("name", line) for line in named] + [("", line) for line in says] + [("inner", line) for line in inner]


def measure(lines: Sequence[tuple[str, str]]) -> float:
    return PADDING + sum(TITLE if kind == "name" else LINE for kind, _ in lines) + PADDING / 2


def place(rooms: Mapping[str, Room], layers: Sequence[Sequence[str]]) -> dict[str, Box]:
    boxes, y = {}, float(MARGIN)
    for names in layers:
        width = (WIDTH - 2 * MARGIN - GAP * (len(names) - 1)) / len(names)
        height = max(measure(write_lines(rooms[name], width)) for name in names)
        for i, name in enumerate(names):
            boxes[name] = Box(MARGIN + i * (width + GAP), y, width, height)
        y += height + BETWEEN
    return boxes


def draw_box(room: Room, box: Box, kind: str = "") -> list[str]:
    drawn = [f'<rect class="{kind}" x="{box.x:g}" y="{box.y:g}" width="{box.width:g}" height="{box.height:g}" rx="6"/>']
    y = box.y + PADDING / 2
    for style, line in write_lines(room, box.width):
        y += TITLE if style == "name" else LINE
        drawn.append(f'<text class="{style}" x="{box.x + PADDING:g}" y="{y - 3:g}">{escape(line)}</text>')
    return [line.replace(' class=""', "") for line in drawn]


def draw_arrow(source: Box, target: Box) -> str:
    """From the lower edge of one box to the upper edge of another, upright where they overlap."""

    def clamp(x: float, box: Box) -> float:
        return min(max(x, box.x + 18), box.x + box.width - 18)

    start = clamp(target.x + target.width / 2, source) if source.width >= target.width else source.x + source.width / 2
    end = clamp(start, target)
    return f'<path marker-end="url(#head)" d="M{start:g} {source.y + source.height:g}L{end:g} {target.y - 2:g}"/>'


def draw(rooms: Mapping[str, Room]) -> str:
    """The map as SVG: rooms stand on those that they import from; the runtime stands apart."""
    layers, arrows = find_layers(rooms), find_arrows(rooms)
    boxes = place(rooms, layers)
    runtime = Room(
        "exitlens_runtime", f"{read_sentence(RUNTIME / '__init__.py')} Imports nothing of the above.", (), frozenset()
    )
    width = WIDTH - 2 * MARGIN
    last = boxes[layers[-1][0]]
    apart = Box(MARGIN, last.y + last.height + BETWEEN, width, measure(write_lines(runtime, width)))
    height = apart.y + apart.height + MARGIN
    described = "; ".join(f"{name} imports {other}" for name, other in arrows)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:g}" viewBox="0 0 {WIDTH} {height:g}" role="img" '
        'aria-labelledby="title about">',
        f'<title id="title">The rooms of exitlens</title><desc id="about">{escape(described)}.</desc>',
        f"<style>{STYLE}</style>",
        '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" markerHeight="6" orient="auto">'
        '<path d="M0 0L8 4L0 8z"/></marker>',
        f'<rect class="ground" width="{WIDTH}" height="{height:g}"/>',  # the page's own may be light under dark boxes
        *(draw_arrow(boxes[name], boxes[other]) for name, other in arrows),
        *(line for name, box in boxes.items() for line in draw_box(rooms[name], box)),
        *draw_box(runtime, apart, "apart"),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def tabulate(rooms: Mapping[str, Room]) -> list[str]:
    above = [name for names in find_layers(rooms) for name in names]
    rows = [(name, ", ".join(sorted(rooms[name].imports, key=above.index)) or "nothing") for name in above]
    return table(("room", "imports from"), rows)


def write(folder: Path = FOLDER) -> None:
    rooms = read_rooms()
    (folder / MAP).write_text(draw(rooms))
    if not fill("rooms", tabulate(rooms), [folder / PAGE]):
        raise SystemExit(f"{folder / PAGE}: expected '<!-- rooms: ... -->', found no such part")


if __name__ == "__main__":
    write()
    print(FOLDER / MAP, FOLDER / PAGE)
