"""Several labels a sample, through every verb: squares in four corners of an image, any number of them."""

import copy
import math
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import exitlens as xl
from exitlens.delivery.explanations import explain_folder, render_explanations, save_explanation, tabulate_tokens
from exitlens.delivery.predictions import name_rows
from exitlens.functional.maps import choose_explained
from exitlens.model.attribution import attribute_exits
from exitlens.workflow.faithfulness import measure_faithfulness
from tests.conftest import TinyNet

CORNERS = ((0, 0), (0, 10), (10, 0), (10, 10))
NAMES = ("north west", "north east", "south west", "south east")


def draw(count: int, seed: int) -> xl.data.ImageSet:
    rng = torch.Generator().manual_seed(seed)
    labels = torch.rand(count, 4, generator=rng) < 0.4
    pixels = torch.randint(0, 90, (count, 3, 16, 16), generator=rng)
    for c, (row, column) in enumerate(CORNERS):
        pixels[:, :, row : row + 6, column : column + 6] += 120 * labels[:, c, None, None, None]
    return xl.data.ImageSet(pixels.to(torch.uint8), labels.long(), NAMES)


@cache
def _train() -> xl.ExitNet:
    torch.manual_seed(0)
    train = draw(256, 1)
    net = xl.attach(TinyNet(), ["a", "b"], 4, train.inputs[:1])
    xl.fit(net, train, draw(64, 2), epochs=8, batch_size=32, learning_rate=1e-2, progress=False)
    net.describe(classes=NAMES, preprocess=train.preprocess)
    return net


@pytest.fixture
def net() -> xl.ExitNet:
    return copy.deepcopy(_train())


@pytest.fixture
def trace(net) -> xl.Trace:
    return xl.collect(net, draw(300, 3))


@pytest.mark.slow
def test_f1_in_the_history_equals_scikit_learns(tmp_path):
    torch.manual_seed(0)
    val, plain = draw(48, 2), xl.attach(TinyNet(), ["a"], 4, torch.zeros(1, 3, 16, 16))
    result = xl.fit(plain, draw(64, 1), val, epochs=2, batch_size=32, out_dir=tmp_path / "run", progress=False)
    metrics = pytest.importorskip("sklearn.metrics")
    outs = plain(val.inputs)
    told = [(out.logits >= 0).numpy() for out in outs]
    expected = [metrics.f1_score(val.labels.numpy(), item, average="micro", zero_division=0.0) for item in told]
    assert result.history[-1]["f1"] == pytest.approx(expected)
    right = [float((item == val.labels.numpy()).all(1).mean()) for item in told]
    assert result.history[-1]["accuracy"] == pytest.approx(right)
    assert "f1_exit0" in (tmp_path / "run" / "log.csv").read_text()


@pytest.mark.parametrize(
    ("options", "load"),
    [
        ({"freeze_backbone": True}, lambda data: data),
        ({"monitor": "loss"}, lambda data: DataLoader(TensorDataset(data.inputs, data.labels.long()), 32)),  # integers
    ],
)
def test_other_ways_to_train(options, load):
    plain = xl.attach(TinyNet(), ["a"], 4, torch.zeros(1, 3, 16, 16))
    loss = xl.EGTLoss(0.5, target="product", label_smoothing=0.1, class_weights=(1, 2, 1, 1), distill=0.1)
    train, val = load(draw(64, 1)), load(draw(32, 2))
    result = xl.fit(plain, train, val, loss=loss, epochs=2, batch_size=32, progress=False, **options)
    assert plain.info.task == "multilabel"
    assert all(math.isfinite(row["loss"]["total"]) for row in result.history)


def test_unsuitable_options_for_several_labels_are_refused():
    plain, data = xl.attach(TinyNet(), ["a"], 4, torch.zeros(1, 3, 16, 16)), draw(32, 1)
    classes, wrong = (TensorDataset(data.inputs, labels) for labels in (torch.arange(32) % 4, 3 * data.labels.long()))
    for val, options, message in (
        (data, {"balanced": True}, "balanced: it is for one class a sample"),
        (data, {"loss": xl.EGTLoss(class_weights="balanced")}, "class_weights: it is for one class a sample"),
        (classes, {}, r"labels: this network answers one class a sample: expected \(32,\) integers"),
        (wrong, {}, "val labels: expected 0 and 1"),
    ):
        with pytest.raises(xl.errors.InputError, match=message):
            xl.fit(plain, data, val, epochs=1, batch_size=32, progress=False, **options)
        plain.describe(task="classes")


def test_the_trace_knows_its_labels(net, trace):
    assert trace.task == net.info.task == "multilabel"
    assert xl.collect(net, draw(8, 5).inputs).task == "multilabel"
    with pytest.raises(xl.errors.InputError, match="data, labels: this network answers several labels a sample"):
        xl.collect(net, TensorDataset(draw(8, 5).inputs, torch.zeros(8).long()))
    with pytest.raises(xl.errors.InputError, match="compact: several labels a sample need all logits"):
        xl.collect(net, draw(8, 5), compact=True)


