import json
from dataclasses import replace

import pytest
import torch

import exitlens as xl
from exitlens.modalities import IMAGE, TEXT
from exitlens.model.mixing import Mixing
from exitlens.model.network import InputSpec, NetworkInfo
from tests.conftest import make_net
from tests.texts import LENGTH, WORDS, make_text_net, make_texts


def test_outputs_have_the_promised_shapes_and_are_computed_from_the_features(net, images):
    outs, _, features, _ = net.observe(images, features=True)
    assert len(outs) == net.num_exits == 3
    for k, (out, grid) in enumerate(zip(outs, [(8, 8), (4, 4), (4, 4)], strict=True)):
        assert [t.shape for t in out] == [(40, 4), (40, *grid), (40, 4, *grid)]
        torch.testing.assert_close(out, net(images)[k])
        torch.testing.assert_close(net.head(k).classify(features[k]), out.logits)


def test_walk_runs_a_stage_only_when_asked(net, images):
    ran = []
    for k, stage in enumerate(net.stages):
        stage.register_forward_hook(lambda *_, k=k: ran.append(k))
    walk = net.walk(images)
    assert ran == []
    first = next(walk)
    assert ran == [0]
    torch.testing.assert_close(first.logits, net(images)[0].logits)
    assert len(list(net.walk(images))) == 3


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.randn(3, 16, 16), "add the batch axis"),
        (torch.randn(2, 1, 16, 16), r"expected \(B,3,H,W\)"),
        (torch.randn(0, 3, 16, 16), "empty"),
        (torch.randint(0, 255, (2, 3, 16, 16), dtype=torch.uint8), "expected floats"),
        (torch.randn(2, 3, 16, 16).double(), "float32"),
        (torch.full((2, 3, 16, 16), float("nan")), "NaN or Inf"),
        (torch.full((2, 3, 16, 16), float("inf")), "NaN or Inf"),
        (torch.randn(2, 3, 4, 4), "far below"),
        ([[1.0]], "torch.Tensor"),
    ],
)
def test_bad_images_are_one_clear_error(net, bad, message):
    for call in (net.walk, lambda x: xl.predict(net, x, xl.Policy((0.5, 0.5)))):
        with pytest.raises(xl.errors.InputError, match=message):
            call(bad)


def test_fingerprint_follows_the_weights(net):
    first = net.cached_fingerprint()
    assert first == net.cached_fingerprint() == net.fingerprint() == make_net().fingerprint()
    with torch.no_grad():
        net.head(0).classifier.bias.add_(1)
    assert net.cached_fingerprint() != first
    assert net.cached_fingerprint() == net.fingerprint()


