"""Which backbones can be cut into stages, and how exactly: docs/measured/backbones.md.

Cells are the sources of the backbones; `python -m benchmarks backbones run 'torchvision:*'` tries some. Weights are random and the
images small where the network takes them: what is checked is structure, not accuracy.
"""

from __future__ import annotations

import copy
import math
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision import models

import exitlens as xl
import exitlens_runtime
from benchmarks import networks
from benchmarks.harness import Job, Study, table
from benchmarks.results import Runs, Tree
from exitlens.edge.export import draw_for, name_inputs
from exitlens.model.backbones.build import make_example
from exitlens.model.cutting.modes import switch_mode
from exitlens.model.cutting.trace import pick_logits
from exitlens.model.heads import have_maps
from exitlens.types.inputs import Inputs, list_tensors, map_inputs

CLASSES, TOLERANCE = 5, 1e-5
SAMPLES, BATCH = 24, 8  # answered by the runtime
PASSES, SPREAD = 12, 1e-3  # most passes that learn batch statistics; spread of the logits at which they end
Shape = tuple[int, ...]
Tensors = tuple[Tensor, ...]


@dataclass(frozen=True)
class Backbone:
    family: str  # of the networks of its kind
    source: str  # its name for :func:`exitlens.build_backbone`, or what it is called here
    size: int | Shape | Mapping[str, Shape]  # pixels a side, tokens of a text, or a shape (by name of several inputs)
    make: Callable[[], nn.Module] | None = field(default=None, compare=False)  # builds it where it has no source
    groups: Mapping[str, list[int]] | None = None  # of a vector's features
    at: int | tuple[str, ...] = 3  # early exits, as :func:`exitlens.attach` takes them

    @property
    def inputs(self) -> str:
        if isinstance(self.size, Mapping):
            return "Several inputs"
        by_axes = {2: "Series", 4: "Volumes", 1: "Vectors"}
        return "Images and texts" if isinstance(self.size, int) else by_axes[len(self.size)]

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        return xl.build_backbone(self.source, CLASSES) if self.make is None else self.make()


