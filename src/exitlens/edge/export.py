"""export: a network with its policy as a directory of ONNX files that answers without PyTorch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import exitlens
from exitlens.edge.cascade import TEMPERATURES, THRESHOLDS, write_cascade
from exitlens.errors import ExportError, OutputExistsError, require
from exitlens.functional.routing import cover
from exitlens.functional.scores import score
from exitlens.io import read_json, replace_directory, write_json, write_manifest
from exitlens.model.cutting.stage import Activations
from exitlens.model.cutting.verify import draw_inputs
from exitlens.model.engine.onnx_files import (
    ATTENTION,
    BATCHES,
    LOGITS,
    Written,
    cut_segments,
    import_onnx,
    open_file,
    write_segments,
)
from exitlens.model.heads.exit_heads import have_maps
from exitlens.model.network import ExitNet
from exitlens.types import Policy, Prediction
from exitlens.types.inputs import Inputs, list_tensors
from exitlens.types.policies import check_named
from exitlens.workflow.inference import predict

FORMAT = 1
MANIFEST, POLICY, GOLDEN, CASCADE = "manifest.json", "policy.json", "golden.npz", "cascade.onnx"
POLICIES = "policies.json"  # only where there are any with a name
GOLDEN_SAMPLES, CASCADE_SAMPLES = 8, 17
NEAR = 1e-3  # of a threshold, rounding may decide; and what scores and maps may differ by


def export(
    net: ExitNet,
    policy: Policy,
    directory: str | Path,
    *,
    policies: Mapping[str, Policy] | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes an edge bundle: ONNX files, the policies, and all that ``exitlens_runtime.load`` needs; no PyTorch there.

    Each exit that can answer has a file with everything since the exit before (opset 18, float32, any number of samples).
    Each is compared with the network at batches of 1, 2, 3, 17 and 64 before the directory appears.

    Args:
        net: in float32.
        policy: of this network; exits that no policy here lets fire are not in the files, so one that uses other exits needs
            another export. Thresholds and temperatures can be exchanged without one.
        directory: a new directory; it appears complete or not at all.
        policies: further ones by name, as in :func:`exitlens.save`; ``exitlens_runtime.load(dir, policy=name)`` takes one.
            ``cascade.onnx`` has the score of ``policy``, so it takes their thresholds where they use that, and no gate.
        overwrite: replace an existing edge bundle.

    Raises:
        ExportError: where the network cannot be written so, or the files do not give the same; MissingExtraError: without
            the extra ``onnx``; OutputExistsError: if the directory exists; PolicyError: for a policy of another network;
            InputError: for a name that no policy may have.

    Examples:
        >>> sorted(file.name for file in xl.export(net, policy, "edge").glob("*.onnx"))
        ['cascade.onnx', 'stage_0.onnx', 'stage_1.onnx', 'stage_2.onnx']
    """
    check_arguments(net, policy, directory)
    named = {} if policies is None else policies
    check_named(named, net.num_exits, net.identity(), net.info.task)
    target = Path(directory).resolve()
    own = check_target(target, overwrite) | {POLICIES}
    with replace_directory(target, own) as temporary:
        parts = write_stages(temporary, net, cover([policy, *named.values()]))
        write_bundle(temporary, net, policy, parts, named)
    return target


def check_arguments(net: ExitNet, policy: Policy, directory: str | Path) -> None:
    """Raises an error of ours unless this is a network, a policy of it and a directory, and ONNX files can be written."""
    require(net, ExitNet, "net")
    require(policy, Policy, "policy", "see exitlens.calibrate")
    require(directory, str | Path, "directory")
    import_onnx()
    if next(net.head(0).parameters()).dtype != torch.float32:
        raise ExportError("net: expected float32, which edge bundles are in: net.float(), and calibrate a policy for it")
    if net.is_tuned and net.tuning.precision != "float32":
        raise ExportError(f"net: it is tuned to {net.tuning.precision}: set net.tuning = Tuning(), and calibrate again")
    policy.check(net.num_exits, net.identity() if policy.network else "", net.info.task)


