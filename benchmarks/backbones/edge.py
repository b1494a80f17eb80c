"""Whether a backbone with exits becomes an edge bundle, and whether the runtime decides as the library does."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import exitlens as xl
import exitlens_runtime
from exitlens.edge.export import draw_for, name_inputs
from exitlens.model.heads.exit_heads import have_maps

SAMPLES, BATCH = 24, 8
PASSES, SPREAD = 12, 1e-3  # at most so many to learn batch statistics by, until logits differ so much between samples


def try_edge(net: xl.ExitNet) -> dict[str, Any]:
    """Exported (which compares every file at batches of 1 to 64), opened without the library, and asked.

    Thresholds lie between the samples' scores, so that about a third of them leaves at every exit.
    """
    wake(net)
    activations, names = draw_for(net, SAMPLES), name_inputs(net)
    given = dict(zip(names, activations, strict=True)) if net.input_spec.names else activations[0]
    policy, with_maps = choose_policy(net, given), have_maps(net.heads)
    expected = xl.predict(net, given, policy, attention=with_maps)
    found = list[exitlens_runtime.Prediction]()
    with tempfile.TemporaryDirectory() as folder:
        try:
            edge = exitlens_runtime.load(xl.export(net, policy, Path(folder) / "edge"))
            for at in range(0, SAMPLES, BATCH):
                batch = {n: t[at : at + BATCH].numpy() for n, t in zip(names, activations, strict=True)}
                found.append(edge.predict(batch, attention=with_maps))
        except (xl.ExitlensError, exitlens_runtime.ExitlensRuntimeError) as error:
            return {"edge": False, "edge_error": str(error).replace(f"{folder}/edge/", "")[:300]}
    same = (np.concatenate([f.exits for f in found]) == expected.exits.numpy()) & (
        np.concatenate([f.labels for f in found]) == expected.labels.numpy()
    )
    maps = [m for f in found for m in f.attention or ()]
    ours = [m.numpy() for m in expected.attention or ()]
    pairs = zip(maps, ours, same, strict=True) if with_maps else ()
    gap = max((float(np.abs(a - b).max()) for a, b, ok in pairs if ok), default=0.0)
    if len(expected.exits.unique()) == 1:
        return {
            "edge": False,
            "edge_error": "its random weights answer every sample alike, which shows nothing of decisions",
        }
    return {"edge": bool(same.all()) and gap <= 1e-4, "edge_others": int((~same).sum()), "edge_map_gap": gap}


def wake(net: xl.ExitNet) -> None:
    """Gives a network of random weights something to say: its own batch statistics, and maps that are not uniform."""
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            module.momentum = None  # the plain mean of all batches
    with torch.no_grad():
        for k in range(net.num_exits):
            attend = net.head(k).attend.weight
            nn.init.normal_(attend, std=attend[0].numel() ** -0.5)
        activations = draw_for(net, SAMPLES)
        given = dict(zip(net.input_spec.names, activations, strict=True)) if net.input_spec.names else activations[0]
        for _ in range(PASSES):  # graphs may have another momentum written into them
            net.train()(given)
            if all(float(out.logits.std(0).mean()) > SPREAD for out in net.eval()(given)):
                break
    net.eval()


def choose_policy(net: xl.ExitNet, given: Any) -> xl.Policy:
    """At every early exit a threshold in the widest gap near the upper third of the scores.

    Logits of random weights hardly differ between samples: the temperatures stretch them, so that scores do.
    """
    with net.open_engine() as engine:
        logits = [one for one, _ in engine.compute_outputs(engine.enter(net.check_input(given)))]
    temperatures = [max(float(one.std()), 1e-6) for one in logits]
    thresholds = []
    for one, temperature in zip(logits[:-1], temperatures, strict=False):
        ordered = (one / temperature).softmax(-1).amax(-1).sort().values
        middle = slice(SAMPLES // 2, 5 * SAMPLES // 6)
        at = SAMPLES // 2 + int((ordered[1:] - ordered[:-1])[middle].argmax())
        thresholds.append(float((ordered[at] + ordered[at + 1]) / 2))
    return xl.Policy(tuple(thresholds), temperatures=tuple(temperatures), network=net.identity())
