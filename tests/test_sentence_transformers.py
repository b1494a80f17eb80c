"""Sentence encoders with exits: their vectors are the model's own, in the shapes of sentence-transformers."""

import copy
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

import exitlens as xl
import exitlens_runtime
from exitlens.model.heads import SkipHead
from exitlens.sentence_transformers import ExitEncoder, Sentences, attach_sentence_transformer
from tests.texts import config_values

SENTENCES = ["a good lamp", "a bad lamp", "good", "lamp a lamp a bad lamp"]
AT = ["encoder.encoder.layer.0", "encoder.encoder.layer.1"]


class Transformer(nn.Module):
    def __init__(self) -> None:
        from transformers import BertConfig, BertModel

        super().__init__()
        torch.manual_seed(0)
        values = {key: value for key, value in config_values().items() if key != "model_type"}
        self.auto_model = BertModel(BertConfig(**values)).eval()


class Pooling(nn.Module):
    def __init__(self, mode: str) -> None:
        super().__init__()
        self.pooling_mode = mode


class Normalize(nn.Module): ...


class Model(nn.Sequential):
    """What is read of a ``SentenceTransformer``; tests/ecosystem has the real one."""

    def __init__(self, mode: str = "mean", *others: nn.Module, prompt: str | None = None) -> None:
        super().__init__(Transformer(), Pooling(mode), *(others or (Normalize(),)))
        tokenizer = xl.data.word_tokenizer(SENTENCES)
        self.tokenizer = SimpleNamespace(backend_tokenizer=SimpleNamespace(to_str=lambda: tokenizer))
        self.max_seq_length, self.default_prompt_name, self.truncate_dim = 8, prompt, None
        self.device = torch.device("cpu")


@pytest.fixture(scope="module")
def net() -> xl.ExitNet:
    return attach_sentence_transformer(Model(), AT).eval()


def embed(net: xl.ExitNet, sentences: list[str]) -> Tensor:
    """Pool each sentence's tokens by themselves, without padding."""
    rows, encoder = [], Model()[0].auto_model
    for sentence in sentences:
        inputs = net.info.preprocess.encode([sentence])
        ids = inputs["input_ids"][:, : int(inputs["attention_mask"].sum())]
        rows.append(F.normalize(encoder(ids)[0][0].mean(0), dim=0))
    return torch.stack(rows).detach()


@pytest.mark.slow
def test_vectors_are_those_of_the_model_in_the_shapes_of_encode(net):
    encoder, expected = ExitEncoder(net, xl.Policy.never(3, score="vector_closeness")), embed(net, SENTENCES).numpy()
    vectors = encoder.encode(SENTENCES, batch_size=3, show_progress_bar=False, normalize_embeddings=True)
    assert vectors.dtype == np.float32
    assert np.allclose(vectors, expected, atol=1e-5)
    assert np.allclose(encoder.encode(np.array(SENTENCES)), expected, atol=1e-5)
    assert np.allclose(encoder.encode(SENTENCES[1]), expected[1], atol=1e-5)
    assert encoder.encode([]).shape == (0, 16)
    assert isinstance(encoder.encode(SENTENCES, convert_to_tensor=True), Tensor)
    listed = encoder.encode(SENTENCES, convert_to_numpy=False)
    assert [type(row) for row in listed] == [Tensor] * 4
    assert np.allclose(torch.stack(listed), expected, atol=1e-5)


@pytest.mark.slow
def test_the_policy_says_which_exit_answers(net):
    policy = xl.Policy((0.0, 0.0), score="vector_closeness")
    pred = xl.predict(net, net.info.preprocess.encode(SENTENCES), policy)
    assert pred.exits.tolist() == [0] * 4
    vectors = ExitEncoder(net, policy).encode(SENTENCES)
    assert np.allclose(vectors, pred.labels, atol=1e-6)
    assert not np.allclose(vectors, embed(net, SENTENCES), atol=1e-2)