def check_target(target: Path, overwrite: bool) -> set[str]:
    """Names of the files that may be replaced; raises :class:`OutputExistsError` if there is anything else to replace."""
    if not target.exists():
        return set()
    manifest = read_json(target / MANIFEST) if (target / MANIFEST).is_file() else None
    is_ours = isinstance(manifest, dict) and "segments" in manifest
    if not (overwrite and is_ours):
        hint = "pass overwrite=True" if is_ours else "it is no edge bundle"
        raise OutputExistsError(f"directory: {target} exists ({hint}): choose another directory")
    assert isinstance(manifest, dict)
    return {MANIFEST, *manifest.get("sha256", ())}


def write_bundle(
    directory: Path, net: ExitNet, policy: Policy, parts: Sequence[Written], named: Mapping[str, Policy] | None = None
) -> None:
    """Everything beside the files of the stages; ``net`` answers as these files do."""
    files = [*(part.path for part in parts), directory / POLICY, directory / GOLDEN]
    write_json(directory / POLICY, policy.to_dict())
    if named:
        write_json(directory / POLICIES, {name: one.to_dict() for name, one in named.items()})
        files.append(directory / POLICIES)
    write_golden(directory / GOLDEN, net, policy, [part.exit for part in parts])
    if policy.gate is None:
        write_checked_cascade(directory / CASCADE, net, policy, parts)
        files.append(directory / CASCADE)
    write_manifest(directory / MANIFEST, files, describe(net) | {"segments": [part.to_dict() for part in parts]})


def write_stages(directory: Path, net: ExitNet, policy: Policy) -> list[Written]:
    """A file for each exit that can answer, compared with the network."""
    examples = {batch: draw_for(net, batch) for batch in BATCHES}
    written = write_segments(directory, cut_segments(*net.parts, policy), examples, name_inputs(net))
    return [one._replace(offset=net.map_offsets[one.exit]) for one in written]


def write_checked_cascade(path: Path, net: ExitNet, policy: Policy, parts: Sequence[Written]) -> None:
    """The cascade in one file, once it answers as the network does: by this policy, and by one that parts the samples.

    Raises:
        ExportError: for another label, exit, score or map; samples near a threshold, where rounding decides, are left out.
    """
    write_cascade(path, parts, policy)
    activations = draw_for(net, CASCADE_SAMPLES)
    scores, parting = part_samples(net, policy, activations, [part.exit for part in parts])
    session = open_file(path)
    names = [one.name for one in session.get_outputs()]
    feed: dict[str, Any] = {n: t.numpy() for n, t in zip(name_inputs(net), activations, strict=True)}
    feed[TEMPERATURES] = np.array(policy.temperatures, np.float32)
    has_maps = have_maps(net.heads)
    for thresholds in (policy.thresholds, parting.thresholds):
        expected = predict(net, _name(net, activations), replace(parting, thresholds=thresholds), attention=has_maps)
        found = dict(zip(names, session.run(None, feed | {THRESHOLDS: np.array(thresholds, np.float32)}), strict=True))
        near = ((scores - torch.tensor(thresholds)[:, None]).abs() < NEAR).any(0)
        _compare_answers(found, expected, ~near)


def part_samples(net: ExitNet, policy: Policy, activations: Activations, exits: Sequence[int]) -> tuple[Tensor, Policy]:
    """Scores ``(K-1,B)``, and a policy whose thresholds half of the samples reach, where an exit is in the files."""
    early = range(net.num_exits - 1)
    with net.open_engine() as engine:
        logits = [one for one, _ in engine.compute_outputs(engine.enter(activations))]
    scores = torch.stack([score(logits[k], policy.score, policy.temperatures[k]) for k in early])
    half = scores.shape[1] // 2
    middle = scores.sort(1).values[:, half : half + 2].mean(1).tolist()
    thresholds = tuple(middle[k] if k in exits else math.inf for k in early)
    return scores, Policy(thresholds, policy.score, policy.temperatures)