AUXILIARY: dict[str, Callable[[], nn.Module]] = {  # sources by name build these without their auxiliary outputs
    "googlenet(aux_logits=True)": lambda: models.googlenet(num_classes=CLASSES, aux_logits=True, init_weights=False),
    "inception_v3(aux_logits=True)": lambda: models.inception_v3(num_classes=CLASSES, aux_logits=True, init_weights=False),
}
IMAGES_AND_TEXTS = [  # family, source, pixels a side (tokens of a text)
    ("small (ours)", "small", 40), ("ResNet", "torchvision:resnet18", 64), ("ResNet", "torchvision:resnet50", 64),
    ("ResNeXt", "torchvision:resnext50_32x4d", 64), ("Wide ResNet", "torchvision:wide_resnet50_2", 64),
    ("DenseNet", "torchvision:densenet121", 64), ("VGG", "torchvision:vgg11", 64), ("VGG", "torchvision:vgg11_bn", 64),
    ("AlexNet", "torchvision:alexnet", 128), ("SqueezeNet", "torchvision:squeezenet1_1", 64),
    ("ShuffleNet v2", "torchvision:shufflenet_v2_x1_0", 64), ("MNASNet", "torchvision:mnasnet0_5", 64),
    ("MobileNet v2", "torchvision:mobilenet_v2", 64), ("MobileNet v3", "torchvision:mobilenet_v3_small", 64),
    ("MobileNet v3", "torchvision:mobilenet_v3_large", 64), ("EfficientNet", "torchvision:efficientnet_b0", 64),
    ("EfficientNet v2", "torchvision:efficientnet_v2_s", 64), ("RegNet", "torchvision:regnet_x_400mf", 64),
    ("RegNet", "torchvision:regnet_y_400mf", 64), ("ConvNeXt", "torchvision:convnext_tiny", 64),
    ("GoogLeNet", "torchvision:googlenet", 96), ("GoogLeNet (auxiliary outputs)", "googlenet(aux_logits=True)", 96),
    ("Inception v3", "torchvision:inception_v3", 160),
    ("Inception v3 (auxiliary outputs)", "inception_v3(aux_logits=True)", 299), ("ViT", "torchvision:vit_b_16", 224),
    ("Swin", "torchvision:swin_t", 64), ("Swin v2", "torchvision:swin_v2_t", 64), ("ResNet (timm)", "timm:resnet18", 64),
    ("EfficientNet-Lite", "timm:efficientnet_lite0", 64), ("ViT (timm)", "timm:vit_tiny_patch16_224", 224),
    ("ViT with registers", "timm:vit_small_patch14_reg4_dinov2", 518), ("DeiT", "timm:deit_tiny_patch16_224", 224),
    ("DeiT, distilled", "timm:deit_tiny_distilled_patch16_224", 224),
    ("Swin (timm)", "timm:swin_tiny_patch4_window7_224", 224), ("MLP-Mixer", "timm:mixer_s32_224", 224),
    ("PoolFormer", "timm:poolformer_s12", 64), ("MobileViT", "timm:mobilevit_xxs", 256),
    ("MobileViT v2", "timm:mobilevitv2_050", 256), ("LeViT", "timm:levit_128s", 224), ("CaiT", "timm:cait_xxs24_224", 224),
    ("Twins", "timm:twins_svt_small", 224), ("EfficientFormer", "timm:efficientformer_l1", 224),
    ("ConvMixer", "timm:convmixer_768_32", 64), ("gMLP", "timm:gmlp_s16_224", 224),
    ("ConvNeXt (timm)", "timm:convnext_atto", 64), ("RegNet (timm)", "timm:regnety_002", 64),
    ("GhostNet", "timm:ghostnet_100", 64), ("ResNeSt", "timm:resnest14d", 64), ("RepVGG", "timm:repvgg_a0", 64),
    ("HRNet", "timm:hrnet_w18_small", 64), ("DarkNet", "timm:darknet53", 64), ("CSPNet", "timm:cspresnet50", 64),
    ("BERT", "hf:bert", 32), ("DistilBERT", "hf:distilbert", 32), ("RoBERTa", "hf:roberta", 32),
    ("ELECTRA", "hf:electra", 32), ("DeBERTa", "hf:deberta", 32), ("ALBERT", "hf:albert", 32),
    ("ViT (transformers)", "hf:vit", 224), ("DeiT (transformers)", "hf:deit", 224),
    ("DINOv2 (transformers)", "hf:dinov2", 224), ("Swin (transformers)", "hf:swin", 224),
    ("ConvNeXt (transformers)", "hf:convnext", 64), ("MobileViT (transformers)", "hf:mobilevit", 256),
    ("ResNet (transformers)", "hf:resnet", 64), ("FocalNet", "hf:focalnet", 224), ("MaxViT", "torchvision:maxvit_t", 224),
    ("MaxViT (timm)", "timm:maxvit_rmlp_pico_rw_256", 256),
]  # fmt: skip
FIRST, LAST = (3, 128), (128, 3)  # series with channels first and last
SHORT = (32, 3)  # of recurrent layers, which are exported step by step
CLIP = (3, 8, 32, 32)  # volumes
IMAGE_AND_VECTOR = {"image": (3, 48, 48), "vector": (12,)}
INSIDE = ("modules_.1", "modules_.2", "modules_.4")  # within residual connections, whose shortcut crosses the cut
GROUPS = {"first": list(range(8)), "second": list(range(8, 20)), "third": list(range(20, 32))}


def build(network: Callable[..., nn.Module], *sizes: int, **options: object) -> Callable[[], nn.Module]:
    return partial(network, *sizes, CLASSES, **options)


def build_video(name: str) -> Callable[[], nn.Module]:
    return partial(models.get_model, name, weights=None, num_classes=CLASSES)


