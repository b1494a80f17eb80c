"""Every kind of input goes through every verb."""

import numpy as np
import pytest
import torch

import exitlens as xl
from exitlens.types.inputs import map_inputs
from tests.kinds import KINDS


def attach(kind):
    torch.manual_seed(0)
    return xl.attach(kind.build(), ["first", "second"], 3, kind.make(2).inputs, groups=kind.groups)


@pytest.fixture(scope="module", params=[pytest.param(name, marks=[pytest.mark.slow] * (name != "series")) for name in KINDS])
def trained(request):
    """Its kind, the network, and data to test it on."""
    kind = KINDS[request.param]
    net, test = attach(kind), kind.make(60, 2)
    xl.fit(net, kind.make(96, 1), test, epochs=5, batch_size=24, learning_rate=2e-2, amp=False, progress=False)
    return kind, net, test


def test_it_learns_and_leaves_early_as_on_paper(trained):
    _, net, test = trained
    trace = xl.collect(net, test)
    policy = xl.calibrate(trace, max_accuracy_drop=0.1)
    report = xl.evaluate(trace, policy)
    assert report.accuracy > 0.5
    pred = xl.predict(net, test.inputs, policy)
    assert torch.equal(pred.exits, xl.route(trace, policy))
    parts = [test.subset(torch.arange(at, at + 20)).inputs for at in range(0, 60, 20)]
    streamed = torch.cat([one.labels for one in xl.predict_stream(net, parts, policy)])
    assert torch.equal(streamed, pred.labels)


def test_explanations(trained):
    kind, net, test = trained
    why = xl.explain(net, map_inputs(test.inputs, lambda t: t[:1]), xl.Policy((2.0, 2.0)))
    assert [view.label for view in why.exits] == [out.logits.argmax().item() for out in net(test.first(1).inputs)]
    for view, head in zip(why.exits, net.heads, strict=True):
        assert view.attention.sum().item() == pytest.approx(1)
        assert (view.evidence.sum() + head.bias[view.label]).item() == pytest.approx(view.logit, abs=1e-4)
    if kind.groups:
        assert why.exits[-1].attention.shape == (3,)
        assert "says" in repr(why) or "says" in why._repr_html_()


def test_maps_are_judged(trained):
    kind, net, test = trained
    if kind is not KINDS["vector"]:
        found = xl.measure_faithfulness(net, test, samples=24, oracle_samples=6)
        assert len(found.deletion) == 3
        assert found.deletion_oracle[-1] >= found.deletion_random[-1] - 0.05
        return
    with pytest.raises(xl.errors.InputError, match="faithfulness needs attention maps"):
        xl.measure_faithfulness(net, test)


@pytest.mark.parametrize("of", ["divergence", "binding"])
def test_thresholds_adapt_to_what_maps_show(trained, of):
    kind, net, test = trained
    adaptive = xl.Adaptive(xl.Policy((0.5, 0.5)), limit=0.9, loss=of, audit=0.5, seed=0)
    if kind is KINDS["vector"]:
        with pytest.raises(xl.errors.InputError, match=f"a limit on {of} needs attention maps"):
            xl.predict(net, test.inputs, adaptive)
        return
    assert len(xl.predict(net, test.inputs, adaptive)) == 60
    assert adaptive.status.open == 0
    assert 0 < adaptive.status.lost < adaptive.status.audited


def test_bundles_say_the_same(trained, tmp_path):
    kind, net, test = trained
    policy = xl.Policy((0.5, 0.5))
    xl.save(net, policy, tmp_path / "b")
    again, kept = xl.load(tmp_path / "b", backbone=kind.build())
    assert (again.info, again.input_spec) == (net.info, net.input_spec)
    expected = xl.predict(net, test.inputs, policy)
    found = xl.predict(again, test.inputs, kept)
    assert torch.equal(found.exits, expected.exits)
    torch.testing.assert_close(found.probabilities, expected.probabilities)


@pytest.mark.long
@pytest.mark.parametrize(
    "name", ["series, time first", "vector, groups", "several"]
)  # tests/edge/test_kinds.py has the others
def test_edge_bundles_say_the_same(name, tmp_path):
    runtime = pytest.importorskip("exitlens_runtime")
    kind = KINDS[name]
    net, test, policy = attach(kind).eval(), kind.make(20, 2), xl.Policy((0.5, 0.5))
    xl.export(net, policy, tmp_path / "edge")
    found = runtime.load(tmp_path / "edge").predict(map_inputs(test.inputs, lambda t: t.numpy()))
    expected = xl.predict(net, test.inputs, policy)
    assert found.exits.tolist() == expected.exits.tolist()
    assert np.allclose(found.probabilities, expected.probabilities, atol=1e-5)


def test_without_maps_what_needs_them_is_refused():
    kind = KINDS["vector"]
    net, data = attach(kind), kind.make(30)
    with pytest.raises(xl.errors.InputError, match="a loss with a weight above 0 needs attention maps"):
        xl.fit(net, data, data, epochs=1, loss=xl.EGTLoss(), progress=False)
    trace = xl.collect(net, data)
    assert not trace.has_maps
    with pytest.raises(xl.errors.InputError, match="max_divergence: the network's exits have no maps"):
        xl.calibrate(trace, max_divergence=0.1)
    for predict in (xl.predict, lambda *given, **more: list(xl.predict_stream(given[0], [given[1]], given[2], **more))):
        with pytest.raises(xl.errors.InputError, match="attention=True needs attention maps"):
            predict(net, data.inputs, xl.Policy((0.5, 0.5)), attention=True)