def test_calibrate_keeps_its_limits_and_says_so(trace):
    policy = xl.calibrate(trace, max_accuracy_drop=0.02, max_false_negative_drop=0.01)
    assert policy.score == "decided"
    report = xl.evaluate(trace, policy)
    assert report.accuracy_drop <= 0.02 + 1e-6
    assert report.labels.false_negative_drop <= 0.01 + 1e-6
    assert report.cost < trace.cost[-1]
    text = repr(report)
    assert "subset accuracy" in text
    assert "micro-F1" in text
    sure = xl.calibrate(trace, max_accuracy_drop=0.1, max_false_negative_drop=0.1, delta=0.1)
    assert "gets all labels of a sample right at most 10 points less often" in sure.certificate()
    assert [test.test for test in sure.calibration.certification.tests][1] in ("signed_betting", "betting")
    grouped = replace(trace, groups=torch.arange(300) // 2)
    assert "groups" in xl.calibrate(grouped, max_false_negative_drop=0.3, delta=0.1).certificate()


def test_figures_by_hand(trace):
    report = xl.evaluate(trace, xl.Policy.never(3, score="decided"))
    assert report.labels.f1 > 0.8  # it has learned
    told, labels = trace.logits[:, -1] >= 0, trace.labels
    assert report.accuracy == pytest.approx((told == labels).all(1).float().mean().item())
    rows = zip(labels.int().tolist(), told.int().tolist(), strict=True)
    missed = [sum(bool(y) and not t for y, t in zip(*row, strict=True)) / max(1, sum(row[0])) for row in rows]
    assert report.labels.false_negative_rate == pytest.approx(sum(missed) / len(missed), abs=1e-6)
    row = report.classes[2]
    assert row.samples == int(labels[:, 2].sum())
    assert row.accuracy == row.final_accuracy == pytest.approx((told & labels)[:, 2].sum().item() / row.samples)


@pytest.mark.slow
def test_limits_of_other_kinds(trace):
    every = xl.calibrate(trace, max_class_accuracy_drop=0.05, max_disagreement=0.2, max_divergence=0.9, gate=True)
    assert every.calibration.classes == (4, 4)
    assert xl.calibrate(trace, max_cost=1.0).score == "decided"
    assert xl.calibrate(replace(trace, labels=None), max_disagreement=0.1).task == "multilabel"
    assert xl.sweep(trace)[0].policy.score == "decided"
    assert xl.measure_anytime(trace)[-1].accuracy == pytest.approx(trace.correct[:, -1].double().mean().item())
    assert xl.measure_budgeted_batch(trace, trace, points=3)
    assert xl.calibrate(trace, max_accuracy_drop=0.05, folds=3).calibration.held_out is not None


@pytest.mark.slow
def test_requests_that_cannot_be_met(trace):
    with pytest.raises(xl.errors.InputError, match=r"score: expected one of .*decided.* for several labels"):
        xl.calibrate(trace, max_accuracy_drop=0.1, score="margin")
    labels = trace.labels.clone()
    labels[:, 3] = False
    with pytest.raises(xl.errors.CalibrationError, match="none of the 300 samples has label 3"):
        xl.calibrate(replace(trace, labels=labels), max_accuracy_drop=0.1)


def test_predictions_are_those_on_paper(net, trace):
    policy = xl.calibrate(trace, max_accuracy_drop=0.05)
    data = draw(60, 6)
    paper = xl.collect(net, data)
    pred = xl.predict(net, data.inputs, policy, attention=True)
    assert torch.equal(pred.exits, xl.route(paper, policy))
    assert torch.equal(pred.labels, paper.answers[torch.arange(60), pred.exits])
    assert pred.labels.dtype == torch.bool
    sure = torch.maximum(pred.probabilities, 1 - pred.probabilities).amin(1)
    torch.testing.assert_close(pred.confidence, sure)
    (rows,) = name_rows(net, [pred], SimpleNamespace(files=[f"{i}.png" for i in range(60)]))
    assert rows[0].label == ";".join(NAMES[c] for c in pred.labels[0].nonzero().flatten().tolist())
    streamed = list(xl.predict_stream(net, [data.inputs[:30], data.inputs[30:]], policy))
    assert torch.equal(torch.cat([item.labels for item in streamed]), pred.labels)
    assert xl.DriftMonitor(policy).update(pred).samples == 60


def test_policies_of_the_other_kind_are_refused(net, trace, tmp_path):
    usual, inputs = xl.Policy((0.5, 0.5)), draw(4, 7).inputs
    for use in (
        lambda: xl.predict(net, inputs, usual),
        lambda: xl.explain_batch(net, inputs, usual),
        lambda: xl.route(trace, usual),
        lambda: xl.save(net, usual, tmp_path / "b"),
        lambda: xl.save(net, None, tmp_path / "b", policies={"fast": usual}),
        lambda: net.compile(usual),
    ):
        with pytest.raises(xl.errors.PolicyError, match="one class a sample, the network or trace has several labels"):
            use()
    net.describe(task="classes")
    with pytest.raises(xl.errors.PolicyError, match="several labels a sample, the network or trace has one class"):
        xl.predict(net, inputs, xl.Policy((0.5, 0.5), "decided"))
    with pytest.raises(xl.errors.InputError, match="task: expected one of"):
        net.describe(task="ordinal")


def test_a_bundle_keeps_the_task(net, trace, tmp_path):
    policy, inputs = xl.calibrate(trace, max_accuracy_drop=0.05), draw(8, 8).inputs
    xl.save(net, policy, tmp_path / "b", policies={"full": xl.Policy.never(3, score="decided", network=policy.network)})
    again, same = xl.load(tmp_path / "b", backbone=TinyNet())
    assert again.info.task == "multilabel"
    assert same == policy
    assert torch.equal(xl.predict(again, inputs, same).labels, xl.predict(net, inputs, policy).labels)
    assert set(xl.load_policies(tmp_path / "b")) == {"default", "full"}


@pytest.mark.slow
def test_every_answered_label_has_its_evidence(net, tmp_path):
    policy, data = xl.Policy((0.95, 0.95), "decided"), draw(20, 9)
    pred = xl.predict(net, data.inputs, policy)
    whys = xl.explain_batch(net, data.inputs, policy, relevance=True)
    for i, why in enumerate(whys):
        assert why.answered == pred.exits[i]
        assert [one.label for one in why.labels] == pred.labels[i].nonzero().flatten().tolist()
        for view in why.exits:
            for one in view.labels:
                assert one.evidence.sum().item() + one.bias == pytest.approx(one.logit, abs=1e-3)
                assert one.probability >= 0.5
    why = next(why for why in whys if len(why.labels) == 2)
    assert why.reason.startswith(", ".join(NAMES[one.label] for one in why.labels) + ":")
    assert why.to_dict()["exits"][why.answered]["labels"][0]["label_name"] == NAMES[why.labels[0].label]
    assert why.exits[0].runner_up == int((why.exits[0].probabilities - 0.5).abs().argmin())
    assert "labels [" in repr(why.exits[why.answered])
    assert "what speaks for" in why._repr_html_()
    names = [path.name for path in save_explanation(why, tmp_path / "why")]
    assert f"explanation_label{why.labels[0].label}.png" in names
    assert explain_folder(net, policy, [data.inputs], str, tmp_path / "many")[0].answer
    words = _flatten(why)
    assert "speaks for" in render_explanations("t", [("", words)])
    assert tabulate_tokens(words).row_count == len(why.exits) + len(why.labels) + 1


def _flatten(why):
    """As if it were of a text, whose maps have one axis."""
    views = []
    for view in why.exits:
        labels = tuple(item._replace(evidence=item.evidence.flatten()) for item in view.labels)
        views.append(replace(view, attention=view.attention.flatten(), evidence=view.evidence.flatten(), labels=labels))
    texts = xl.data.TextPreprocess(xl.data.word_tokenizer(["x"]), 16)
    return replace(why, tokens=("x",) * 16, exits=tuple(views), relevance=why.relevance.flatten(), preprocess=texts)


def test_a_sample_without_a_label_says_so(net):
    empty = draw(1, 10)
    blank = xl.data.ImageSet(torch.full_like(empty.images, 40), empty.labels, NAMES)
    (why,) = xl.explain_batch(net, blank.inputs, xl.Policy.never(3, score="decided"))
    assert why.labels == ()
    assert why.reason.startswith("none of the labels: ")


@pytest.mark.slow
def test_relevance_is_about_the_labels_that_are_told(net):
    inputs = draw(6, 11).inputs
    told = choose_explained(net(inputs)[-1].logits, "multilabel")
    every = sum(xl.attribute(net, inputs, labels=torch.full((6,), c)) * told[:, c].view(-1, *[1] * 2) for c in range(4))
    torch.testing.assert_close(xl.attribute(net, inputs), every, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(attribute_exits(net, inputs)[-1], every, atol=1e-4, rtol=1e-3)


def test_deletion_is_judged_by_the_strongest_label(net):
    outcome = measure_faithfulness(net, draw(12, 12), samples=12, grid=(4, 4), oracle_samples=4)
    assert all(math.isfinite(value) for value in outcome.deletion)


def test_sets_keep_and_split_labels():
    data = draw(200, 14)
    assert data[3][1].dtype == torch.bool
    parts = xl.data.split_set(data, (0.5, 0.25, 0.25), seed=1)
    assert sum(len(part) for part in parts) == 200
    whole = data.labels.float().mean(0)
    assert all((part.labels.float().mean(0) - whole).abs().max() < 0.15 for part in parts)
    with pytest.raises(xl.errors.InputError, match="labels: expected 0 and 1"):
        xl.data.ImageSet(data.images, 2 * data.labels.long(), NAMES)
    with pytest.raises(xl.errors.InputError, match=r"labels: .*several labels \(200,3\) integers or bool"):
        xl.data.ImageSet(data.images, data.labels, NAMES[:3])
