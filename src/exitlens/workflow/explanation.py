"""explain: what every exit looked at, which exit answered, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from exitlens.data.batches import iterate_inputs
from exitlens.errors import InputError, require
from exitlens.functional.answers import compare_with
from exitlens.functional.maps import all_finite, class_maps, divergence, on_common_grid, pearson
from exitlens.functional.pixels import resize_logits
from exitlens.functional.routing import (
    Decision,
    decide,
    find_first_firing,
    measure_evidence_support,
)
from exitlens.functional.scores import probabilities, score_of
from exitlens.model.attribution import Recording, attribute_exits
from exitlens.model.cutting.split import Activations
from exitlens.model.engine.engine import Engine
from exitlens.model.heads import SharedSimilarity, VectorHead, have_maps
from exitlens.model.network import ExitNet
from exitlens.types import ExitOutput, ExitView, Explanation, LabelView, NumberView, PixelView, Policy
from exitlens.types.inputs import Inputs, count_rows, map_inputs
from exitlens.types.settings import CHANGE_SCORES
from exitlens.types.tasks import ANSWERS, CONTINUOUS, check_vectors, find_answers, read_answers, refuse_task


def explain(
    net: ExitNet,
    inputs: Inputs,
    policy: Policy,
    *,
    final: bool = True,
    relevance: bool = False,
    to: Tensor | None = None,
) -> Explanation:
    """Explain the answer to one sample, from one forward pass.

    For a network that answers one class a pixel, ``exits[k].pixels`` has each exit's classes, a map for each class, and the
    pixels whose class differs from the final exit's. For one that answers numbers, ``exits[k].numbers`` has each number with
    what every location adds to it; for one that answers vectors, the cosine with the vector ``to``.

    Args:
        net: used in evaluation mode, and given back in the mode it was in.
        inputs: one sample, with or without a batch axis, such as normalised floats ``(C,H,W)`` or tokens ``(N,)`` by name.
        policy: of this network, else a :class:`PolicyError`.
        final: also run the exits after the one that answers, for comparison. Otherwise the pass stops where adaptive
            inference does.
        relevance: also show on which places of exit 0's features the answer depends, to first order: one backward pass
            through the stages up to the exit that answered (:func:`~exitlens.model.attribution.attribute`). Maps of deep
            features show where the features were read, which need not be where the decision was made.
        to: where answers are vectors, another vector ``(D,)`` (or for a batch one each, ``(B,D)``), such as a query's: the
            explanation is of the similarity, by a second pass.

    Examples:
        >>> why = xl.explain(net, images[0], policy)
        >>> len(why.exits), why.answered in (0, 1, 2)
        (3, True)
    """
    require(net, ExitNet, "net")
    axes, names = len(net.input_spec.shape), net.input_spec.names
    if not isinstance(inputs, Tensor | Mapping) or (isinstance(inputs, Mapping) and not names):
        wanted = f"a dict with {list(names)}" if names else f"a torch.Tensor ({','.join(net.input_spec.modality.axes)})"
        raise InputError(f"inputs: expected {wanted}, got {type(inputs).__name__}: see {net.input_spec.modality.reader}")
    batch = map_inputs(inputs, lambda t: t[None] if isinstance(t, Tensor) and t.ndim == axes else t)
    if count_rows(batch) != 1:
        raise InputError(f"inputs: expected one sample, got a batch of {count_rows(batch)}. Fix: call explain_batch.")
    return explain_batch(net, batch, policy, final=final, relevance=relevance, to=to)[0]


def explain_batch(
    net: ExitNet, data: Any, policy: Policy, *, final: bool = True, relevance: bool = False, to: Tensor | None = None
) -> Sequence[Explanation]:
    """Explain every sample of a batch as :func:`explain` does, in one pass; a data set or loader is read batch by batch.

    Examples:
        >>> [len(why.exits) for why in xl.explain_batch(net, images[:2], policy)]
        [3, 3]
    """
    require(net, ExitNet, "net")
    net.check_policy(policy)
    if relevance:
        refuse_task(net.info.task, "relevance: it")
    batches = [data] if isinstance(data, Tensor | Mapping) else iterate_inputs(data, device=net.device)
    if to is not None or net.info.task == "embedding":
        to = _check_other(net, data, to)
    return [why for inputs in batches for why in _explain(net, inputs, policy, final, relevance, to)]


def _check_other(net: ExitNet, data: Any, to: Tensor | None) -> Tensor:
    """Return the vectors that answers are compared with, one for each sample."""
    if net.info.task != "embedding":
        raise InputError(f"to: it is for networks that answer vectors, not {ANSWERS[net.info.task]}. Fix: leave it out.")
    count, wide = count_rows(data) if isinstance(data, Tensor | Mapping) else 0, net.info.num_classes
    if not count or not isinstance(to, Tensor) or to.shape not in ((wide,), (count, wide)):
        got = tuple(to.shape) if isinstance(to, Tensor) else type(to).__name__
        raise InputError(
            f"to: expected a vector ({wide},), or ({count},{wide}) for a batch, got {got}. Fix: pass that of a query, as "
            "predict gives it, and one batch."
        )
    check_vectors(to, "to")
    return to.to(net.device).expand(count, -1)


def _share(net: ExitNet, activations: Activations, to: Tensor | None) -> list[SharedSimilarity | None]:
    """Return every exit's cosine with other vectors, shared out; nothing without them."""
    shared: list[SharedSimilarity | None] = [None] * net.num_exits
    for k in range(0 if to is None else net.num_exits):
        activations, head = net.stage(k)(*activations), cast(VectorHead, net.head(k))  # or another that has the method
        assert to is not None
        shared[k] = head.share_similarity(to, *activations)
    return shared


