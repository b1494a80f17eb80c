"""Numbers and vectors, through every verb: heights of a bump in a series, and the encoder's own vector of it."""

import copy
import math
from contextlib import nullcontext
from dataclasses import replace
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import exitlens as xl
from exitlens.functional.answers import measure_units
from exitlens.model.attribution import attribute
from exitlens.model.heads import NumberHead
from exitlens.workflow.faithfulness import measure_faithfulness

UNITS = ((50.0, 20.0),)


class Encoder(nn.Module):
    """Three convolutions over a series ``(B,2,32)``; a number, or the normalised mean of the last features."""

    def __init__(self, numbers: int = 0) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv1d(2, 6, 5, 2, 2), nn.ReLU())
        self.b = nn.Sequential(nn.Conv1d(6, 8, 5, 2, 2), nn.ReLU())
        self.c = nn.Sequential(nn.Conv1d(8, 10, 5, 1, 2), nn.ReLU(), nn.Conv1d(10, 12, 5, 1, 2))
        self.out = nn.Linear(12, numbers) if numbers else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.c(self.b(self.a(x))).mean(2)
        return F.normalize(x, dim=1) if self.out is None else self.out(x)


def draw(count: int, seed: int = 0) -> TensorDataset:
    rng = torch.Generator().manual_seed(seed)
    x, place = 0.3 * torch.randn(count, 2, 32, generator=rng), torch.randint(2, 30, (count,), generator=rng)
    height = 3 * torch.rand(count, generator=rng)
    x[torch.arange(count), 0, place] += height
    return TensorDataset(x, 50 + 20 * height)


@cache
def _build(numbers: int) -> xl.ExitNet:
    torch.manual_seed(0)
    task, final = ("regression", "head") if numbers else ("embedding", "keep")
    net = xl.attach(Encoder(numbers), ["a", "b"], numbers or 12, draw(1).tensors[0], task=task, final=final).eval()
    for k in range(net.num_exits - (final == "keep")):
        nn.init.normal_(net.head(k).attend.weight)
        nn.init.normal_(net.head(k).classifier.weight, std=2.0)
        nn.init.normal_(net.head(k).forecast[2].weight)
    return net


def make(numbers: int = 1) -> xl.ExitNet:
    net = copy.deepcopy(_build(numbers))
    net.describe(units=UNITS * numbers)
    return net


@pytest.fixture
def series() -> Tensor:
    return draw(60, seed=1).tensors[0]


def probe(net: xl.ExitNet) -> Tensor:
    return xl.predict(net, draw(40, seed=2).tensors[0], xl.Policy.never(3, score="vector_closeness")).labels.clone()


def test_evidence_adds_up_to_the_number(series):
    net = make(2)
    for k, out in enumerate(net(series)):
        total = out.evidence.sum(2) + net.head(k).bias
        assert torch.allclose(total, out.logits[:, :2], atol=1e-4)
    assert out.logits[:, 2].gt(0).all()  # the expected error
    assert isinstance(net.head(0), NumberHead)
    assert "2 numbers" in repr(net)


