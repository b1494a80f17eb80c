"""Files with numbers, and texts without labels, by commands alone: train, calibrate, test, answer, explain, export, serve."""

import csv
import json

import numpy as np
import pytest
import torch

import exitlens as xl
from exitlens.serving.models import open_bundle
from tests.cli.conftest import Caller
from tests.exported import read_arrays
from tests.texts import config_values

pytestmark = pytest.mark.slow

QUERY = ("--text", "the film was good")


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    """A CSV file with a series of 24 steps and its price in each row."""
    path, rng = tmp_path_factory.mktemp("data") / "series.csv", torch.Generator().manual_seed(0)
    values = torch.randn(160, 24, generator=rng)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["series", "price"])
        writer.writerows([" ".join(f"{x:.4f}" for x in row.tolist()), f"{50 + 20 * row.amax():.3f}"] for row in values)
    return path


@pytest.fixture(scope="module")
def priced(series, tmp_path_factory):
    """A run on the series, with a certificate or none."""
    run, call = tmp_path_factory.mktemp("run") / "x", Caller()
    given = ("--task", "regression", "--exits", "layer1,layer2", "--epochs", 1, "--batch-size", 32)
    told = call.ok("fit", "--data", series, *given, "--out", run)
    assert "validation R²" in told
    assert "series from 'series', labels from 'price'" in told
    assert "--max-error-increase 0.02" in told
    call.ok("calibrate", "--bundle", run, "--max-error-increase", 0.9, "--max-deviation", 0.9)
    return run


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A directory with a tiny text encoder."""
    from transformers import AutoConfig, AutoModel

    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    values = config_values(max_position_embeddings=16)
    AutoModel.from_config(AutoConfig.for_model(values.pop("model_type"), **values)).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(xl.data.word_tokenizer(["the film book song was good bad number"]))
    return folder


@pytest.fixture(scope="module")
def sentences(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "sentences.txt"
    words = [f"the {('film', 'book', 'song')[i % 3]} was {('good', 'bad')[i % 2]}{' indeed' * (i % 5)}" for i in range(160)]
    path.write_text("\n".join(words))
    return path


@pytest.fixture(scope="module")
def encoder(model, sentences, tmp_path_factory):
    """A run on the sentences, with a policy under which some leave early."""
    run, call = tmp_path_factory.mktemp("run") / "x", Caller()
    given = ("--task", "embedding", "--backbone", f"hf:{model}", "--pretrained", "--exits", 2, "--size", 12, "--epochs", 2)
    told = call.json("fit", "--data", sentences, *given, "--batch-size", 32, "--out", run)
    assert [len(told["cosine"]), round(told["cosine"][-1], 5)] == [3, 1]
    told = call.json("calibrate", "--bundle", run, "--max-distance", 0.9, "--max-rank-change", 0.99, "--delta", 0.4)
    assert "With 60 % confidence" in told["certificate"]
    return run


def test_the_final_vectors_are_the_encoders(encoder, model):
    from transformers import AutoModel

    net, _ = xl.load(encoder)
    inputs = net.info.preprocess.encode(["the film was good", "bad"])
    with torch.no_grad():
        tokens = AutoModel.from_pretrained(model).eval()(**inputs)[0]
    mask = inputs["attention_mask"][..., None]
    expected = torch.nn.functional.normalize((tokens * mask).sum(1) / mask.sum(1), dim=1)
    assert torch.allclose(net(inputs)[-1].logits[:, :-1], expected, atol=1e-5)


def test_tables_have_errors_and_distances(call, priced, encoder):
    told = call.json("evaluate", "--bundle", priced)
    assert told["answers"]["mae"] > 0
    assert told["class_names"] == ["price"]
    out = call.ok("evaluate", "--bundle", priced)
    assert "1 number" in out
    assert "mean absolute error" in out
    told = call.json("evaluate", "--bundle", encoder)
    assert len(told["answers"]["exit_overlap"]) == 3
    assert "share of the nearest probes" in call.ok("evaluate", "--bundle", encoder)


def test_answers_are_numbers_and_arrays(call, priced, series, encoder, sentences, tmp_path):
    told = call.json("predict", "--bundle", priced, "--data", series, "--out", tmp_path / "prices.csv")
    rows = list(csv.DictReader((tmp_path / "prices.csv").read_text().splitlines()))
    assert len(rows) == told["samples"] == 160
    call.ok("predict", "--bundle", priced, "--data", series, "--out", tmp_path / "prices.npy", "--batch-size", 50)
    prices = np.load(tmp_path / "prices.npy")
    assert np.allclose(prices, [float(row["label"]) for row in rows], rtol=1e-4)
    assert "prices.npy exists" in call.error(
        "predict", "--bundle", priced, "--data", series, "--out", tmp_path / "prices.npy"
    )
    out = ("--out", tmp_path / "new" / "vectors.npz")
    shown = call.ok("predict", "--bundle", encoder, "--data", sentences, *out)
    assert max(map(len, shown.splitlines())) < 200
    held = read_arrays(tmp_path / "new" / "vectors.npz")
    assert held["labels"].shape == (160, 16)
    assert np.allclose(np.linalg.norm(held["labels"], axis=1), 1, atol=1e-5)
    assert held["files"][1] == f"{sentences}:2"
    assert len(held["exits"]) == len(held["confidence"]) == 160
    words = call.error("predict", "--bundle", encoder, "--data", sentences, *out, "--resume")
    assert "expected a file .csv, .jsonl or .parquet" in words


def test_explanations_tell_numbers_and_likeness(call, priced, encoder, tmp_path):
    np.save(tmp_path / "one.npy", np.random.default_rng(0).normal(size=(1, 24)).astype(np.float32))
    told = call.json("explain", "--bundle", priced, "--image", tmp_path / "one.npy", "--out", tmp_path / "why")
    (view,) = told["exits"][0]["numbers"]
    assert abs(view["number"]) > 1
    assert (tmp_path / "why" / "one.html").is_file()
    told = call.json("explain", "--bundle", encoder, *QUERY, "--to", QUERY[1])
    assert abs(told["exits"][-1]["numbers"][0]["number"] - 1) < 1e-5
    assert "Fix: pass --to TEXT or FILE" in call.error("explain", "--bundle", encoder, *QUERY)
    assert "Fix: " in call.error(
        "explain", "--bundle", priced, "--image", tmp_path / "one.npy", "--to", tmp_path / "one.npy"
    )


@pytest.mark.parametrize("kind", ["priced", "encoder"])
def test_other_commands_work_or_say_what_to_do(call, kind, request, series, sentences, tmp_path):
    run, data = request.getfixturevalue(kind), {"priced": series, "encoder": sentences}[kind]
    limit = {"priced": "--max-deviation", "encoder": "--max-distance"}[kind]
    call.ok("calibrate", "--bundle", run, limit, 0.9, "--unlabelled", data, "--name", "other")
    assert open_bundle("m", run).gives_values
    assert "no drift seen" in call.ok("predict", "--bundle", run, "--data", data, "--monitor", "--policy", "other")
    for words in (
        ("explain", "--bundle", run, "--data", data, "--out", tmp_path / "many"),
        ("export", "--bundle", run, "--out", tmp_path / "other", "--for", "triton"),
    ):
        error = call.error(*words)
        assert "is not there yet for networks that answer" in error
        assert "Fix: see docs/guides/vectors.md" in error
    assert "it is for one class a sample" in call.error("calibrate", "--bundle", run, "--max-accuracy-drop", 0.1)
    told = call.json("report", run, "--out", tmp_path / "report.html")
    assert told["runs"][str(run)]["answers"]["distance"] >= 0
    page = (tmp_path / "report.html").read_text()
    assert ("mean absolute error" in page, "share of the nearest probes" in page) == (kind == "priced", kind == "encoder")
    assert "distance" in call.ok("report", run, "--out", tmp_path / "again.html")


@pytest.mark.long
@pytest.mark.parametrize("kind", ["priced", "encoder"])
def test_slow_commands(call, kind, request, tmp_path):
    run = request.getfixturevalue(kind)
    limit = {"priced": "--max-deviation", "encoder": "--max-distance"}[kind]
    call.ok("export", "--bundle", run, "--out", tmp_path / "edge")
    assert (tmp_path / "edge" / "cascade.onnx").is_file()
    call.ok("plan", "--bundle", run, limit, 0.9, "--draws", 2)
    call.ok("bench", "--bundle", run, "--batch-sizes", 4, "--samples", 4, "--rounds", 1, "--seconds", 0)
    assert "judging bfloat16 is not there yet" in call.error("tune", "--bundle", run, "--precision", "bfloat16")
    call.ok("tune", "--bundle", run, "--samples", 16, "--precision", "float32", "--backend", "torch")
    for words in (
        ("certify", "--bundle", run),
        ("cues", "--bundle", run),
        ("compare", run),
        ("cascade", "--member", f"a={run}", "--member", f"b={run}", "--out", tmp_path / "both"),
        ("export", "--bundle", run, "--out", tmp_path / "other", "--int8"),
    ):
        assert "is not there yet for networks that answer" in call.error(*words)
    web = call.error("export", "--bundle", run, "--out", tmp_path / "other", "--web")
    assert "how pictures become inputs" in web


def test_bad_numbers_are_told_with_file_and_row(call, series, tmp_path):
    lines = series.read_text().splitlines()
    for i, value in enumerate(("", "n/a", "inf", "1e39"), 2):
        lines[i] = f"{lines[i].rpartition(',')[0]},{value}"
    bad = tmp_path / "bad.csv"
    bad.write_text("\n".join(lines))
    fit = ("fit", "--data", bad, "--task", "regression", "--exits", "layer1", "--epochs", 1, "--out", tmp_path / "run")
    error = call.error(*fit)
    assert "4 of 160 rows cannot be read" in error
    for words in ("bad.csv:3: no label", "bad.csv:4: price: expected 1 finite number(s), got 'n/a'", "'inf'", "'1e39'"):
        assert words in error
    told = call.json(*fit, "--skip-bad")
    assert len(told["bad"]) == 0
    assert json.loads((tmp_path / "run" / "data.json").read_text())["task"] == "regression"


def test_what_does_not_go_together(call, series, sentences, model, folder, tmp_path):
    out = ("--out", tmp_path / "run")
    assert "or numbers give a table" in call.error("fit", "--data", folder, "--task", "regression", *out)
    error = call.error("fit", "--data", sentences, "--task", "embedding", "--backbone", f"hf:{model}", *out)
    assert "Fix: --backbone hf:DIR --pretrained." in error
    assert "those of a trained encoder of texts" in call.error("fit", "--data", series, "--task", "embedding", *out)
    assert "is not a file of texts" in call.error("fit", "--data", sentences, "--backbone", f"hf:{model}", *out)