def _explain(
    net: ExitNet, inputs: Inputs, policy: Policy, final: bool, relevance: bool, to: Tensor | None
) -> Iterator[Explanation]:
    tensors = net.check_input(inputs)
    with net.open_engine() as engine:
        records = relevance and engine.tuning.precision == "float32"
        recording = Recording(engine.stages, engine.heads, net) if records else None
        results, shared = _run_exits(engine, engine.enter(tensors), policy, final, recording), _share(net, tensors, to)
    early = [view.decision.scores for view in results if view.decision is not None]
    scores = torch.stack(early, 1) if early else results[0].scores.new_empty(len(results[0].scores), 0)
    answered = find_first_firing(scores, policy.thresholds[: len(early)]).tolist()
    relevances: Sequence[Tensor | None] = [None] * len(answered)
    if recording is not None:
        relevances = recording.find_relevance(answered)
    elif relevance:  # a pass of its own, in float32
        by_exit = attribute_exits(net, inputs)
        relevances = [by_exit[k][i] for i, k in enumerate(answered)]
    size = tensors[0].shape[2:] if net.info.task == "segmentation" else None
    columns = [_make_views(net, policy, results, k, size, shared[k]) for k in range(len(results))]
    record = None if policy.is_changed else policy.calibration
    count, modality = net.num_exits, net.input_spec.modality
    for i, (sample, item) in enumerate(zip(tensors[0], relevances, strict=True)):
        run = count if final else answered[i] + 1
        views = tuple(column(i, run == count) for column in columns[:run])
        yield Explanation(
            inputs=sample.clone(),
            exits=views,
            answered=answered[i],
            classes=net.info.classes,
            num_exits=count,
            tokens=modality.name_locations([t[i] for t in tensors], net.input_spec, net.info.preprocess),
            preprocess=net.info.preprocess,
            draw_map=modality.draw_map,
            relevance=None if item is None else item.clone(),
            calibration_error=None if record is None else record.calibration_error,
            promise=policy.describe_binding(answered[i]),
        )


class _ExitResult(NamedTuple):
    """The output, probabilities and scores of an exit for a batch, and its decision (``None`` for the final exit)."""

    out: ExitOutput
    p: Tensor
    scores: Tensor
    decision: Decision | None


def _run_exits(
    engine: Engine, activations: Activations, policy: Policy, final: bool, recording: Recording | None
) -> list[_ExitResult]:
    """Run all exits; unless ``final``, only until every sample has an answer."""
    outputs = (engine if recording is None else recording).iterate_outputs(activations)
    results: list[_ExitResult] = []
    waiting: Tensor | None = None
    for k, output in enumerate(outputs):
        out = ExitOutput(*(t.clone() for t in output))  # ordinary tensors
        if not all_finite(out.logits):
            raise InputError("net: its logits are NaN or infinite for these inputs: its weights are damaged, train it again")
        p = probabilities(out.logits, policy.temperatures[k], policy.score)
        if policy.score in CHANGE_SCORES:
            before = p if k == len(policy.thresholds) else results[-1].p if results else None
            p = compare_with(p, before, policy.task)
        scores = score_of(p, policy.score)
        if k == len(policy.thresholds):
            results.append(_ExitResult(out, p, scores, None))
            break
        support = None if policy.gate is None else measure_evidence_support(out.evidence, out.logits, out.attention)
        decision = decide(policy, k, p, scores, support)
        results.append(_ExitResult(out, p, scores, decision))
        waiting = ~decision.fired if waiting is None else waiting & ~decision.fired
        if not waiting.any():
            if not final:
                break
            if recording is not None:
                recording.stop()
    return results


def _view_pixels(net: ExitNet, results: Sequence[_ExitResult], k: int, size: Sequence[int]) -> list[PixelView]:
    """Return an exit's answers for the pixels of every sample, compared with those of the last exit that was run."""
    logits = (resize_logits(result.out.logits, size) for result in (results[k], results[-1]))
    answers, last = (find_answers(each, "segmentation") for each in logits)
    maps, told = net.info.place(k, class_maps(results[k].out.evidence)), [each.unique() for each in answers]
    return [PixelView(answers[i].clone(), told[i], maps[i][told[i]], answers[i] != last[i]) for i in range(len(answers))]