@pytest.mark.parametrize("score", ["closeness", "stability"])
def test_numbers_on_paper_are_those_that_are_predicted(score, series):
    net, data = make(), draw(60, seed=1)
    trace = xl.collect(net, data)
    values = trace.logits.values[..., 0]
    assert torch.allclose(values, torch.stack([50 + 20 * out.logits[:, 0] for out in net(series)], 1), atol=1e-3)
    middle = trace.logits.scores[..., ["closeness", "stability"].index(score)].median(0).values
    policy = xl.Policy(tuple(middle[:2].tolist()) if score == "closeness" else (math.inf, middle[1].item()), score=score)
    pred, exits = xl.predict(net, series, policy), xl.route(trace, policy)
    assert exits.unique().tolist() == ([0, 1, 2] if score == "closeness" else [1, 2])
    assert torch.equal(pred.exits, exits)
    assert torch.allclose(pred.labels, values.gather(1, exits[:, None])[:, 0], atol=1e-3)
    assert pred.probabilities.shape == (60, 0)
    sure = trace.logits.scores[torch.arange(60), exits, int(score == "stability")]
    assert torch.allclose(pred.confidence, sure, atol=1e-4)
    assert score == "closeness" or pred.confidence[exits == 2].eq(1).all()
    parts = [*xl.predict_stream(net, series.split(7), policy)]
    assert torch.equal(torch.cat([part.exits for part in parts]), exits)
    assert torch.allclose(torch.cat([part.labels for part in parts]), pred.labels, atol=1e-3)
    whys = xl.explain_batch(net, series, policy)
    assert [why.answered for why in whys] == exits.tolist()
    view = whys[0].exits[whys[0].answered]
    assert view.numbers[0].number == pytest.approx(pred.labels[0].item(), abs=1e-3)
    assert view.evidence.sum().item() + view.bias == pytest.approx(view.logit, abs=1e-3)
    assert f"{view.logit:.4g}: " in repr(whys[0])
    assert "numbers" in whys[0].to_dict()["exits"][0]
    assert whys[0]._repr_html_()
    with pytest.raises(xl.errors.InputError, match="runner_up: numbers and vectors have none"):
        assert view.runner_up


def test_measures_of_numbers_by_hand(tmp_path):
    net, data = make(2), draw(80, seed=3)
    targets = torch.stack([data.tensors[1], 100 - data.tensors[1]], 1)
    trace = xl.collect(net, TensorDataset(data.tensors[0], targets))
    policy = xl.Policy((trace.logits.scores[:, 0, 0].median().item(), math.inf), score="closeness")
    report, exits = xl.evaluate(trace, policy), xl.route(trace, policy)
    told = trace.logits.values[torch.arange(80), exits]
    wrong = (told - targets).double()
    assert report.answers.mae == pytest.approx(wrong.abs().mean().item(), rel=1e-5)
    assert report.answers.rmse == pytest.approx(wrong.square().mean().sqrt().item(), rel=1e-5)
    spread = (targets - targets.mean(0)).square().sum(0)
    assert report.answers.r2 == pytest.approx((1 - wrong.square().sum(0) / spread).mean().item(), rel=1e-4)
    still = xl.evaluate(xl.collect(net, TensorDataset(data.tensors[0], torch.ones(80, 2))), policy).answers
    assert (still.r2, still.exit_r2) == (None, None)  # nothing varies that could be explained
    assert still.mae == pytest.approx((told - 1).abs().mean().item(), rel=1e-5)
    assert report.answers.exit_mae[2] == pytest.approx((trace.logits.values[:, 2] - targets).abs().mean().item(), rel=1e-5)
    assert trace.logits.error[5, 1].item() == pytest.approx(
        ((trace.logits.values[5, 1] - targets[5]).abs() / 20).mean().item(), rel=1e-4
    )
    assert (report.accuracy, report.accuracy_drop, report.calibration_error) == (None, None, None)
    assert "R²" in repr(report)
    trace.save(tmp_path / "trace")
    same = xl.Trace.load(tmp_path / "trace")
    assert xl.evaluate(same, policy) == report
    assert same.fingerprint() == trace.fingerprint()
    assert "2 numbers" in trace._repr_html_()


