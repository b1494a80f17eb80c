"""An engine, step by step, against the network that it was made of."""

import pytest
import torch

from exitlens.model.engine.engine import Engine
from exitlens.model.engine.tuning import Tuning
from tests.conftest import make_net
from tests.model.engine.networks import IMAGES, with_statistics

FORMS = [Tuning(), Tuning(channels_last=True, folded=True)]


def engine_of(net, tuning):
    return Engine.prepare([net.stage(k) for k in range(3)], [net.head(k) for k in range(3)], tuning)


@pytest.mark.parametrize("tuning", FORMS)
@pytest.mark.parametrize("final", ["head", "keep"])
def test_every_way_to_run_an_exit_gives_the_same(tuning, final):
    net = with_statistics(make_net(final))
    with torch.no_grad():
        expected = net(IMAGES[:9])
    engine = engine_of(net, tuning)
    with engine.mode():
        entered = engine.enter((IMAGES[:9],))
        outputs, explained = engine.compute_outputs(entered), list(engine.iterate_explained(entered))
        activations = entered
        for k, out in enumerate(expected):
            step = engine.answer(k, activations, 2.0, "margin", attention=True)
            assert engine.answer(k, activations, 2.0, "margin").attention is None
            activations = engine.advance(k, activations)
            for logits in (outputs[k][0], explained[k].logits, engine.compute_logits(k, entered)):
                torch.testing.assert_close(logits, out.logits, atol=1e-4, rtol=1e-4)
            for attention in (outputs[k][1], explained[k].attention, step.attention):
                torch.testing.assert_close(attention, out.attention, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(explained[k].evidence, out.evidence, atol=1e-4, rtol=1e-4)
            p = (out.logits / 2).softmax(1)
            first, second = p.topk(2, 1).values.unbind(1)
            torch.testing.assert_close(step.probabilities, p, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(step.scores, first - second, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(step.activations[0], activations[0])


def test_a_stage_runs_when_its_exit_is_asked_for():
    net, ran = make_net(), []
    stages = [lambda *a, k=k: (ran.append(k), net.stage(k)(*a))[1] for k in range(3)]
    engine = Engine(stages, [net.head(k) for k in range(3)], Tuning())
    next(engine.iterate_explained((IMAGES[:2],)))
    assert ran == [0]
    engine.compute_logits(1, (IMAGES[:2],))
    assert ran == [0, 0, 1]


def test_training_on_does_not_change_an_engine_that_was_prepared():
    net = make_net()
    engine = engine_of(net, Tuning())
    before = engine.compute_logits(0, (IMAGES[:2],))
    with torch.no_grad():
        net.head(0).classifier.bias.add_(1)
    torch.testing.assert_close(engine.compute_logits(0, (IMAGES[:2],)), before)
