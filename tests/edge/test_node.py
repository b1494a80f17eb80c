"""The cascade in Node: native (onnxruntime-node) and WebAssembly (onnxruntime-web) answer as the library does."""

import json
import shutil
import subprocess

import pytest
import torch

import exitlens as xl
from exitlens.edge.web import VERSION
from tests.conftest import make_net
from tests.exported import check_answers

pytest.importorskip("onnxruntime")
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


@pytest.mark.slow
@pytest.mark.parametrize("package", ["onnxruntime-node", "onnxruntime-web"])
def test_answers_are_the_librarys(modules, package, tmp_path):
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