def test_limits_are_kept_on_the_samples_at_hand():
    trace = xl.collect(make(), draw(200, seed=4))
    for limits in ({"max_error_increase": 0.1}, {"max_deviation": 0.2}, {"max_deviation": 0.2, "max_error_increase": 0.3}):
        policy = xl.calibrate(trace, **limits)
        rows, exits = torch.arange(200), xl.route(trace, policy)
        kept = trace.logits
        assert policy.score == "closeness"
        if "max_deviation" in limits:
            assert kept.distance[rows, exits].clamp_max(1).mean() <= 0.2
        else:
            assert (kept.error[rows, exits] - kept.error[:, 2]).clamp(-1, 1).mean() <= 0.1
        assert (
            "spread of the training targets" in xl.calibrate(trace, **limits, delta=0.3).certificate()
            or trace.certificate_requests
        )
    assert xl.calibrate(trace, max_cost=0.9).calibration.cost <= 0.9
    assert len(xl.sweep(trace)) > 1
    far = replace(trace, logits=replace(trace.logits, values=1e6 + trace.logits.values), labels=None)
    assert len({*far.hash_samples()}) == len({*trace.hash_samples()}) == 200  # whatever their units
    grouped = xl.calibrate(trace.with_groups([i // 4 for i in range(200)]), max_deviation=0.9, delta=0.5)
    assert grouped.calibration.groups == 50


def test_what_calibration_refuses():
    numbers, vectors = xl.collect(make(), draw(40)), xl.collect(make(0), draw(40).tensors[0])
    for trace, limits, message in (
        (numbers, {"max_accuracy_drop": 0.1}, "max_accuracy_drop: it is for one class a sample or several labels a sample"),
        (numbers, {"max_disagreement": 0.1}, r"this trace has numbers. Fix: pass max_error_increase"),
        (numbers, {"max_distance": 0.1}, "max_distance: it is for vectors, this trace has numbers"),
        (vectors, {"max_deviation": 0.1}, "Fix: pass max_distance or max_rank_change"),
        (vectors, {"max_rank_change": 0.1}, "this trace has no probes"),
        (numbers, {"max_deviation": 0.1, "gate": True}, "gate: it is for classes or labels"),
        (numbers, {"max_deviation": 0.1, "score": "margin"}, "score: expected one of .* for numbers"),
        (numbers, {"max_deviation": 0.1, "temperatures": xl.types.Temperatures((2.0,) * 3)}, "temperatures: they are all 1"),
        (xl.collect(make(), draw(40).tensors[0]), {"max_error_increase": 0.1}, "labels: max_error_increase needs targets"),
    ):
        with pytest.raises(xl.errors.InputError, match=message):
            xl.calibrate(trace, **limits)
    with pytest.raises(xl.errors.InputError, match="measure_anytime is for classes"):
        xl.measure_anytime(numbers)
    with pytest.raises(xl.errors.InputError, match="numbers and vectors have no classes"):
        numbers.logits.argmax()
    with pytest.raises(xl.errors.InputError, match="trace: it has no classes"):
        assert numbers.answers
    with pytest.raises(xl.errors.InputError, match="a summary is kept"):
        numbers.logits[..., 0]


def test_the_backbones_own_vector_is_kept_to_the_bit(series):
    backbone = Encoder().eval()
    net = xl.attach(backbone, ["a", "b"], 12, series[:1], task="embedding", final="keep")
    never = xl.Policy.never(3, score="vector_closeness")
    assert torch.equal(xl.predict(net, series, never).labels, backbone(series))
    for out in net(series)[:2]:
        assert out.logits[:, :-1].norm(dim=1).allclose(torch.ones(60))
        assert out.evidence.shape[1] == 0


@pytest.mark.parametrize("score", ["vector_closeness", "vector_stability"])
def test_vectors_on_paper_and_in_an_index(score, series):
    net = make(0)
    trace, outs = xl.collect(net, series, probes=probe(net)), net(series)
    cosine = F.cosine_similarity(outs[0].logits[:, :-1], outs[2].logits[:, :-1])
    assert trace.logits.distance[:, 0].allclose(1 - cosine, atol=1e-5)
    assert trace.logits.overlap[:, 2].eq(1).all()
    assert trace.labels is None
    middle = trace.logits.scores[:, 1, int(score.endswith("stability"))].median().item()
    policy = xl.Policy((math.inf, middle), score=score)
    pred, exits = xl.predict(net, series, policy), xl.route(trace, policy)
    assert torch.equal(pred.exits, exits)
    assert torch.equal(pred.labels, torch.stack([out.logits[:, :-1] for out in outs], 1)[torch.arange(60), exits])
    report = xl.evaluate(trace, policy)
    assert report.answers.overlap == pytest.approx(trace.logits.overlap[torch.arange(60), exits].mean().item())
    assert report.answers.mae is None
    assert "nearest probes" in repr(report)
    limited = xl.calibrate(trace, max_rank_change=0.3, max_distance=0.3, score=score)
    taken = xl.route(trace, limited)
    assert 1 - trace.logits.overlap[torch.arange(60), taken].mean() <= 0.3 + 1e-6


def test_a_similarity_is_shared_out_over_the_locations(series):
    net, policy = make(0), xl.Policy((0.5, 0.5), score="vector_closeness")
    to = probe(net)[0]
    for view, out in zip(xl.explain(net, series[0], policy, to=3 * to).exits, net(series[:1]), strict=True):
        assert view.exact_evidence
        assert view.numbers[0].number == pytest.approx((out.logits[0, :-1] @ to).item(), abs=1e-5)
        assert view.evidence.sum().item() + view.bias == pytest.approx(view.numbers[0].number, abs=1e-5)
    assert len(xl.explain_batch(net, series[:3], policy, to=probe(net)[:3])) == 3
    for to_, message in ((None, r"to: expected a vector \(12,\)"), (to[:4], r"got \(4,\)")):
        with pytest.raises(xl.errors.InputError, match=message):
            xl.explain(net, series[0], policy, to=to_)
    with pytest.raises(xl.errors.InputError, match="to: it is for networks that answer vectors"):
        xl.explain(make(), series[0], xl.Policy((0.5, 0.5), score="closeness"), to=to)


@pytest.mark.parametrize("number", [math.nan, math.inf, 0.0])
def test_vectors_without_direction_are_refused(number, series):
    net, policy = make(0), xl.Policy((0.5, 0.5), score="vector_closeness")
    probes = probe(net)
    probes[3] = number
    for name, call in (
        ("probes", lambda: xl.collect(net, series, probes=probes)),
        ("to", lambda: xl.explain(net, series[0], policy, to=probes[3])),
    ):
        with pytest.raises(
            xl.errors.InputError, match=f"{name}: expected finite numbers that are not all 0 in every vector, got 1 without"
        ):
            call()


def test_a_vector_that_is_no_mean_is_shared_out_by_attention(series):
    class Last(Encoder):
        def forward(self, x: Tensor) -> Tensor:
            return F.normalize(self.c(self.b(self.a(x))).amax(2), dim=1)

    net = xl.attach(Last(), ["a"], 12, series[:1], task="embedding", final="keep").eval()
    view = xl.explain(net, series[0], xl.Policy((0.5,), score="vector_closeness"), to=probe(make(0))[0]).exits[1]
    assert not view.exact_evidence
    assert view.evidence.sum().item() == pytest.approx(view.numbers[0].number, abs=1e-5)


def test_a_bundle_gives_the_same_answers(tmp_path, series):
    for numbers, score in ((1, "stability"), (0, "vector_closeness")):
        net, policy = make(numbers), xl.Policy((0.2, 0.3), score=score)
        xl.save(net, policy, tmp_path / score)
        same, read = xl.load(tmp_path / score, backbone=Encoder(numbers))
        assert read == policy
        assert same.info.units == net.info.units
        assert torch.equal(xl.predict(same, series, read).labels, xl.predict(net, series, policy).labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0, "task": "regression"}, "num_classes: expected an integer of 1 or more"),
        ({"num_classes": 1}, "num_classes: expected an integer of 2 or more"),
        ({"num_classes": 1, "task": "regression", "final": "keep"}, "final: 'keep' is not there yet"),
        ({"num_classes": 1, "task": "regression", "head": "average"}, "head: 'average' is for classes"),
        ({"num_classes": 12, "task": "embedding"}, "final: the last exit's vector is the backbone's own"),
    ],
)
def test_what_attach_refuses(options, message):
    with pytest.raises(xl.ExitlensError, match=message):
        xl.attach(Encoder(12), ["a"], example=draw(1).tensors[0], **options)


