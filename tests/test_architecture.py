"""The tree shows the flow of data: every file stands in a known room, imports point down, and nothing goes in a circle."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from scripts.architecture import list_modules, parse, read_imports

SOURCE = Path(__file__).parent.parent / "src" / "exitlens"
FILES = sorted(SOURCE.rglob("*.py"))
RUNTIME = sorted((SOURCE.parent.parent / "runtime" / "src").rglob("*.py"))
MODULES = list_modules()
ROOMS = (  # by level: a file imports from its own room and from those on lower levels
    {"errors", "io", "display", "launch", "progress", "ranks"},
    {"types"},
    {"functional"},
    {"modalities"},
    {"data", "model", "demo"},
    {"workflow"},
    {"delivery", "edge"},
    {"serving"},
    {"cli", "__main__", "ray", "sentence_transformers", "sklearn", "mlflow", "trackers"},
)
OWN = ("self", "cls", "super()")
NAMED_TUPLE = {"_replace", "_asdict", "_fields", "_repr_html_"}  # public in spite of their names
INNER = {  # the same for rooms inside rooms; files that stand in the outer room itself are above or below as they need
    "model": ({"backbones"}, {"cutting"}, {"engine"}),
    "workflow": ({"training", "inference"},),
    "delivery": ({"benchmark", "predictions", "explanations"}, {"report", "explorer"}, {"demo"}),
}


def level(room: str) -> int:
    return next(i for i, rooms in enumerate(ROOMS) if room in rooms)


def rooms_of(module: str) -> list[str]:
    return module.split(".")[1:]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
@pytest.mark.slow
def test_a_file_states_its_purpose_and_imports_from_below(path):
    own = [part.removesuffix(".py") for part in path.relative_to(SOURCE).parts]
    assert ast.get_docstring(parse(path))
    if own == ["__init__"]:
        return
    for module in read_imports(path):
        theirs = rooms_of(module)
        assert level(theirs[0]) <= level(own[0]), f"imports {module}"
        if {own[0], theirs[0]} == {"model", "data"}:
            raise AssertionError(f"imports {module}: model and data do not know each other")
        inner = INNER.get(own[0], ())
        mine, other = (next((i for i, r in enumerate(inner) if len(p) > 1 and p[1] in r), None) for p in (own, theirs))
        if own[0] == theirs[0] and mine is not None and other is not None:
            assert other <= mine, f"imports {module}"


@pytest.mark.parametrize("path", RUNTIME, ids=lambda p: p.name)
def test_the_runtime_stands_by_itself(path):
    """It imports neither the library nor PyTorch."""
    assert ast.get_docstring(parse(path))
    for node in ast.walk(parse(path)):
        names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not {name.split(".")[0] for name in names} & {"exitlens", "torch", "onnx"}


def test_nothing_imports_in_a_circle():
    graph = {module: read_imports(path) & set(MODULES) for module, path in MODULES.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the modules


def test_verbs_of_the_workflow_do_not_import_each_other():
    for path in (SOURCE / "workflow").glob("*.py"):
        assert not {module for module in read_imports(path) if module.startswith("exitlens.workflow")}, path


def test_private_names_stay_in_their_file():
    for path in FILES:
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("exitlens."):
                private = [alias.name for alias in node.names if alias.name.startswith("_")]
                assert not private, f"{path}: {private}"


LEFT_TO_CLEAN_UP = {  # PyTorch's and transformers' names that are still used elsewhere; nothing may be added
    "_BatchNorm",
    "_buffers",
    "_check_input_dim",
    "_foreach_lerp_",
    "_forward_hooks",
    "_forward_pre_hooks",
    "_model_mapping",
    "_modules",
    "_parameters",
}


def list_private_uses(path):
    """Yield private attributes of other objects whose name the file does not define itself."""
    tree, defined = parse(path), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            defined.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) in OWN:
            defined.add(node.attr)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            owner = ast.unparse(node.value)
            if owner not in OWN and node.attr not in defined | NAMED_TUPLE:
                yield node.attr


@pytest.mark.parametrize("path", [*FILES, *RUNTIME], ids=lambda p: str(p.relative_to(SOURCE.parent.parent)))
def test_private_attributes_are_used_in_the_file_that_defines_them(path):
    """What exitlens needs of PyTorch's private parts stands in ``model/_torch_compat.py``."""
    if path.name != "_torch_compat.py":
        assert set(list_private_uses(path)) <= LEFT_TO_CLEAN_UP


def test_private_files_are_for_their_own_package():
    for module, path in MODULES.items():
        for other in read_imports(path):
            *home, last = other.split(".")
            if last.startswith("_"):
                assert module.split(".")[: len(home)] == home or rooms_of(module)[0] != home[1], f"{module} imports {other}"