def _view_numbers(net: ExitNet, out: ExitOutput, k: int, shared: SharedSimilarity | None) -> list[tuple[NumberView, ...]]:
    """Return an exit's numbers for every sample, in the data's units, or the cosines of its vectors with others."""
    if shared is not None:
        maps = net.info.place(k, shared.shares)
        rows = zip(shared.cosine.tolist(), maps, shared.rest.tolist(), strict=True)
        return [(NumberView(cosine, located.clone(), rest),) for cosine, located, rest in rows]
    maps, bias = net.info.place(k, out.evidence.float()), net.head(k).bias
    units = net.info.units or ((0.0, 1.0),) * net.info.num_classes
    still = [0.0] * len(units) if bias is None else bias.tolist()

    def view(i: int, c: int) -> NumberView:
        mean, spread = units[c]
        return NumberView(mean + spread * out.logits[i, c].item(), maps[i, c] * spread, mean + spread * still[c])

    return [tuple(view(i, c) for c in range(len(units))) for i in range(len(out.logits))]


def _make_views(
    net: ExitNet,
    policy: Policy,
    results: Sequence[_ExitResult],
    k: int,
    size: Sequence[int] | None,
    shared: SharedSimilarity | None,
) -> Callable[[int, bool], ExitView]:
    """Return a function that makes an exit's view of sample i, compared with the final exit or not.

    ``size`` is that of the inputs, if the network answers each of their pixels; ``shared`` the similarity of vectors.
    """
    out, p, scores, decision = results[k]
    numbers = _view_numbers(net, out, k, shared) if net.info.task in CONTINUOUS else None
    logits, pixels = out.logits, None if size is None else _view_pixels(net, results, k, size)
    if pixels is not None:
        counts = [view.labels.flatten().bincount(minlength=net.info.num_classes) for view in pixels]
        p, logits = torch.stack(counts) / pixels[0].labels.numel(), out.evidence.mean((2, 3))
    head = net.head(k)
    attention, evidence = (net.info.place(k, maps.float()) for maps in (out.attention, out.evidence))
    estimates = None if decision is None or policy.gate is None else decision.scores
    refused = None if decision is None else decision.refused
    labels, compares = p.argmax(1), have_maps(net.heads)
    to_final = _compare_maps(out, results[-1].out) if compares and len(results) == net.num_exits else None
    nulls = None if policy.calibration is None else policy.calibration.map_null
    to_previous = _compare_maps(out, results[k - 1].out) if compares and k else None

    def view_label(i: int, c: int) -> LabelView:
        bias = 0.0 if head.bias is None else head.bias[c].item()
        # cloned, so as not to keep the whole batch alive
        return LabelView(c, p[i, c].item(), evidence[i, c].clone(), logits[i, c].item(), bias)

    def view(i: int, with_final: bool) -> ExitView:
        if numbers is None:
            top = view_label(i, int(labels[i]))
        else:
            first = numbers[i][0]
            top = LabelView(0, 1.0, first.evidence, first.number, first.bias)
        told = read_answers(p[i], "multilabel").nonzero().flatten().tolist() if policy.task == "multilabel" else None
        return ExitView(
            exit=k,
            label=top.label,
            confidence=scores[i].item(),
            threshold=0.0 if decision is None else policy.thresholds[k],
            fired=decision is None or bool(decision.fired[i]),
            cost=net.cost[k].item(),
            probabilities=p[i].clone() if numbers is None else p[i, :0].clone(),
            attention=attention[i].clone(),
            evidence=top.evidence,
            exact_evidence=bool(head.exact_evidence) if shared is None else shared.is_exact,
            logit=top.logit,
            bias=top.bias,
            divergence=to_final[0][i].item() if to_final and with_final else None,
            cc=to_final[1][i].item() if to_final and with_final else None,
            cc_null=nulls[k] if nulls else None,
            previous_divergence=None if to_previous is None else to_previous[0][i].item(),
            previous_cc=None if to_previous is None else to_previous[1][i].item(),
            estimate=None if estimates is None else estimates[i].item(),
            refused=refused is not None and bool(refused[i]),
            labels=None if told is None else tuple(view_label(i, c) for c in told),
            pixels=None if pixels is None else pixels[i] if with_final else pixels[i]._replace(differs=None),
            numbers=None if numbers is None else numbers[i],
        )

    return view


def _compare_maps(out: ExitOutput, other: ExitOutput) -> tuple[Tensor, Tensor]:
    """Return divergence and correlation of two exits' maps, each ``(B,)``."""
    maps, other_maps = on_common_grid(out.attention.float(), other.attention.float())
    return divergence(other_maps, maps), pearson(other_maps, maps)