@pytest.mark.slow
def test_it_is_trained_and_calibrated_on_sentences_alone(net):
    encode = net.info.preprocess.encode
    loader = partial(DataLoader, SENTENCES * 5, batch_size=4, collate_fn=encode)
    xl.fit(net, loader(), loader(), epochs=1, progress=False)
    policy = xl.calibrate(xl.collect(net, loader()), max_distance=1.0)
    assert policy.calibration.samples == 20
    assert np.allclose(
        ExitEncoder(net, policy).encode(SENTENCES), xl.predict(net, encode(SENTENCES), policy).labels, atol=1e-6
    )


@pytest.fixture(scope="module")
def skipping() -> xl.ExitNet:
    net = attach_sentence_transformer(Model(), AT, head="skip").eval()
    torch.nn.init.normal_(net.head(0).forecast[-1].weight, generator=torch.Generator().manual_seed(0))
    return net


def halve(net: xl.ExitNet) -> tuple[xl.Policy, dict[str, Tensor], list[Tensor]]:
    """Return a policy under which half of the sentences leave at exit 0, the sentences' tokens, and every exit's logits."""
    tokens = net.info.preprocess.encode(SENTENCES)
    with torch.inference_mode():
        logits = [out.logits for out in net(tokens)]
    scores = (-logits[0][:, -1]).exp().sort().values
    return xl.Policy((scores[1:3].mean().item(), 2.0), "vector_closeness"), tokens, logits


@pytest.mark.slow
def test_an_exit_that_skips_answers_with_the_last_layers_and_only_where_it_leaves(skipping, monkeypatch):
    policy, tokens, logits = halve(skipping)
    encoder = Model()[0].auto_model
    encoder.encoder.layer = nn.ModuleList([encoder.encoder.layer[i] for i in (0, 2)])  # of three
    assert torch.allclose(logits[0][:, :-1], Sentences(encoder)(**tokens), atol=1e-6)
    assert [type(head).__name__ for head in skipping.heads] == ["SkipHead", "VectorHead", "KeptVectorHead"]
    assert skipping.cost.tolist() == pytest.approx([2 / 3, 2 / 3, 1], abs=0.03)  # staying costs no copies
    asked: list[int] = []
    classify = SkipHead.classify
    monkeypatch.setattr(SkipHead, "classify", lambda head, *parts: asked.append(len(parts[0])) or classify(head, *parts))
    pred = xl.predict(skipping, tokens, policy)
    left = int((pred.exits == 0).sum())
    assert asked == [left]
    assert 0 < left < 4
    expected = torch.where((pred.exits == 0)[:, None], logits[0], logits[2])[:, :-1]
    assert torch.allclose(pred.labels, expected, atol=1e-6)
    mapped = xl.predict(skipping, tokens, policy, attention=True)  # maps come with the answers, to all
    assert asked[1:] == [4]
    assert torch.allclose(mapped.labels, expected, atol=1e-6)
    shared = xl.explain(skipping, {name: rows[:1] for name, rows in tokens.items()}, policy, to=expected[1]).exits[0]
    assert shared.numbers[0].number == pytest.approx(F.cosine_similarity(logits[0][:1, :-1], expected[1:2]).item(), abs=1e-5)


@pytest.mark.long
def test_the_runtime_gives_the_vectors_of_texts(skipping, tmp_path):
    policy, tokens, _ = halve(skipping)
    runtime = exitlens_runtime.load(xl.export(skipping, policy, tmp_path / "edge"), threads=1)
    expected, given = xl.predict(skipping, tokens, policy), runtime.predict_texts(SENTENCES)
    assert given.exits.tolist() == expected.exits.tolist()
    assert len(set(given.exits.tolist())) == 2
    assert np.allclose(given.labels, expected.labels, atol=1e-5)


@pytest.mark.slow
def test_copies_are_trained_and_the_model_is_not(skipping, tmp_path):
    net, (policy, tokens, logits) = copy.deepcopy(skipping), halve(skipping)
    loader = DataLoader(SENTENCES * 5, batch_size=4, collate_fn=net.info.preprocess.encode)
    xl.fit(net, loader, loader, epochs=3, learning_rate=3e-3, head_learning_rate=3e-3, progress=False)
    _, _, after = halve(net.eval())
    assert torch.equal(after[2], logits[2])
    distance, before = (1 - F.cosine_similarity(part[0][:, :-1], logits[2][:, :-1]).mean() for part in (after, logits))
    assert distance < 0.9 * before
    xl.save(net, policy, tmp_path / "bundle")
    loaded, _ = xl.load(tmp_path / "bundle", backbone=Sentences.read(Model()))
    assert torch.equal(loaded(tokens)[0].logits, after[0])


