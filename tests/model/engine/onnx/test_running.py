"""A module as an ONNX file: it gives what the module gives, on as many threads as PyTorch has, and its errors are ours."""

import multiprocessing

import pytest
import torch
from torch import nn

import exitlens as xl
from exitlens.model.engine.onnx.running import Home, OnnxFile

pytest.importorskip("onnxruntime")


class Two(nn.Module):
    """Two tensors in, two out; the second input is not used."""

    def forward(self, x, unused):
        return 2 * x, x.sum(1)


@pytest.fixture(scope="module")
def written():
    return OnnxFile.write(Two(), (torch.zeros(1, 3), torch.zeros(1, 2)), "a module")


@pytest.mark.parametrize("batch", [1, 2, 50])
def test_it_gives_what_the_module_gives(written, batch):
    x = torch.randn(batch, 3)
    doubled, total = written((x, torch.zeros(batch, 2)))
    assert torch.equal(doubled, 2 * x)
    assert torch.allclose(total, x.sum(1))
    transposed = torch.randn(3, batch).T  # rows are not contiguous
    assert torch.equal(written((transposed, torch.zeros(batch, 2)))[0], 2 * transposed)


def test_files_go_with_what_holds_them(written):
    home = Home()
    path = home.path
    assert path.is_dir()
    del home
    assert not path.exists()
    assert written.path.is_file()


def test_a_forked_process_leaves_the_files():
    home = Home()
    process = multiprocessing.get_context("fork").Process(target=_end, args=(home,))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert home.path.is_dir()
    home.finalizer()
    assert not home.path.exists()


def _end(home):
    home.finalizer()  # as at the end of a process


def test_tensors_of_a_training_graph_are_taken(written):
    x = torch.randn(2, 3, requires_grad=True)
    assert torch.equal(written((x, torch.zeros(2, 2)))[0], 2 * x)


def test_errors_are_ours(written):
    with pytest.raises(xl.EngineError, match=r"cannot run module\.onnx"):
        written((torch.zeros(1, 4, 4), torch.zeros(1, 2)))

    class Odd(nn.Module):
        def forward(self, x):
            return (x if float(x.sum()) > 0 else -x,)

    with pytest.raises(xl.ExportError, match="an odd one cannot be written as ONNX"):
        OnnxFile.write(Odd(), (torch.zeros(1, 3),), "an odd one")


def test_attention_over_windows_of_several_axes():
    class Windows(nn.Module):
        def forward(self, x):
            groups = x.reshape(x.shape[0], 3, 2, 4, 8)
            return (nn.functional.scaled_dot_product_attention(groups, groups, groups, dropout_p=0.0).flatten(1),)

    x, module = torch.randn(5, 192), torch.fx.symbolic_trace(Windows())
    for target in (nn.functional.scaled_dot_product_attention, torch.ops.aten.scaled_dot_product_attention.default):
        node = next(node for node in module.graph.nodes if "scaled_dot_product_attention" in str(node.target))
        node.target = target  # as torch.fx and torch.export write it
        module.recompile()
        found = OnnxFile.write(module, (x[:1],), "windows")
        assert torch.allclose(found((x,))[0], module(x)[0], atol=1e-5)