def test_vectors_have_to_be_of_norm_1():
    with pytest.raises(xl.errors.AttachError, match="backbone: expected vectors of norm 1"):
        xl.attach(Encoder(12), ["a"], 12, draw(1).tensors[0], task="embedding", final="keep")


@pytest.mark.parametrize("numbers", [1, 0])
def test_what_is_not_there_yet_says_so(numbers, series, tmp_path):
    net, task = make(numbers), "numbers" if numbers else "vectors"
    policy = xl.Policy((0.5, 0.5), score="closeness" if numbers else "vector_closeness")
    data = draw(20)
    calls = {
        "a cascade": lambda: xl.cascade([net, net], example=series[:1]),
        "swapped": lambda: xl.collect(net, data, swapped=10),
        "precision": lambda: net.tune(series, precision="bfloat16"),
        "relevance": lambda: xl.explain(net, series[0], policy, relevance=True, to=None if numbers else probe(net)[0]),
        "net: relevance": lambda: attribute(net, series),
        "an Adaptive": lambda: xl.predict(net, series, xl.Adaptive(policy, 0.1)),
        "measure_faithfulness": lambda: measure_faithfulness(net, data),
        "certify_binding": lambda: xl.certify_binding(net, data, policy, area=0.2, delta=0.1),
        "find_cues": lambda: xl.find_cues(net, data),
        "balanced": lambda: xl.fit(net, data, data, epochs=1, balanced=True),
        "rely_on": lambda: xl.fit(net, data, data, epochs=1, rely_on="map"),
    }
    for what, call in calls.items():
        with pytest.raises(
            xl.errors.InputError, match=f"{what}.* is not there yet for networks that answer {task}.*vectors.md"
        ):
            call()
    for call, message in (
        (lambda: xl.collect(net, data, compact=True), "compact: a summary is kept in place of logits"),
        (
            lambda: xl.predict(net, series, policy, tiles=xl.types.Tiles(side=8, halo=8)),
            "tiles: they are for answers to each",
        ),
        (lambda: xl.fit(net, data, data, epochs=1, loss=xl.EGTLoss(label_smoothing=0.1)), "label_smoothing: it is for"),
        (lambda: xl.fit(net, data, data, epochs=1, loss=xl.EGTLoss(class_weights=(1.0,) * 12)), "class_weights: "),
        (lambda: xl.fit(net, data, data, epochs=1, loss=xl.EGTLoss(of="evidence", distance="mse")), "of: 'evidence'"),
        (lambda: xl.collect(net, data, probes=torch.zeros(3, 2)), "probes: expected"),
    ):
        with pytest.raises(xl.errors.InputError, match=message):
            call()
    chosen = xl.calibrate(xl.collect(net, draw(60)), **{"max_deviation" if numbers else "max_distance": 0.5})
    assert xl.DriftMonitor(chosen).update(xl.predict(net, series, chosen)).samples == 60


