"""Texts from the command line: fit on a file, calibrate, evaluate, predict, explain with shaded tokens."""

import csv
import json

import pytest
import torch

import exitlens as xl
from tests.texts import AT, config_values, make_bert, make_text_net, make_texts

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


def test_a_bundle_needs_no_backbone(tmp_path):
    net, texts = make_text_net(), make_texts()
    assert net.info.source == "hf:"
    back, policy = xl.load(xl.save(net, xl.Policy((0.5, 0.5)), tmp_path / "b"))
    assert policy == xl.Policy((0.5, 0.5))
    assert back.info == net.info
    for a, b in zip(net(texts), back(texts), strict=True):
        assert torch.equal(a.logits, b.logits)
        assert torch.equal(a.attention, b.attention)


def test_a_kept_classifier_travels(tmp_path):
    plain, texts = make_bert().eval(), make_texts()
    net = xl.attach(plain, AT, 3, texts, final="keep").eval()
    back, _ = xl.load(xl.save(net, None, tmp_path / "b"))
    assert torch.equal(back(texts)[-1].logits, plain(**texts).logits)


FIT = ("--epochs", 6, "--batch-size", 12, "--learning-rate", 0.01, "--size", 12, "--json")


def test_a_tokenizer_is_made_of_the_training_texts(call, model, reviews, tmp_path):
    (model / "tokenizer.json").unlink(missing_ok=True)
    run = tmp_path / "run"
    code, out, _ = call("fit", "--data", reviews, "--backbone", f"hf:{model}", "--exits", 2, "--out", run, *FIT)
    assert code == 0, out
    assert json.loads(out)["accuracy"][-1] > 0.9
    preprocess = xl.load(run / "bundle")[0].info.preprocess
    assert "awful" in preprocess.tokenizer
    assert not (model / "tokenizer.json").exists()


def test_the_whole_flow_on_a_file(call, model, reviews, tmp_path):
    (model / "tokenizer.json").write_text(xl.word_tokenizer(["the film was good bad and", *GOOD, *BAD]))
    run = tmp_path / "run"
    code, out, _ = call("fit", "--data", reviews, "--backbone", f"hf:{model}", "--exits", 2, "--out", run, *FIT)
    assert code == 0, out
    assert json.loads(out)["accuracy"][-1] > 0.9
    assert call("calibrate", "--bundle", run, "--max-accuracy-drop", "0.05")[0] == 0
    report = json.loads(call("evaluate", "--bundle", run, "--json")[1])
    assert report["accuracy"] > 0.9
    assert json.loads(call("evaluate", "--bundle", run, "--data", reviews, "--json")[1])["samples"] == 120
    (tmp_path / "new.txt").write_text("the food was awful\n\nthe book was great\n")
    assert call("predict", "--bundle", run, "--data", tmp_path / "new.txt", "--out", tmp_path / "p.csv")[0] == 0
    rows = list(csv.DictReader((tmp_path / "p.csv").read_text().splitlines()))
    assert [row["label"] for row in rows] == ["no", "yes"]
    assert rows[1]["file"].endswith("new.txt:3")  # blank lines count
    assert call("predict", "--bundle", run, "--data", tmp_path / "new.txt", "--out", tmp_path / "p.jsonl")[0] == 0
    assert [json.loads(line)["file"] for line in (tmp_path / "p.jsonl").read_text().splitlines()] == [
        r["file"] for r in rows
    ]
    again = ("fit", "--data", reviews, "--backbone", f"hf:{model}", "--exits", 2, "--out", run, *FIT, "--resume")
    assert call(*again)[0] == 0  # finished already: nothing changes
    assert xl.load(run / "bundle")[1] is not None
    shown = call("explain", "--bundle", run, "--text", "the food was awful", "--out", tmp_path / "why")[1]
    assert "awful" in shown
    assert "answered" in shown
    assert (tmp_path / "why" / "text.html").is_file()
    values = json.loads(call("explain", "--bundle", run, "--text", "the food was awful", "--json")[1])
    assert values["tokens"][:2] == ["[CLS]", "the"]
    quick = ("--rounds", 1, "--seconds", 0, "--json")
    found = json.loads(call("bench", "--bundle", run, "--batch-sizes", "4", *quick)[1])["batches"]
    assert found[0]["batch"] == 4
    net, _ = xl.load(run / "bundle")
    assert net.input_spec.vocabulary[0] == net.info.preprocess.vocabulary_size
    for words, message in [
        (("report", run, "--out", tmp_path / "r.html"), "takes texts"),
        (("explain", "--bundle", run, "--text", " "), "not empty"),
        (("explain", "--bundle", run), "one of --image FILE, --text TEXT"),
        (("explain", "--bundle", run, "--image", "x.png"), "takes texts"),
    ]:
        code, _, error = call(*words)
        assert code == 2
        assert message in error


def test_texts_need_a_network_that_reads_them(call, model, reviews, tmp_path):
    (model / "tokenizer.json").unlink(missing_ok=True)
    code, _, error = call("fit", "--data", reviews, "--out", tmp_path / "x")
    assert code == 2
    assert "'small' reads images, the data are texts" in error
    code, _, error = call("fit", "--data", reviews, "--backbone", f"hf:{model}", "--size", 99, "--out", tmp_path / "x")
    assert code == 2
    assert "99 tokens" in error
    assert "has 16 positions: use --size 16 or less" in error
    code, _, error = call("fit", "--data", "scenes", "--backbone", f"hf:{model}", "--out", tmp_path / "x")
    assert code == 2
    assert "reads texts, the data are images" in error
    (model / "tokenizer.json").write_text(xl.word_tokenizer(["a b"]))
    code, _, error = call("fit", "--data", "scenes", "--backbone", f"hf:{model}", "--out", tmp_path / "x")
    assert code == 2
    assert "reads texts, scenes has images" in error


def test_inspect_a_network_of_texts(call, model):
    code, out, _ = call("inspect", "--backbone", f"hf:{model}", "--size", 12, "--json")
    assert code == 0
    names = [point["name"] for point in json.loads(out)["points"]]
    assert "bert.encoder.layer.0" in names
