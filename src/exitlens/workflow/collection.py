"""collect: one pass over a data set that records every exit of every sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from exitlens.data.batches import Batch, count_batches, hold_samples, iterate_batches, share_bad, take_share
from exitlens.data.sets import LazySet
from exitlens.errors import InputError, OutputExistsError, require
from exitlens.functional import answers
from exitlens.functional.compact import compress
from exitlens.functional.groups import pair_groups
from exitlens.functional.maps import MEASURES, on_common_grid, pair_samples, transplant, uniform
from exitlens.functional.pixels import enlarge_answers, summarise
from exitlens.functional.routing import stack_support
from exitlens.io import RowStore, make_directory
from exitlens.model.cutting.split import Activations
from exitlens.model.engine.engine import Engine
from exitlens.model.engine.tiling import observe_tiles
from exitlens.model.heads import have_maps, require_maps
from exitlens.model.network import ExitNet
from exitlens.model.swaps import BATCH_SIZE, OBJECT, ObservedTrial, find_backgrounds
from exitlens.model.timing import measure_exits
from exitlens.progress import show_progress, track
from exitlens.ranks import find_ranks
from exitlens.types import CompactLogits, ExitLatency, Trace
from exitlens.types.inputs import Inputs
from exitlens.types.settings import COUNT, WHOLE, check_choice, check_number
from exitlens.types.tasks import BY_LABELS, CONTINUOUS, are_same, check_truth, check_vectors, find_answers, refuse_task
from exitlens.types.tiles import Tiles
from exitlens.types.traces import AnswerSummary, Logits, LogitsSummary, PixelSummary, hash_rows

MANY_CLASSES, MANY_LOGITS = 100, 1 << 26  # more logits of at least as many classes are kept in compact form
COMPARED = 1 << 22  # locations of all exits' maps that are compared at once
FILE = "trace.safetensors"  # in a trace_dir
SAME = 0.99  # of the samples, when they are read again: batches of another size may change the last digits
LARGEST_DENSE = 16  # batch of networks that answer one class a pixel
PAIRING = 0  # seed of the pairs of samples for the shuffled-image null

MapPairs = list[tuple[Tensor, Tensor]]  # maps of two exits, each (B,*S)


def collect(  # noqa: PLR0913
    net: ExitNet,
    data: Any,
    *,
    cost: Literal["macs", "time"] = "macs",
    timed_batch: int | None = None,
    batch_size: int = 64,
    progress: bool = False,
    compact: bool | None = None,
    swapped: int = 0,
    trace_dir: str | Path | None = None,
    tiles: Tiles | None = None,
    probes: Tensor | None = None,
) -> Trace:
    """Run every sample through every exit once and record what calibration and evaluation need.

    The processes of ``torchrun`` or of the process group share the work, so each has to call it. They take batches in turn,
    and each returns the trace that a single process would make. Only the first measures time.

    Args:
        net: used in evaluation mode and as it is tuned, and given back in the mode it was in.
        data: a ``Dataset``, a ``DataLoader`` or another iterable of batches, or inputs as a tensor (or several by name);
            labels are optional. Groups that come with the data are recorded; :meth:`Trace.with_groups` names others.
        cost: unit of the trace's ``cost``. ``"macs"``: multiply-accumulates up to and including exit k's head, with all
            earlier heads, over those of the plain backbone (``net.cost``). ``"time"``: the measured time of a batch whose
            samples all leave at exit k, over the time of the same batch when it goes to the final exit and no early head is
            computed; the final exit's is thus a little above 1. The trace's ``timing`` then has milliseconds, batch size,
            quartiles and machine. Measuring takes a few seconds, and nothing else should run meanwhile.
        timed_batch: number of samples in the batch that is timed, with ``cost="time"``; 1 for the latency of single samples.
            It is made of the first batch of the data, repeated if that is smaller; by default it is the first batch.
        batch_size: for a ``Dataset`` and tensors; of one class a pixel at most 16, because large maps fill the memory.
        compact: keep the logits in compact form (:class:`~exitlens.types.CompactLogits`); by default from 100 classes on, if
            there would be more than 2^26 logits (256 MiB). Of one class a pixel a trace always keeps a
            :class:`~exitlens.types.PixelSummary`, and of numbers and vectors an :class:`~exitlens.types.AnswerSummary`.
        swapped: number of samples, such as 2000, drawn at random, of which another pass replaces everything outside the
            object by another sample's, for ``calibrate(max_cue_drop=...)``: the object is the sample's mask, if the data
            have masks, else the top 40 % of the locations by the final exit's map. They are held in memory, so the data are
            read twice and have to come in the same order.
        trace_dir: directory for ``trace.safetensors``, which :meth:`Trace.load` reads. By default nothing is left on disk:
            columns over 64 MiB are mapped from a nameless temporary file, which disappears with the trace.

        tiles: with one class a pixel, record every tile (:class:`~exitlens.types.Tiles`) as a sample, its image as the group
            unless the data name groups, for policies that :func:`exitlens.predict` applies to tiles. Every tile goes through
            all exits with its halo, as it does there. Maps are left out.
        probes: where answers are vectors, ``(P,D)`` of the final exit, such as 1,000 of those that will be searched: for
            each exit's vector the trace then has the share of its ten nearest that are the final vector's, too.

    Returns:
        A :class:`Trace` with the logits and, if the exits have maps, every consistency measure of docs/concepts/method.md
        with its two nulls.

    Raises:
        InputError: ``swapped``, and the exits have no maps or texts have no padding mask.
        OutputExistsError, OutputError: ``trace_dir`` has a trace already, or its disk is full.
        EngineError: times cannot be measured because the machine is busy.
    """
    require(net, ExitNet, "net")
    check_choice("cost", cost, ("macs", "time"))
    if timed_batch is not None:
        check_number("timed_batch", timed_batch, COUNT)
        if cost != "time":
            raise InputError("timed_batch: it is about measured time. Fix: pass cost='time', too.")
    check_number("swapped", swapped, WHOLE)
    if swapped:
        refuse_task(net.info.task, "swapped: it")
        require_maps(net.heads, "swapped")
        net.input_spec.modality.check_deletion(net.input_spec)
        if isinstance(data, Iterator):
            raise InputError("swapped: the data are read twice, an iterator only once. Fix: pass a data set or a loader.")
    if probes is not None:
        probes = _check_probes(net, probes)
    if tiles is not None:
        require(tiles, Tiles, "tiles")
        if net.info.task != "segmentation" or cost == "time":
            raise InputError(
                "tiles: they are for answers to each pixel, at a cost in multiply-accumulates. Fix: leave it out"
            )
    if net.info.task == "segmentation":
        batch_size = min(batch_size, LARGEST_DENSE)
    ranks = find_ranks()
    with ranks.together():
        folder = None if trace_dir is None or not ranks.is_first else Path(trace_dir)
        recorder = _Recorder(net, folder, compact, tiles, probes is not None)
        source = take_share(data, batch_size, ranks, "data")
        stream = iterate_batches(source, batch_size, net.device)
        if progress and ranks.is_first:
            stream = iter(track(stream, "collecting", total=count_batches(source, batch_size)))
    first: list[Inputs] = []
    ranks.hand_over(_observe(net, stream, first, tiles, probes), recorder.add)
    share_bad(data, ranks)

    def finish() -> Trace:
        timing = None
        if cost == "time" and first:
            with show_progress(progress) as bar:
                bar.add_task("timing the exits", total=None)
                timing = measure_exits(net, first[0], timed_batch)
        swap = partial(_record_swaps, net, data=data, count=swapped, progress=progress) if swapped else None
        return recorder.finish(progress, timing, swap)

    return ranks.share(finish)


def _check_probes(net: ExitNet, probes: Tensor) -> Tensor:
    require(probes, Tensor, "probes", "pass the labels of predictions by the final exit")
    wide = net.info.num_classes
    if net.info.task != "embedding" or probes.ndim != 2 or probes.shape[1] != wide or len(probes) <= answers.NEAREST:
        wanted = f"more than {answers.NEAREST} vectors (P,{wide}) for a network that answers vectors"
        raise InputError(f"probes: expected {wanted}, got {tuple(probes.shape)}. Fix: pass vectors of the final exit.")
    check_vectors(probes.float(), "probes")
    return probes.float().to(net.device)


class _Recorder:
    """Takes in batch after batch, and makes a trace of them."""

    def __init__(
        self, net: ExitNet, folder: Path | None, compact: bool | None, tiles: Tiles | None, has_probes: bool
    ) -> None:
        if folder is not None:
            if (folder / FILE).exists():
                raise OutputExistsError(f"trace_dir: {folder / FILE} exists. Fix: load it (Trace.load) or pass another one.")
            make_directory(folder, "trace_dir")
        self._net, self._folder, self._store = net, folder, RowStore(folder)
        if net.info.task != "classes":
            if compact:
                several = net.info.task == "multilabel"
                reason = "several labels a sample need all logits" if several else "a summary is kept in place of logits"
                raise InputError(f"compact: {reason}. Fix: leave it out.")
            compact = False
        self._compact, self._is_compact, self._has_probes = compact, bool(compact), has_probes
        self._labels, self._ids = list[Tensor | None](), list[Tensor | None]()
        self._shapes: list[tuple[int, ...]] = []
        self._count, self._classes, self._has_maps = 0, 0, have_maps(net.heads) and tiles is None
        self._tiles, self._images, self._overhead = tiles, list[Tensor](), 1.0  # of a tile with its halo

    def add(self, seen: _Observed) -> None:
        """Check and store a batch."""
        logits, labels = seen.logits, seen.labels
        if isinstance(logits, PixelSummary):
            labels = logits.confusion  # where they are counted
        elif labels is not None and not isinstance(logits, AnswerSummary):
            check_truth(labels, len(logits), logits.shape[2], self._net.info.task, "data, labels")
        if self._labels and (labels is None) != (self._labels[0] is None):
            raise InputError("data: some batches have labels and some have none. Fix: give all of them labels, or none.")
        self._labels.append(labels)
        self._ids.append(seen.groups if self._tiles is None else self._name_images(seen, len(logits), self._tiles))
        self._count, self._classes = self._count + len(logits), logits.shape[2]
        if isinstance(logits, LogitsSummary):
            self._store_parts(logits)
        else:
            self._add_logits(logits, labels)
        if self._has_maps:
            self._add_maps(seen)

    def _name_images(self, seen: _Observed, count: int, tiles: Tiles) -> Tensor | None:
        """Record the image of every tile; return the group of its image, if there are groups."""
        overhead = tiles.find_overhead(seen.size)
        if self._images and overhead != self._overhead:
            raise InputError("data: its images differ in size, and so do the costs of their tiles. Fix: resize them.")
        first = int(self._images[-1][-1]) + 1 if self._images else 0
        self._overhead = overhead
        self._images.append((torch.arange(seen.images) + first).repeat_interleave(count // seen.images))
        return None if seen.groups is None else seen.groups.repeat_interleave(count // seen.images)

    def _add_logits(self, logits: Tensor, labels: Tensor | None) -> None:
        if self._is_compact:
            self._compress(logits, labels)
            return
        self._store.add("logits", logits)
        is_many = self._classes >= MANY_CLASSES and self._count * logits[0].numel() > MANY_LOGITS
        if self._compact is None and is_many:  # the result is the same as if it had been compact from the beginning
            self._is_compact, whole, known = True, self._store.take("logits"), _join(self._labels)
            for rows in torch.arange(self._count).split(64):
                self._compress(whole[rows], None if known is None else known[rows])
                self._store.release()

    def _add_maps(self, seen: _Observed) -> None:
        if seen.gate_features is not None:
            self._store.add("gate_features", seen.gate_features)
        shapes = [tuple(early.shape[1:]) for early, _ in seen.maps]
        if self._shapes and shapes != self._shapes:
            raise InputError("data: its samples differ in size, so maps cannot be compared. Fix: resize them to one size.")
        self._shapes = shapes
        for k, (exit_map, _) in enumerate(seen.maps):
            self._store.add(f"map {k}", exit_map)
        for shape, final in {tuple(final.shape[1:]): final for _, final in seen.maps}.items():  # one per grid
            self._store.add(f"final {shape}", final)

    def _compress(self, logits: Tensor, labels: Tensor | None) -> None:
        self._store_parts(compress(logits, labels))
        self._store.add("sample_hashes", hash_rows(logits))

    def _store_parts(self, logits: LogitsSummary) -> None:
        for name, part in logits.parts().items():
            if part is not None:
                self._store.add(f"logits.{name}", part)

    def _take_logits(self, is_labelled: bool) -> Logits:
        if self._net.info.task == "segmentation":
            return PixelSummary(
                **self._take_parts(("scores", "means", "disagreement"), ("confusion", "borders"), is_labelled)
            )
        if self._net.info.task in CONTINUOUS:
            given = ["overlap"] if self._has_probes else []
            return AnswerSummary(**self._take_parts(("values", "scores", "distance", *given), ("error",), is_labelled))
        if not self._is_compact:
            return self._store.take("logits")
        parts = self._take_parts(("top", "classes", "span", "weights"), ("label",), is_labelled)
        return CompactLogits(**parts, num_classes=self._classes)

    def _take_parts(self, names: Sequence[str], of_labels: Sequence[str], is_labelled: bool) -> dict[str, Any]:
        parts = {name: self._store.take(f"logits.{name}") for name in (*names, *(of_labels if is_labelled else ()))}
        return dict.fromkeys(of_labels) | parts

    def finish(self, progress: bool, timing: ExitLatency | None, swap: Callable[[Trace], Trace] | None) -> Trace:
        """Return the trace of all batches, with what ``swap`` adds to it."""
        if not self._ids:
            raise InputError("data: it gave no batch. Fix: pass at least one sample.")
        if len({part is None for part in self._ids}) > 1:
            raise InputError("data: some batches have groups and some have none. Fix: give all of them groups, or none.")
        labels, is_dense = _join(self._labels), self._net.info.task == "segmentation"
        has_gate = self._net.num_exits > 1 and self._has_maps and self._net.info.task in BY_LABELS
        agreement: dict[str, Any] = {"divergence": torch.zeros(self._count, self._net.num_exits)}
        if self._has_maps:
            agreement = _compare_maps(self._store, self._shapes, pair_samples(self._count, PAIRING), progress)
        trace = Trace(
            logits=self._take_logits(labels is not None),
            labels=None if is_dense else labels,
            sample_hashes=self._store.take("sample_hashes") if self._is_compact else None,
            **agreement,
            cost=self._find_cost() if timing is None else torch.tensor(timing.cost),
            timing=timing,
            network=self._net.identity(),
            gate_features=self._store.take("gate_features") if has_gate else None,
            groups=_join(self._ids),
            task=self._net.info.task,
            classes=self._net.info.classes,
            tiles=self._tiles,
            images=_join(self._images),
        )
        if swap is not None:
            trace = swap(trace)
        if self._folder is None:
            return trace
        trace.save(self._folder / FILE)
        return Trace.load(self._folder / FILE)

    def _find_cost(self) -> Tensor:
        """Return the cost of the exits; after the first stage, that of tiles with their halos."""
        first = self._net.cost[:1]
        return self._net.cost if self._tiles is None else first + (self._net.cost - first) * self._overhead


def _join(parts: Sequence[Tensor | None]) -> Tensor | None:
    known = [part for part in parts if part is not None]
    return torch.cat(known) if known else None


class _Observed(NamedTuple):
    """The record of a batch, on the CPU."""

    logits: Tensor | PixelSummary | AnswerSummary  # (B,K,C)
    labels: Tensor | None  # (B,); None if they are counted in the logits
    groups: Tensor | None  # (B,)
    gate_features: Tensor | None  # (B,K-1,3)
    maps: MapPairs  # for each exit its map and the final one, on one grid
    images: int  # B, whatever the tiles
    size: tuple[int, ...]  # of the first input's locations


def _observe(
    net: ExitNet, stream: Iterator[Batch], first: list[Inputs], tiles: Tiles | None, probes: Tensor | None
) -> Iterator[_Observed]:
    """Run every batch through every exit, and keep the inputs of the first in ``first``."""
    for inputs, labels, groups in stream:
        if not first:
            first.append(inputs)
        activations, features, grids = net.check_input(inputs, "data"), None, list[tuple[Tensor, Tensor]]()
        with net.open_engine() as engine:
            if tiles is not None:
                logits: Tensor | PixelSummary | AnswerSummary = _sum_up_tiles(net, engine, activations, labels, tiles)
            else:
                given = engine.enter(activations)
                if net.info.task in BY_LABELS:
                    supported = engine.compute_support(given)
                    outputs, features = [out[:2] for out in supported], stack_support([support for *_, support in supported])
                else:
                    outputs = engine.compute_outputs(given)
                each, attention = zip(*outputs, strict=True)
                logits = _sum_up(net, activations[0], each, labels, probes)
                grids = [on_common_grid(item.float(), attention[-1].float()) for item in attention]
        yield _Observed(
            logits,
            None if labels is None or net.info.task in ("segmentation", "embedding") else labels.cpu(),
            None if groups is None else groups.cpu(),
            features.cpu() if features is not None and features.shape[1] else None,
            [(item.cpu(), final.cpu()) for item, final in grids],
            len(activations[0]),
            tuple(activations[0].shape[2:]),
        )


def _sum_up(
    net: ExitNet, inputs: Tensor, logits: Sequence[Tensor], labels: Tensor | None, probes: Tensor | None
) -> Tensor | PixelSummary | AnswerSummary:
    """Return what is kept of the logits of a batch, on the CPU."""
    info = net.info
    if info.task in BY_LABELS:
        return torch.stack([each.float() for each in logits], 1).cpu()
    with torch.inference_mode():
        if info.task == "segmentation":
            _check_masks(net, inputs, labels)
            return summarise(logits, [enlarge_answers(each, inputs.shape[2:]) for each in logits], labels).cpu()
        labels = None if info.task == "embedding" else labels
        if labels is not None:
            check_truth(labels, len(logits[0]), info.num_classes, info.task, "data, labels")
        return answers.summarise(logits, info.task, info.units, labels, probes).cpu()


def _sum_up_tiles(
    net: ExitNet, engine: Engine, activations: Activations, labels: Tensor | None, tiles: Tiles
) -> PixelSummary:
    """Return what is kept of the tiles of a batch, on the CPU."""
    _check_masks(net, activations[0], labels)
    cells, told = observe_tiles(engine, activations, tiles)
    return summarise(cells, told, labels, tiles.count(activations[0].shape[2:])).cpu()


def _check_masks(net: ExitNet, images: Tensor, labels: Tensor | None) -> None:
    if labels is not None:
        check_truth(labels, len(images), net.info.num_classes, net.info.task, "data, labels")
        if labels.shape[1:] != images.shape[2:]:
            wanted = (len(images), *images.shape[2:])
            raise InputError(f"data, labels: expected {wanted}, as the images, got {tuple(labels.shape)}")


def _compare_maps(store: RowStore, shapes: Sequence[tuple[int, ...]], partner: Tensor, progress: bool) -> dict[str, Any]:
    """Return the fields of the trace about the agreement of maps, with its two nulls."""
    maps = [store.take(f"map {k}") for k in range(len(shapes))]
    by_shape = {shape: store.take(f"final {shape}") for shape in dict.fromkeys(shapes)}
    finals = [by_shape[shape] for shape in shapes]

    def compare(kind: str, pairs: MapPairs) -> None:
        # KL is KL(final ‖ exit); the other measures are symmetric
        for name, measure in MEASURES.items():
            store.add(f"{kind} {name}", torch.stack([measure(*pair) for pair in pairs], 1))

    locations = sum(math.prod(shape) for shape in shapes)  # of one sample
    parts = torch.arange(len(partner)).split(max(1, COMPARED // locations))
    for rows in track(parts, "comparing maps") if progress and len(parts) > 1 else parts:
        early, final = [part[rows] for part in maps], [part[rows] for part in finals]
        others = [part[partner[rows]] for part in finals]
        compare("similarity", list(zip(final, early, strict=True)))
        if len(partner) > 1:
            compare("null", [(transplant(a, b), b) for a, b in zip(others, early, strict=True)])
        compare("uniform_null", [(a, uniform(b)) for a, b in zip(final, early, strict=True)])
        store.release()
    kinds = ("similarity", "uniform_null", *(["null"] if len(partner) > 1 else []))
    agreement: dict[str, Any] = {kind: {name: store.take(f"{kind} {name}") for name in MEASURES} for kind in kinds}
    divergence = agreement["similarity"]["divergence"].clone()
    divergence[:, -1] = 0
    return agreement | {"divergence": divergence}


def _are_same(logits: Tensor, trace: Trace) -> bool:
    """Return whether these are the trace's logits, as far as rounding in batches of another size allows."""
    answers, kept = are_same(find_answers(logits, trace.task), trace.answers, trace.task).float().mean().item(), trace.logits
    if not isinstance(kept, Tensor):
        return answers >= SAME
    gaps, spread = (logits - kept).abs().mean((1, 2)), (kept - kept.mean(0)).abs().mean()
    return answers >= SAME and (gaps <= 0.1 * spread + 1e-4).float().mean().item() >= SAME


