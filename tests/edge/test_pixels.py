"""One class a pixel without PyTorch: edge bundle, cascade in one file, runtime, server, browser; and a tuning of one's own."""

import copy
import hashlib
import io
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import exitlens as xl
import exitlens_runtime as er
from exitlens.edge import export
from exitlens.edge.int8 import export_int8
from exitlens.edge.packages import export_package
from exitlens.functional.scores import score
from exitlens.model.engine.onnx_files import open_file
from exitlens.serving.cascade import Terms, Ticket
from exitlens.serving.endpoint import Watch
from exitlens.serving.http.answers import OUTPUTS, shape_output
from exitlens.serving.http.application import make_app
from exitlens.serving.metrics import Metrics
from exitlens.serving.models import adapt, open_bundle, wrap_network
from exitlens.serving.repository import Repository
from exitlens.serving.settings import Adapting, Watching
from exitlens.types.settings import PIXEL_SCORES
from tests.conftest import make_unet
from tests.edge.test_export import answer
from tests.exported import ask_page, check_answers, draw_pictures, read_arrays, read_pictures, serve_page
from tests.serving.test_cascade import run
from tests.serving.test_metrics import read

pytest.importorskip("onnxruntime")
NAMES = ("none", "bright", "red", "blue")
IMAGES = torch.randn(20, 3, 16, 16, generator=torch.Generator().manual_seed(2))


