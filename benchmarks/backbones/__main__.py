"""Tries every backbone below and writes docs/backbones.md: what is cut, how exactly, and what is refused and why.

Usage: python -m benchmarks.backbones [PART PARTS]   (resumable: results are kept in benchmarks/results/backbones.json;
with PART 0 and PARTS 2 every second backbone, so that two processes share the work)

Weights are random and the images small where the network takes them: what is checked is structure, not accuracy.
"""

from __future__ import annotations

import copy
import json
import math
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torchvision import models

import exitlens as xl
from exitlens.functional.inputs import Inputs, map_inputs, tensors_of
from exitlens.model.backbones import zeros_for
from exitlens.model.modes import mode_of
from exitlens.model.outputs import pick_logits
from exitlens.model.weights import write_text

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "backbones.json"
AUXILIARY: dict[str, Callable[[], nn.Module]] = {  # sources by name build these without their auxiliary outputs
    "googlenet(aux_logits=True)": lambda: models.googlenet(num_classes=5, aux_logits=True, init_weights=False),
    "inception_v3(aux_logits=True)": lambda: models.inception_v3(num_classes=5, aux_logits=True, init_weights=False),
}
BACKBONES = [  # family, source, pixels a side (tokens of a text)
    ("small (ours)", "small", 40),
    ("ResNet", "torchvision:resnet18", 64),
    ("ResNet", "torchvision:resnet50", 64),
    ("ResNeXt", "torchvision:resnext50_32x4d", 64),
    ("Wide ResNet", "torchvision:wide_resnet50_2", 64),
    ("DenseNet", "torchvision:densenet121", 64),
    ("VGG", "torchvision:vgg11", 64),
    ("VGG", "torchvision:vgg11_bn", 64),
    ("AlexNet", "torchvision:alexnet", 128),
    ("SqueezeNet", "torchvision:squeezenet1_1", 64),
    ("ShuffleNet v2", "torchvision:shufflenet_v2_x1_0", 64),
    ("MNASNet", "torchvision:mnasnet0_5", 64),
    ("MobileNet v2", "torchvision:mobilenet_v2", 64),
    ("MobileNet v3", "torchvision:mobilenet_v3_small", 64),
    ("MobileNet v3", "torchvision:mobilenet_v3_large", 64),
    ("EfficientNet", "torchvision:efficientnet_b0", 64),
    ("EfficientNet v2", "torchvision:efficientnet_v2_s", 64),
    ("RegNet", "torchvision:regnet_x_400mf", 64),
    ("RegNet", "torchvision:regnet_y_400mf", 64),
    ("ConvNeXt", "torchvision:convnext_tiny", 64),
    ("GoogLeNet", "torchvision:googlenet", 96),
    ("GoogLeNet (auxiliary outputs)", "googlenet(aux_logits=True)", 96),
    ("Inception v3", "torchvision:inception_v3", 160),
    ("Inception v3 (auxiliary outputs)", "inception_v3(aux_logits=True)", 299),
    ("ViT", "torchvision:vit_b_16", 224),
    ("Swin", "torchvision:swin_t", 64),
    ("Swin v2", "torchvision:swin_v2_t", 64),
    ("ResNet (timm)", "timm:resnet18", 64),
    ("EfficientNet-Lite", "timm:efficientnet_lite0", 64),
    ("ViT (timm)", "timm:vit_tiny_patch16_224", 224),
    ("ViT with registers", "timm:vit_small_patch14_reg4_dinov2", 518),
    ("DeiT", "timm:deit_tiny_patch16_224", 224),
    ("DeiT, distilled", "timm:deit_tiny_distilled_patch16_224", 224),
    ("Swin (timm)", "timm:swin_tiny_patch4_window7_224", 224),
    ("MLP-Mixer", "timm:mixer_s32_224", 224),
    ("PoolFormer", "timm:poolformer_s12", 64),
    ("MobileViT", "timm:mobilevit_xxs", 256),
    ("MobileViT v2", "timm:mobilevitv2_050", 256),
    ("LeViT", "timm:levit_128s", 224),
    ("CaiT", "timm:cait_xxs24_224", 224),
    ("Twins", "timm:twins_svt_small", 224),
    ("EfficientFormer", "timm:efficientformer_l1", 224),
    ("ConvMixer", "timm:convmixer_768_32", 64),
    ("gMLP", "timm:gmlp_s16_224", 224),
    ("ConvNeXt (timm)", "timm:convnext_atto", 64),
    ("RegNet (timm)", "timm:regnety_002", 64),
    ("GhostNet", "timm:ghostnet_100", 64),
    ("ResNeSt", "timm:resnest14d", 64),
    ("RepVGG", "timm:repvgg_a0", 64),
    ("HRNet", "timm:hrnet_w18_small", 64),
    ("DarkNet", "timm:darknet53", 64),
    ("CSPNet", "timm:cspresnet50", 64),
    ("BERT", "hf:bert", 32),
    ("DistilBERT", "hf:distilbert", 32),
    ("RoBERTa", "hf:roberta", 32),
    ("ELECTRA", "hf:electra", 32),
    ("DeBERTa", "hf:deberta", 32),
    ("ALBERT", "hf:albert", 32),
    ("ViT (transformers)", "hf:vit", 224),
    ("DeiT (transformers)", "hf:deit", 224),
    ("DINOv2 (transformers)", "hf:dinov2", 224),
    ("Swin (transformers)", "hf:swin", 224),
    ("ConvNeXt (transformers)", "hf:convnext", 64),
    ("MobileViT (transformers)", "hf:mobilevit", 256),
    ("ResNet (transformers)", "hf:resnet", 64),
    ("FocalNet", "hf:focalnet", 224),
    ("MaxViT", "torchvision:maxvit_t", 224),
    ("MaxViT (timm)", "timm:maxvit_rmlp_pico_rw_256", 256),
]