@pytest.mark.slow
def test_relevance_of_a_transformer_is_that_of_tokens_which_are_not_mixed_yet():
    """The first-order effect of scaling a token's embedding, attention weights and scales of layer norms held."""
    net, inputs = make_text_net().eval(), make_texts(5)
    outs, _, _, relevance = net.observe(inputs, relevance=True)
    factors = torch.ones_like(relevance).requires_grad_()

    class Scaled(Mixing):
        def _normalise(self, input, *args, **words):
            self.count = getattr(self, "count", 0) + 1
            return super()._normalise(input * factors[..., None] if self.count == 1 else input, *args, **words)

    activations = net.unpack(inputs)
    with Scaled(is_fixed=True):  # its first layer norm is that of the embeddings
        for stage in net.stages:
            activations = stage(*activations)
    logits = net.head(2)(*activations).logits
    torch.testing.assert_close(outs[-1].logits, logits)
    (logits.amax(1) - logits.mean(1)).sum().backward()
    located = net.head(0).locations(*net.stage(0)(*net.unpack(inputs)))
    torch.testing.assert_close(relevance, factors.grad * located, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("relevance", [False, True])
def test_gradients_of_separate_maps_end_at_the_heads(net, images, relevance):
    whole = net.train()(images)
    outs = net.observe(images, True, relevance=True).outputs if relevance else net(images, separate_maps=True)
    for out, plain in zip(outs, whole, strict=True):
        for output, expected in zip(out, plain, strict=True):
            torch.testing.assert_close(output, expected)
    sum(out.attention.square().sum() for out in outs).backward(retain_graph=True)
    assert all(p.grad is None for p in net.stages.parameters())
    assert all(head.attend.weight.grad is not None for head in net.heads)
    outs[-1].logits.sum().backward()
    assert any(p.grad is not None for p in net.stages.parameters())


IMAGES = NetworkInfo(("a",), 4, "head", (3, 8, 9), preprocess=xl.data.Preprocess((8, 9)))
TEXTS = NetworkInfo(("a",), 4, "head", (7,), inputs=("input_ids", "attention_mask"), dtypes=("int32", "bool"))


OFFSETS = {"map_offsets": ((-0.25, 0.0), (-0.5, 0.5)), "feature_offsets": ((-0.25, 0.0), (0.0, 1.0))}
GROUPS = {"groups": (("first", (0, 1)), ("second", (2,))), "config": {"sizes": [1, 2]}}


@pytest.mark.parametrize("info", [IMAGES, TEXTS, replace(IMAGES, **OFFSETS), replace(TEXTS, **GROUPS)])
def test_round_trips(info):
    assert NetworkInfo.from_dict(json.loads(json.dumps(info.to_dict()))) == info


def test_text_preprocessing_is_read_back():
    pytest.importorskip("tokenizers")
    test_round_trips(replace(TEXTS, preprocess=xl.data.TextPreprocess(xl.data.word_tokenizer(["a b"]), 7)))


def test_maps_are_placed_by_the_exits_own_offset():
    x = torch.tensor([[[0.0, 1.0, 3.0]]])
    info = replace(IMAGES, map_offsets=((0.0, 0.0), (0.0, -0.5)), feature_offsets=((0.0, 1.0), (0.0, 0.0)))
    assert info.place(0, x) is x
    torch.testing.assert_close(info.place(1, x), torch.tensor([[[0.5, 2.0, 1.5]]]))
    torch.testing.assert_close(info.place_relevance(0, x), torch.tensor([[[0.0, 0.0, 4.0]]]))
    assert IMAGES.place(1, x) is x


def test_modality_and_example_follow_from_the_record():
    assert (IMAGES.modality, IMAGES.channels) == (IMAGE, 3)
    assert TEXTS.modality is TEXT
    image = IMAGES.example(torch.zeros(1, dtype=torch.float64))
    assert (image.shape, image.dtype, image.any()) == ((1, 3, 8, 9), torch.float64, False)
    text = TEXTS.example(torch.zeros(1))
    assert (text["input_ids"].dtype, text["attention_mask"].dtype) == (torch.int32, torch.bool)
    assert text["attention_mask"].all()
    alone = NetworkInfo(("a",), 4, "head", (7,), dtypes=("int64",)).example(torch.zeros(1))
    assert alone.tolist() == [[0] * 7]


SPEC = InputSpec(("input_ids", "attention_mask"), (LENGTH,), True, (WORDS, None), 1, (torch.int64, torch.int64))
UNNAMED, IDS = InputSpec((), (5,), vocabulary=(9,), dtypes=(torch.int64,)), torch.zeros(2, 5, dtype=torch.long)
SIZED = InputSpec((), (3, 32, 32), exact_size=True)


def test_texts_come_in_the_order_of_the_network():
    texts = make_texts()
    backwards = {name: texts[name] for name in ("attention_mask", "input_ids")} | {"other": torch.zeros(1)}
    ids, mask = SPEC.check(backwards, "texts", torch.zeros(1))
    assert ids is texts["input_ids"]
    assert mask is texts["attention_mask"]


def _change(**changes):
    return make_texts() | changes


@pytest.mark.parametrize(
    ("spec", "inputs", "message"),
    [
        (SPEC, torch.zeros(2, LENGTH, dtype=torch.long), "a dict with"),
        (SPEC, {"input_ids": torch.zeros(2, LENGTH, dtype=torch.long)}, r"got \['input_ids'\]"),
        (SPEC, _change(input_ids=torch.zeros(12, LENGTH)), r"x\['input_ids'\]: expected integers"),
        (SPEC, _change(input_ids=torch.zeros(12, LENGTH + 1, dtype=torch.long)), "pad or cut the texts to 10"),
        (SPEC, _change(attention_mask=torch.ones(11, LENGTH).long()), r"\['attention_mask'\]: expected integers \(12,10\)"),
        (SPEC, _change(input_ids=torch.full((12, LENGTH), WORDS)), r"values in \[0, 40\), got 40 to 40.*tokenizer"),
        (SPEC, _change(input_ids=torch.full((12, LENGTH), -1)), r"got -1 to -1"),
        (SPEC, _change(attention_mask=torch.full((12, LENGTH), 2)), "1 for a token and 0 for padding"),
        (SPEC, _change(attention_mask=torch.zeros(12, LENGTH, dtype=torch.long)), "text 0 has no token"),
        (SPEC, _change(attention_mask=torch.eye(12, LENGTH, dtype=torch.long)), "text 0 has no token"),
        (SPEC, {name: value[:0] for name, value in make_texts().items()}, "the batch is empty"),
        (SPEC, _change(input_ids=make_texts()["input_ids"].to("meta")), "on cpu as the network, got meta"),
        (SPEC, _change(input_ids="words"), "expected integers"),
        (UNNAMED, {"ids": IDS}, r"x: expected a tensor of tokens \(B,5\), got dict"),
        (SIZED, torch.zeros(2, 3, 40, 40), r"takes \(3, 32, 32\) only, got \(3, 40, 40\)"),
    ],
)
def test_bad_inputs_are_one_clear_error(spec, inputs, message):
    with pytest.raises(xl.errors.InputError, match=message):
        spec.check(inputs, "x", torch.zeros(1))


def test_tokens_without_names_and_images_of_one_size():
    assert UNNAMED.check(IDS, "x", torch.zeros(1)) == (IDS,)
    SIZED.check(torch.zeros(2, 3, 32, 32), "x", torch.zeros(1))


@pytest.mark.parametrize("target", [None, "product"])
def test_network_and_loss_in_one_module(net, images, target):
    labels = torch.arange(40) % 4
    model = net.with_loss(xl.EGTLoss(target=target, distill=1.0, every=1), steps=10, epochs=2)
    assert model.net is net
    chosen = model.loss
    assert (chosen.target, chosen.reach) == (target or "mean", "heads")
    terms, outputs = model.train()(images, labels, 5)
    with_relevance = target == "product"
    seen = net.observe(images, separate_maps=True, relevance=with_relevance)
    expected = chosen(seen.outputs, labels, 0.5, relevance=seen.relevance)
    torch.testing.assert_close(terms, expected)
    torch.testing.assert_close(outputs, seen.outputs)
    with torch.no_grad():
        terms, outputs = model.eval()(images, labels)
    torch.testing.assert_close(terms.total, chosen.classify(net(images), labels))
    assert terms.consistency == terms.distillation == 0
    torch.testing.assert_close(outputs, net(images))


@pytest.mark.slow
def test_texts_and_their_loss_in_one_module():
    net, texts = make_text_net().train(), make_texts()
    terms, _ = net.with_loss(steps=1, epochs=1)(texts, torch.zeros(len(texts["input_ids"]), dtype=torch.int64), 0)
    terms.total.backward()
    assert terms.consistency > 0
    assert all(p.grad is not None for p in net.parameters())


def test_every_parameter_has_a_gradient_at_every_step(images):
    """So that DistributedDataParallel need not look for those without."""
    for final in ("head", "keep"):
        net = make_net(final)
        model = net.with_loss(xl.EGTLoss(every=2), steps=10, epochs=1).train()
        for step in range(2):
            net.zero_grad()
            model(images, torch.arange(40) % 4, step)[0].total.backward()
            assert all(p.grad is not None for p in model.parameters()), step


@pytest.mark.parametrize("values", [{"steps": 0, "epochs": 1}, {"steps": 5.5, "epochs": 1}, {"steps": 5, "epochs": 0}])
def test_a_training_has_steps_and_epochs(net, values):
    with pytest.raises(xl.errors.InputError, match=r"(steps|epochs): expected a whole number of 1 or more"):
        net.with_loss(**values)


def test_a_training_step_has_its_number_and_a_loss_of_ours(net, images):
    """Without the number, maps would never be compared."""
    model, labels = net.with_loss(steps=10, epochs=1), torch.zeros(len(images), dtype=torch.int64)
    with pytest.raises(xl.errors.InputError, match="step: expected the step of the optimiser"):
        model.train()(images, labels)
    assert model.eval()(images, labels)[0].consistency == 0
    with pytest.raises(xl.errors.InputError, match=r"loss: expected .*EGTLoss.*, got CrossEntropyLoss"):
        net.with_loss(torch.nn.CrossEntropyLoss(), steps=10, epochs=1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch.compile's own
def test_compiled_relevance_is_that_of_eager_code():
    """Compiled stages would not hold attention constant."""
    net, texts, gradients = make_text_net(), make_texts(), []
    labels = torch.zeros(len(texts["input_ids"]), dtype=torch.int64)
    model = net.with_loss(steps=10, epochs=1).train()
    for call in (model, torch.compile(model, backend="aot_eager")):
        net.zero_grad()
        torch.manual_seed(0)
        call(texts, labels, 4)[0].total.backward()
        gradients.append([p.grad.clone() for p in net.parameters()])
    torch.testing.assert_close(*gradients)
