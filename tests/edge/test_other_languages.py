"""The cascade in C++, compiled as docs/guides/edge.md says, and in Node, native and as WebAssembly, answers as the library."""

import json
import math
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import exitlens as xl
from exitlens.edge.web import VERSION
from tests.conftest import make_net
from tests.exported import check_answers

pytest.importorskip("onnxruntime")
ROOT = Path(__file__).parents[2]
HEADER = "onnxruntime_cxx_api.h"


def run(*words, **options):
    return subprocess.run(list(map(str, words)), capture_output=True, text=True, **options)


def test_docs_show_lines_of_the_example():
    shown = re.search(r"```cpp\n(.*?)```", (ROOT / "docs/guides/edge.md").read_text(), re.DOTALL)[1]
    lines = {line.strip() for line in (ROOT / "examples/cpp/cascade.cpp").read_text().splitlines()}
    assert {line.strip() for line in shown.splitlines()} <= lines


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The example, compiled as docs/guides/edge.md says, and without a warning."""
    command = re.search(r"^g\+\+ .*$", (ROOT / "docs/guides/edge.md").read_text(), re.MULTILINE)[0]
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    included = [Path(word[2:]) for word in shlex.split(command) if word.startswith("-I")]
    if not any((folder / HEADER).exists() for folder in included):
        pytest.skip(f"{HEADER} is not in {included[0]}: apt install libonnxruntime-dev")
    folder = tmp_path_factory.mktemp("cpp")
    (folder / "examples").symlink_to(ROOT / "examples")
    done = run(*shlex.split(command), "-Wall", "-Wextra", "-Werror", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "cascade"


@pytest.fixture(scope="module")
def edge(tmp_path_factory):
    return xl.export(make_net(), xl.Policy((0.8, 0.7)), tmp_path_factory.mktemp("edge") / "e")


@pytest.mark.slow
@pytest.mark.parametrize("thresholds", [(0.8, 0.7), (0.0, 0.0), (math.inf, 0.5), (math.inf, math.inf)])
@pytest.mark.parametrize("samples", [1, 7])
def test_answers_in_cpp_are_the_librarys(program, tmp_path, samples, thresholds):
    net, policy = make_net(), xl.Policy(thresholds, temperatures=(0.5, 1.0, 2.0))
    images = torch.randn(samples, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    images.numpy().tofile(tmp_path / "images.f32")
    done = run(program, xl.export(net, policy, tmp_path / "e"), tmp_path / "images.f32", "2")
    assert (done.returncode, done.stderr) == (0, "")
    expected = xl.predict(net, images, policy)
    rows = zip(*(map(float, line.split()) for line in done.stdout.splitlines()), strict=True)
    check_answers(dict(zip(("labels", "exits", "scores"), rows, strict=True)), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("images.f32", b"12345", "5 bytes; a sample takes 3072"),
        ("images.f32", b"", "0 bytes"),
        ("e/policy.json", b'{"temperatures": [1, 1, 1]}', "thresholds: expected a list of numbers"),
        ("e/policy.json", b'{"thresholds": [0.5, "often"]}', "thresholds: expected a list of numbers"),
        ("e/policy.json", b'{"thresholds": [0.5], "temperatures": [1, 1, 1]}', "thresholds"),
        ("e/cascade.onnx", b"x", "cascade.onnx"),
    ],
)
def test_says_in_one_line_what_is_wrong(program, edge, tmp_path, name, content, told):
    shutil.copytree(edge, tmp_path / "e")
    torch.zeros(1, 3, 16, 16).numpy().tofile(tmp_path / "images.f32")
    (tmp_path / name).write_bytes(content)
    done = run(program, tmp_path / "e", tmp_path / "images.f32")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("cascade: ")
    assert told in done.stderr
    for words, wrong in (((), "usage: cascade EDGE_DIR"), (("nowhere", "x"), "nowhere"), (("e", "x", "0"), "THREADS")):
        done = run(program, *words)
        assert done.returncode == 2
        assert wrong in done.stderr


SCRIPT = """
import fs from 'fs';
const [which, file, data] = process.argv.slice(2);
const ort = (await import(which)).default, given = JSON.parse(fs.readFileSync(data));
if (ort.env.wasm) ort.env.wasm.numThreads = 1;
const isWeb = which.endsWith('web');
const session = await ort.InferenceSession.create(isWeb ? new Uint8Array(fs.readFileSync(file)) : file,
  {executionProviders: [isWeb ? 'wasm' : 'cpu']});
const answers = [];
for (const thresholds of given.thresholds) {
  const o = await session.run({
    images: new ort.Tensor('float32', Float32Array.from(given.images), given.shape),
    thresholds: new ort.Tensor('float32', Float32Array.from(thresholds.map((t) => t ?? Infinity)), [thresholds.length]),
    temperatures: new ort.Tensor('float32', new Float32Array(thresholds.length + 1).fill(1), [thresholds.length + 1]),
  });
  const list = (tensor) => Array.from(tensor.data, Number);
  answers.push({labels: list(o.labels), exits: list(o.exits), scores: list(o.scores)});
}
console.log(JSON.stringify(answers));
"""


@pytest.fixture(scope="module")
def modules(tmp_path_factory):
    """A folder in which Node finds both packages."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed")
    folder = tmp_path_factory.mktemp("node")
    packages = [f"onnxruntime-{kind}@{VERSION}" for kind in ("node", "web")]
    words = ["npm", "install", "--ignore-scripts", "--silent", "--no-audit", "--no-fund", *packages]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"npm cannot fetch {packages}: {done.stderr[-200:]}")
    (folder / "run.mjs").write_text(SCRIPT)
    return folder


@pytest.mark.long
@pytest.mark.parametrize("package", ["onnxruntime-node", "onnxruntime-web"])
def test_answers_in_node_are_the_librarys(modules, package, tmp_path):
    net = make_net()
    path = xl.export(net, xl.Policy((0.8, 0.7)), tmp_path / "e")
    images = torch.randn(7, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    thresholds = [[0.8, 0.7], [0.0, 0.0], [None, None], [None, 0.5]]
    given = {"images": images.flatten().tolist(), "shape": list(images.shape), "thresholds": thresholds}
    (tmp_path / "given.json").write_text(json.dumps(given))
    words = ["node", "run.mjs", package, str(path / "cascade.onnx"), str(tmp_path / "given.json")]
    done = subprocess.run(words, cwd=modules, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for answers, limits in zip(json.loads(done.stdout.splitlines()[-1]), thresholds, strict=True):
        policy = xl.Policy(tuple(float("inf") if t is None else t for t in limits))
        check_answers(answers, xl.predict(net, images, policy), 1e-4)
