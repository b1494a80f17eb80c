"""The class for Ray Data, called as Ray calls it, and a local Ray."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import exitlens as xl
from exitlens.data.files import list_images
from exitlens.ray import Predictor
from tests.conftest import build_once

EXAMPLE = Path(__file__).parent.parent / "examples" / "ray_predict.py"


@pytest.fixture(autouse=True)
def _threads_stay_and_networks_are_built_once(monkeypatch):
    build_once(monkeypatch)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    torch.manual_seed(3)
    net = xl.attach(xl.build_backbone("small", 2), 2, 2, torch.zeros(1, 3, 32, 32))
    net.describe(source="small", preprocess=xl.data.Preprocess((32, 32)), classes=("dark", "bright"))
    return xl.save(net, xl.Policy((0.55, 0.55)), tmp_path_factory.mktemp("ray") / "b")


def expect(bundle: Path, files: list[Path]):
    net, policy = xl.load(bundle)
    pred = next(iter(xl.predict_stream(net, xl.data.ImageStream(files, net.info.preprocess, 64), policy)))
    return [net.info.classes[i] for i in pred.labels.tolist()], pred.exits.tolist(), net.cost[pred.exits].tolist(), pred


def as_objects(values):
    cells = np.empty(len(values), dtype=object)
    cells[:] = values
    return cells


@pytest.mark.slow
def test_cells_of_every_kind_give_the_answers_of_predict(bundle, folder):
    files = list_images(folder)[26:34]
    labels, exits, cost, found = expect(bundle, files)
    pixels = [np.asarray(Image.open(file)) for file in files]
    net = xl.load(bundle)[0]
    inputs = torch.stack([net.info.preprocess.normalise(xl.data.read_image(file, (32, 32), 3)) for file in files])
    kinds = {
        "paths": as_objects([str(file) for file in files]),
        "bytes": as_objects([file.read_bytes() for file in files]),
        "structs": as_objects([{"bytes": file.read_bytes(), "path": None} for file in files]),
        "arrays": np.stack(pixels),
        "inputs": inputs.numpy(),
    }
    predictor = Predictor(bundle, "image")
    for kind, cells in kinds.items():
        answers = predictor({"key": np.arange(8), "image": cells})
        assert list(answers) == ["key", "label", "exit", "confidence", "cost", "error"], kind
        assert answers["key"].tolist() == list(range(8))
        assert answers["label"].tolist() == labels, kind
        assert answers["exit"].tolist() == exits
        assert answers["cost"].tolist() == cost
        np.testing.assert_allclose(answers["confidence"], found.confidence.numpy(), atol=1e-6)
        assert set(answers["error"]) == {""}


@pytest.mark.slow
def test_rows_that_cannot_be_read(bundle, folder, tmp_path):
    files = list_images(folder)[:3]
    (tmp_path / "bad.png").write_bytes(b"no image")
    cells = as_objects([str(files[0]), str(tmp_path / "bad.png"), None, 7.5, np.zeros((4, 4, 9), np.uint8), str(files[1])])
    batch = {"key": np.array(list("abcdef")), "more": np.arange(6), "image": cells}
    with pytest.raises(xl.errors.DataError, match=r"bad\.png.*'b'.*skip_bad=True"):
        Predictor(bundle, "image", keep=["key"])(batch)
    answers = Predictor(bundle, "image", keep=["key"], skip_bad=True)(batch)
    assert "more" not in answers
    assert answers["key"].tolist() == list("abcdef")
    assert [bool(error) for error in answers["error"]] == [False, True, True, True, True, False]
    assert answers["exit"][1:5].tolist() == [-1] * 4
    assert answers["label"][1:5].tolist() == [""] * 4
    assert np.isnan(answers["confidence"][1:5]).all()
    assert answers["cost"][1:5].tolist() == [0] * 4
    assert all(label in ("dark", "bright") for label in answers["label"][[0, 5]])
    nothing = Predictor(bundle, "image", skip_bad=True)({"image": cells[1:5]})
    assert nothing["exit"].tolist() == [-1] * 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "columns", "message"),
    [
        ({"column": 3}, {}, "column"),
        ({"threads": 0}, {}, "threads"),
        ({"keep": "key"}, {}, "list of columns"),
        ({"column": "picture"}, {}, "column: expected one of"),
        ({"keep": ["name"]}, {}, "got 'name'"),
        ({}, {"label": np.arange(1)}, "answer's columns"),
    ],
)
def test_arguments_that_do_not_fit(bundle, folder, words, columns, message):
    batch = {"image": as_objects([str(list_images(folder)[0])])} | columns
    with pytest.raises(xl.errors.InputError, match=message):
        Predictor(bundle, **{"column": "image"} | words)(batch)


DRIVER = """
import json, runpy, sys
for line in sys.stdin:
    sys.argv = json.loads(line)
    runpy.run_path(sys.argv[0], run_name="__main__")
    print("ready", flush=True)
"""


@pytest.fixture
def run_example():
    """Runs the example as often as asked, with one local Ray, which takes long to start."""
    pytest.importorskip("ray")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONWARNINGS": "ignore"}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": env}
    with subprocess.Popen([sys.executable, "-c", DRIVER], **pipes) as process:

        def run(out: Path, *words: object) -> str:
            process.stdin.write(json.dumps([str(EXAMPLE), "--out", str(out), "--actors", "1", *map(str, words)]) + "\n")
            process.stdin.flush()
            lines = list[str]()
            while (line := process.stdout.readline()) != "ready\n":
                assert line, "it failed; stderr says why"
                lines.append(line)
            return "".join(lines)

        yield run
        process.stdin.close()


@pytest.mark.long
def test_the_example_on_a_local_ray(run_example, bundle, folder, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    files = list_images(folder)
    labels, exits, *_ = expect(bundle, files)
    out = tmp_path / "answers"
    (out / "images-000000").mkdir(parents=True)  # as a job that was killed leaves the first shard and the second
    (out / ".images-000001.unfinished").mkdir()
    said = run_example(out, "--bundle", bundle, "--data", folder, "--shard", 40)
    assert said.count("images-000000: there already") == said.count("images-000001: done") == 1
    assert not list((out / "images-000000").iterdir())
    rows = parquet.read_table(out / "images-000001").to_pylist()
    found = {row["file"]: (row["label"], row["exit"]) for row in rows}
    assert found == {str(file): (labels[i], exits[i]) for i, file in enumerate(files) if i >= 40}

    shards = tmp_path / "shards"
    shards.mkdir()
    table = {"key": list("abcde"), "image": [file.read_bytes() for file in files[:5]]}
    table["image"][2] = b"broken"
    parquet.write_table(pyarrow.table(table), shards / "part-0.parquet")
    run_example(tmp_path / "two", "--bundle", bundle, "--data", shards, "--skip-bad")
    rows = [row for shard in sorted((tmp_path / "two").iterdir()) for row in parquet.read_table(shard).to_pylist()]
    assert [row["key"] for row in rows] == list("abcde")
    assert [row["key"] for row in rows if row["error"]] == ["c"]
    assert "image" not in rows[0]
