"""The client of OpenAI against our route for embeddings, over a socket."""

import base64

import numpy as np
import pytest

openai = pytest.importorskip("openai")

import exitlens as xl  # noqa: E402
from exitlens.serving.http.application import make_app  # noqa: E402
from exitlens.serving.models import wrap_network  # noqa: E402
from exitlens.serving.repository import Repository  # noqa: E402
from exitlens.serving.settings import Limits  # noqa: E402
from tests.serving.http.sockets import serve  # noqa: E402
from tests.serving.http.test_vectors import make_sentences  # noqa: E402
from tests.workflow.test_answers import make  # noqa: E402

TEXTS = ["good film", "bad", "film film film bad"]


@pytest.fixture(scope="module")
def net():
    return make_sentences()


@pytest.fixture(scope="module")
def policy(net):
    scores = net(net.info.preprocess.encode(TEXTS))[0].logits[:, -1].neg().exp()
    return xl.Policy((scores.median().item(), 2.0), "vector_closeness")  # some leave at exit 0


@pytest.fixture(scope="module")
def client(net, policy):
    """The client, whose base URL is that of a server with a network for texts and another one for numbers."""
    never = xl.Policy.never(3, score="closeness")
    models = {
        "mini": wrap_network("mini", net, {"default": policy}),
        "price": wrap_network("price", make(1), {"default": never}),
    }
    app = make_app(Repository(models), Limits(max_batch=4))
    with (
        serve(app, lifespan="on") as port,
        openai.OpenAI(api_key="none", base_url=f"http://127.0.0.1:{port}/v1", max_retries=0) as client,
    ):
        yield client


@pytest.mark.parametrize("given", [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}], ids=str)
@pytest.mark.parametrize("texts", [TEXTS, TEXTS[0]], ids=["list", "string"])
def test_vectors_are_those_of_predict(client, net, policy, texts, given):
    reply = client.embeddings.create(model="mini", input=texts, **given)
    inputs = net.info.preprocess.encode([texts] if isinstance(texts, str) else texts)
    expected = xl.predict(net, inputs, policy)
    rows = [row.embedding for row in reply.data]
    if given.get("encoding_format") == "base64":  # asked for, it comes as it is; by default the client unpacks it
        rows = [np.frombuffer(base64.b64decode(row), np.float32) for row in rows]
    assert np.allclose(rows, expected.labels, atol=1e-5)
    assert [row.index for row in reply.data] == list(range(len(rows)))
    assert [row.exit for row in reply.data] == expected.exits.tolist()
    assert (reply.model, reply.object) == ("mini", "list")
    assert reply.usage.prompt_tokens == int(inputs["attention_mask"].sum())


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"model": "mini", "input": TEXTS * 2}, "APIStatusError", "413.*expected 1 to 4 samples"),
        ({"model": "mini", "input": "a", "dimensions": 8}, "BadRequestError", "parameters: expected some of policy"),
        ({"model": "price", "input": "a"}, "BadRequestError", "price answers numbers, no vectors"),
        ({"model": "other", "input": "a"}, "NotFoundError", "other"),
    ],
)
def test_errors_are_the_clients_own(client, given, error, words):
    with pytest.raises(getattr(openai, error), match=words) as caught:
        client.embeddings.create(**given)
    assert words.rpartition("*")[2] in str(caught.value.body)
