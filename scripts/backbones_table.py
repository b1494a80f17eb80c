"""Tries every backbone below and writes docs/backbones.md: what is cut, how exactly, and what is refused and why.

Usage: python scripts/backbones_table.py   (resumable: results are kept in benchmarks/results/backbones.json)

Weights are random and the images small where the network takes them: what is checked is structure, not accuracy.
"""

from __future__ import annotations

import copy
import json
import tempfile
import time
import warnings
from pathlib import Path

import torch

import exitlens as xl
from exitlens.model.modes import mode_of

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "backbones.json"
BACKBONES = [  # family, source, image size
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
    ("Inception v3", "torchvision:inception_v3", 160),
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
    ("ConvNeXt (timm)", "timm:convnext_atto", 64),
    ("RegNet (timm)", "timm:regnety_002", 64),
    ("GhostNet", "timm:ghostnet_100", 64),
    ("ResNeSt", "timm:resnest14d", 64),
    ("RepVGG", "timm:repvgg_a0", 64),
    ("HRNet", "timm:hrnet_w18_small", 64),
    ("DarkNet", "timm:darknet53", 64),
    ("CSPNet", "timm:cspresnet50", 64),
    ("MaxViT", "torchvision:maxvit_t", 224),
]


def try_backbone(source: str, size: int) -> dict:
    torch.manual_seed(0)
    x = torch.randn(2, 3, size, size)
    plain = xl.build_backbone(source, 5)
    started = time.perf_counter()
    net = xl.attach(plain, 3, 5, x, final="keep")
    row: dict = {"attach_seconds": time.perf_counter() - started, "cuts": list(net.info.at)}
    for mode, training in (("eval", False), ("train", True)):
        outs = []
        for module in (plain, net):
            with mode_of(module, training), torch.no_grad():
                torch.manual_seed(1)
                state = copy.deepcopy(plain.state_dict())
                out = module(x)
                plain.load_state_dict(state)
                outs.append(out[-1].logits if module is net else getattr(out, "logits", out))
        row[f"{mode}_gap"] = (outs[0] - outs[1]).abs().max().item()
    row["gradient_gap"] = gradient_gap(plain, net, x)
    trained = xl.attach(source, list(net.info.at), 5, x)
    row["head_share"] = trained.head_share
    loss = xl.EGTLoss()(trained.train()(x), torch.tensor([0, 4])).total
    loss.backward()
    row["egt_step"] = bool(torch.isfinite(loss))
    row["bundle"] = bundle_gap(trained.eval(), x) == 0
    row["export"], row["compile"] = compiled(trained, x)
    return row


def gradient_gap(plain: torch.nn.Module, net: xl.ExitNet, x: torch.Tensor) -> float:
    plain.eval(), net.eval()
    grads = []
    weights = torch.randn(len(x), 5)  # some classifiers start at zero, so the logits alone would have no gradient
    for run in (lambda: plain(x), lambda: net(x)[-1].logits):
        plain.zero_grad()
        (run() * weights).sum().backward()
        grads.append([p.grad.clone() for p in plain.parameters() if p.grad is not None])
    plain.zero_grad()
    scale = max(g.abs().max().item() for g in grads[0])
    return max((a - b).abs().max().item() for a, b in zip(*grads, strict=True)) / scale


def bundle_gap(net: xl.ExitNet, x: torch.Tensor) -> float:
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        back, _ = xl.load(xl.save(net, None, Path(folder) / "b"))
        return max((a.logits - b.logits).abs().max().item() for a, b in zip(net(x), back(x), strict=True))


def compiled(net: xl.ExitNet, x: torch.Tensor) -> tuple[bool, bool]:
    """Every stage and head through torch.export with a dynamic batch, and through torch.compile's front end."""
    batch = torch.export.Dim("batch", min=2, max=512)
    carried: tuple[torch.Tensor, ...] = (torch.cat([x, x])[:3],)
    ok = [True, True]
    for k, stage in enumerate(net.stages):
        torch._dynamo.reset()
        with torch.no_grad():
            after = stage(*carried)
        try:
            made = torch.export.export(stage, carried, dynamic_shapes=(tuple({0: batch} for _ in carried),)).module()
            ok[0] &= torch.allclose(made(*[t[:2] for t in carried])[0], after[0][:2], atol=1e-4, rtol=1e-3)
            torch.export.export(net.head(k), (after[0],), dynamic_shapes=({0: batch},))
        except Exception as error:
            print(f"   export of stage {k}: {type(error).__name__}: {str(error)[:160]}")
            ok[0] = False
        try:
            quick = torch.compile(stage, backend="eager", fullgraph=True, dynamic=True)
            ok[1] &= torch.allclose(quick(*carried)[0], after[0], atol=1e-4, rtol=1e-3)
        except Exception as error:
            print(f"   compile of stage {k}: {type(error).__name__}: {str(error)[:160]}")
            ok[1] = False
        carried = after
    return ok[0], ok[1]


def passes(row: dict) -> bool:
    if "error" in row:
        return False
    exact = row["eval_gap"] == 0 and row["train_gap"] <= 1e-5 and row["gradient_gap"] <= 1e-5
    return exact and all(row[name] for name in ("egt_step", "bundle", "export", "compile"))


def write(rows: dict[str, dict]) -> None:
    done = [(family, source, rows[source]) for family, source, _ in BACKBONES if source in rows]
    good = sum(passes(row) for *_, row in done)
    lines = [
        "# Backbones",
        "",
        "Written by `make backbones` (`scripts/backbones_table.py`); do not edit. Random weights, three early exits placed at "
        'equal shares of cost, `final="keep"` for the differences and evidence heads for the rest. Differences are the '
        "largest absolute ones between staged and plain logits with the same seed, and between gradients relative to the "
        "largest gradient. *step*: one training step with EGT; *bundle*: saved, loaded, same logits; *export*: every stage and "
        "head through `torch.export` with a dynamic batch; *compile*: every stage through `torch.compile(fullgraph=True, "
        "dynamic=True)` (front end). *heads*: MACs of all heads over the backbone's.",
        "",
        f"{good} of {len(done)} pass everything, from {len({family.split(' (')[0] for family, *_ in done})} families.",
        "",
        "| family | source | exits after | eval | train | gradient | step | bundle | export | compile | heads | attach |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    mark = {True: "yes", False: "**no**"}
    refused = []
    for family, source, row in done:
        if "error" in row:
            refused.append(f"- `{source}`: {row['error']}")
            continue
        cells = [family, f"`{source}`", ", ".join(f"`{c}`" for c in row["cuts"])]
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
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for _, source, size in BACKBONES:
        if source in rows:
            continue
        started = time.perf_counter()
        try:
            rows[source] = try_backbone(source, size)
        except xl.ExitlensError as error:
            rows[source] = {"error": f"{type(error).__name__}: {error}"}
        except Exception as error:
            rows[source] = {"error": f"not ours! {type(error).__name__}: {str(error)[:200]}"}
        verdict = "ok" if passes(rows[source]) else rows[source].get("error", rows[source])
        print(f"{time.perf_counter() - started:5.1f} s  {source}: {verdict}", flush=True)
        RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
        write(rows)
    write(rows)


if __name__ == "__main__":
    main()
