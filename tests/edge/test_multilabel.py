"""Several labels a sample without PyTorch: edge bundle, cascade in one file, runtime, server."""

import copy
import math

import numpy as np
import pytest
import torch
from PIL import Image

import exitlens as xl
import exitlens_runtime as er
from exitlens.edge.int8 import export_int8
from exitlens.functional.scores import score
from exitlens.model.engine.onnx_files import open_file
from exitlens.serving.cascade import Terms, Ticket
from exitlens.serving.endpoint import Watch
from exitlens.serving.http.answers import OUTPUTS, shape_output
from exitlens.serving.http.application import make_app
from exitlens.serving.metrics import Metrics
from exitlens.serving.models import open_bundle, wrap_network
from exitlens.serving.repository import Repository
from exitlens.serving.settings import Watching
from tests.conftest import make_net
from tests.edge.test_export import answer
from tests.exported import check_answers
from tests.hostile import saved
from tests.serving.test_cascade import run
from tests.serving.test_metrics import read

pytest.importorskip("onnxruntime")
NAMES = ("w", "x", "y", "z")


def make() -> tuple[xl.ExitNet, xl.Policy]:
    """Return a network that gives each label to half of all images, and a policy under which some leave at every exit."""
    net, images = make_net(), torch.randn(200, 3, 16, 16, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        for k, out in enumerate(net(images)):
            net.head(k).bias.sub_(out.logits.median(0).values)
    net.describe(task="multilabel", classes=NAMES, preprocess=xl.data.Preprocess((16, 16)))
    temperatures = (1.5, 1.0, 2.0)
    sure = [score(net(images)[k].logits, "decided", temperatures[k]).median().item() for k in range(2)]
    return net, xl.Policy(tuple(sure), "decided", temperatures)


NET, POLICY = make()


@pytest.fixture(scope="module")
def edge(tmp_path_factory):
    named = {"full": xl.Policy.never(3, score="decided")}
    return xl.export(NET, POLICY, tmp_path_factory.mktemp("edge") / "out", policies=named)


@pytest.mark.slow
def test_the_runtime_answers_as_the_library(edge, images):
    net = er.load(edge, threads=1)
    assert net.gives_labels
    expected = xl.predict(NET, images, POLICY)
    pred = net.predict(images.numpy())
    assert len(set(expected.exits.tolist())) == 3
    check_answers(pred, expected)
    assert net.name_answer(pred, 0) == ";".join(NAMES[c] for c in expected.labels[0].nonzero().flatten().tolist())
    assert "decided" in net.give_reason(pred, 0)
    with pytest.raises(er.PolicyError, match="the network gives several labels a sample"):
        net.with_policy(xl.Policy((0.5, 0.5)).to_dict())


@pytest.mark.slow
def test_gates_take_how_decided_the_labels_are(images, tmp_path):
    gate = xl.types.Gate(((0.3, 0.2, 0.1, 0.5, -0.5), (0.1, 0.1, 0.1, 0.0, 0.0)))
    gated = xl.Policy(POLICY.thresholds, "decided", POLICY.temperatures, gate=gate)
    pred = er.load(xl.export(NET, gated, tmp_path / "e"), threads=1).predict(images.numpy())
    check_answers(pred, xl.predict(NET, images, gated))


@pytest.mark.slow
def test_a_network_of_one_class_refuses_the_score(tmp_path):
    plain = er.load(xl.export(make_net(), xl.Policy((0.8, 0.7)), tmp_path / "e"))
    with pytest.raises(er.PolicyError, match="its score is 'decided', the network gives one class a sample"):
        plain.with_policy(POLICY.to_dict())
    with pytest.raises(xl.errors.PolicyError, match="several labels a sample, the network or trace has one class"):
        xl.export(make_net(), POLICY, tmp_path / "f")


@pytest.mark.slow
@pytest.mark.parametrize("thresholds", [POLICY.thresholds, (0.0, 2.0), (math.inf, 0.55)])
def test_the_cascade_in_one_file(edge, images, thresholds):
    policy = xl.Policy(thresholds, "decided", POLICY.temperatures)
    check_answers(answer(open_file(edge / "cascade.onnx"), images, policy), xl.predict(NET, images, policy))


@pytest.mark.parametrize("kind", [pytest.param("edge", marks=pytest.mark.slow), "library"])
def test_a_server_answers_with_labels(request, images, kind):
    model = (
        open_bundle("m", request.getfixturevalue("edge"))
        if kind == "edge"
        else wrap_network("m", copy.deepcopy(NET), {"default": POLICY})
    )
    ticket = answer_with(model, images)
    expected = xl.predict(NET, images, POLICY)
    assert ticket.labels.tolist() == expected.labels.tolist()
    assert ticket.exits.tolist() == expected.exits.tolist()
    assert shape_output(model, "label") == (-1, 4)
    written = OUTPUTS["label"].write(model, ticket)
    assert written.dtype == np.int64
    assert written.tolist() == expected.labels.long().tolist()
    classes = expected.labels[3].nonzero().flatten().tolist()
    assert OUTPUTS["class"].write(model, ticket)[3] == ";".join(NAMES[c] for c in classes)


def answer_with(model, images, **terms):
    ticket = Ticket(model.check_tensors(images), Terms(**terms), model)
    run(model, [ticket])
    return ticket


def test_requests_with_terms_of_their_own(images):
    ticket = answer_with(wrap_network("m", copy.deepcopy(NET), {"default": POLICY}), images, last_exit=0)
    assert set(ticket.exits.tolist()) == {0}
    assert ticket.labels.tolist() == (NET(images)[0].logits >= 0).tolist()


def test_the_shadow_compares_all_labels(images):
    model, metrics = wrap_network("m", copy.deepcopy(NET), {"default": POLICY}), Metrics()
    watch = Watch(model, metrics, Watching(drift=False, shadow=1.0))
    ticket = answer_with(model, images[:4])
    watch.see([ticket])
    with model.open_engine() as engine:
        while watch.run_idle(engine):
            pass
    same = (torch.from_numpy(ticket.labels) == (NET(images[:4])[-1].logits >= 0)).all(1)
    counts = read(metrics)
    agreeing = sum(n for key, n in counts.items() if key[0] == "exitlens_shadow_answers_total" and ("agrees", "true") in key)
    assert agreeing == same.sum()


def test_people_get_names_and_numbers(images):
    pytest.importorskip("starlette")
    from tests.serving.http.conftest import open_client

    repository = Repository({"m": wrap_network("m", copy.deepcopy(NET), {"default": POLICY})})
    with open_client(make_app(repository)) as client:
        picture = saved("PNG", Image.new("RGB", (16, 16), (200, 30, 90)))
        reply = client.post("/classify", content=picture).json()
        assert reply["class"] == ";".join(NAMES[c] for c in reply["label"])
        why = client.post("/explain", content=picture, headers={"Accept": "application/json"}).json()
        assert [row["label"] for row in why["exits"][why["answered"]]["labels"]] == reply["label"]


@pytest.mark.slow
def test_int8_and_the_page(images, tmp_path):
    labels = NET(images)[-1].logits >= 0
    data = torch.utils.data.TensorDataset(images, labels.long())
    policy = xl.calibrate(xl.collect(NET, data), max_false_negative_drop=0.5)
    report = export_int8(NET, policy, tmp_path / "int8", images, data)
    assert report.policy.score == "decided"
    assert report.exit_accuracy[0][-1] == 1
    with pytest.raises(xl.errors.ExportError, match="the page does not show several labels"):
        xl.export_web(NET, policy, tmp_path / "web")
