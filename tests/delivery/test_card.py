"""Model cards say what the record says, keep what their author wrote, and carry figures that the Hub reads."""

import json
from dataclasses import replace

import pytest
import torch
from torch.utils.data import TensorDataset

import exitlens as xl
from exitlens.delivery.card import publish_card, write_card
from tests.conftest import random_trace
from tests.exported import make_continuous
from tests.texts import make_text_net

ModelCard = pytest.importorskip("huggingface_hub").ModelCard
CLASSES = ("w", "<x>", "y", "z")


@pytest.fixture
def certified(net):
    """A certified policy, and a report about other samples."""
    trace = random_trace(2000, seed=1)
    policy = xl.calibrate(trace, max_accuracy_drop=0.05, delta=0.1)
    return policy, xl.evaluate(random_trace(500, seed=2), policy)


def read(directory):
    return ModelCard((directory / "README.md").read_text())


def test_it_says_what_is_promised_and_what_is_not(net, certified, tmp_path):
    policy, report = certified
    net.describe(classes=CLASSES)
    card = read(xl.save(net, policy, tmp_path / "b", policies={"fast": xl.Policy((0.5, 0.5))}, card=report))
    assert "# Image classifier with 3 exits" in card.text
    assert "early exits after a, b" in card.text
    assert "**Classes:** 4: w, &lt;x&gt;, y, z" in card.text  # names come from data
    promised, rest = card.text.split("## What is promised")[1].split("## What is not promised")
    assert policy.certificate() in promised
    assert "With 90 % confidence" in promised
    assert "**fast**: Nothing is promised" in promised
    for limit in ("Other data.", "Accuracy itself.", "Time.", "Explanations.", "No share of the answers is certified"):
        assert limit in rest
    assert f"On 500 samples that its author calls test samples: accuracy {100 * report.accuracy:.1f} %" in rest
    table = [line.strip("| ").split(" | ") for line in rest.splitlines() if line.startswith("|")]
    assert [row[0] for row in table] == ["exit", "---", "exit 0", "exit 1", "final"]
    assert table[2][3] == f"{100 * report.exits[0].share:.1f}"
    assert 'xl.load("hf://USER/NAME", backbone=module)' in rest


