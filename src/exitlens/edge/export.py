"""export: write a network with its policy as a directory of ONNX files that answers without PyTorch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

import exitlens
from exitlens.edge.cascade import TEMPERATURES, THRESHOLDS, write_cascade
from exitlens.errors import ExportError, OutputExistsError, require
from exitlens.functional.routing import cover
from exitlens.functional.scores import score
from exitlens.io import read_json, replace_directory, write_json, write_manifest
from exitlens.model.cutting.split import draw_inputs
from exitlens.model.cutting.stage import Activations
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
from exitlens.types import Policy
from exitlens.types.inputs import Inputs, list_tensors
from exitlens.types.policies import check_named
from exitlens.workflow.inference import predict

FORMAT = 1
MANIFEST, POLICY, GOLDEN, CASCADE = "manifest.json", "policy.json", "golden.npz", "cascade.onnx"
POLICIES = "policies.json"  # only if there are named policies
GOLDEN_SAMPLES, CASCADE_SAMPLES = 8, 17
NEAR = 1e-3  # largest difference of scores and maps, and distance from a threshold within which rounding may decide


def export(
    net: ExitNet,
    policy: Policy,
    directory: str | Path,
    *,
    policies: Mapping[str, Policy] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write an edge bundle: ONNX files, policies, and all else that ``exitlens_runtime.load`` needs to run without PyTorch.

    Each exit that can answer has a file with everything since the previous such exit (opset 18, float32, any number of
    samples), which is compared with the network at batches of 1, 2, 3, 17 and 64 before the directory appears.

    Args:
        net: a network in float32.
        policy: a policy of this network. Exits that no policy here lets fire have no file: a policy that uses them needs
            another export. Thresholds and temperatures can be changed without one.
        directory: a new directory; it appears complete or not at all.
        policies: further policies by name, as in :func:`exitlens.save`, for ``exitlens_runtime.load(dir, policy=name)``.
            ``cascade.onnx`` has no gate and the score of ``policy``: it takes the thresholds of policies with that score.
        overwrite: replace an existing edge bundle.

    Raises:
        ExportError: if the network cannot be written as ONNX, or the files give something else.
        MissingExtraError: without the extra ``onnx``.
        OutputExistsError: if the directory exists.
        PolicyError: for a policy of another network.

    Examples:
        >>> sorted(file.name for file in xl.export(net, policy, "edge").glob("*.onnx"))
        ['cascade.onnx', 'stage_0.onnx', 'stage_1.onnx', 'stage_2.onnx']
    """
    check_arguments(net, policy, directory)
    named = {} if policies is None else policies
    check_named(named, net.num_exits, net.identity(), net.info.task)
    with open_target(directory, overwrite) as temporary:
        parts = write_stages(temporary, net, cover([policy, *named.values()]))
        write_bundle(temporary, net, policy, parts, named)
    return Path(directory).resolve()


def check_arguments(net: ExitNet, policy: Policy, directory: str | Path) -> None:
    """Raise :class:`ExitlensError` unless the policy fits the network, and the network can be written as ONNX."""
    require(net, ExitNet, "net")
    require(policy, Policy, "policy", "see exitlens.calibrate")
    require(directory, str | Path, "directory")
    import_onnx()
    dtype = next(net.head(0).parameters()).dtype
    if dtype != torch.float32:
        raise ExportError(f"net: expected float32, got {dtype}. Fix: net.float(), and calibrate a policy for it.")
    if net.is_tuned and net.tuning.precision != "float32":
        raise ExportError(
            f"net: expected float32, got a tuning to {net.tuning.precision}. Fix: set net.tuning = Tuning(), and calibrate "
            "again."
        )
    net.check_policy(policy)


@contextmanager
def open_target(directory: str | Path, overwrite: bool) -> Iterator[Path]:
    """Yield a temporary directory that takes the place of ``directory``, complete or not at all.

    Raises :class:`OutputExistsError` if anything but an edge bundle to overwrite is there.
    """
    target, replaced = Path(directory).resolve(), {POLICIES}
    if target.exists():
        manifest: Any = read_json(target / MANIFEST) if (target / MANIFEST).is_file() else {}
        is_bundle = isinstance(manifest, dict) and "segments" in manifest
        if not (overwrite and is_bundle):
            hint = "pass overwrite=True or choose another directory" if is_bundle else "choose another directory"
            problem = f"{target} exists{'' if is_bundle else ' and is no edge bundle'}"
            raise OutputExistsError(f"directory: {problem}. Fix: {hint}.")
        replaced |= {MANIFEST, *manifest.get("sha256", ())}
    with replace_directory(target, replaced) as temporary:
        yield temporary


def write_stages(directory: Path, net: ExitNet, policy: Policy) -> list[Written]:
    """Write a file for each exit that can answer, compared with the network."""
    examples = {batch: draw_for(net, batch) for batch in BATCHES}
    files = write_segments(directory, cut_segments(*net.engine.parts, policy), examples, name_inputs(net))
    return [file._replace(offset=net.map_offsets[file.exit]) for file in files]


