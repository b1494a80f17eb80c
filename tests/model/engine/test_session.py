"""Which engine answers now: changed weights, copies, evaluation mode, failures."""

import copy
import pickle
import threading

import pytest
import torch

import exitlens as xl
from exitlens.model.engine import session
from exitlens.model.engine.engine import Engine
from exitlens.model.engine.tuning import Tuning
from tests.conftest import TinyNet, make_net, spread_policy
from tests.model.engine.networks import IMAGES

POLICY = spread_policy(make_net(), IMAGES)


def test_changed_weights_are_seen():
    net = make_net()
    net.tuning = Tuning(folded=True)
    before = xl.predict(net, IMAGES[:8], POLICY).probabilities
    with torch.no_grad():
        net.head(0).classifier.bias.add_(torch.tensor([3.0, 0, 0, 0]))
        net.head(2).classifier.bias.add_(torch.tensor([3.0, 0, 0, 0]))
    after = xl.predict(net, IMAGES[:8], POLICY).probabilities
    assert not torch.allclose(before, after)
    plain = make_net()
    plain.load_state_dict(net.state_dict())
    torch.testing.assert_close(after, xl.predict(plain, IMAGES[:8], POLICY).probabilities, atol=1e-4, rtol=1e-3)


def load(net, source):
    source.load_state_dict(
        {name: 1.1 * value for name, value in source.state_dict().items() if value.is_floating_point()}, False
    )


def train(net, source):
    xl.EGTLoss()(net.train()(IMAGES[:4]), torch.tensor([0, 1, 2, 3])).total.backward()
    torch.optim.AdamW(net.parameters(), lr=0.1, fused=True).step()  # which counts no version


def replace(net, source):
    source.b[0].weight = torch.nn.Parameter(1.1 * source.b[0].weight.detach())


CHANGES = {
    "loaded": lambda net, source: load(net, net),
    "loaded into the source": load,
    "trained": train,
    "a parameter set by hand": replace,
    "through data": lambda net, source: source.b[0].weight.data.mul_(1.1),
}


@pytest.mark.parametrize("how", CHANGES)
def test_an_untuned_network_answers_by_the_weights_that_it_has_now(how):
    source = TinyNet()
    net = xl.attach(source, ["a", "b"], 4, torch.zeros(1, 3, 16, 16)).eval()
    before = xl.predict(net, IMAGES[:8], xl.Policy.never(3)).probabilities
    assert net.tuning.folded
    CHANGES[how](net, source)
    after = xl.predict(net, IMAGES[:8], xl.Policy.never(3)).probabilities
    assert not torch.allclose(before, after)
    with torch.no_grad():
        torch.testing.assert_close(after, net.eval()(IMAGES[:8])[-1].logits.softmax(1), atol=1e-5, rtol=1e-4)


def test_an_untuned_network_is_tried_out_once_until_its_modules_are_others(monkeypatch):
    def count(*given):
        tried.append(1)
        return suggest(*given)

    tried, suggest = [], session.suggest_engine
    monkeypatch.setattr(session, "suggest_engine", count)
    net = make_net()
    assert net.identity()
    assert not tried  # the precision is known without
    for _ in range(2):
        xl.predict(net, IMAGES[:4], POLICY)
    with torch.no_grad():
        net.head(0).classifier.bias.add_(1)
    xl.predict(net, IMAGES[:4], POLICY)
    assert len(tried) == 1
    net.heads[0] = copy.deepcopy(net.head(0))
    xl.predict(net, IMAGES[:4], POLICY)
    assert len(tried) == 2


def test_a_copy_of_an_untuned_network_is_not_tuned():
    net = make_net()
    assert net.tuning.folded
    twin = copy.deepcopy(net)
    assert not twin.is_tuned
    twin.tuning = Tuning()
    assert twin.is_tuned
    assert copy.deepcopy(twin).is_tuned


def test_training_goes_on_beside_a_tuned_network():
    net = make_net()
    net.tuning = Tuning(channels_last=True, folded=True)
    xl.predict(net, IMAGES[:4], POLICY)
    net.train()
    loss = xl.EGTLoss()(net(IMAGES[:4]), torch.tensor([0, 1, 2, 3])).total
    loss.backward()
    assert net.training
    assert all(p.grad is not None for name, p in net.named_parameters() if "attend" not in name)


def test_an_engine_that_fails_to_be_made_is_not_taken_for_the_old_one(monkeypatch):
    net = make_net()
    net.tuning = Tuning(folded=True)
    xl.predict(net, IMAGES[:4], xl.Policy.never(3))
    with torch.no_grad():
        net.head(2).classifier.bias.copy_(torch.tensor([1e4, 0, 0, 0]))
    with monkeypatch.context() as patch:
        patch.setattr("exitlens.model.engine.session.Engine.prepare", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            xl.predict(net, IMAGES[:4], xl.Policy.never(3))
    assert xl.predict(net, IMAGES[:4], xl.Policy.never(3)).labels.tolist() == [0] * 4


def test_another_tuning_meanwhile_leaves_modes_as_they_were():
    net = make_net().train()
    net.tuning = Tuning()
    with net.open_engine():
        net.tuning = Tuning(micro_batch=3)
        with net.open_engine():
            assert not net.stage(0).training
        assert not net.stage(0).training
    assert all(module.training for module in net.modules())


def test_graphs_of_another_precision_are_told(monkeypatch):
    net = make_net()
    net.tuning = Tuning(precision="bfloat16")
    monkeypatch.setattr(Tuning, "convert", lambda self, activations: activations)  # float32 meets bfloat16 weights
    with pytest.raises(xl.EngineError, match="does not run in bfloat16"):
        xl.predict(net, IMAGES[:2], POLICY)


@pytest.mark.parametrize("twice", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_a_copy_has_the_tuning_and_an_engine_of_its_own(twice):
    net = make_net()
    net.tuning = Tuning(folded=True)
    with net.open_engine() as engine:
        pass
    twin = twice(net)
    assert twin.tuning == net.tuning
    assert twin.fingerprint() == net.fingerprint()
    with torch.no_grad():
        twin.head(2).classifier.bias.add_(1)
    assert twin.cached_fingerprint() != net.cached_fingerprint()
    with twin.open_engine() as other, net.open_engine() as again:
        assert other is not engine
        assert again is engine
    assert len(xl.predict(twin, IMAGES[:4], POLICY)) == 4


def test_an_engine_is_made_once_and_again_after_a_change():
    net = make_net()
    net.tuning = Tuning(channels_last=True)
    engines = []
    for change in (lambda: None, lambda: None, lambda: net.head(0).classifier.bias.data.add_(0), net.float):
        change()
        with net.open_engine() as engine:
            engines.append(engine)
    assert engines[0] is engines[1] is engines[2]
    assert engines[3] is not engines[2]  # moved tensors may be others
    net.tuning = Tuning()
    with net.open_engine() as engine:
        assert type(engine) is Engine
        assert engine.shared


def test_evaluation_mode_lasts_until_the_last_thread_is_done():
    net = make_net().train()
    net.tuning = Tuning()
    inside, leave = threading.Event(), threading.Event()

    def answer() -> None:
        with net.open_engine():
            inside.set()
            leave.wait(20)

    thread = threading.Thread(target=answer)
    with net.open_engine():
        thread.start()
        assert inside.wait(20)
    assert not net.stage(0).training
    leave.set()
    thread.join()
    assert all(module.training for module in net.modules())