def test_training_takes_numbers_as_targets():
    net, data = make(), draw(8)
    for labels, message in (
        (torch.arange(8), r"train labels: expected \(8,1\) floats, got \(8,\) torch.int64"),
        (torch.full((8,), math.nan), "expected finite numbers"),
        (torch.rand(8, 3), r"expected \(8,1\) floats, got \(8, 3\)"),
    ):
        net.describe(units=())
        with pytest.raises(xl.errors.InputError, match=message):
            xl.fit(net, TensorDataset(data.tensors[0], labels), data, epochs=1, progress=False)
    with pytest.raises(xl.errors.InputError, match="train: expected batches of inputs and numbers"):
        xl.fit(net, TensorDataset(data.tensors[0]), data, epochs=1, progress=False)


@pytest.mark.parametrize(("scale", "shift", "is_far"), [(1, 0, False), (2, -80, False), (1000, 0, True), (1, 1e7, True)])
def test_units_are_read_again_from_targets_on_another_scale(scale, shift, is_far):
    net, data = make(), draw(200)
    net.describe(units=measure_units(data.tensors[1]))
    changed = TensorDataset(data.tensors[0], data.tensors[1].double() * scale + shift)
    with pytest.warns(xl.errors.DataWarning, match="train: the network was trained on") if is_far else nullcontext():
        result = xl.fit(net, changed, changed, epochs=1, progress=False)
    assert net.info.units == measure_units((changed if is_far else data).tensors[1])
    assert result.history[0]["r2"][-1] > -30
    trace = xl.collect(net, changed)
    assert xl.evaluate(trace, xl.Policy.never(3, score="closeness")).answers.rmse < 3 * net.info.units[0][1]


