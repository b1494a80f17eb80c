"""Numbers and vectors without PyTorch: edge bundle, cascade in one file, and the runtime give the library's answers."""

import copy
import math
from functools import cache

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

import exitlens as xl
import exitlens_runtime as er
from exitlens.edge import export
from exitlens.functional.routing import cover
from exitlens.model.engine.onnx_files import open_file
from exitlens.serving.models import open_bundle
from exitlens.types.tasks import SCORES_OF
from tests.edge.test_pixels import answer_with
from tests.workflow.test_answers import draw, make

pytest.importorskip("onnxruntime")
SERIES = draw(60, seed=1).tensors[0]


def part(net: xl.ExitNet, place: int) -> xl.Policy:
    """Return a policy with one of the two scores, under which some samples leave at every exit that can answer."""
    trace = xl.collect(net, TensorDataset(SERIES))
    limits, left = [], torch.ones(60, dtype=torch.bool)
    for scores in trace.logits.scores[:, :-1, place].unbind(1):
        known = scores[left].unique()
        limits.append(known[len(known) // 2 - 1 : len(known) // 2 + 1].mean().item() if len(known) > 1 else math.inf)
        left &= scores < limits[-1]
    return xl.Policy(tuple(limits), SCORES_OF[net.info.task][place])


@cache
def build(numbers: int) -> tuple[xl.ExitNet, xl.Policy, xl.Policy]:
    net = make(numbers)
    return net, part(net, 0), part(net, 1)


def check(given, expected: xl.Prediction) -> None:
    values = given if isinstance(given, dict) else vars(given) | {"scores": given.confidence}
    labels = np.asarray(values["labels"])
    assert np.asarray(values["exits"]).tolist() == expected.exits.tolist()
    assert (labels.shape, labels.dtype) == (tuple(expected.labels.shape), np.float32)
    np.testing.assert_allclose(labels, expected.labels.numpy(), rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(values["scores"], expected.confidence.numpy(), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("numbers", [0, 1, pytest.param(2, marks=pytest.mark.long)])
def test_the_runtime_answers_as_the_library(numbers, tmp_path):
    net, policy, by_change = build(numbers)
    edge = xl.export(net, policy, tmp_path / "edge", policies={"change": by_change})
    runtime = er.load(edge, threads=1)
    assert runtime.gives_values
    assert runtime.cost.tolist() == pytest.approx(net.cost.tolist(), abs=1e-9)
    for name, used in (("default", policy), ("change", by_change)):
        expected, opened = xl.predict(net, SERIES, used, attention=True), runtime.with_policy(name)
        assert len(expected.exits.unique()) == (3 if used is policy else 2)
        pred = opened.predict(SERIES.numpy(), attention=True)
        check(pred, expected)
        assert pred.probabilities.shape == (60, 0)
        assert max(np.abs(pred.attention[i] - expected.attention[i].numpy()).max() for i in range(60)) < 1e-5
        parts = [*opened.predict_stream(SERIES[at : at + 7].numpy() for at in range(0, 60, 7))]
        assert np.allclose(np.concatenate([each.labels for each in parts]), pred.labels, atol=1e-5)
        assert used.score.replace("_", " ") in opened.give_reason(pred, 0)
    assert opened.name_answer(pred, 0).split()[0] == f"{pred.labels[0].reshape(-1)[0]:.6g}"
    session, limits = open_file(edge / "cascade.onnx"), np.array(policy.thresholds, np.float32)
    feed = {"series": SERIES.numpy(), "thresholds": limits, "temperatures": np.ones(3, np.float32)}
    names = [value.name for value in session.get_outputs()]
    check(dict(zip(names, session.run(None, feed), strict=True)), xl.predict(net, SERIES, policy))
    ticket, expected = answer_with(open_bundle("m", edge), SERIES), xl.predict(net, SERIES, policy)
    assert ticket.exits.tolist() == expected.exits.tolist()
    assert np.allclose(ticket.labels, expected.labels.numpy(), atol=1e-5)
    with pytest.raises(er.PolicyError, match=r"the network gives (numbers|vectors)"):
        runtime.with_policy(xl.Policy((0.5, 0.5)).to_dict())
    with pytest.raises(er.InputError, match=r"adaptive: it is not for networks that give (numbers|vectors)"):
        runtime.predict(SERIES.numpy(), adaptive=er.Adaptive(runtime, 0.1))


@pytest.mark.slow
def test_numbers_that_float32_would_round_are_float64(tmp_path):
    (net, policy, _), inputs = build(1), SERIES.numpy()
    net = copy.deepcopy(net)
    net.describe(units=((1.7e9, 1.0),))
    edge, expected = xl.export(net, policy, tmp_path / "edge"), xl.predict(net, SERIES, policy)
    feed = {"series": inputs, "thresholds": np.array(policy.thresholds, np.float32), "temperatures": np.ones(3, np.float32)}
    runtime, served = er.load(edge, threads=1), answer_with(open_bundle("m", edge), SERIES)
    for labels in (runtime.predict(inputs).labels, open_file(edge / "cascade.onnx").run(None, feed)[0], served.labels):
        assert labels.dtype == np.float64
        np.testing.assert_allclose(labels, expected.labels.numpy(), rtol=0, atol=1e-4)
    assert float(runtime.name_answer(runtime.predict(inputs), 0)) == pytest.approx(expected.labels[0].item(), abs=0.01)


@pytest.mark.slow
def test_a_policy_by_change_has_the_files_of_the_stages_alone(tmp_path):
    net, _, policy = build(1)
    edge = xl.export(net, policy, tmp_path / "edge")
    assert not (edge / "cascade.onnx").exists()
    check(er.load(edge, threads=1).predict(SERIES.numpy()), xl.predict(net, SERIES, policy))


def test_one_file_does_not_compare_two_exits(tmp_path):
    with pytest.raises(xl.errors.ExportError, match="no gate and no score of stability"):
        export.write_cascade(tmp_path / "c.onnx", [], xl.Policy((math.inf, 0.5), "stability"))


def test_a_policy_by_change_needs_the_exit_before_and_no_other():
    covered = cover([xl.Policy((math.inf, math.inf, math.inf, 0.5), "stability")])
    assert covered.thresholds == (math.inf, math.inf, 0.0, 0.0)