def _compare_answers(found: Mapping[str, Any], expected: Prediction, sure: Tensor) -> None:
    for name, value in (("labels", expected.labels.long()), ("exits", expected.exits), ("scores", expected.confidence)):
        off = (torch.from_numpy(found[name])[sure] - value[sure]).abs()
        if off.numel() and not off.max() < NEAR:
            raise ExportError(
                f"net: the cascade in one file gives other {name} than the network: report this, with the backbone"
            )
    for i in sure.nonzero().flatten().tolist() if expected.attention else ():
        own = torch.from_numpy(found[f"{ATTENTION}_{int(expected.exits[i])}"][i])
        if not (own - expected.attention[i]).abs().max() < NEAR:  # type: ignore[index]
            raise ExportError(
                "net: the cascade in one file gives other maps than the network: report this, with the backbone"
            )


def _name(net: ExitNet, activations: Activations) -> Inputs:
    """What the first stage takes, as the network itself takes it."""
    return dict(zip(net.input_spec.names, activations, strict=True)) if net.input_spec.names else activations[0]


def name_inputs(net: ExitNet) -> list[str]:
    """Of the tensors that the first stage takes."""
    return list(net.input_spec.names) or [net.info.modality.plural]


def draw_for(net: ExitNet, batch: int) -> Activations:
    """Random inputs that the network takes."""
    spec, example = net.input_spec, list_tensors(net.info.example(torch.zeros(())))
    vocabulary = spec.vocabulary if len(spec.vocabulary) == len(example) else (None,) * len(example)
    return draw_inputs(spec.names, example, vocabulary, batch)


def describe(net: ExitNet) -> dict[str, Any]:
    """What a runtime has to know of the network, JSON-ready."""
    info, spec = net.info, net.input_spec
    examples = list_tensors(info.example(torch.zeros(())))
    return {
        "format": FORMAT,
        "exitlens": exitlens.__version__,
        "network": net.identity(),
        "precision": net.tuning.precision,
        "num_exits": net.num_exits,
        "num_classes": info.num_classes,
        "classes": list(info.classes),
        **({} if info.task == "classes" else {"task": info.task}),
        "modality": info.modality.name,
        "inputs": [
            {"name": name, "dtype": str(t.dtype).removeprefix("torch."), "shape": list(t.shape[1:])}
            for name, t in zip(name_inputs(net), examples, strict=True)
        ],
        "vocabulary": list(spec.vocabulary),
        "prefix": spec.prefix,
        "preprocess": None if info.preprocess is None else info.preprocess.to_dict(),
        "map_offsets": [list(one) for one in net.map_offsets],
        "cost": net.cost.tolist(),
    }


def write_golden(path: Path, net: ExitNet, policy: Policy, exits: Sequence[int]) -> None:
    """Inputs, logits and attention of the exits in the files, and the exits and labels that the library chooses.

    By the policy, and (``parting``: its thresholds) by one under which some samples leave at every exit.
    """
    activations = draw_for(net, GOLDEN_SAMPLES)
    values: dict[str, Tensor] = dict(zip(name_inputs(net), activations, strict=True))
    _, parting = part_samples(net, policy, activations, exits)
    found, parted = (predict(net, _name(net, activations), one) for one in (policy, parting))
    with net.open_engine() as engine:
        outputs = engine.compute_outputs(engine.enter(activations))
    for k in exits:
        values |= {f"{LOGITS}_{k}": outputs[k][0], f"{ATTENTION}_{k}": outputs[k][1]}
    values |= {"exits": found.exits, "labels": found.labels}
    values |= {"parting": torch.tensor(parting.thresholds), "parted_exits": parted.exits, "parted_labels": parted.labels}
    np.savez(path, **{name: value.numpy() for name, value in values.items()})  # type: ignore[arg-type]