@pytest.mark.slow
def test_numbers_are_learnt_and_a_run_goes_on(tmp_path):
    torch.manual_seed(0)
    train, val = draw(400, 5), draw(100, 6)
    net, again = make(), make()
    for each in (net, again):
        each.describe(units=())
    options = {"batch_size": 32, "learning_rate": 1e-2, "progress": False, "share_cores": False}
    result = xl.fit(net, train, val, epochs=4, out_dir=tmp_path / "run", **options)
    assert net.info.units[0] == pytest.approx(
        (train.tensors[1].mean().item(), train.tensors[1].std(correction=0).item()), rel=1e-5
    )
    last = result.history[-1]["r2"]
    assert last[-1] > max(0.5, result.history[0]["r2"][-1])
    assert "r2_exit2" in (tmp_path / "run" / "log.csv").read_text().splitlines()[0]
    wrong = (
        xl.predict(net, val.tensors[0], xl.Policy.never(3, score="closeness")).labels - val.tensors[1]
    ) / net.info.units[0][1]
    assert last[-1] == pytest.approx(1 - wrong.square().mean().item(), abs=1e-3)
    trace = xl.collect(net, draw(300, 7))
    order = trace.logits.scores[:, 2, 0].argsort()
    assert trace.logits.error[order[:150], 2].mean() > trace.logits.error[order[150:], 2].mean()  # it knows its errors
    loader = DataLoader(train, 32, shuffle=True, generator=torch.Generator())
    xl.fit(again, loader, val, epochs=1, loss=xl.EGTLoss(weight=0, distill=0.5), **options)
    assert again.info.units == net.info.units
    step = net.with_loss(steps=10, epochs=1).train()
    terms, _ = step(train.tensors[0][:8], train.tensors[1][:8], 0)
    assert terms.total > terms.classification > 0


@pytest.mark.slow
def test_vectors_are_learnt_from_inputs_alone():
    torch.manual_seed(0)
    net, data = make(0), draw(300, 5).tensors[0]
    before = xl.predict(net, data, xl.Policy.never(3, score="vector_closeness")).labels
    result = xl.fit(
        net, TensorDataset(data), TensorDataset(data[:80]), epochs=4, batch_size=32, learning_rate=1e-2, progress=False
    )
    first, last = result.history[0]["cosine"], result.history[-1]["cosine"]
    assert last[0] > first[0]
    assert last[2] == pytest.approx(1.0)
    assert torch.equal(xl.predict(net, data, xl.Policy.never(3, score="vector_closeness")).labels, before)
    trace = xl.collect(net, data[:80])
    assert 1 - trace.logits.distance.mean(0)[0].item() == pytest.approx(last[0], abs=1e-3)
