"""Messages that docs/guides/troubleshooting.md quotes: ours are in the source, and others' are still what they raise."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from scripts.architecture import parse

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "guides" / "troubleshooting.md").read_text()
OURS, OTHERS = PAGE[: PAGE.index("\n## pip")], PAGE[PAGE.index("\n## pip") :]
ELSEWHERE = {  # raised by a shell, by pip, by a GPU and by a container, of which tests have none
    "exitlens: command not found",
    "No matching distribution found for exitlens",
    "error: externally-managed-environment",
    "CUDA out of memory",
    "DataLoader worker (pid …) is killed by signal: Bus error.",
}


def read_quotes(text: str) -> list[str]:
    lines = "".join(line for line in text.splitlines(keepends=True) if line.startswith("- **`"))
    return re.findall(r"\*\*`(.+?)`\*\*", lines)


def write_out(node: ast.expr) -> str:
    """Return a text of the source with … for what is filled in."""
    if isinstance(node, ast.JoinedStr):
        return "".join(map(write_out, node.values))
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else "…"


def as_pattern(quote: str, between: str) -> str:
    return between.join(map(re.escape, filter(None, quote.split("…"))))


@pytest.fixture(scope="module")
def texts() -> str:
    trees = map(parse, (ROOT / "src").rglob("*.py"))
    nodes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.JoinedStr | ast.Constant)]
    return "\n".join(write_out(node).replace("\n", " ") for node in nodes)


@pytest.mark.parametrize("quote", read_quotes(OURS))
def test_a_message_of_ours_is_in_the_source(quote, texts):
    assert re.search(as_pattern(quote, "[^\n]*"), texts)


def run_onnx(given: dict[str, np.ndarray], **changes: int) -> None:
    onnx, ort = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    ends = [onnx.helper.make_tensor_value_info(name, 1, ["N", 4]) for name in ("x", "y")]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "graph", ends[:1], ends[1:])
    version = changes.get("ir_version", 9)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=version)
    ort.InferenceSession(model.SerializeToString()).run(None, given)


def open_onnx(content: str | bytes) -> None:
    pytest.importorskip("onnxruntime").InferenceSession(content)


class Branch(nn.Module):
    def forward(self, x):
        return x + 1 if x.sum() > 0 else x


def differentiate(x: torch.Tensor) -> None:
    (x * nn.Parameter(torch.ones(2))).sum().backward()


PIXELS = torch.zeros(1, 3, 8, 8)
CAUSES: dict[str, Callable[[], object]] = {
    "Expected more than 1 value per channel when training": lambda: nn.BatchNorm1d(2)(torch.zeros(1, 2)),
    "mat1 and mat2 shapes cannot be multiplied": lambda: nn.Linear(8, 2)(torch.zeros(1, 9)),
    "Calculated padded input size per channel: (…). Kernel size: (…).": lambda: nn.Conv2d(3, 1, 9)(PIXELS),
    "to have 3 channels, but got 1 channels instead": lambda: nn.Conv2d(3, 4, 3)(PIXELS[:, :1]),
    "Input type (double) and bias type (float) should be the same": lambda: nn.Conv2d(3, 4, 3)(PIXELS.double()),
    "Target … is out of bounds.": lambda: nn.functional.cross_entropy(torch.zeros(1, 3), torch.tensor([3])),
    "element 0 of tensors does not require grad and does not have a grad_fn": lambda: torch.zeros(1).sum().backward(),
    "Inference tensors cannot be saved for backward.": lambda: differentiate(torch.inference_mode()(torch.ones)(2)),
    "Missing key(s) in state_dict": lambda: nn.Linear(2, 2).load_state_dict({}),
    "size mismatch for …: copying a param with shape": lambda: nn.Linear(2, 2).load_state_dict(nn.Linear(3, 2).state_dict()),
    "Could not guard on data-dependent expression": lambda: torch.export.export(Branch(), (PIXELS,)),
    "symbolically traced variables cannot be used as inputs to control flow": lambda: torch.fx.symbolic_trace(Branch()),
    "Got invalid dimensions for input": lambda: run_onnx({"x": np.zeros((1, 5), np.float32)}),
    "Unexpected input data type. Actual: (tensor(double)) , expected: (tensor(float))": lambda: run_onnx(
        {"x": np.zeros((1, 4))}
    ),
    "Required inputs … are missing from input feed": lambda: run_onnx({"z": np.zeros((1, 4), np.float32)}),
    "Load model from … failed:": lambda: open_onnx("no.onnx"),
    "File doesn't exist": lambda: open_onnx("no.onnx"),
    "Failed to load model because protobuf parsing failed.": lambda: open_onnx(b"version https://git-lfs"),
    "Unsupported model IR version": lambda: run_onnx({}, ir_version=99),
}
SLOW = {"Could not guard on data-dependent expression": pytest.mark.slow}  # imports torch.export's machinery


def test_every_other_message_is_provoked_or_cannot_be():
    assert set(read_quotes(OTHERS)) == set(CAUSES) | ELSEWHERE


@pytest.mark.parametrize("quote", [pytest.param(quote, marks=SLOW.get(quote, ())) for quote in CAUSES])
def test_a_message_of_others_is_still_theirs(quote):
    with pytest.raises(Exception, match=as_pattern(quote, r"[\s\S]*")):
        CAUSES[quote]()


def test_onnx_runtime_computes_what_nobody_asked_for():
    """Keeps docs/answers/part_of_an_onnx_graph.md true: a node after the output that is asked for fails."""
    onnx, ort = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    make, describe = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    nodes = [make("Relu", ["x"], ["early"]), make("Reshape", ["early", "shape"], ["late"])]
    inputs = [describe("x", 1, ["N"]), describe("shape", 7, [1])]
    graph = onnx.helper.make_graph(nodes, "graph", inputs, [describe("early", 1, ["N"]), describe("late", 1, ["M"])])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    session = ort.InferenceSession(model.SerializeToString())
    with pytest.raises(Exception, match="Reshape"):
        session.run(["early"], {"x": np.zeros(4, np.float32), "shape": np.array([7])})
