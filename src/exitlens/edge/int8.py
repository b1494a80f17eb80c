"""export_int8: an edge bundle in 8-bit integers, with a policy that is calibrated on what it says."""

from __future__ import annotations

import copy
import hashlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from exitlens.data.batches import iterate_inputs
from exitlens.edge.export import check_arguments, check_target, list_parts, name_inputs, write_bundle, write_stages
from exitlens.errors import InputError
from exitlens.functional.routing import route
from exitlens.io import replace_directory
from exitlens.model.engine.engine import Engine
from exitlens.model.engine.onnx.engine import OnnxEngine
from exitlens.model.engine.onnx.files import Written
from exitlens.model.engine.onnx.quantise import quantise_files
from exitlens.model.engine.tuning import Tuning
from exitlens.model.network import ExitNet
from exitlens.types import CalibrationRequest, Policy, Trace
from exitlens.types.tasks import are_same
from exitlens.workflow.calibration import run_calibration
from exitlens.workflow.collection import collect

SAMPLES, BATCH = 512, 32  # that activations are measured with


@dataclass(frozen=True)
class Int8Report:
    """What int8 costs on the calibration samples, in pairs (float32, int8).

    Attributes:
        directory: of the edge bundle. policy: calibrated on what it says.
        agreement: for every exit the share of samples that it gives the same label in both.
        exit_accuracy: of every exit; ``None`` without labels. accuracy: routed, each by its own policy; likewise.
        exit_shares: of the samples, by the exit that answers.

    Examples:
        >>> report = xl.Int8Report(Path("int8"), policy, (0.99, 1.0, 1.0), None, None, ((0.5, 0.3, 0.2), (0.5, 0.3, 0.2)))
        >>> report.to_dict()["agreement"]
        (0.99, 1.0, 1.0)
    """

    directory: Path
    policy: Policy
    agreement: tuple[float, ...]
    exit_accuracy: tuple[tuple[float, ...], tuple[float, ...]] | None
    accuracy: tuple[float, float] | None
    exit_shares: tuple[tuple[float, ...], tuple[float, ...]]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        found = {name: getattr(self, name) for name in ("agreement", "exit_accuracy", "accuracy", "exit_shares")}
        return {"directory": str(self.directory), "policy": self.policy.to_dict(), **found}


def export_int8(
    net: ExitNet,
    policy: Policy,
    directory: str | Path,
    samples: Any,
    calibration: Any,
    *,
    overwrite: bool = False,
    progress: bool = False,
) -> Int8Report:
    """Writes an edge bundle whose convolutions and linear layers run in int8, and calibrates its policy again.

    Scores move with the weights, so the policy of the float32 network is void: a trace is collected from the quantised
    files, and a policy chosen on it under the limits that the old one was asked for, certified if that one was. Policies
    that the float32 network has by name are void, too: this bundle has none.

    Args:
        net: in float32.
        policy: of this network, calibrated.
        directory: a new directory; it appears complete or not at all.
        samples: data that activations are measured with, the first 512 of them; not the calibration data.
        calibration: data for the new policy, with labels if the limits need them.
        overwrite: replace an existing edge bundle.
        progress: show a progress bar.

    Raises:
        ExportError: where the network cannot be quantised; and what :func:`exitlens.export` and :func:`exitlens.calibrate`
            raise.

    Examples:
        >>> policy = xl.calibrate(trace, max_disagreement=0.5)  # on the same limits int8 is calibrated
        >>> report = xl.export_int8(net, policy, "int8", samples=scenes, calibration=scenes)
        >>> len(report.agreement)
        3
    """
    check_arguments(net, policy, directory)
    request = repeat_request(policy)
    target = Path(directory).resolve()
    own = check_target(target, overwrite)
    before = collect(net, calibration, progress=progress)
    with replace_directory(target, own) as temporary:
        twin, parts = quantise(net, samples, temporary)
        after = collect(twin, calibration, progress=progress)
        chosen = run_calibration(after, request)
        write_bundle(temporary, twin, chosen, parts)
    return _report(target, policy, chosen, before, after)


def repeat_request(policy: Policy) -> CalibrationRequest:
    """Return what the policy was asked for, to ask it of the int8 network; temperatures that were given are kept."""
    record = policy.calibration
    if record is None:
        raise InputError("policy: it was made by hand, so nothing says under which limits to calibrate for int8")
    if record.request.max_ms is not None:
        raise InputError("policy: it has limits in milliseconds, and int8 takes others: calibrate one without them")
    return record.request.for_any_network()


def quantise(net: ExitNet, samples: Any, directory: Path) -> tuple[ExitNet, list[Written]]:
    """A copy of the network that answers by int8 files in ``directory``, and these."""
    names, every = name_inputs(net), Policy((0.0,) * (net.num_exits - 1))
    with tempfile.TemporaryDirectory() as folder:
        parts = write_stages(Path(folder), net, every)
        batches = [dict(zip(names, one, strict=True)) for one in _take_batches(net, samples)]
        files = quantise_files(parts, batches, directory)
    digest = hashlib.sha256(b"".join(file.path.read_bytes() for file in files)).hexdigest()[:8]
    tuning = Tuning(backend="onnx", precision="int8", measured={"files": digest})
    twin = copy.deepcopy(net).eval()
    base = Engine.prepare(*list_parts(net), Tuning())
    twin._session.adopt(OnnxEngine(base.stages, base.heads, tuning, files))
    return twin, files


def _take_batches(net: ExitNet, samples: Any) -> Iterator[tuple[Tensor, ...]]:
    size = count = 0
    for batch in iterate_inputs(samples, BATCH):
        tensors = net.check_input(batch, "samples")
        size = size or len(tensors[0])
        if len(tensors[0]) == size:  # ONNX Runtime wants batches of one size; a last one may be smaller
            yield tensors
        count += len(tensors[0])
        if count >= SAMPLES:
            return
    if not count:
        raise InputError("samples: they are empty: pass some that are like those to come")


def _report(directory: Path, policy: Policy, chosen: Policy, before: Trace, after: Trace) -> Int8Report:
    pairs = ((before, policy), (after, chosen))
    labels = [trace.answers for trace, _ in pairs]
    exits = [route(trace, one) for trace, one in pairs]
    shares = [tuple((one.bincount(minlength=before.num_exits) / len(one)).tolist()) for one in exits]
    same = tuple(are_same(labels[0], labels[1], before.task).double().mean(0).tolist())
    if before.labels is None:
        return Int8Report(directory, chosen, same, None, None, (shares[0], shares[1]))
    right = [trace.correct.double() for trace, _ in pairs]
    own = [tuple(one.mean(0).tolist()) for one in right]
    routed = [one.gather(1, taken[:, None]).mean().item() for one, taken in zip(right, exits, strict=True)]
    return Int8Report(directory, chosen, same, (own[0], own[1]), (routed[0], routed[1]), (shares[0], shares[1]))