OTHERS = [
    Backbone("ResNet", "ResNet1d", FIRST, build(networks.ResNet1d, 3)),
    Backbone("InceptionTime", "InceptionTime", FIRST, build(networks.InceptionTime, 3), at=INSIDE),
    Backbone("TCN", "TCN", FIRST, build(networks.TCN, 3)),
    Backbone("Transformer", "Transformer", LAST, build(networks.Transformer, 3, steps=128)),
    Backbone("Transformer", "Transformer, class token", LAST, build(networks.Transformer, 3, steps=128, class_token=True)),
    Backbone("Patches", "UnfoldedPatches", FIRST, build(networks.UnfoldedPatches, 3, steps=128)),
    Backbone("GRU", "GRU", SHORT, build(networks.Recurrent, 3, kind=nn.GRU)),
    Backbone("LSTM", "LSTM, mean", SHORT, build(networks.Recurrent, 3, kind=nn.LSTM, use_mean=True)),
    Backbone("GRU", "GRU, both ways", SHORT, build(networks.Recurrent, 3, kind=nn.GRU, both_ways=True, use_mean=True)),
    Backbone("wav2vec 2.0", "Wav2Vec2", (1, 1600), build(networks.Wav2Vec2)),
    Backbone("ResNet", "torchvision r3d_18", CLIP, build_video("r3d_18")),
    Backbone("Swin", "torchvision swin3d_t", CLIP, build_video("swin3d_t")),
    Backbone("MLP", "MLP", (32,), build(networks.MLP, 32)),
    Backbone("MLP", "MLP, groups", (32,), build(networks.MLP, 32), GROUPS),
    Backbone("FT-Transformer", "FeatureTokens", (32,), build(networks.FeatureTokens, 32)),
    Backbone("FT-Transformer", "FeatureTokens, class token", (32,), build(networks.FeatureTokens, 32, class_token=True)),
    Backbone("Image and vector", "ImageAndVector", IMAGE_AND_VECTOR, build(networks.ImageAndVector, 3, 12)),
]
BACKBONES = [*(Backbone(*entry, AUXILIARY.get(entry[1])) for entry in IMAGES_AND_TEXTS), *OTHERS]


def list_cells(quick: bool = False) -> dict[str, Job]:
    return {backbone.source: partial(try_source, backbone.source) for backbone in BACKBONES[: 1 if quick else None]}