def write_bundle(
    directory: Path, net: ExitNet, policy: Policy, parts: Sequence[Written], named: Mapping[str, Policy] | None = None
) -> None:
    """Write everything except the files of the stages, whose answers ``net`` gives."""
    files = [*(part.path for part in parts), directory / POLICY, directory / GOLDEN]
    write_json(directory / POLICY, policy.to_dict())
    if named:
        write_json(directory / POLICIES, {name: other.to_dict() for name, other in named.items()})
        files.append(directory / POLICIES)
    write_golden(directory / GOLDEN, net, policy, [part.exit for part in parts])
    if policy.gate is None:
        write_checked_cascade(directory / CASCADE, net, policy, parts)
        files.append(directory / CASCADE)
    info, spec, examples = net.info, net.input_spec, list_tensors(net.info.example(torch.zeros(())))
    described = {
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
        "map_offsets": [list(offset) for offset in net.map_offsets],
        "cost": net.cost.tolist(),
        "segments": [part.to_dict() for part in parts],
    }
    write_manifest(directory / MANIFEST, files, described)


class _Samples:
    """Random inputs with the library's answers under a policy, and under one that lets some samples leave at every exit."""

    def __init__(self, net: ExitNet, policy: Policy, exits: Sequence[int], count: int) -> None:
        activations, early = draw_for(net, count), range(net.num_exits - 1)
        self.tensors = dict(zip(name_inputs(net), activations, strict=True))
        with net.open_engine() as engine:
            self.outputs = engine.compute_outputs(engine.enter(activations))  # logits and attention of every exit
        self.scores = torch.stack(  # (K-1,B)
            [score(self.outputs[k][0], policy.score, policy.temperatures[k]) for k in early]
        )
        middle = self.scores.sort(1).values[:, count // 2 : count // 2 + 2].mean(1).tolist()  # half of the samples reach it
        thresholds = tuple(middle[k] if k in exits else math.inf for k in early)
        inputs: Inputs = self.tensors if net.input_spec.names else activations[0]
        parting, has_maps = Policy(thresholds, policy.score, policy.temperatures), have_maps(net.heads)
        self.answers = [(used, predict(net, inputs, used, attention=has_maps)) for used in (policy, parting)]


def write_checked_cascade(path: Path, net: ExitNet, policy: Policy, parts: Sequence[Written]) -> None:
    """Write the cascade in one file; raise :class:`ExportError` where a label, exit, score or map is not the network's.

    Samples near a threshold, where rounding decides, are not compared.
    """
    write_cascade(path, parts, policy)
    samples, session = _Samples(net, policy, [part.exit for part in parts], CASCADE_SAMPLES), open_file(path)
    names = [value.name for value in session.get_outputs()]
    feed: dict[str, Any] = {name: t.numpy() for name, t in samples.tensors.items()}
    feed[TEMPERATURES] = np.array(policy.temperatures, np.float32)
    for used, expected in samples.answers:
        outputs = session.run(None, feed | {THRESHOLDS: np.array(used.thresholds, np.float32)})
        sure = ((samples.scores - torch.tensor(used.thresholds)[:, None]).abs() >= NEAR).all(0)
        answers = dict(zip(names, map(torch.from_numpy, outputs), strict=True))
        values = {"labels": expected.labels.long(), "exits": expected.exits, "scores": expected.confidence}
        differing = [name for name, value in values.items() if not ((answers[name] - value)[sure].abs() < NEAR).all()]
        for i in sure.nonzero().flatten().tolist() if expected.attention and not differing else ():
            map_ = answers[f"{ATTENTION}_{int(expected.exits[i])}"][i]
            if not (map_ - expected.attention[i]).abs().max() < NEAR:  # type: ignore[index]
                differing = ["maps"]
        if differing:
            raise ExportError(
                f"net: the cascade in one file and the network give different {differing[0]}. Fix: report this, with the "
                "backbone."
            )


def name_inputs(net: ExitNet) -> list[str]:
    """Return the names of the tensors that the first stage takes."""
    return list(net.input_spec.names) or [net.info.modality.plural]


def draw_for(net: ExitNet, batch: int) -> Activations:
    """Draw random inputs that the network takes."""
    spec, example = net.input_spec, list_tensors(net.info.example(torch.zeros(())))
    vocabulary = spec.vocabulary if len(spec.vocabulary) == len(example) else (None,) * len(example)
    return draw_inputs(spec.names, example, vocabulary, batch)


def write_golden(path: Path, net: ExitNet, policy: Policy, exits: Sequence[int]) -> None:
    """Write inputs, logits and attention of the exits in the files, and the library's exits and labels.

    The answers are those under the policy, and under one with the thresholds ``parting``: some samples leave at every exit.
    """
    samples = _Samples(net, policy, exits, GOLDEN_SAMPLES)
    (_, pred), (parting, parted) = samples.answers
    values = samples.tensors | {"exits": pred.exits, "labels": pred.labels, "parting": torch.tensor(parting.thresholds)}
    values |= {"parted_exits": parted.exits, "parted_labels": parted.labels}
    for k in exits:
        values[f"{LOGITS}_{k}"], values[f"{ATTENTION}_{k}"] = samples.outputs[k]
    np.savez(path, **{name: value.numpy() for name, value in values.items()})  # type: ignore[arg-type]
