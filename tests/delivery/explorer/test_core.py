"""The explorer without a browser: what it answers, what it refuses, what its page says."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import exitlens as xl
from exitlens.delivery.explorer.core import EXAMPLES, Explorer, Share, cover, read_shares
from exitlens.delivery.explorer.interface import View, answer_page, routed_page
from tests.conftest import random_trace
from tests.delivery.explorer.conftest import save_texts
from tests.hostile import noise


def save_small(folder: Path, classes: tuple[str, str]) -> Path:
    """A bundle without a policy and without a record of data."""
    net = xl.attach(xl.build_backbone("small", 2), ["layer1"], 2, torch.zeros(1, 3, 32, 32)).eval()
    net.describe(source="small", classes=classes, preprocess=xl.data.Preprocess((32, 32)))
    return xl.save(net, None, folder / "bundle").parent


@pytest.mark.slow
def test_an_answer_is_that_of_explain(explorer):
    run, picture = explorer.runs[0], noise()
    answer = explorer.answer(0, picture)
    why = xl.explain(run.net, explorer.encode(run, picture), run.policy)
    assert answer.why.label == why.label
    assert answer.why.answered == why.answered
    assert answer.ours_ms > 0
    assert 1 <= answer.rounds <= 5
    page = answer_page(answer, picture)
    assert why.reason.replace("'", "&#39;") in page
    assert page.count("<figure") == 4
    assert page.count('alt="Where ') == 4
    assert "://" not in page


@pytest.mark.slow
def test_moved_thresholds_decide_and_promise_nothing(explorer):
    picture = noise()
    for thresholds, exit_index in (((0.0, 0.5, 0.5), 0), ((math.inf, 0.0, 0.5), 1), ((math.inf,) * 3, 3)):
        assert explorer.answer(0, picture, thresholds).why.answered == exit_index
    assert explorer.policy(0, (0.0, 0.5, 0.5)).calibration is None
    assert explorer.policy(0, explorer.runs[0].policy.thresholds).calibration


def test_what_a_gate_refuses_is_known_of_its_own_thresholds_only(explorer, monkeypatch):
    run, thresholds = explorer.runs[0], (0.9,) * 3
    gated = xl.Policy(thresholds, gate=xl.types.Gate(((0.0,) * 4 + (-1.0,),) * 3, (0.0,) * 3))  # refuses all
    monkeypatch.setattr(explorer, "runs", [replace(run, policy=gated)])
    assert answer_page(explorer.answer(0, noise(), thresholds), noise()).count("was not trusted") == 3
    moved = explorer.answer(0, noise(), (0.95, 0.9, math.inf))
    page = answer_page(moved, noise())
    assert (page.count("was not sure enough"), page.count("does not answer under these thresholds")) == (2, 1)
    assert "not trusted" not in page
    assert "the gate refused" not in moved.why.reason


def test_the_calibration_trace_follows_the_thresholds(explorer):
    trace = explorer.trace(0)
    assert explorer.trace(0) is trace  # collected once
    report = explorer.evaluate(0, (0.0, 0.0, 0.0))
    assert report.exit_shares == (1.0, 0.0, 0.0, 0.0)
    page = routed_page(explorer.runs[0], report, changed=True, kind="calibration samples")
    assert f"{report.samples} calibration samples under these thresholds" in page
    assert "nothing is promised of accuracy and cost" in page
    assert '<td class="xl-share">100.0 %</td>' in page
    assert f"at cost {report.cost:.3f}" in page
    assert "There is no" in routed_page(explorer.runs[0], "There is no <trace>", changed=False, kind="")


def test_examples_are_test_images_of_the_run(explorer):
    examples = explorer.examples()
    assert 1 <= len(examples) <= EXAMPLES
    assert {truth for _, truth in examples} <= {"dark", "bright"}


@pytest.mark.slow
def test_a_bundle_by_itself_shows_scenes(tmp_path):
    explorer = Explorer([save_small(tmp_path, ("a", "b"))])
    assert len(explorer.examples()) == EXAMPLES
    assert explorer.runs[0].policy.thresholds == (0.9,)
    assert explorer.evaluate(0, (0.9,)).startswith("There is no calibration data")
    explorer._traces[0] = random_trace(k=2)
    assert "Thresholds chosen by hand" in View(explorer).route(0)(0.9)


@pytest.mark.slow
def test_without_the_demos_images_it_shows_none(tmp_path, no_images):
    explorer = Explorer([save_small(tmp_path, ("a", "b"))])
    assert explorer.examples() == []
    assert View(explorer).examples == []


@pytest.mark.slow
def test_other_data_than_the_runs_own(folder, tmp_path):
    explorer = Explorer([save_small(tmp_path, ("dark", "bright"))], str(folder))
    assert {truth for _, truth in explorer.examples()} == {"dark", "bright"}
    assert f"60 samples of {folder} under" in View(explorer).route(0)(0.9)
    with pytest.raises(xl.errors.DataError):
        View(Explorer([tmp_path], str(tmp_path / "nothing")))


def test_what_is_painted_is_covered():
    picture = Image.new("RGB", (40, 20), (200, 0, 0))
    picture.paste((0, 0, 100), (0, 0, 20, 20))
    strokes = Image.new("RGBA", (80, 40), (0, 0, 0, 0))
    strokes.paste((128, 128, 128, 255), (0, 0, 40, 40))  # the left half
    covered = np.asarray(cover(picture, strokes))
    assert (covered[:, :19] == (100, 0, 50)).all()
    assert (covered[:, 21:] == (200, 0, 0)).all()
    assert cover(picture, None) is picture


def test_two_of_a_kind_only(trained):
    with pytest.raises(xl.errors.InputError, match="one bundle, or two"):
        Explorer([])
    with pytest.raises(xl.errors.BundleError):
        Explorer([Path("nowhere")])
    both = Explorer([trained, trained])
    assert [run.name for run in both.runs] == ["x", "x (2)"]


# --- hostile input ---


@pytest.mark.slow
def test_a_large_upload_is_shrunk(explorer, tmp_path):
    path = tmp_path / "large.png"
    Image.new("RGBA", (6000, 4000)).save(path)  # 24 million pixels; the browser's test watches the memory
    assert explorer.read(path).size == (1024, 683)


@pytest.mark.slow
def test_an_image_bundle_and_a_text_bundle_do_not_go_together(trained, tmp_path):
    with pytest.raises(xl.errors.InputError, match="expected two of a kind"):
        Explorer([trained, save_texts(tmp_path)])


ROW = {"deletion_share": [0.5, None], "deletion_share_error": [0.1, None], "oracle_samples": 200}
RESULT = {
    "egt": {"agreeing": ROW},
    "baseline": {"agreeing": {**ROW, "deletion_share": [0.25, None]}},
    "policy": {"network": "x"},
}


@pytest.fixture
def demo(tmp_path):
    for name in ("bundle", "training/egt/bundle", "training/baseline/bundle"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "result.json").write_text(json.dumps(RESULT))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "value"), [("", 0.5), ("bundle", 0.5), ("training/egt", 0.5), ("training/baseline/bundle", 0.25)]
)
def test_the_demo_knows_its_runs(demo, name, value):
    assert read_shares(demo / name, "x", 2) == (Share(value, 0.1, 200), None)


def test_another_network_is_not_known(demo):
    assert read_shares(demo, "y", 2) == (None, None)
    assert read_shares(demo, "x", 3) == (None, None, None)
    assert read_shares(demo / "training" / "plain", "x", 2) == (None, None)
    assert read_shares(demo / "nothing", "x", 1) == (None,)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"policy": 1}', '{"egt": {"agreeing": 3}, "policy": {"network": "x"}}'])
def test_a_file_that_is_no_result_says_nothing(demo, text):
    (demo / "result.json").write_text(text)
    assert read_shares(demo, "x", 2) == (None, None)


# --- series, volumes and vectors: a file is answered ---

SCALES = {
    "series": (xl.data.SeriesPreprocess((0.0, 0.0), (1.0, 1.0), length=64), (2, 64)),
    "volume": (xl.data.VolumePreprocess((0.0,), (1.0,), size=(16, 16, 16)), (1, 16, 16, 16)),
    "vector": (xl.data.VectorPreprocess((0.0,) * 5, (1.0,) * 5), (5,)),
}


@pytest.fixture(params=SCALES)
def bundle(request, tmp_path):
    preprocess, shape = SCALES[request.param]
    net = xl.attach("small", ["layer1", "layer3"], 3, torch.zeros(2, *shape))
    net.describe(classes=("a", "b", "c"), preprocess=preprocess)
    xl.save(net, xl.Policy((0.2, 0.2)), tmp_path / "bundle")
    np.save(tmp_path / "one.npy", np.random.default_rng(0).normal(size=shape).astype("float32"))
    return tmp_path


@pytest.mark.slow
def test_a_file_is_answered(bundle):
    view = View(Explorer([bundle / "bundle"]))
    assert view.examples == []
    assert "Choose a file of" in view.start(False, 0.2, 0.2)[-1]
    assert "Choose a file first" in view.say_again(None, False, 0.2, 0.2)[-1]
    shown, page, message = view.upload(str(bundle / "one.npy"), True, 0.2, 0.2)
    assert (shown.ndim, message) == (len(view.explorer.runs[0].net.input_spec.shape), "")
    assert "exit 0 answered" in page
    assert view.say_again(shown, False, 1.01, 1.01)[0].count("does not answer under these thresholds") == 2
    assert ("<svg" in page) == (view.explorer.modality.name != "vector")


@pytest.mark.slow
def test_a_file_that_cannot_be_read_is_refused_without_its_path(bundle):
    (bundle / "bad.npy").write_bytes(b"nothing")
    *_, message = View(Explorer([bundle / "bundle"])).upload(str(bundle / "bad.npy"), False, 0.2, 0.2)
    assert "bad.npy" in message
    assert str(bundle) not in message


@pytest.mark.slow
def test_two_that_scale_differently_are_not_compared(bundle):
    net, policy = xl.load(bundle / "bundle")
    known = net.info.preprocess
    net.describe(preprocess=known.scaled([1.0] * len(known.mean), known.std))
    xl.save(net, policy, bundle / "other")
    with pytest.raises(xl.errors.InputError, match=r"expected two that make inputs of .* alike"):
        Explorer([bundle / "bundle", bundle / "other"])


@pytest.mark.slow
def test_relevance_is_shown_of_the_run_that_has_it(tmp_path):
    dense = xl.attach(xl.build_backbone("small", 2), ["layer1"], 2, torch.zeros(1, 3, 32, 32), task="segmentation").eval()
    dense.describe(source="small", classes=("a", "b"), preprocess=xl.data.Preprocess((32, 32)))
    both = Explorer([save_small(tmp_path / "a", ("a", "b")), xl.save(dense, None, tmp_path / "b" / "bundle").parent])
    assert both.has_relevance
    assert both.is_relevance_slow()
    assert [len(both.answer(i, noise(), relevance=True).relevance) for i in range(2)] == [2, 0]
