"""Numbers and vectors, served: by the Open Inference Protocol, and in the form of OpenAI's embeddings route."""

import base64
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import exitlens as xl
from exitlens.serving.endpoint import Watch
from exitlens.serving.http.application import make_app
from exitlens.serving.metrics import Metrics
from exitlens.serving.models import wrap_network
from exitlens.serving.repository import Repository
from exitlens.serving.settings import Limits, Watching
from tests.serving.http.conftest import open_client
from tests.texts import LENGTH, make_bert, make_texts
from tests.workflow.test_answers import draw, make

SERIES = draw(6, seed=1).tensors[0]


class Sentences(nn.Module):
    """The mean of a tiny BERT's last tokens, normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.bert = make_bert().bert
        self.bert.pooler = None

    def forward(self, input_ids, attention_mask):
        tokens, keep = self.bert(input_ids, attention_mask)[0], attention_mask[..., None].float()
        return F.normalize((tokens * keep).sum(1) / keep.sum(1), dim=1)


def make_sentences() -> xl.ExitNet:
    at = ["bert.encoder.layer.0", "bert.encoder.layer.1"]
    net = xl.attach(Sentences(), at, 16, make_texts(), task="embedding", final="keep").eval()
    for k in range(2):
        nn.init.normal_(net.head(k).forecast[2].weight)
    net.describe(preprocess=xl.data.TextPreprocess(xl.data.word_tokenizer(["good film", "bad"]), LENGTH))
    return net


@pytest.mark.parametrize(("numbers", "datatype"), [(1, "FP32"), (1, "FP64"), (2, "FP32"), (0, "FP32")])
def test_answers_are_those_of_predict(numbers, datatype):
    net = make(numbers)
    if datatype == "FP64":
        net.describe(units=((1.7e9, 1.0),))
    scores = ("closeness", "stability") if numbers else ("vector_closeness", "vector_stability")
    policies = {"default": xl.Policy((0.5, 0.4), scores[0]), "change": xl.Policy((math.inf, 0.5), scores[1])}
    model = wrap_network("m", net, policies)
    given = {"inputs": [{"name": "inputs", "shape": [6, 2, 32], "datatype": "FP32", "data": SERIES.flatten().tolist()}]}
    with open_client(make_app(Repository({"m": model}))) as client:
        for name, policy in policies.items():
            reply = client.post("/v2/models/m/infer", json={**given, "parameters": {"policy": name}}).json()
            expected, found = xl.predict(net, SERIES, policy), {output["name"]: output for output in reply["outputs"]}
            assert [*found] == ["label", "exit", "confidence", "cost"]
            label = found["label"]
            assert (label["datatype"], label["shape"]) == (datatype, list(expected.labels.shape))
            assert np.allclose(label["data"], expected.labels.flatten(), atol=1e-5, rtol=1e-5 if datatype == "FP32" else 0)
            assert found["exit"]["data"] == expected.exits.tolist()
            assert np.allclose(found["confidence"]["data"], expected.confidence, atol=1e-5)
        described = {output["name"]: output for output in client.get("/v2/models/m").json()["outputs"]}
        assert described["label"] == {"name": "label", "datatype": datatype, "shape": [-1, *expected.labels.shape[1:]]}
        given["parameters"] = {"max_cost": model.cost[1]}
        limited = {each["name"]: each["data"] for each in client.post("/v2/models/m/infer", json=given).json()["outputs"]}
        assert max(limited["exit"]) <= 1
        refused = client.post("/v1/embeddings", json={"input": "a"})
        assert refused.status_code == 400
        assert ("no vectors" if numbers else "how series become inputs") in refused.json()["error"]


@pytest.mark.slow
def test_embeddings_are_those_of_predict():
    net, texts = make_sentences(), ["good film", "bad", "film film film bad"]
    inputs = net.info.preprocess.encode(texts)
    middle = (-torch.stack([out.logits[:, -1] for out in net(inputs)[:2]])).exp().median(1).values.tolist()
    policy = xl.Policy(tuple(middle), "vector_closeness")
    model, expected = wrap_network("mini", net, {"default": policy}), xl.predict(net, inputs, policy)
    assert len(expected.exits.unique()) > 1
    with open_client(make_app(Repository({"mini": model}), Limits(max_batch=4))) as client:
        reply = client.post("/v1/embeddings", json={"input": texts, "model": "mini"}).json()
        assert (reply["object"], reply["model"], reply["policy"]) == ("list", "mini", "default")
        tokens = int(inputs["attention_mask"].sum())
        assert reply["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
        assert [(row["object"], row["index"], row["exit"]) for row in reply["data"]] == [
            ("embedding", i, exit_) for i, exit_ in enumerate(expected.exits.tolist())
        ]
        assert np.allclose([row["embedding"] for row in reply["data"]], expected.labels, atol=1e-5)
        packed = client.post("/v1/embeddings", json={"input": texts[0], "encoding_format": "base64", "user": "u"}).json()
        vector = np.frombuffer(base64.b64decode(packed["data"][0]["embedding"]), np.float32)
        assert np.allclose(vector, expected.labels[0], atol=1e-5)
        for body, words in (
            ({"model": "mini"}, "body: expected"),
            ({"input": [1, 2]}, "input: expected a text"),
            ({"input": "a", "encoding_format": "int8"}, "encoding_format: expected float or base64"),
            ({"input": "a", "dimensions": 8}, "parameters: expected some of policy"),
            ({"input": ["a"] * 5}, "expected 1 to 4 samples"),
            ([], "body: expected"),
        ):
            assert words in client.post("/v1/embeddings", json=body).json()["error"], body
        told = client.post("/classify", json={"text": texts[0]}).json()
        assert np.allclose(told["label"], expected.labels[0], atol=1e-5)
        assert told["probabilities"] == {}


def test_a_shadow_compares_classes_alone():
    model = wrap_network("m", make(1), {"default": xl.Policy((0.5, 0.4), "closeness")})
    with pytest.raises(xl.errors.InputError, match="shadow: it is not there yet for networks that answer numbers"):
        Watch(model, Metrics(), Watching(shadow=0.5))
