"""Texts from the command line: fit on a file, calibrate, evaluate, predict, explain with shaded tokens."""

import csv
import json
from functools import partial

import pytest

import exitlens as xl
from exitlens import cli
from exitlens.data import demo
from exitlens.types.settings import RECIPES, TrainingSettings
from tests.conftest import build_once
from tests.texts import config_values, make_bert

pytestmark = pytest.mark.slow

GOOD, BAD = ("good", "great", "fine"), ("bad", "poor", "awful")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(json.dumps(config_values(max_position_embeddings=16)))
    return folder


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "reviews.csv"
    with path.open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["text", "label"])
        for i in range(120):
            word = (GOOD, BAD)[i % 2][i % 3]
            topic = ("film", "book", "food")[i // 6 % 3]
            writer.writerow([f"the {topic} was {word}{' indeed' * (i // 2 % 4)}", ("yes", "no")[i % 2]])
    return path


FIT = ("--batch-size", 12, "--learning-rate", 0.01, "--size", 12, "--json")


@pytest.fixture(scope="module")
def run(model, reviews, tmp_path_factory):
    """A run directory, calibrated, trained with the tokenizer beside the model."""
    out = tmp_path_factory.mktemp("text") / "run"
    (model / "tokenizer.json").write_text(xl.data.word_tokenizer(["the film was good bad and", *GOOD, *BAD]))
    words = ("fit", "--data", reviews, "--backbone", f"hf:{model}", "--exits", 2, "--epochs", 6, "--out", out, *FIT)
    with pytest.MonkeyPatch.context() as patch:
        build_once(patch)
        for line in (words, ("calibrate", "--bundle", out, "--max-accuracy-drop", 0.05, "--json")):
            cli.verbs(list(map(str, line)), standalone_mode=False)
    return out


@pytest.mark.long
def test_a_tokenizer_is_made_of_the_training_texts_and_a_finished_run_resumed_and_timed(call, model, reviews, tmp_path):
    run = tmp_path / "run"
    (model / "tokenizer.json").unlink(missing_ok=True)
    words = ("fit", "--data", reviews, "--backbone", f"hf:{model}", "--exits", 2, "--epochs", 1, "--out", run, *FIT)
    call.ok(*words)
    preprocess = xl.load(run)[0].info.preprocess
    assert "awful" in preprocess.tokenizer
    assert not (model / "tokenizer.json").exists()
    call.ok("calibrate", "--bundle", run, "--max-accuracy-drop", 0.5)
    (model / "tokenizer.json").write_text(preprocess.tokenizer)
    before = (run / "last.safetensors").read_bytes()
    assert call(*words, "--resume")[0] == 0  # finished already: nothing changes
    assert (run / "last.safetensors").read_bytes() == before
    assert xl.load(run)[1] is not None
    quick = ("--rounds", 1, "--seconds", 0)
    assert call.json("bench", "--bundle", run, "--batch-sizes", "4", *quick)["batches"][0]["batch"] == 4


def test_a_trained_network_is_evaluated_and_answers_a_file(call, run, reviews, tmp_path):
    report = call.json("evaluate", "--bundle", run)
    assert report["accuracy"] > 0.9
    assert call.json("evaluate", "--bundle", run, "--data", reviews)["samples"] == 120
    (tmp_path / "new.txt").write_text("the food was awful\n\nthe book was great\n")
    call.ok("predict", "--bundle", run, "--data", tmp_path / "new.txt", "--out", tmp_path / "p.csv")
    rows = list(csv.DictReader((tmp_path / "p.csv").read_text().splitlines()))
    assert [row["label"] for row in rows] == ["no", "yes"]
    assert rows[1]["file"].endswith("new.txt:3")  # blank lines count
    call.ok("predict", "--bundle", run, "--data", tmp_path / "new.txt", "--out", tmp_path / "p.jsonl")
    lines = (tmp_path / "p.jsonl").read_text().splitlines()
    assert [json.loads(line)["file"] for line in lines] == [row["file"] for row in rows]
    net, _ = xl.load(run)
    assert net.input_spec.vocabulary[0] == net.info.preprocess.vocabulary_size


def test_an_explanation_shows_the_tokens(call, run, tmp_path):
    shown = call("explain", "--bundle", run, "--text", "the food was awful", "--out", tmp_path / "why")[1]
    assert "awful" in shown
    assert "answered" in shown
    assert (tmp_path / "why" / "text.html").is_file()
    values = call.json("explain", "--bundle", run, "--text", "the food was awful")
    assert values["tokens"][:2] == ["[CLS]", "the"]


def test_a_report_shows_the_tokens(call, run, tmp_path):
    call.ok("report", run, "--out", tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert "easy texts are answered" in page
    assert 'of the attention">[CLS]</span>' in page


def test_a_network_of_texts_refuses_an_image(call, run):
    assert "takes texts" in call.error("explain", "--bundle", run, "--image", "x.png")


def test_pretrained_weights_bring_their_recipe_and_their_own_tokenizer(call, reviews, tmp_path):
    tokenizer = xl.data.word_tokenizer(["the film was", *GOOD, *BAD])
    size = xl.data.TextPreprocess(tokenizer, 12).vocabulary_size
    make_bert(vocab_size=size, num_labels=2, max_position_embeddings=12).save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_text(tokenizer)
    words = ("fit", "--data", reviews, "--backbone", f"hf:{tmp_path / 'model'}", "--exits", 2, "--epochs", 1, "--size", 12)
    out = call.ok(*words, "--pretrained", "--out", tmp_path / "a")
    assert f"tokens by the tokenizer of hf:{tmp_path / 'model'}" in " ".join(out.split())
    call.ok(*words, "--out", tmp_path / "b")
    for folder, recipe in (("a", "pretrained"), ("b", "scratch")):
        settings = json.loads((tmp_path / folder / "settings.json").read_text())["settings"]
        assert settings["recipe"] == recipe
        assert TrainingSettings(**settings).rates == RECIPES[recipe]


def test_texts_need_a_network_that_reads_them(call, model, reviews, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "load_scenes", partial(demo.load_scenes, limit=32))
    (model / "tokenizer.json").unlink(missing_ok=True)
    backbone, out = ("--backbone", f"hf:{model}"), ("--out", tmp_path / "x")
    for words, message in (
        (("--data", reviews), "'small' reads images, the data are texts"),
        (("--data", reviews, *backbone, "--size", 99), "got 99 tokens. Fix: use --size 16 or less."),
        (("--data", "scenes", *backbone), "reads texts, the data are images"),
    ):
        assert message in call.error("fit", *words, *out)
    (model / "tokenizer.json").write_text(xl.data.word_tokenizer(["a b"]))
    assert "reads texts, scenes has images" in call.error("fit", "--data", "scenes", *backbone, *out)


def test_inspect_a_network_of_texts(call, model):
    names = [point["name"] for point in call.json("inspect", "--backbone", f"hf:{model}", "--size", 12)["points"]]
    assert "bert.encoder.layer.0" in names


@pytest.mark.long
def test_many_texts_are_explained_on_a_page(call, run, reviews, tmp_path):
    words = ("explain", "--bundle", run, "--data", reviews, "--out", tmp_path / "why")
    shown = call.ok(*words)
    assert "120 texts" in shown
    assert {path.name for path in (tmp_path / "why").iterdir()} == {"explanations.csv", "tokens.html", "manifest.json"}
    page = (tmp_path / "why" / "tokens.html").read_text()
    assert page.count("<h2>") == 24
    assert "film" in page
    assert len(call.json("predict", "--bundle", run, "--data", reviews, "--columns", "text=label")["predictions"]) == 120
    words = ("calibrate", "--bundle", run, "--unlabelled", reviews, "--cache", "x", "--max-disagreement", "0.5")
    assert "cache: it is for images" in call.error(*words)