def try_source(source: str) -> Tree:
    """Try everything with one backbone; a refusal is a result as well."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    chosen = next(backbone for backbone in BACKBONES if backbone.source == source)
    try:
        return try_backbone(chosen)
    except xl.ExitlensError as error:
        return {"error": f"{type(error).__name__}: {error}"}
    except Exception as error:
        return {"error": f"not ours! {type(error).__name__}: {str(error)[:200]}"}


# How exactly the stages of a backbone do what it does, and what can be done with the network that they make


def make_inputs(chosen: Backbone, plain: nn.Module) -> Inputs:
    """Return two samples: noise, or random tokens of which the second text has a quarter of padding."""
    size = chosen.size
    if isinstance(size, Mapping):
        return {name: torch.randn(2, *shape) for name, shape in size.items()}
    if isinstance(size, tuple):
        return torch.randn(2, *size)
    if isinstance(make_example(plain, 3, size), Tensor):
        return torch.randn(2, 3, size, size)
    mask = (torch.arange(size) < torch.tensor([[size], [3 * size // 4]])).long()
    return {"input_ids": torch.randint(5, 200, (2, size)), "attention_mask": mask}


def compute_logits(module: nn.Module, x: Inputs) -> Tensor:
    if isinstance(module, xl.ExitNet):
        return module(x)[-1].logits
    return pick_logits(module(x) if isinstance(x, Tensor) else module(**x))


def try_backbone(chosen: Backbone) -> Tree:
    """Cut a backbone, compare it with its stages, and train, save, export and compile them; then answer without the library."""
    plain = chosen.build()
    x = make_inputs(chosen, plain)
    started = time.perf_counter()
    net = xl.attach(plain, chosen.at, CLASSES, x, final="keep")
    row: Tree = {"attach_seconds": time.perf_counter() - started, "cuts": list(net.info.at)}
    row["traced_by"] = "torch.export" if net.input_spec.exact_size else "torch.fx"
    row |= compare_outputs(plain, net, x)
    row["gradient_gap"] = compare_gradients(plain, net, x)
    exits, again = (xl.attach(chosen.build(), list(net.info.at), CLASSES, x, groups=chosen.groups) for _ in range(2))
    if chosen.make is None:
        exits.describe(source=chosen.source)
    row["head_share"] = exits.head_share
    row |= train_one_step(exits, x)
    exits.eval()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        backbone = None if exits.info.source else chosen.build()
        back, _ = xl.load(xl.save(exits, None, Path(folder) / "b"), backbone=backbone)
        row["bundle"] = all(find_gap(a.logits, b.logits) == 0 for a, b in zip(exits(x), back(x), strict=True))
    row["export"], row["compile"] = compile_stages(exits, x, None if chosen.groups else net.head(net.num_exits - 1))
    return row | try_edge(again)


def compare_outputs(plain: nn.Module, net: xl.ExitNet, x: Inputs) -> Tree:
    """Compare logits in both modes with the same seed, and statistics after a training pass."""
    row: Tree = {}
    for mode, training in (("eval", False), ("train", True)):
        outs, buffers = [], []
        for module in (plain, net):
            with switch_mode(module, training), torch.no_grad():
                torch.manual_seed(1)
                state = copy.deepcopy(plain.state_dict())
                outs.append(compute_logits(module, x))
                buffers.append([b.clone().float() for b in plain.buffers()])
                plain.load_state_dict(state)
        row[f"{mode}_gap"] = (outs[0] - outs[1]).abs().max().item()
        row["buffer_gap"] = max((find_gap(a, b) for a, b in zip(*buffers, strict=True)), default=0.0)
    return row


def find_gap(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item() if a.numel() else 0.0


def train_one_step(net: xl.ExitNet, x: Inputs) -> Tree:
    """Check that everything stays finite with EGT, and measure the attention that padding gets."""
    outs = net.train()(x)
    loss = xl.EGTLoss()(outs, torch.tensor([0, 4])).total
    loss.backward()
    finite = all(bool(torch.isfinite(p.grad).all()) for p in net.parameters() if p.grad is not None)
    mask = None if isinstance(x, Tensor) else x.get("attention_mask")
    padding = torch.zeros(1) if mask is None else outs[0].attention[mask == 0]
    return {"egt_step": bool(torch.isfinite(loss)) and finite, "padding_attention": padding.abs().max().item()}


def compare_gradients(plain: nn.Module, net: xl.ExitNet, x: Inputs) -> float:
    plain.eval(), net.eval()
    grads = []
    weights = torch.randn(2, CLASSES)  # some classifiers start at zero, so the logits alone would have no gradient
    for module in (plain, net):
        plain.zero_grad()
        (compute_logits(module, x) * weights).sum().backward()
        grads.append({name: p.grad.clone() for name, p in plain.named_parameters() if p.grad is not None})
    plain.zero_grad()
    if grads[0].keys() != grads[1].keys():
        return math.nan
    scale = max(g.abs().max().item() for g in grads[0].values())
    return max(find_gap(grads[0][name], grads[1][name]) for name in grads[0]) / scale


def compile_stages(net: xl.ExitNet, x: Inputs, kept: nn.Module | None) -> tuple[bool, bool]:
    """Send stages and heads (also ``kept``, the backbone's classifier) through torch.export, and stages through torch.compile's front end."""
    activations = list_tensors(map_inputs(x, lambda t: torch.cat([t, t])[:3]))
    outcomes = {"export": True, "compile": True}
    for k, stage in enumerate(net.stages):
        torch._dynamo.reset()
        with torch.no_grad():
            after = stage(*activations)
        heads = [net.head(k), *([kept.eval()] if kept is not None and k == net.num_exits - 1 else [])]
        works = {"export": partial(export_stage, stage, heads), "compile": partial(compile_stage, stage)}
        for name, work in works.items():
            try:
                outcomes[name] &= work(activations, after)
            except Exception as error:
                print(f"   {name} of stage {k}: {type(error).__name__}: {str(error)[:160]}")
                outcomes[name] = False
        activations = after
    return outcomes["export"], outcomes["compile"]


def export_stage(stage: nn.Module, heads: Sequence[nn.Module], activations: Tensors, after: Tensors) -> bool:
    """Return whether the exported stage is right for another number of samples; raise if it or a head cannot be exported."""
    batch = torch.export.Dim("batch", min=2, max=512)
    shapes = (tuple({0: batch} for _ in activations),)
    exported = torch.export.export(stage, activations, dynamic_shapes=shapes).module()
    for head in heads:
        torch.export.export(head, after, dynamic_shapes=(tuple({0: batch} for _ in after),))
    return are_close(exported(*[t[:2] for t in activations])[0], after[0][:2])


def compile_stage(stage: nn.Module, activations: Tensors, after: Tensors) -> bool:
    """Return whether the whole stage but for recurrent layers is one graph, and the graph is right."""
    for tensor in activations:
        torch._dynamo.mark_dynamic(tensor, 0)
    whole = not any(isinstance(module, nn.RNNBase) for module in stage.modules())  # these torch.compile leaves alone
    return are_close(torch.compile(stage, backend="eager", fullgraph=whole)(*activations)[0], after[0])


def are_close(values: Tensor, expected: Tensor) -> bool:
    return torch.allclose(values, expected, atol=1e-4, rtol=1e-3)


# Does the network become an edge bundle, and does the runtime decide as the library does?


def try_edge(net: xl.ExitNet) -> Tree:
    """Export a network, open it without the library, and compare its answers."""
    wake(net)
    activations, given = draw_samples(net)
    names, policy, with_maps = name_inputs(net), choose_policy(net, given), have_maps(net.heads)
    expected = xl.predict(net, given, policy, attention=with_maps)
    preds = list[exitlens_runtime.Prediction]()
    with tempfile.TemporaryDirectory() as folder:
        try:
            edge = exitlens_runtime.load(xl.export(net, policy, Path(folder) / "edge"))
            for at in range(0, SAMPLES, BATCH):
                batch = {n: t[at : at + BATCH].numpy() for n, t in zip(names, activations, strict=True)}
                preds.append(edge.predict(batch, attention=with_maps))
        except (xl.ExitlensError, exitlens_runtime.ExitlensRuntimeError) as error:
            return {"edge": False, "edge_error": str(error).replace(f"{folder}/edge/", "")[:300]}
    if len(expected.exits.unique()) == 1:
        return {"edge": False, "edge_error": "its random weights answer all samples alike, which shows nothing of decisions"}
    exits, labels = (np.concatenate([getattr(pred, name) for pred in preds]) for name in ("exits", "labels"))
    same = (exits == expected.exits.numpy()) & (labels == expected.labels.numpy())
    maps = [attention for pred in preds for attention in pred.attention or ()]
    pairs = zip(maps, [attention.numpy() for attention in expected.attention or ()], same, strict=True) if with_maps else ()
    gap = max((float(np.abs(a - b).max()) for a, b, ok in pairs if ok), default=0.0)
    return {"edge": bool(same.all()) and gap <= 1e-4, "edge_others": int((~same).sum()), "edge_map_gap": gap}


def draw_samples(net: xl.ExitNet) -> tuple[Tensors, Inputs]:
    """Return random samples: as tensors, and as the network takes them."""
    activations, names = draw_for(net, SAMPLES), net.input_spec.names
    return activations, dict(zip(names, activations, strict=True)) if names else activations[0]


def wake(net: xl.ExitNet) -> None:
    """Give a network of random weights something to say: its own batch statistics, and maps that are not uniform."""
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            module.momentum = None  # the plain mean of all batches
    with torch.no_grad():
        for k in range(net.num_exits):
            attend = net.head(k).attend.weight
            nn.init.normal_(attend, std=attend[0].numel() ** -0.5)
        _, given = draw_samples(net)
        for _ in range(PASSES):  # graphs may have another momentum written into them
            net.train()(given)
            if all(float(out.logits.std(0).mean()) > SPREAD for out in net.eval()(given)):
                break
    net.eval()


def choose_policy(net: xl.ExitNet, given: Any) -> xl.Policy:
    """Return at every early exit a threshold in the widest gap near the upper third of the scores.

    Logits of random weights hardly differ between samples: the temperatures stretch them, so that scores do.
    """
    outputs = xl.collect(net, given).logits.unbind(1)
    temperatures = [max(float(logits.std()), 1e-6) for logits in outputs]
    thresholds = []
    for logits, temperature in zip(outputs[:-1], temperatures, strict=False):
        ordered = (logits / temperature).softmax(-1).amax(-1).sort().values
        middle = slice(SAMPLES // 2, 5 * SAMPLES // 6)
        at = SAMPLES // 2 + int((ordered[1:] - ordered[:-1])[middle].argmax())
        thresholds.append(float((ordered[at] + ordered[at + 1]) / 2))
    return xl.Policy(tuple(thresholds), temperatures=tuple(temperatures), network=net.identity())


GAPS, CHECKS = ("eval_gap", "train_gap", "gradient_gap"), ("egt_step", "bundle", "export", "compile", "edge")


def passes(row: Tree) -> bool:
    if "error" in row or row["eval_gap"] != 0:
        return False
    exact = all(row[name] <= TOLERANCE for name in ("train_gap", "gradient_gap", "buffer_gap"))
    return exact and row["head_share"] <= 0.05 and row["padding_attention"] == 0 and all(row[name] for name in CHECKS)


def write_backbones(runs: Runs) -> list[str]:
    """Write a table for each kind of input, then what was not exported, and what was refused."""
    lines, done = [], [(backbone, runs[backbone.source]) for backbone in BACKBONES if backbone.source in runs]
    head = ["family", "source", "trace", "exits after", "eval", "train", "gradient"]
    head += ["step", "bundle", "export", "compile", "edge", "heads", "attach"]
    for kind in dict.fromkeys(backbone.inputs for backbone, _ in done):
        chosen = [(backbone, row) for backbone, row in done if backbone.inputs == kind]
        families = len({backbone.family.split(" (")[0] for backbone, _ in chosen})
        good = sum(passes(row) for _, row in chosen)
        passed = f"{good} of {len(chosen)} pass everything, from {families} famil{'ies' if families > 1 else 'y'}."
        lines += [f"## {kind}", "", passed, ""]
        lines += [*table(head, (write_row(backbone, row) for backbone, row in chosen if "error" not in row)), ""]
    for title, key in (("Not exported:", "edge_error"), ("Refused:", "error")):
        if faults := [f"- `{source}`: {row[key]}" for source, row in runs.items() if key in row]:
            lines += [title, "", *faults, ""]
    return lines[:-1]


def write_row(backbone: Backbone, row: Tree) -> list[str]:
    cuts = ", ".join(f"`{cut}`" for cut in row["cuts"])
    cells = [backbone.family, f"`{backbone.source}`", row["traced_by"].removeprefix("torch."), cuts]
    cells += [f"{row[name]:.1g}" for name in GAPS]
    cells += ["yes" if row.get(name) else "**no**" for name in CHECKS]
    return [*cells, f"{100 * row['head_share']:.2f} %", f"{row['attach_seconds']:.1f} s"]


STUDY = Study("backbones", list_cells, tables={"backbones": write_backbones}, processes=2)