def build(source: str) -> nn.Module:
    torch.manual_seed(0)
    return AUXILIARY[source]() if source in AUXILIARY else xl.build_backbone(source, 5)


def inputs_for(plain: nn.Module, size: int) -> Inputs:
    """Two samples: noise, or random tokens of which the second text has a quarter of padding."""
    zeros = zeros_for(plain, 3, size)
    if isinstance(zeros, torch.Tensor):
        return torch.randn(2, 3, size, size)
    mask = (torch.arange(size) < torch.tensor([[size], [3 * size // 4]])).long()
    return {"input_ids": torch.randint(5, 200, (2, size)), "attention_mask": mask}


def logits_of(module: nn.Module, x: Inputs) -> torch.Tensor:
    if isinstance(module, xl.ExitNet):
        return module(x)[-1].logits
    return pick_logits(module(x) if isinstance(x, torch.Tensor) else module(**x))


def try_backbone(source: str, size: int) -> dict:
    plain = build(source)
    x = inputs_for(plain, size)
    started = time.perf_counter()
    net = xl.attach(plain, 3, 5, x, final="keep")
    row: dict = {"attach_seconds": time.perf_counter() - started, "cuts": list(net.info.at)}
    row["traced_by"] = "torch.export" if net.contract.exact_size else "torch.fx"
    for mode, training in (("eval", False), ("train", True)):
        outs, buffers = [], []
        for module in (plain, net):
            with mode_of(module, training), torch.no_grad():
                torch.manual_seed(1)
                state = copy.deepcopy(plain.state_dict())
                outs.append(logits_of(module, x))
                buffers.append([b.clone().float() for b in plain.buffers()])
                plain.load_state_dict(state)
        row[f"{mode}_gap"] = (outs[0] - outs[1]).abs().max().item()
        row["buffer_gap"] = max((gap(a, b) for a, b in zip(*buffers, strict=True)), default=0.0)  # statistics, training
    row["gradient_gap"] = gradient_gap(plain, net, x)
    trained = xl.attach(build(source), list(net.info.at), 5, x)
    if source not in AUXILIARY:
        trained.describe(source=source)
    row["head_share"] = trained.head_share
    outs = trained.train()(x)
    loss = xl.EGTLoss()(outs, torch.tensor([0, 4])).total
    loss.backward()
    row["egt_step"] = bool(torch.isfinite(loss)) and finite_gradients(trained)
    padding = torch.zeros(1) if isinstance(x, torch.Tensor) else outs[0].attention[x["attention_mask"] == 0]
    row["padding_attention"] = padding.abs().max().item()
    row["bundle"] = bundle_gap(trained.eval(), x, None if trained.info.source else build(source)) == 0
    row["export"], row["compile"] = compiled(trained, x, net.head(net.num_exits - 1))
    return row


def finite_gradients(net: nn.Module) -> bool:
    return all(bool(torch.isfinite(p.grad).all()) for p in net.parameters() if p.grad is not None)


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).abs().max().item() if a.numel() else 0.0


def gradient_gap(plain: nn.Module, net: xl.ExitNet, x: Inputs) -> float:
    plain.eval(), net.eval()
    grads = []
    weights = torch.randn(2, 5)  # some classifiers start at zero, so the logits alone would have no gradient
    for module in (plain, net):
        plain.zero_grad()
        (logits_of(module, x) * weights).sum().backward()
        grads.append({name: p.grad.clone() for name, p in plain.named_parameters() if p.grad is not None})
    plain.zero_grad()
    if grads[0].keys() != grads[1].keys():
        return math.nan
    scale = max(g.abs().max().item() for g in grads[0].values())
    return max(gap(grads[0][name], grads[1][name]) for name in grads[0]) / scale


def bundle_gap(net: xl.ExitNet, x: Inputs, backbone: nn.Module | None) -> float:
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        back, _ = xl.load(xl.save(net, None, Path(folder) / "b"), backbone=backbone)
        return max(gap(a.logits, b.logits) for a, b in zip(net(x), back(x), strict=True))


def compiled(net: xl.ExitNet, x: Inputs, kept: nn.Module) -> tuple[bool, bool]:
    """Every stage and head through torch.export, and every stage through torch.compile's front end; a dynamic batch."""
    kept.eval()
    batch = torch.export.Dim("batch", min=2, max=512)
    carried = tensors_of(map_inputs(x, lambda t: torch.cat([t, t])[:3]))
    ok = [True, True]
    for k, stage in enumerate(net.stages):
        torch._dynamo.reset()
        with torch.no_grad():
            after = stage(*carried)
        try:
            made = torch.export.export(stage, carried, dynamic_shapes=(tuple({0: batch} for _ in carried),)).module()
            ok[0] &= torch.allclose(made(*[t[:2] for t in carried])[0], after[0][:2], atol=1e-4, rtol=1e-3)
            for head in (net.head(k), kept) if k == net.num_exits - 1 else (net.head(k),):
                torch.export.export(head, after, dynamic_shapes=(tuple({0: batch} for _ in after),))
        except Exception as error:
            print(f"   export of stage {k}: {type(error).__name__}: {str(error)[:160]}")
            ok[0] = False
        try:
            for tensor in carried:
                torch._dynamo.mark_dynamic(tensor, 0)
            quick = torch.compile(stage, backend="eager", fullgraph=True)
            ok[1] &= torch.allclose(quick(*carried)[0], after[0], atol=1e-4, rtol=1e-3)
        except Exception as error:
            print(f"   compile of stage {k}: {type(error).__name__}: {str(error)[:160]}")
            ok[1] = False
        carried = after
    return ok[0], ok[1]


def passes(row: dict) -> bool:
    if "error" in row:
        return False
    exact = row["eval_gap"] == 0 and row["train_gap"] <= 1e-5 and row["gradient_gap"] <= 1e-5 and row["buffer_gap"] <= 1e-5
    return (
        exact
        and row["head_share"] <= 0.05
        and row["padding_attention"] == 0
        and all(row[name] for name in ("egt_step", "bundle", "export", "compile"))
    )


def write(rows: dict[str, dict]) -> None:
    done = [(family, source, rows[source]) for family, source, _ in BACKBONES if source in rows]
    good = sum(passes(row) for *_, row in done)
    lines = [
        "# Backbones",
        "",
        "Written by `make backbones` (`benchmarks/backbones`); do not edit. Random weights, three early exits placed at "
        'equal shares of cost, `final="keep"` for the differences and evidence heads for the rest; one core. Differences are '
        "the largest absolute ones between staged and plain logits with the same seed (dropout and stochastic depth included), "
        "and between gradients relative to the largest gradient; batch-norm statistics after a training pass are compared too. "
        "*trace*: by torch.fx (any image size) or torch.export (the example's size); *step*: one training step with EGT, all "
        "gradients finite; *bundle*: saved, loaded, same logits; *export*: every stage and head through `torch.export` with a "
        "dynamic batch; *compile*: every stage through `torch.compile(fullgraph=True)` with a dynamic batch (front end). *heads*: MACs "
        "of all heads over the backbone's. Texts have 32 tokens, a quarter of the second one padding, which must get attention "
        "0, exactly. To pass, eval must be 0, and train, gradient and statistics at most 1e-5.",
        "",
        f"{good} of {len(done)} pass everything, from {len({family.split(' (')[0] for family, *_ in done})} families.",
        "",
        "| family | source | trace | exits after | eval | train | gradient | step | bundle | export | compile | heads | attach |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    mark = {True: "yes", False: "**no**"}
    refused = []
    for family, source, row in done:
        if "error" in row:
            refused.append(f"- `{source}`: {row['error']}")
            continue
        cells = [family, f"`{source}`", row["traced_by"].removeprefix("torch."), ", ".join(f"`{c}`" for c in row["cuts"])]
        cells += [f"{row[name]:.1g}" for name in ("eval_gap", "train_gap", "gradient_gap")]
        cells += [mark[row[name]] for name in ("egt_step", "bundle", "export", "compile")]
        lines.append(
            "| " + " | ".join([*cells, f"{100 * row['head_share']:.2f} %", f"{row['attach_seconds']:.1f} s"]) + " |"
        )
    if refused:
        lines += ["", "Refused:", "", *refused]
    (ROOT / "docs" / "backbones.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    part, parts = (int(word) for word in sys.argv[1:3]) if len(sys.argv) > 2 else (0, 1)
    for _, source, size in BACKBONES[part::parts]:
        if source in saved():
            continue
        started = time.perf_counter()
        try:
            row = try_backbone(source, size)
        except xl.ExitlensError as error:
            row = {"error": f"{type(error).__name__}: {error}"}
        except Exception as error:
            row = {"error": f"not ours! {type(error).__name__}: {str(error)[:200]}"}
        verdict = "ok" if passes(row) else row.get("error", row)
        print(f"{time.perf_counter() - started:5.1f} s  {source}: {verdict}", flush=True)
        write_text(RESULTS, json.dumps(saved() | {source: row}, indent=1) + "\n")
    write(saved())


def saved() -> dict[str, dict]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


if __name__ == "__main__":
    main()
