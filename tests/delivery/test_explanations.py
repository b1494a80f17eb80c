import csv
import hashlib
import json
import xml.etree.ElementTree as ET

import jinja2
import pytest
import torch
from PIL import Image

import exitlens as xl
from exitlens.delivery.explanations import (
    MANIFEST,
    SHEET,
    SHOWN,
    TABLE,
    explain_folder,
    load_template,
    save_explanation,
    summarize_explanation,
    tabulate_tokens,
)
from exitlens.delivery.pictures import draw_strip
from exitlens.display import scale_attention
from tests.conftest import make_net
from tests.texts import make_text_net, make_texts

POLICY, PREPROCESS = xl.Policy((0.9, 0.6)), xl.data.Preprocess((16, 16), (0.5,) * 3, (0.25,) * 3)


@pytest.fixture
def net():
    net = make_net()
    net.describe(classes=("<b>", "a & b", "c", "d"), preprocess=PREPROCESS)
    return net


@pytest.fixture
def policy(net, images):
    """Half of the images leave at exit 0."""
    scores = sorted(why.exits[0].confidence for why in xl.explain_batch(net, images, xl.Policy.never(3)))
    return xl.Policy((scores[len(scores) // 2], 0.9))


@pytest.mark.slow
def test_what_deserves_a_look_comes_first(net, images, policy, tmp_path):
    files = [tmp_path / f"{i:02}.png" for i in range(len(images))]
    lines = explain_folder(net, policy, images.split(7), lambda i: str(files[i]), tmp_path / "out")
    assert len(lines) == len(images)
    expected = xl.explain_batch(net, images, policy)
    ranks = sorted(
        range(len(images)), key=lambda i: (not expected[i].disagrees, -summarize_explanation("", expected[i]).divergence)
    )
    assert [line.file for line in lines] == [str(files[i]) for i in ranks]
    assert any(line.disagrees for line in lines)
    assert [line.disagrees for line in lines] == sorted((line.disagrees for line in lines), reverse=True)
    rows = list(csv.DictReader((tmp_path / "out" / TABLE).read_text().splitlines()))
    assert [row["file"] for row in rows] == [line.file for line in lines]
    assert {row["final"] for row in rows} <= {"<b>", "a & b", "c", "d"}
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert manifest["disagree"] == sum(line.disagrees for line in lines)
    for name, digest in manifest["sha256"].items():
        assert hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest() == digest
    with Image.open(tmp_path / "out" / SHEET) as sheet:
        assert sheet.height == 40 + SHOWN * 146 + 6


def test_what_is_there_is_not_overwritten(net, images, policy, tmp_path):
    (tmp_path / SHEET).write_bytes(b"mine")
    with pytest.raises(xl.errors.OutputExistsError, match="contact_sheet"):
        explain_folder(net, policy, [images], str, tmp_path)
    assert (tmp_path / SHEET).read_bytes() == b"mine"


def test_files_of_one_explanation(net, images, tmp_path):
    why = xl.explain(net, images[0], POLICY)
    paths = save_explanation(why, tmp_path, "x")
    pictures = [f"x_exit{k}.{form}" for k in range(3) for form in ("png", "svg")]
    assert {p.name for p in paths} == {p.name for p in tmp_path.iterdir()}
    assert {p.name for p in paths} == {*pictures, "x_strip.png", "x.json", "x_manifest.json"}
    with Image.open(tmp_path / "x_strip.png") as strip:
        assert strip.width > 600
    for k, view in enumerate(why.exits):
        root = ET.parse(tmp_path / f"x_exit{k}.svg").getroot()
        cells = [e for e in root if e.tag.endswith("rect")]
        assert len(cells) == view.attention.numel()
        assert why.name(view.label) in root.get("aria-label")
        assert f"{100 * view.attention[0, 0]:.1f} % of the attention" in cells[0][0].text
    manifest = json.loads((tmp_path / "x_manifest.json").read_text())
    assert set(manifest["sha256"]) == {p.name for p in paths} - {"x_manifest.json"}
    assert json.loads((tmp_path / "x.json").read_text())["schema"] == manifest["schema"] == 2
    with pytest.raises(xl.errors.OutputExistsError):
        save_explanation(why, tmp_path, "x")


def test_a_short_explanation_has_its_files_too(net, images, tmp_path):
    why = xl.explain(net, images[0], xl.Policy((0.0, 0.5)), final=False)
    names = {p.name for p in save_explanation(why, tmp_path)}
    assert "explanation_exit0.svg" in names
    assert "explanation_exit1.svg" not in names
    assert torch.equal(why.exits[0].attention, xl.explain(net, images[0], xl.Policy((0.0, 0.5))).exits[0].attention)


@pytest.mark.slow
def test_relevance_is_drawn_as_the_exits_are(net, images, tmp_path):
    plain, why = (xl.explain(net, images[0], POLICY, relevance=value) for value in (False, True))
    one, two = (save_explanation(each, tmp_path / str(i), "x") for i, each in enumerate((plain, why)))
    assert {path.name for path in two} - {path.name for path in one} == {"x_relevance.png", "x_relevance.svg"}
    assert draw_strip(why).width > draw_strip(plain).width


@pytest.mark.slow
def test_shaded_tokens(tmp_path):
    net, texts = make_text_net(), {name: value[:1] for name, value in make_texts().items()}
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"<{i}>" for i in range(36))]
    net.describe(preprocess=xl.data.TextPreprocess(xl.data.word_tokenizer(words), 10), classes=("a", "b", "c"))
    why = xl.explain(net, texts, xl.Policy((0.9, 0.9)))
    for view in why.exits:
        values = scale_attention(view.attention, len(why.tokens))
        assert max(values) == pytest.approx(1)
        assert values[0] == 0
    assert tabulate_tokens(why).row_count == 3
    plain = str(tabulate_tokens(why, colour=False).columns[3]._cells[0])
    assert f"({100 * why.exits[0].attention[1].item():.0f})" in plain
    page, values = save_explanation(why, tmp_path, "x")
    assert page.read_text().count("<span") == 3 * len(why.tokens)
    assert "<0>" not in page.read_text()  # escaped
    assert json.loads(values.read_text())["answered"] == why.answered
    with pytest.raises(xl.errors.OutputExistsError, match=r"x\.html exists"):
        save_explanation(why, tmp_path, "x")
    with_relevance = xl.explain(net, texts, xl.Policy((0.9, 0.9)), relevance=True)
    table = tabulate_tokens(with_relevance)
    assert (table.row_count, list(table.columns[0].cells)[-1]) == (4, "depends on")
    page, _ = save_explanation(with_relevance, tmp_path, "y")
    assert page.read_text().count("<span") == 4 * len(why.tokens)


def test_a_template_escapes_and_misses_nothing():
    page = load_template("tokens.html.j2")
    with pytest.raises(jinja2.UndefinedError):
        page.render()
    assert load_template("report.html.j2").environment.from_string("{{ x }}").render(x="<b>") == "&lt;b&gt;"


def test_numbers_for_people():
    filters = load_template("report.html.j2").environment.filters
    assert filters["percent"](0.1234) == "12.3"
    assert filters["percent"](None) == filters["number"](float("nan")) == "–"
    assert filters["threshold"](float("inf")) == "never"
    assert filters["threshold"](0.5) == "0.50000"
