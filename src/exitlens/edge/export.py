"""export: write a network with its policy as ONNX files that answer without PyTorch, one of them the whole cascade."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import exitlens
from exitlens.errors import ExportError, OutputExistsError, require
from exitlens.functional.answers import Units, compare_with, need_double
from exitlens.functional.maps import make_shift
from exitlens.functional.pixels import LOW, SURE
from exitlens.functional.routing import cover
from exitlens.functional.scores import probabilities, score_of
from exitlens.io import read_json, replace_directory, write_json, write_manifest
from exitlens.model.cutting.split import Activations, draw_inputs
from exitlens.model.engine.onnx_files import (
    ATTENTION,
    BATCHES,
    LOGITS,
    OF_HEAD,
    OPSET,
    Written,
    cut_segments,
    import_onnx,
    open_file,
    write_segments,
)
from exitlens.model.heads import have_maps
from exitlens.model.network import ExitNet
from exitlens.types import Policy, Prediction
from exitlens.types.inputs import Inputs, list_tensors
from exitlens.types.policies import check_named
from exitlens.types.settings import CHANGE_SCORES, DECIDED, PIXEL_SCORES
from exitlens.types.tasks import CONTINUOUS, task_of_score
from exitlens.workflow.inference import predict

THRESHOLDS, TEMPERATURES = "thresholds", "temperatures"
ANSWERS = ("labels", "exits", "scores", "probabilities")
IR_VERSION = 10


@dataclass
class _Block:
    """Collects the nodes and constants of a graph, under names that no other graph uses."""

    onnx: Any
    prefix: str
    nodes: list[Any] = field(default_factory=list)
    constants: list[Any] = field(default_factory=list)

    def add(self, kind: str, *inputs: str, name: str = "", count: int = 1, **attributes: Any) -> str:
        """Add a node; return the name of its first output."""
        first = name or f"{self.prefix}{kind}_{len(self.nodes)}"
        names = [first, *(f"{first}_{i}" for i in range(1, count))]
        self.nodes.append(self.onnx.helper.make_node(kind, list(inputs), names, **attributes))
        return first

    def hold(self, values: Any, dtype: Any) -> str:
        """Add a constant; return its name."""
        name = f"{self.prefix}constant_{len(self.constants)}"
        self.constants.append(self.onnx.numpy_helper.from_array(np.asarray(values, dtype), name))
        return name


def has_cascade(policy: Policy) -> bool:
    """Return whether a file can decide on its own by this policy: without a gate, and without looking at two exits."""
    return policy.gate is None and policy.score not in CHANGE_SCORES


def write_cascade(path: Path, parts: Sequence[Written], policy: Policy, units: Units = ()) -> None:
    """Write a file that decides on its own; raise :class:`ExportError` for a policy with a gate, or a score of stability.

    Its inputs are those of the first stage, ``thresholds`` ``(K-1,)`` (infinite: never) and ``temperatures`` ``(K,)``. Its
    outputs have a row for each sample: ``labels`` (``(B,)`` classes; for several labels ``(B,C)`` of 0 and 1; of pixels
    ``(B,H,W)`` classes; numbers ``(B,)`` or ``(B,C)``, in ``units``; vectors ``(B,D)``), ``exits``, ``scores``,
    ``probabilities`` ``(B,C)`` (of classes and labels only) and, for every exit in the file, ``attention_K`` ``(B,*S)``,
    placed in the image (0 for samples that another exit answered). The score is the policy's.
    The weights of a stage are in the branch that runs it, because elsewhere ONNX Runtime does not choose the fast layouts.
    """
    if not has_cascade(policy):
        raise ExportError(
            "policy: a cascade in one file has no gate and no score of stability. Fix: calibrate without, or use the files "
            "of the stages."
        )
    onnx = import_onnx()
    helper, kinds = onnx.helper, onnx.TensorProto
    models = [onnx.load(part.path) for part in parts]
    inputs = [value for value in models[0].graph.input if value.name in parts[0].inputs]
    inputs.append(helper.make_tensor_value_info(THRESHOLDS, kinds.FLOAT, [policy.num_exits - 1]))
    inputs.append(helper.make_tensor_value_info(TEMPERATURES, kinds.FLOAT, [policy.num_exits]))
    builder = _Builder(onnx, parts, models, policy.score, units)
    block, outputs = builder.build(0, {name: name for name in parts[0].inputs})
    for output, value in zip(builder.describe(0), outputs, strict=True):
        block.add("Identity", value, name=output.name)
    graph = helper.make_graph(block.nodes, "cascade", inputs, builder.describe(0), block.constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="exitlens")
    model.ir_version = min(model.ir_version, IR_VERSION)
    onnx.checker.check_model(model)
    onnx.save(model, path)


class _Builder:
    """Builds the graph of a stage and of all later ones."""

    def __init__(self, onnx: Any, parts: Sequence[Written], models: Sequence[Any], score: str, units: Units) -> None:
        self.onnx, self.parts, self.models, self.score, self.units = onnx, parts, models, score, units
        self.task, self.is_dense = task_of_score(score), score in PIXEL_SCORES
        self.has_values = self.task in CONTINUOUS
        self.number = np.float64 if need_double(units) else np.float32  # of answers that are numbers
        self.classes = self._list_sizes(0)[1] - self.has_values
        self.size = [dim.dim_value for dim in models[0].graph.input[0].type.tensor_type.shape.dim][2:]  # of images
        self.answers = ANSWERS[:-1] if self.is_dense or self.has_values else ANSWERS

    def _list_sizes(self, place: int) -> list[int]:
        """Return the sizes of a stage's logits; 0 for the number of samples."""
        return [int(dim.dim_value) for dim in self.models[place].graph.output[0].type.tensor_type.shape.dim]

    def describe(self, place: int) -> list[Any]:
        """Describe the outputs of the graph from a stage on: answers, then the maps of this exit and of later ones."""
        make, kinds = self.onnx.helper.make_tensor_value_info, self.onnx.TensorProto
        rows, end = (f"rows_{place}", f"_from_{place}") if place else ("rows", "")
        by_class, parts = [rows, self.classes], self.parts[place:]
        has_columns = self.score == DECIDED or (self.has_values and not self._is_single())
        labels = by_class if has_columns else [rows, *self.size] if self.is_dense else [rows]
        kind_of_labels = self._kind_of_numbers() if self.has_values else kinds.INT64
        shapes, types = (labels, [rows], [rows], by_class), (kind_of_labels, kinds.INT64, kinds.FLOAT, kinds.FLOAT)
        answers = [make(f"{name}{end}", kind, shape) for name, kind, shape in zip(self.answers, types, shapes, strict=False)]
        return answers + [make(f"{ATTENTION}_{p.exit}{end}", kinds.FLOAT, [rows, *p.map_shape]) for p in parts]

    def build(self, place: int, sources: dict[str, str]) -> tuple[_Block, list[str]]:
        """Build the graph from stage ``place`` on; ``sources``: the outer names of its inputs.

        Returns the block, and the names of its outputs in the order of :meth:`describe`.
        """
        part, prefix, block = self.parts[place], f"stage_{place}_", _Block(self.onnx, f"from_{place}_")
        graph = self.onnx.compose.add_prefix_graph(self.models[place].graph, prefix)
        for node in graph.node:
            _rename(node, {f"{prefix}{name}": source for name, source in sources.items()})
        block.nodes.extend(graph.node)
        block.constants.extend(graph.initializer)
        answers = self._rate(block, place, f"{prefix}{LOGITS}")
        maps = _move(block, f"{prefix}{ATTENTION}", part)
        if place == len(self.parts) - 1:
            if self.is_dense:
                answers[0] = self._label_pixels(block, answers[0])
            return block, [*answers, maps]
        zero, last = block.hold([0], np.int64), block.hold([1], np.int64)
        limit = block.add("Gather", THRESHOLDS, block.hold(part.exit, np.int64), axis=0)
        fires = block.add("GreaterOrEqual", answers[2], limit)
        stays = block.add("Not", fires)
        rows = block.add("Squeeze", block.add("NonZero", stays), zero)  # (n,)
        if self.is_dense:
            answers[0] = self._label_leaving(block, answers[0], block.add("Squeeze", block.add("NonZero", fires), zero))
        any_stays = block.add("Squeeze", block.add("Greater", block.add("Shape", rows), zero), zero)
        flat = block.add("Flatten", maps, axis=1)
        flat = block.add("Where", block.add("Unsqueeze", stays, last), block.hold(0, np.float32), flat)
        maps = block.add("Reshape", flat, block.hold([-1, *part.map_shape], np.int64))
        crossing, later = {name: f"{prefix}{name}" for name in part.outputs[len(OF_HEAD) :]}, self.parts[place + 1 :]
        goal = [f"{block.prefix}merged_{name}" for name in (*self.answers, *(f"{ATTENTION}_{p.exit}" for p in later))]
        goes_on, end = self._go_on(place, answers, rows, crossing), _Block(self.onnx, f"end_{place}_")
        count, same = end.add("Shape", answers[1]), [end.add("Identity", answer) for answer in answers]
        ends = self._close(end, same + [self._make_empty(end, count, p) for p in later], place, "ends")
        block.nodes.append(self.onnx.helper.make_node("If", [any_stays], goal, then_branch=goes_on, else_branch=ends))
        return block, [*goal[: len(answers)], maps, *goal[len(answers) :]]

    def _rate(self, block: _Block, place: int, logits: str) -> list[str]:
        """Add labels, exits, scores and probabilities of an exit; return their names (of pixels, logits for labels)."""
        exit_ = self.parts[place].exit
        if self.has_values:
            return self._read_values(block, exit_, logits)
        temperature = block.add("Gather", TEMPERATURES, block.hold(exit_, np.int64), axis=0)
        scaled = block.add("Div", logits, temperature)
        if self.is_dense:
            return [logits, *self._score_pixels(block, place, scaled)]
        axis = block.hold([1], np.int64)
        p = block.add("Sigmoid", scaled) if self.score == DECIDED else block.add("Softmax", scaled, axis=1)
        if self.score == DECIDED:
            sure = block.add("Max", p, block.add("Sub", block.hold(1, np.float32), p))
            score = block.add("ReduceMin", sure, axis, keepdims=0)
        elif self.score == "max_probability":
            score = block.add("ReduceMax", p, axis, keepdims=0)
        elif self.score == "entropy":
            logs = block.add("Log", block.add("Max", p, block.hold(1e-38, np.float32)))
            nats = block.add("ReduceSum", block.add("Mul", p, logs), axis, keepdims=0)
            share = block.add("Div", nats, block.hold(math.log(self.classes), np.float32))
            score = block.add("Relu", block.add("Add", share, block.hold(1, np.float32)))
        else:
            two = block.add("TopK", p, block.hold([2], np.int64), count=2, axis=1)
            first, second = (block.add("Gather", two, block.hold(i, np.int64), axis=1) for i in range(2))
            score = block.add("Sub", first, second)
        exits = block.add("Expand", block.hold([exit_], np.int64), block.add("Shape", score))
        if self.score == DECIDED:  # 0 or 1 for each of several labels
            is_label = block.add("GreaterOrEqual", p, block.hold(0.5, np.float32))
            return [block.add("Cast", is_label, to=self.onnx.TensorProto.INT64), exits, score, p]
        return [block.add("ArgMax", p, axis=1, keepdims=0), exits, score, p]

    def _kind_of_numbers(self) -> int:
        return int(self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(self.number)))

    def _is_single(self) -> bool:
        """Return whether an answer is one number."""
        return self.task == "regression" and self.classes == 1

    def _read_values(self, block: _Block, exit_: int, logits: str) -> list[str]:  # (n,C+1)
        """Add numbers or vectors, exits, and scores from the expected errors."""
        axis, place = block.hold([1], np.int64), block.hold(self.classes, np.int64)
        values = block.add("Slice", logits, block.hold([0], np.int64), block.hold([self.classes], np.int64), axis)
        if self.units:
            mean, spread = (block.hold(column, self.number) for column in zip(*self.units, strict=True))
            values = block.add("Cast", values, to=self._kind_of_numbers()) if self.number is np.float64 else values
            values = block.add("Add", block.add("Mul", values, spread), mean)
        values = block.add("Squeeze", values, axis) if self._is_single() else values
        score = block.add("Exp", block.add("Neg", block.add("Gather", logits, place, axis=1)))
        return [values, block.add("Expand", block.hold([exit_], np.int64), block.add("Shape", score)), score]

    def _score_pixels(self, block: _Block, place: int, logits: str) -> list[str]:  # (n,C,h,w)
        """Add exits, and scores as ``score_pixels`` of the library gives them.

        The largest probability in a cell is computed without the others, because a softmax along axis 1 takes ten times as
        long.
        """
        axis = block.hold([1], np.int64)
        powers = block.add("Exp", block.add("Sub", logits, block.add("ReduceMax", logits, axis)))
        top = block.add("Flatten", block.add("Reciprocal", block.add("ReduceSum", powers, axis)), axis=1)  # (n,cells)
        if self.score == "low_probability":
            count = 1 + int(LOW * (math.prod(self._list_sizes(place)[2:]) - 1))
            least = block.add("TopK", top, block.hold([count], np.int64), count=2, axis=1, largest=0)
            score = block.add("Gather", least, block.hold(count - 1, np.int64), axis=1)
        else:
            if self.score == "sure_share":
                is_sure = block.add("GreaterOrEqual", top, block.hold(SURE, np.float32))
                top = block.add("Cast", is_sure, to=self.onnx.TensorProto.FLOAT)
            score = block.add("ReduceMean", top, axis, keepdims=0)
        exit_ = block.hold([self.parts[place].exit], np.int64)
        return [block.add("Expand", exit_, block.add("Shape", score)), score]

    def _label_pixels(self, block: _Block, logits: str) -> str:  # (n,C,h,w) -> (n,H,W)
        """Add the classes of pixels: logits are enlarged as by ``resize_logits`` of the library."""
        sizes, centres = block.hold(self.size, np.int64), "half_pixel"
        large = block.add(
            "Resize", logits, "", "", sizes, axes=[2, 3], mode="linear", coordinate_transformation_mode=centres
        )
        return block.add("ArgMax", large, axis=1, keepdims=0)

    def _label_leaving(self, block: _Block, logits: str, rows: str) -> str:  # (n,C,h,w), (m,) -> (n,H,W)
        """Add the classes of pixels of the samples at ``rows``, which leave; 0 for those that stay."""
        count = block.add("Gather", block.add("Shape", logits), block.hold([0], np.int64), axis=0)
        shape = block.add("Concat", count, block.hold(self.size, np.int64), axis=0)
        none = block.add("ConstantOfShape", shape, value=self.onnx.numpy_helper.from_array(np.zeros(1, np.int64)))
        labels = self._label_pixels(block, block.add("Gather", logits, rows, axis=0))
        return block.add("ScatterND", none, block.add("Unsqueeze", rows, block.hold([1], np.int64)), labels)

    def _go_on(self, place: int, answers: Sequence[str], rows: str, crossing: dict[str, str]) -> Any:
        """Build the branch in which samples stay: answers of later exits replace the early ones."""
        gathered, make = {name: f"kept_{place}_{name}" for name in crossing}, self.onnx.helper.make_node
        block, outputs = self.build(place + 1, gathered)
        block.nodes[:0] = [make("Gather", [crossing[n], rows], [gathered[n]], axis=0) for n in crossing]
        where = block.add("Unsqueeze", rows, block.hold([1], np.int64))  # (n,1)
        merged = [block.add("ScatterND", old, where, new) for old, new in zip(answers, outputs, strict=False)]
        count = block.add("Shape", answers[1])
        for part, new in zip(self.parts[place + 1 :], outputs[len(answers) :], strict=True):
            merged.append(block.add("ScatterND", self._make_empty(block, count, part), where, new))
        return self._close(block, merged, place, "goes_on")

    def _make_empty(self, block: _Block, count: str, part: Written) -> str:
        """Add maps of 0 for ``count`` samples."""
        size = block.add("Concat", count, block.hold(list(part.map_shape), np.int64), axis=0)
        return block.add("ConstantOfShape", size, value=self.onnx.numpy_helper.from_array(np.zeros(1, np.float32)))

    def _close(self, block: _Block, values: Sequence[str], place: int, name: str) -> Any:
        outputs = self.describe(place)
        del outputs[len(self.answers)]  # this exit's own map, which the branches do not change
        for info, value in zip(outputs, values, strict=True):
            info.name = block.add("Identity", value, name=f"{block.prefix}out_{name}_{info.name}")
        return self.onnx.helper.make_graph(block.nodes, f"{name}_{place}", [], outputs, block.constants)


