"""Sentence encoders with exits: their vectors are the model's own, in the shapes of sentence-transformers."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

import exitlens as xl
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