def test_only_vectors_skip():
    with pytest.raises(xl.errors.AttachError, match=r"head: 'skip' is for vectors.*Fix"):
        xl.attach("small", ["layer1", "layer2"], 3, torch.rand(1, 3, 16, 16), head="skip")


@pytest.mark.slow
def test_sentences_are_padded_to_the_least_length_that_holds_them(skipping, monkeypatch):
    policy, tokens, _ = halve(skipping)
    encoder, texts = ExitEncoder(skipping, policy, lengths=[6, 4]), [SENTENCES[i % 4] for i in range(10)]
    assert tokens["attention_mask"].sum(1).tolist() == [5, 5, 3, 8]
    asked: list[tuple[int, int]] = []
    encode = xl.data.TextPreprocess.encode
    monkeypatch.setattr(
        xl.data.TextPreprocess, "encode", lambda self, texts: asked.append((self.length, len(texts))) or encode(self, texts)
    )
    vectors = encoder.encode(texts, batch_size=4)
    assert asked == [(8, 4), (8, 4), (8, 2), (4, 2), (6, 4), (6, 2), (8, 2)]
    assert np.allclose(vectors, ExitEncoder(skipping, policy).encode(texts), atol=1e-6)
    assert encoder.nets[4].head(0).forecast[0].weight.data_ptr() == skipping.head(0).forecast[0].weight.data_ptr()
    for lengths in ([8], [0], ["4"]):
        with pytest.raises(xl.errors.InputError, match=r"lengths: expected integers below 8.*Fix"):
            ExitEncoder(skipping, policy, lengths=lengths)


class Pyramid(nn.Module):
    """Two cheap layers and a dear one, which keep the shape of their features."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv1d(4, 4, 1), nn.Conv1d(4, 4, 1), nn.Conv1d(4, 4, 31, padding=15)

    def forward(self, x: Tensor) -> Tensor:  # (B,4,L)
        return F.normalize(self.third(self.second(self.first(x))).mean(2), dim=1)


def test_an_exit_must_not_cost_more_than_a_later_one():
    with pytest.raises(xl.errors.AttachError, match=r"at: expected exits that cost more the later they are.*Fix"):
        xl.attach(Pyramid(), ["first", "second"], 4, torch.rand(1, 4, 8), task="embedding", final="keep", head="skip")


def test_a_network_without_early_exits_whose_end_has_no_weights_answers():
    net, x = xl.attach(Pyramid(), [], 4, torch.rand(1, 4, 8), task="embedding", final="keep").eval(), torch.rand(3, 4, 8)
    vectors = xl.predict(net, x, xl.Policy((), "vector_closeness")).labels
    assert torch.allclose(vectors, net(x)[-1].logits[:, :-1], atol=1e-6)


def test_the_first_token_is_the_vector_of_a_model_that_pools_so():
    backbone = Sentences.read(Model("cls"))
    tokens = {"input_ids": torch.tensor([[1, 5, 6, 2]]), "attention_mask": torch.ones(1, 4, dtype=torch.int64)}
    assert torch.allclose(backbone(**tokens), F.normalize(backbone.encoder(**tokens)[0][:, 0], dim=1))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: Model("max"), "pooling max"),
        (lambda: Model("mean", nn.Linear(16, 8)), "'Linear'"),
        (lambda: Model(prompt="query"), "'query'"),
    ],
    ids=["pooling", "modules", "prompt"],
)
def test_other_models_are_refused(model, message):
    with pytest.raises(xl.errors.InputError, match=rf"{message}.*Fix: pool and normalise"):
        Sentences.read(model())


def test_networks_of_other_answers_are_refused():
    net = xl.attach("small", ["layer2"], 3, torch.rand(1, 3, 16, 16))
    with pytest.raises(xl.errors.InputError, match=r"net: expected one that answers vectors to texts.*Fix"):
        ExitEncoder(net, xl.Policy((0.5,)))
