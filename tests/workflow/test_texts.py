"""Every verb on texts: a tiny BERT with exits."""

import copy
from functools import cache

import pytest
import torch

import exitlens as xl
from exitlens.workflow import faithfulness
from tests.model.kinds import make_network
from tests.texts import AT, LENGTH, make_bert, make_text_net, make_texts

POLICY = xl.Policy((0.6, 0.5))
pytestmark = pytest.mark.slow


@pytest.fixture
def net():
    return make_text_net()


@pytest.fixture
def data():
    return make_data()


@cache
def make_data():
    texts = ["good good word", "bad word here", "a good one", "bad bad bad", "word good", "here a bad word"] * 8
    labels = torch.tensor([1, 0, 1, 0, 1, 0] * 8)
    preprocess = xl.data.TextPreprocess(xl.data.word_tokenizer(texts), LENGTH)
    masks = torch.tensor([[i in range(1, 3) for i in range(LENGTH)]] * 48)
    return xl.data.TextSet(texts, labels, ("no", "yes"), preprocess, masks)


def test_routing_is_what_the_policy_says_on_paper(net):
    texts = make_texts(60, seed=2)
    trace = xl.collect(net, texts)
    policy = xl.Policy(tuple(trace.logits[:, k].softmax(1).max(1).values.median().item() for k in (0, 1)))
    exits = xl.route(trace, policy)
    assert set(exits.tolist()) == {0, 1, 2}
    pred = xl.predict(net, texts, policy, attention=True)
    assert torch.equal(pred.exits, exits)
    chosen = trace.logits[torch.arange(60), exits]
    torch.testing.assert_close(pred.probabilities, chosen.softmax(1), rtol=1e-4, atol=1e-5)
    for row, mask in zip(pred.attention, texts["attention_mask"], strict=True):
        assert (row[mask == 0] == 0).all()
        assert row[0] == 0
    order = torch.randperm(60)
    again = xl.predict(net, {name: value[order] for name, value in texts.items()}, policy)
    assert torch.equal(again.exits, exits[order])


def test_the_null_and_uniform_maps_leave_padding_out(net):
    trace = xl.collect(net, make_texts(40))
    several = make_texts(40)["attention_mask"].sum(1) > 2  # else the map has one location, and no correlation
    torch.testing.assert_close(trace.similarity["cc"][several, -1], torch.ones(int(several.sum())))
    for name, value in {**trace.null, **trace.uniform_null}.items():
        assert torch.isfinite(value).all(), name
    assert (trace.divergence[:, -1] == 0).all()
    assert (trace.divergence[~several] < 1e-6).all()


def attach(final="head"):
    return copy.deepcopy(_attach(final))


@cache
def _attach(final):
    data = make_data()
    bert = make_bert(vocab_size=data.preprocess.vocabulary_size, num_labels=2)
    return xl.attach(bert, AT, 2, data.first(1).inputs, final=final).eval()


@cache
def train(weight):
    """A network trained on the texts, not to be changed, and its validation accuracy."""
    net, data = attach(), make_data()
    loss = xl.EGTLoss(weight=weight, distance="kl", target="attention", ramp_share=0.0)
    result = xl.fit(net, data, data, loss=loss, epochs=8, batch_size=16, learning_rate=2e-2, amp=False, progress=False)
    return net, result.history[-1]["accuracy"]


def test_training_learns_and_brings_the_maps_together(data):
    nets, accuracy = zip(*map(train, (0.0, 4.0)), strict=True)
    assert min(accuracy[1]) > 0.9
    reports = [xl.evaluate(xl.collect(net, data), xl.Policy.never(3)) for net in nets]
    divergence = [report.exits[0].consistency["divergence"]["value"] for report in reports]
    assert divergence[1] < divergence[0]


def test_explanations_name_the_tokens_without_padding(data):
    net, inputs = attach(), data.preprocess.encode(["a good word"])
    assert xl.explain(net, inputs, POLICY).tokens == ()
    net.describe(classes=data.classes, preprocess=data.preprocess)
    why = xl.explain(net, {name: value[0] for name, value in inputs.items()}, POLICY)
    assert why.tokens == ("[CLS]", "a", "good", "word", "[SEP]")
    pred = xl.predict(net, inputs, POLICY)
    assert (why.answered, why.label) == (pred.exits.item(), pred.labels.item())
    assert why.to_dict()["tokens"] == list(why.tokens)
    assert why.exits[0].attention[5:].sum() == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda net: xl.explain(net, torch.zeros(1, 3, 8, 8), POLICY), "a dict with"),
        (lambda net: xl.explain(net, "text", POLICY), r"a dict with .*got str"),
        (lambda net: xl.explain(net, make_texts(), POLICY), "got a batch of 12"),
    ],
)
def test_bad_calls(net, call, message):
    with pytest.raises(xl.errors.InputError, match=message):
        call(net)


def test_loaders_of_dicts(net, data):
    loader, wide = torch.utils.data.DataLoader(data, batch_size=7), attach()
    traces = [xl.collect(wide, source) for source in (loader, data, list(loader))]
    for trace in traces[1:]:
        torch.testing.assert_close(trace.logits, traces[0].logits)
        assert torch.equal(trace.labels, data.labels)
    assert xl.collect(wide, data.inputs).labels is None


def test_faithfulness_of_texts(data, monkeypatch):
    monkeypatch.setattr(faithfulness, "GREEDY", 1)
    outcome = xl.measure_faithfulness(train(4.0)[0], data, oracle_samples=48)
    assert len(outcome.deletion) == len(outcome.energy_in_mask) == 3
    assert all(best > blind for best, blind in zip(outcome.deletion_oracle, outcome.deletion_random, strict=True))
    assert 0 < outcome.deletion_share[0] < 1.5
    assert outcome.deletion[0] > outcome.deletion_random[0]
    assert all(value is not None for value in outcome.randomised_cc)
    binding = outcome.binding
    assert binding.centre is binding.edges is binding.saliency is None  # tokens are no grid
    assert (binding.samples, binding.oracle_samples) == (48, 48)
    assert all(best >= 0.5 for best in binding.oracle)
    assert all(share is None or share <= 1 for share in binding.oracle_share)  # a single token is kept, the best there is
    assert len(outcome.cue_swap.change) == 3


def average_words(net, ids):
    return net.fc(torch.relu(net.inner(net.embed(ids))).mean(1))


def test_tokens_without_a_mask():
    ids, layers = torch.randint(0, 40, (5, LENGTH)), {"inner": torch.nn.Linear(8, 8), "fc": torch.nn.Linear(8, 2)}
    words = make_network(average_words, embed=torch.nn.Embedding(40, 8), **layers)
    net = xl.attach(words, ["embed"], 2, ids).eval()
    assert net.input_spec.vocabulary == (40,)
    outs = net(ids)
    assert outs[0].attention.shape == (5, LENGTH)
    assert xl.predict(net, ids, xl.Policy((0.5,))).exits.tolist() == [0] * 5
    with pytest.raises(xl.errors.InputError, match=r"values in \[0, 40\)"):
        net.walk(ids + 40)
