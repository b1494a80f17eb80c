import json
import re

import jinja2
import pytest
import torch

import exitlens as xl
from exitlens.delivery.explanations import write_explanation
from exitlens.delivery.pages import load_template, tabulate_tokens
from exitlens.display import scale_attention, shade_names
from tests.texts import make_text_net, make_texts


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
    page, values = write_explanation(why, tmp_path, "x")
    assert page.read_text().count("<span") == 3 * len(why.tokens)
    assert "<0>" not in page.read_text()  # escaped
    assert json.loads(values.read_text())["answered"] == why.answered
    with pytest.raises(xl.errors.OutputExistsError, match=r"x\.html exists"):
        write_explanation(why, tmp_path, "x")
    with_relevance = xl.explain(net, texts, xl.Policy((0.9, 0.9)), relevance=True)
    table = tabulate_tokens(with_relevance)
    assert (table.row_count, list(table.columns[0].cells)[-1]) == (4, "depends on")
    page, _ = write_explanation(with_relevance, tmp_path, "y")
    assert page.read_text().count("<span") == 4 * len(why.tokens)


def luminance(r, g, b):  # WCAG 2
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in (r / 255, g / 255, b / 255)]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_words_stand_out_on_every_shade():
    for _, _, style in shade_names(tuple(map(str, range(201))), torch.linspace(0, 1, 201)):
        behind = luminance(*map(int, re.search(r"rgb\((\d+),(\d+),(\d+)\)", style).groups()))
        light, dark = sorted((behind, 1.0 if "#fff" in style else 0.0), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, style


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