@pytest.mark.parametrize("numbers", [2, 0], ids=["numbers", "vectors"])
def test_numbers_and_vectors_have_distances_instead_of_accuracies(numbers, tmp_path):
    net, images = make_continuous(numbers), torch.rand(40, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    limit, labels = ("max_deviation", "max_distance")[numbers == 0], [torch.rand(40, 2)] if numbers else []
    trace = xl.collect(net, TensorDataset(images, *labels))
    policy = xl.calibrate(trace, **{limit: 0.9})
    card = read(xl.save(net, policy, tmp_path / "b", card=xl.evaluate(trace, policy)))
    assert f"# Image {'regression' if numbers else 'embedding'} with 2 exits" in card.text
    assert f"It answers with {'2 numbers' if numbers else 'a vector of 8'} for each image" in card.text
    assert ("**Numbers:** 2: length, width" in card.text) == bool(numbers)
    figures = card.text.split("## Figures")[1].split("## Use it")[0]
    assert "from the final exit's answers, at a mean cost of" in figures
    assert ("accura" in figures, "mean absolute error" in figures) == (False, bool(numbers))
    metrics = {result.metric_type for result in card.data.eval_results}
    assert metrics == {"distance", "mean_cost"} | ({"mae"} if numbers else set())
    assert card.data.pipeline_tag == (None if numbers else "image-feature-extraction")


@pytest.mark.slow
def test_it_names_the_architecture_of_a_transformers_model(tmp_path):
    card = read(xl.save(make_text_net(), None, tmp_path / "b", card=True))
    assert "- **Network:** the architecture bert of transformers, with early exits after" in card.text


@pytest.mark.slow
def test_a_cascade_is_named_by_its_members(tmp_path):
    pair = [xl.attach("small", [], 4, torch.zeros(1, 3, size, size)) for size in (16, 32)]
    card = read(xl.save(xl.cascade(pair), None, tmp_path / "b", card=True))
    assert "# Image classifier with 2 exits" in card.text
    assert "- **Network:** small and small\n" in card.text


def test_the_hub_reads_its_figures(net, certified, tmp_path):
    policy, report = certified
    tested = read(xl.save(net, policy, tmp_path / "tested", card=report)).data
    assert (tested.library_name, tested.pipeline_tag, tested.tags) == (
        "exitlens",
        "image-classification",
        ["exitlens", "early-exit"],
    )
    figures = {result.metric_type: (result.metric_value, result.dataset_split) for result in tested.eval_results}
    assert figures["accuracy"] == (round(report.accuracy, 4), "test")
    recorded = {each.metric_type: each for each in read(xl.save(net, policy, tmp_path / "b", card=True)).data.eval_results}
    assert set(recorded) == {"accuracy_drop", "mean_cost"}
    assert recorded["mean_cost"].metric_value == round(policy.calibration.cost, 4)
    assert recorded["mean_cost"].dataset_name == "2,000 calibration samples of the author"
    text = read(tmp_path / "b").text
    assert "How accurate it is on test samples is not recorded." in text
    assert "| exit | threshold | answers (%) |" in text


@pytest.mark.parametrize(
    ("policy", "words"),
    [(None, "Nothing: it has no thresholds yet"), (xl.Policy((0.9, 0.9)), "thresholds were set by hand")],
)
def test_without_a_calibration_nothing_is_promised(net, policy, words, tmp_path):
    card = read(xl.save(net, policy, tmp_path / "b", card=True))
    assert words in card.text
    assert card.data.eval_results is None
    assert ("## Figures" in card.text) is (policy is not None)


def test_text_and_metadata_of_the_author_stay(net, certified, tmp_path):
    policy, report = certified
    path = xl.save(net, policy, tmp_path / "b", card=report) / "README.md"
    written = path.read_text()
    path.write_text(
        written.replace("tags:", "license: mit\ntags:\n- garments").replace("*What it was", "Mine. *What it was") + "\nLast."
    )
    publish_card(tmp_path / "b", "user/name")
    card = read(tmp_path / "b")
    assert "Mine." in card.text
    assert card.text.endswith("Last.")
    assert (card.data.license, card.data.tags[0], card.data.model_name) == ("mit", "garments", "name")
    assert "samples that its author calls test samples" in card.text  # the bundle is the same, so its figures stay
    publish_card(tmp_path / "b", "other/name")
    assert 'xl.load("hf://other/name"' in (tmp_path / "b" / "README.md").read_text()
    xl.save(net, replace(policy, thresholds=(0.5, 0.5)), tmp_path / "b", overwrite=True)
    publish_card(tmp_path / "b", "user/name")  # of another policy: neither the promise nor the figures are its
    card = read(tmp_path / "b")
    assert (card.data.license, card.data.tags) == ("mit", ["exitlens", "early-exit", "garments"])
    assert "Nothing is promised: this policy is not the one that was calibrated" in card.text
    assert "test samples:" not in card.text
    assert "calibration samples, among them" not in card.text
    assert card.data.eval_results is None


def test_a_readme_without_marks_is_left_alone_unless_a_card_is_asked_for(net, tmp_path):
    path = xl.save(net, None, tmp_path / "b") / "README.md"
    path.write_text("# Mine\n")
    publish_card(tmp_path / "b", "user/name")
    assert path.read_text() == "# Mine\n"
    write_card(tmp_path / "b")
    assert read(tmp_path / "b").text.strip().startswith("# Mine\n\n<!-- exitlens")


def test_metadata_that_cannot_be_read_are_named(net, tmp_path):
    path = xl.save(net, None, tmp_path / "b", card=True) / "README.md"
    path.write_text("---\n[\n---\n" + path.read_text())
    with pytest.raises(xl.errors.InputError, match=r"card: the metadata of .*README.md cannot be read .* Fix: "):
        publish_card(tmp_path / "b", "user/name")
    with pytest.raises(xl.errors.InputError, match="card: expected"):
        xl.save(net, None, tmp_path / "c", card="yes")


def test_the_card_of_an_edge_bundle(tmp_path):
    described = {
        "num_classes": 2, "classes": [], "num_exits": 2, "precision": "int8", "cost": [0.25, 1.0], "preprocess": None,
        "inputs": [{"name": "series", "dtype": "float32", "shape": [3, 20]}], "map_offsets": [], "segments": [], "sha256": {},
    }  # fmt: skip
    (tmp_path / "manifest.json").write_text(json.dumps(described))
    (tmp_path / "policy.json").write_text(json.dumps(xl.Policy((0.9,)).to_dict()))
    write_card(tmp_path)
    card = read(tmp_path)
    assert "# Series classifier with 2 exits" in card.text
    assert "ONNX files (int8), which run without PyTorch" in card.text
    assert "| exit 0 | 0.900 | 0.250 |" in card.text
    assert 'exitlens_runtime.load("hf://USER/NAME")' in card.text
    assert "pip install &#34;" not in card.text
    assert card.data.pipeline_tag is None
