"""The engine on ONNX Runtime gives what the network gives, and says what it cannot run."""

import math
import multiprocessing

import pytest
import torch
from torch import nn

import exitlens as xl
from exitlens.model.engine import onnx_files
from exitlens.model.engine.onnx_files import Home, OnnxFile
from tests.conftest import make_net
from tests.model.engine.networks import check_answers
from tests.model.kinds import make_network
from tests.texts import AT, make_bert, make_texts

pytest.importorskip("onnxruntime")
ONNX = xl.Tuning(backend="onnx")


@pytest.fixture(autouse=True, scope="module")
def _written_once(files_written_once):
    """Files are written once; see tests/exported.py."""


@pytest.fixture(scope="module")
def tuned():
    """The tiny network on ONNX Runtime; its files are written once."""
    net = make_net()
    net.tuning = ONNX
    return net


@pytest.mark.slow
@pytest.mark.parametrize("batch", [2, 40])
def test_answers_traces_and_maps_are_the_networks(tuned, images, batch):
    check_answers(tuned, images[:batch], xl.Policy.never(3), xl.Policy((math.inf, 0.6)))


@pytest.mark.slow
def test_streams_and_explanations(tuned, net, images):
    policy = xl.Policy((0.6, 0.6))
    streamed = list(xl.predict_stream(tuned, [images[:7], images[7:20]], policy))
    assert torch.cat([batch.labels for batch in streamed]).tolist() == xl.predict(net, images[:20], policy).labels.tolist()
    assert xl.explain(tuned, images[0], policy).answered == xl.explain(net, images[0], policy).answered


@pytest.mark.slow
def test_weights_that_change_are_written_again(images):
    net = make_net()
    net.tuning = ONNX
    xl.predict(net, images, xl.Policy((0.0, 0.0)))
    with torch.no_grad():
        net.head(0).classifier.weight.mul_(-1)
    check_answers(net, images)


@pytest.mark.slow
def test_texts():
    net = xl.attach(make_bert(num_hidden_layers=2), AT[:1], 3, make_texts()).eval()
    net.tuning = ONNX
    check_answers(net, make_texts(9))


@pytest.mark.parametrize(
    ("dtype", "message"),
    [(torch.float64, r"float32 on the CPU.*net\.tuning = Tuning\(\)"), (torch.float32, r"an odd layer.*backend='torch'")],
)
def test_what_it_cannot_run(monkeypatch, images, dtype, message):
    def refuse(*_):
        raise xl.errors.ExportError("an odd layer")

    monkeypatch.setattr(onnx_files, "write_segments", refuse)
    net = make_net().to(dtype)
    net.tuning = ONNX
    with pytest.raises(xl.errors.EngineError, match=message):
        xl.predict(net, images.to(dtype), xl.Policy.never(3))


@pytest.fixture(scope="module")
def written():
    two = make_network(lambda net, *tensors: (2 * tensors[0], tensors[0].sum(1)))  # it does not use its second input
    return OnnxFile.write(two, (torch.zeros(1, 3), torch.zeros(1, 2)), "a module")


@pytest.mark.parametrize("batch", [1, 2, 50])
@pytest.mark.slow
def test_it_gives_what_the_module_gives(written, batch):
    x = torch.randn(batch, 3)
    doubled, total = written((x, torch.zeros(batch, 2)))
    assert torch.equal(doubled, 2 * x)
    assert torch.allclose(total, x.sum(1))
    for x in (torch.randn(3, batch).T, torch.randn(batch, 3, requires_grad=True)):  # not contiguous; of a training graph
        assert torch.equal(written((x, torch.zeros(batch, 2)))[0], 2 * x)


@pytest.mark.slow
def test_files_go_with_their_home_but_not_in_a_forked_process(written):
    home = Home()
    path, process = home.path, multiprocessing.get_context("fork").Process(target=home.finalizer)
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert path.is_dir()
    del home, process
    assert not path.exists()
    assert written.path.is_file()


@pytest.mark.slow
def test_errors_are_ours(written):
    with pytest.raises(xl.errors.EngineError, match=r"cannot run module\.onnx"):
        written((torch.zeros(1, 4, 4), torch.zeros(1, 2)))

    odd = make_network(lambda net, *tensors: tensors if float(tensors[0].sum()) > 0 else (-tensors[0],))
    with pytest.raises(xl.errors.ExportError, match="an odd one cannot be written as ONNX"):
        OnnxFile.write(odd, (torch.zeros(1, 3),), "an odd one")


@pytest.mark.slow
def test_attention_over_windows_of_several_axes():
    def forward(net, *tensors):
        groups, attend = tensors[0].reshape(-1, 3, 2, 4, 8), nn.functional.scaled_dot_product_attention
        groups = attend(groups, groups, groups, dropout_p=0.0)
        return (attend(groups, groups, groups, dropout_p=0.0).flatten(1),)

    x, module = torch.randn(5, 192), torch.fx.symbolic_trace(make_network(forward))
    first = next(node for node in module.graph.nodes if "scaled_dot_product_attention" in str(node.target))
    first.target = torch.ops.aten.scaled_dot_product_attention.default  # as torch.export writes it, and torch.fx the second
    module.recompile()
    file = OnnxFile.write(module, (x[:1],), "windows")
    assert torch.allclose(file((x,))[0], module(x)[0], atol=1e-5)
