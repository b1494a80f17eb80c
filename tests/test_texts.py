"""examples/texts.md: its commands run on small texts, with a small network that has weights and a tokenizer of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

import exitlens as xl
from benchmarks import reviews
from exitlens.cli import verbs
from tests.conftest import build_once
from tests.sentences import make_sentences
from tests.test_photos import read_commands
from tests.texts import make_bert

PAGE = Path(__file__).parent.parent / "examples" / "texts.md"
SMALLER = {"--size 32": "--size 12", "--epochs 2": "--epochs 1", "--max-accuracy-drop 0.01": "--max-accuracy-drop 0.1"}


def _save_model(folder: Path) -> None:
    tokenizer = xl.data.word_tokenizer([one.text for one in make_sentences(30)])
    size = xl.data.TextPreprocess(tokenizer, 12).vocabulary_size
    make_bert(vocab_size=size, max_position_embeddings=12, num_labels=4).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::exitlens.errors.DriftWarning")
def test_the_commands_lead_to_a_certified_bundle_and_explanations(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    build_once(monkeypatch)
    monkeypatch.chdir(tmp_path)
    ratings = "".join(
        f"{i}\t{1 if one.label == 'positive' else -1}\t{one.text}\n" for i, one in enumerate(make_sentences(600))
    )
    (tmp_path / "ratings.txt").write_text(ratings)
    monkeypatch.setattr(reviews, "download", lambda folder: tmp_path / "ratings.txt")
    _save_model(tmp_path / "model")
    text = PAGE.read_text().replace("$MODEL", str(tmp_path / "model"))
    for old, new in SMALLER.items():
        assert old in text
        text = text.replace(old, new)
    for _, module, *words in read_commands(text, "python"):
        assert module == reviews.__name__
        reviews.main(words)
    said = {}
    for words in read_commands(text, "exitlens"):
        result = CliRunner().invoke(verbs, words)
        assert result.exit_code == 0, (words, result.output, result.exception)
        said[words[0]] = " ".join(result.output.split())
    assert list(said) == ["fit", "calibrate", "evaluate", "explain", "predict"]
    assert "tokens by the tokenizer of hf:" in said["fit"]
    _, policy = xl.load("runs/texts/run")
    assert policy.calibration.certification is not None
    assert "drift" in said["predict"]
    assert len(Path("runs/texts/answers.csv").read_text().splitlines()) == 1 + 600
    assert ">film<" in next(Path("runs/texts/why").glob("*.html")).read_text()