def part(net, images, kind="mean_probability"):
    """Return a policy under which some of the images leave at every exit, none of them near a threshold."""
    limits, left = [], torch.ones(len(images), dtype=torch.bool)
    with net.open_engine() as engine:
        outputs = engine.compute_outputs(engine.enter((images,)))
    for logits, _ in outputs[:-1]:
        scores = score(logits, kind)
        known = scores[left].unique()
        limits.append(known[len(known) // 2 - 1 : len(known) // 2 + 1].mean().item())
        left &= scores < limits[-1]
    return xl.Policy(tuple(limits), kind)


def make():
    """Return the tiny U-Net, its final exit the backbone's own, and a policy."""
    net = make_unet("keep")
    with torch.no_grad():
        for k in range(2):
            net.head(k).classifier.weight.mul_(3)  # some cells are sure
    net.describe(classes=NAMES, preprocess=xl.data.Preprocess((16, 16)))
    return net, part(net, IMAGES)


NET, POLICY = make()


def make_model():
    return wrap_network("m", NET, {"default": POLICY})


@pytest.fixture(scope="module")
def edge(tmp_path_factory):
    return xl.export(NET, POLICY, tmp_path_factory.mktemp("edge") / "out")


@pytest.mark.slow
def test_the_runtime_answers_as_the_library(edge):
    net = er.load(edge, threads=1)
    assert net.gives_pixels
    expected = xl.predict(NET, IMAGES, POLICY, attention=True)
    assert len(set(expected.exits.tolist())) == 3
    pred = net.predict(IMAGES.numpy(), attention=True)
    check_answers(pred, expected)
    streamed = [row for part in net.predict_stream(IMAGES.numpy()[at : at + 7] for at in (0, 7, 14)) for row in part.labels]
    assert np.array_equal(streamed, expected.labels.numpy())
    assert net.name_answer(pred, 0) == make_model().name_answers(expected.labels[:1].numpy())[0]
    assert "mean probability" in net.give_reason(pred, 0)
    with pytest.raises(er.PolicyError, match="the network gives one class a pixel"):
        net.with_policy(xl.Policy((0.5, 0.5)).to_dict())
    with pytest.raises(er.InputError, match="adaptive: it is not for networks that give one class a pixel"):
        net.predict(IMAGES.numpy(), adaptive=er.Adaptive(net, 0.1))


@pytest.mark.slow
def test_golden_labels_may_differ_only_where_another_class_is_nearly_as_probable(edge, tmp_path):
    broken = shutil.copytree(edge, tmp_path / "e")
    golden = read_arrays(broken / "golden.npz")
    assert golden["labels"].dtype == np.int16
    assert golden["logits_2"].shape[2:] == (4, 4)
    golden["labels"] = (golden["labels"] + 1) % 4
    np.savez(broken / "golden.npz", **golden)
    manifest = json.loads((broken / "manifest.json").read_text())
    manifest["sha256"]["golden.npz"] = hashlib.sha256((broken / "golden.npz").read_bytes()).hexdigest()
    (broken / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(er.BundleError, match="other labels than the library's"):
        er.load(broken)


@pytest.mark.slow
@pytest.mark.parametrize("kind", PIXEL_SCORES)
def test_the_cascade_in_one_file(edge, tmp_path, kind):
    policy, session = part(NET, IMAGES, kind), edge / "cascade.onnx"
    if kind != POLICY.score:
        parts = export.write_stages(tmp_path, NET, policy)
        session = tmp_path / "cascade.onnx"
        export.write_checked_cascade(session, NET, policy, parts)
    for count in (1, 20):
        expected = xl.predict(NET, IMAGES[:count], policy, attention=True)
        outputs = answer(open_file(session), IMAGES[:count], policy)
        check_answers(outputs, expected)
        assert "probabilities" not in outputs


@pytest.mark.parametrize("kind", [pytest.param("edge", marks=pytest.mark.slow), "library"])
def test_a_server_answers_with_the_class_of_each_pixel(request, kind):
    model = open_bundle("m", request.getfixturevalue("edge")) if kind == "edge" else make_model()
    ticket, expected = answer_with(model, IMAGES), xl.predict(NET, IMAGES, POLICY)
    assert ticket.labels.tolist() == expected.labels.tolist()
    assert ticket.exits.tolist() == expected.exits.tolist()
    assert np.allclose(ticket.probabilities, expected.probabilities.mean((2, 3)), atol=1e-6)
    assert shape_output(model, "label") == (-1, 16, 16)
    assert OUTPUTS["label"].write(model, ticket).dtype == np.int64
    areas = model.measure_areas(ticket.labels[0])
    assert [*areas.values()] == sorted(areas.values(), reverse=True)
    assert areas == {NAMES[c]: (expected.labels[0] == c).float().mean() for c in expected.labels[0].unique()}
    assert sum(areas.values()) == pytest.approx(1)


def answer_with(model, images, **terms):
    ticket = Ticket(model.check_tensors(images), Terms(**terms), model)
    run(model, [ticket])
    return ticket


def test_a_server_takes_images_of_the_size_of_its_answers():
    with pytest.raises(xl.errors.InputError, match="24"):
        make_model().check_tensors(torch.zeros(1, 3, 24, 24))


def test_requests_with_terms_of_their_own():
    ticket = answer_with(make_model(), IMAGES, last_exit=0, deadline=1e9)
    assert set(ticket.exits.tolist()) == {0}
    assert np.array_equal(ticket.labels, NET(IMAGES)[0].logits.argmax(1))
    assert all(answer.label.shape == (16, 16) for answer in ticket.kept.values())


def test_the_shadow_counts_pixels():
    model, metrics = make_model(), Metrics()
    watch = Watch(model, metrics, Watching(drift=False, shadow=1.0))
    ticket = answer_with(model, IMAGES[:4])
    watch.see([ticket])
    with model.open_engine() as engine:
        while watch.run_idle(engine):
            pass
    same = (torch.from_numpy(ticket.labels) == NET(IMAGES[:4])[-1].logits.argmax(1)).float().mean((1, 2)).sum().item()
    rows = [(key, n) for key, n in read(metrics).items() if key[0] == "exitlens_shadow_answers_total"]
    assert sum(n for key, n in rows if ("agrees", "true") in key) == pytest.approx(same)
    assert sum(n for _, n in rows) == pytest.approx(4)


def test_people_get_areas_and_a_picture_of_classes():
    pytest.importorskip("starlette")
    from tests.serving.http.conftest import open_client

    pixels = np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    inputs = NET.info.preprocess.normalise(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    expected = xl.predict(NET, inputs, POLICY)
    with open_client(make_app(Repository({"m": make_model()}))) as client:
        picture = client.post("/classify", content=file.getvalue(), headers={"Accept": "image/png"})
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(picture.content))), expected.labels[0])
        assert int(picture.headers["X-Exit"]) == expected.exits[0]
        reply = client.post("/classify", content=file.getvalue()).json()
        assert sum(reply["areas"].values()) == pytest.approx(1)
        assert reply["class"].startswith(f"{next(iter(reply['areas']))} ")
        assert "label" not in reply
        assert client.post("/explain", content=file.getvalue()).headers["content-type"] == "image/png"
        files = [("file", ("a.png", file.getvalue()))] * 2
        two = client.post("/classify", files=files, headers={"Accept": "image/png"})
        assert (two.status_code, "expected one for a PNG" in two.json()["error"]) == (400, True)
        outputs = {"inputs": [{"name": "inputs", "shape": [1, 3, 16, 16], "datatype": "FP32", "data": inputs.tolist()}]}
        label, *_ = client.post("/v2/models/m/infer", json=outputs).json()["outputs"]
        assert (label["name"], label["shape"]) == ("label", [1, 16, 16])
        assert label["data"] == expected.labels.flatten().tolist()


@pytest.mark.parametrize(
    ("what", "call"),
    [
        ("net: int8", lambda path: export_int8(NET, POLICY, path / "i", IMAGES, IMAGES)),
        ("adapt: it", lambda path: adapt(make_model(), Adapting(adapt=0.1))),
        pytest.param(
            "edge: a package",
            lambda path: export_package(xl.export(NET, POLICY, path / "e"), path / "p", "triton"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_is_not_there_says_so(what, call, tmp_path):
    with pytest.raises(xl.errors.InputError, match=f"{what}.* is not there yet for networks that answer one class a pixel"):
        call(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch", pytest.param("onnx", marks=pytest.mark.long)])
def test_a_tuned_network_answers_alike(backend):
    net, expected = copy.deepcopy(NET), xl.predict(NET, IMAGES, POLICY)
    assert net.tune(IMAGES, policy=POLICY, backend=backend, seconds=0.01).backend == backend
    pred = xl.predict(net, IMAGES, POLICY)
    assert torch.equal(pred.exits, expected.exits)
    assert torch.equal(pred.labels, expected.labels)


def make_small(images):
    net = xl.attach("small", ["layer1", "layer2", "layer3"], 11, images[:1], task="segmentation")
    for k in range(4):
        nn.init.normal_(net.head(k).classifier.weight, std=2.0)
    return net


def make_lraspp(images):
    models = pytest.importorskip("torchvision").models.segmentation
    backbone = models.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=11)
    nn.init.normal_(backbone.classifier.low_classifier.weight, std=2.0)
    net = xl.attach(backbone, ["backbone.9", "backbone.13"], 11, images[:1], final="keep")
    for k in range(2):
        nn.init.normal_(net.head(k).classifier.weight, std=2.0)
    return net


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("build", [make_small, make_lraspp])
def test_labels_of_500_images_are_the_librarys_everywhere(build, tmp_path):
    images = xl.demo.load_scenes("test", size=64, limit=500).inputs
    torch.manual_seed(0)
    net = build(images).eval()
    policy = part(net, images[:100])
    expected = xl.predict(net, images, policy)
    assert expected.exits.bincount(minlength=net.num_exits).min() > 20
    edge = xl.export(net, policy, tmp_path / "edge")
    runtime = er.load(edge, threads=1)
    session, model = open_file(edge / "cascade.onnx"), open_bundle("m", edge)
    for start in range(0, 500, 50):
        rows = slice(start, start + 50)
        ways = {"runtime": runtime.predict(images[rows].numpy()).labels, "cascade": answer(session, images[rows], policy)}
        ways["cascade"] = ways["cascade"]["labels"]
        ways["server"] = answer_with(model, images[rows]).labels
        ways["library server"] = answer_with(wrap_network("m", net, {"default": policy}), images[rows]).labels
        for name, labels in ways.items():
            differs = labels != expected.labels[rows].numpy()
            assert differs.sum() < 5, name
            first, second = expected.probabilities[rows].topk(2, 1).values.unbind(1)
            assert not (differs & (first - second > 1e-5).numpy()).any(), name


@pytest.fixture
def site(tmp_path):
    with serve_page(NET, POLICY, tmp_path / "site") as address:
        yield address


@pytest.mark.slow
def test_the_page_colours_what_the_library_sees(site, tmp_path):
    paths = draw_pictures(tmp_path, 8)
    inputs = read_pictures(NET, paths)
    expected = xl.predict(NET, inputs, POLICY)
    with ask_page(site, paths) as (page, rows):
        assert page.locator("figure").count() == 3
        assert page.locator("figure.answered").get_attribute("data-exit") == rows[0][2]
        told = {text.rpartition(" ")[0].rpartition(" ")[0] for text in rows[0][1].split(", ")}
        assert told <= set(page.locator("#key span").all_inner_texts()) <= set(NAMES)
    assert [int(row[2]) for row in rows] == expected.exits.tolist()
    for row, labels in zip(rows, expected.labels.numpy(), strict=True):
        words = [text.removesuffix(" %").rpartition(" ") for text in row[1].split(", ")]
        areas = {name: 100 * share for name, share in make_model().measure_areas(labels).items()}
        assert {name: float(share) for name, _, share in words} == pytest.approx(areas, abs=0.06)