def _record_swaps(net: ExitNet, trace: Trace, data: Any, count: int, progress: bool) -> Trace:
    """Return the trace with the swaps of ``count`` of its samples: what is outside the object comes from another sample.

    The object is the sample's mask, or else the top 40 % of the locations by the final exit's map.
    """
    held = hold_samples(data.leave_out_bad() if isinstance(data, LazySet) else data, count).to(net.device)
    groups = torch.arange(len(held)) if trace.groups is None else trace.groups[held.rows]
    with show_progress(progress) as bar, net.open_engine() as engine:
        task = bar.add_task("swapping backgrounds", total=2 * -(-len(held) // BATCH_SIZE))
        sample = ObservedTrial(net, engine, held.prepare, len(held), partial(bar.advance, task))
        if int(held.rows.max()) >= len(trace) or not _are_same(sample.logits, trace.select(held.rows)):
            fix = "Fix: pass a data set, or a loader that does not shuffle."
            raise InputError(f"swapped: the data came in another order, or changed, when they were read again. {fix}")
        rows, choose, masks = torch.arange(len(held)), sample.choose_top(sample.maps[-1], OBJECT), held.masks
        if masks is not None:
            rows, choose = find_backgrounds(masks), lambda rows, _: masks[rows]
        if len(groups[rows].unique()) < 2:
            raise InputError(
                "swapped: expected two samples or more (or groups) with an object and a background, got fewer. Fix: pass "
                "more samples, or check the masks."
            )
        among, unit = pair_groups(groups[rows], PAIRING)
        among_changed = sample.find_changes(rows, [rows[among]], choose, choose, sample.exits).bool()
    changed = torch.zeros(len(trace), net.num_exits, dtype=torch.bool)
    units = torch.full((len(trace),), -1)
    changed[held.rows[rows]], units[held.rows[rows]] = among_changed, unit
    return replace(trace, swaps={"changed": changed, "unit": units})