def _move(block: _Block, maps: str, part: Written) -> str:
    """Place maps in the image, as :func:`exitlens.functional.maps.place` does."""
    axes = len(part.map_shape)
    for axis, by in enumerate(part.offset):
        if not by:
            continue
        shift = block.hold(make_shift(part.map_shape[axis], by).numpy(), np.float32)
        order = [0, *(i + 1 for i in range(axes) if i != axis), axis + 1]
        last = block.add("MatMul", block.add("Transpose", maps, perm=order), shift)
        maps = block.add("Transpose", last, perm=[order.index(i) for i in range(axes + 1)])
    return maps


def _rename(node: Any, renamed: dict[str, str]) -> None:
    """Replace names among the inputs of a node and of the graphs inside it."""
    for i, name in enumerate(node.input):
        node.input[i] = renamed.get(name, name)
    for attribute in node.attribute:
        for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            for child in inner.node:
                _rename(child, renamed)


FORMAT = 2
MANIFEST, POLICY, GOLDEN, CASCADE = "manifest.json", "policy.json", "golden.npz", "cascade.onnx"
POLICIES = "policies.json"  # only if there are named policies
GOLDEN_SAMPLES, CASCADE_SAMPLES, DENSE_SAMPLES = 8, 17, 4  # DENSE_SAMPLES: with one class a pixel, whose answers are large
THINNED = 4  # of the logits of pixels, a golden file has each such row and column
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
    samples), which is compared with the network at batches of 1, 2, 3, 17 and 64 before the directory appears (with one
    class a pixel, at those up to 3).

    Args:
        net: a network in float32.
        policy: a policy of this network. Exits that no policy here lets fire have no file: a policy that uses them needs
            another export. Thresholds and temperatures can be changed without one.
        directory: a new directory; it appears complete or not at all.
        policies: further policies by name, as in :func:`exitlens.save`, for ``exitlens_runtime.load(dir, policy=name)``.
            ``cascade.onnx`` has the score of ``policy``: it takes the thresholds of policies with that score. It is not
            there if ``policy`` has a gate, or a score of stability, which compares two exits.
        overwrite: replace an existing edge bundle.

    Raises:
        ExportError: if the network cannot be written as ONNX, or the files give something else.

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
    dtype = net.weight.dtype
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
    most = DENSE_SAMPLES if net.info.task == "segmentation" else max(BATCHES)
    examples = {batch: draw_for(net, batch) for batch in BATCHES if batch <= most}
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
    if has_cascade(policy):
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
        **({"units": [list(pair) for pair in info.units]} if info.units else {}),
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
        count = DENSE_SAMPLES if net.info.task == "segmentation" else count
        activations, early = draw_for(net, count), range(net.num_exits - 1)
        self.tensors = dict(zip(name_inputs(net), activations, strict=True))
        with net.open_engine() as engine:
            self.outputs = engine.compute_outputs(engine.enter(activations))  # logits and attention of every exit
        scores, compares = list[Tensor](), policy.score in CHANGE_SCORES
        before: Tensor | None = None
        for k in early:
            p = probabilities(self.outputs[k][0], policy.temperatures[k], policy.score)
            p = before = compare_with(p, before, policy.task) if compares else p
            scores.append(score_of(p, policy.score))
        self.scores = torch.stack(scores) if scores else torch.empty(0, count)  # (K-1,B)
        middle = self.scores.sort(1).values[:, count // 2 : count // 2 + 2].mean(1).tolist()  # half of the samples reach it
        can_fire = [k in exits and (not compares or k - 1 in exits) for k in early]
        thresholds = tuple(middle[k] if can_fire[k] else math.inf for k in early)
        inputs: Inputs = self.tensors if net.input_spec.names else activations[0]
        parting, has_maps = Policy(thresholds, policy.score, policy.temperatures), have_maps(net.heads)
        self.answers = [(used, predict(net, inputs, used, attention=has_maps)) for used in (policy, parting)]


def write_checked_cascade(path: Path, net: ExitNet, policy: Policy, parts: Sequence[Written]) -> None:
    """Write the cascade in one file; raise :class:`ExportError` where a label, exit, score or map is not the network's.

    Where rounding decides, another answer is right, too: another exit near a threshold, another class of a pixel that is
    nearly as probable.
    """
    write_cascade(path, parts, policy, net.info.units)
    samples, session = _Samples(net, policy, [part.exit for part in parts], CASCADE_SAMPLES), open_file(path)
    names = [value.name for value in session.get_outputs()]
    feed: dict[str, Any] = {name: t.numpy() for name, t in samples.tensors.items()}
    feed[TEMPERATURES] = np.array(policy.temperatures, np.float32)
    for used, expected in samples.answers:
        outputs = session.run(None, feed | {THRESHOLDS: np.array(used.thresholds, np.float32)})
        answers = dict(zip(names, map(torch.from_numpy, outputs), strict=True))
        sure = ((samples.scores - torch.tensor(used.thresholds)[:, None]).abs() >= NEAR).all(0)
        sure |= answers["exits"] == expected.exits
        off = {"labels": _compare_labels(answers["labels"], expected), "exits": answers["exits"] - expected.exits}
        off["scores"] = answers["scores"] - expected.confidence
        differing = [name for name, value in off.items() if not (value[sure].abs() < NEAR).all()]
        for i in sure.nonzero().flatten().tolist() if expected.attention and not differing else ():
            map_ = answers[f"{ATTENTION}_{int(expected.exits[i])}"][i]
            if not (map_ - expected.attention[i]).abs().max() < NEAR:  # type: ignore[index]
                differing = ["maps"]
        if differing:
            raise ExportError(
                f"net: the cascade in one file and the network give different {differing[0]}. Fix: report this, with the "
                "backbone."
            )


def _compare_labels(labels: Tensor, expected: Prediction) -> Tensor:
    """Return 0 where labels are the expected ones; of pixels, by how much these are more probable.

    Numbers and vectors are subtracted, and compared with the largest of them.
    """
    if labels.is_floating_point():
        return (labels - expected.labels) / expected.labels.abs().max().clamp_min(1.0)
    if labels.ndim < 3:
        return labels - expected.labels.long()
    p = expected.probabilities
    return p.amax(1) - p.gather(1, labels[:, None])[:, 0]


def thin(logits: Tensor) -> Tensor:
    """Return logits as golden files have them: of pixels, every fourth row and column."""
    return logits[..., ::THINNED, ::THINNED] if logits.ndim == 4 else logits


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
    Logits of pixels are thinned by :func:`thin`.
    """
    samples = _Samples(net, policy, exits, GOLDEN_SAMPLES)
    (_, pred), (parting, parted) = samples.answers
    values = samples.tensors | {"exits": pred.exits, "labels": pred.labels, "parting": torch.tensor(parting.thresholds)}
    values |= {"parted_exits": parted.exits, "parted_labels": parted.labels}
    if net.info.task == "segmentation":
        values |= {name: values[name].short() for name in ("labels", "parted_labels")}
    for k in exits:
        logits, values[f"{ATTENTION}_{k}"] = samples.outputs[k]
        values[f"{LOGITS}_{k}"] = thin(logits)
    np.savez(path, **{name: value.numpy() for name, value in values.items()})  # type: ignore[arg-type]
