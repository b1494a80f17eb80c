import math
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

import exitlens as xl
from exitlens.delivery.bench.speed import compare, compare_adaptive, compare_attention, compare_step_time
from exitlens.delivery.explanations.pictures import draw_contact_sheet, draw_heat, draw_image, draw_overlay, save_explanation
from exitlens.delivery.report import plots
from exitlens.delivery.report.gallery import pick_images
from exitlens.delivery.report.subjects import Provenance, Subject
from exitlens.delivery.report.write import write_report
from exitlens.display import pick_exit_colour
from exitlens.workflow.training.step import TrainingSettings
from tests.conftest import TinyNet, make_net

POLICY = xl.Policy((0.9, 0.6))
MADE = Provenance("exitlens report a", "32 images", "0", {"loss": "none"})


def _subject(name: str, data: xl.ImageSet, faithful: bool = True) -> Subject:
    net = make_net()
    net.describe(classes=data.classes, preprocess=data.preprocess)
    report = xl.evaluate(xl.collect(net, data), POLICY)
    checks = {"test": xl.faithfulness(net, data)} if faithful else {}
    return Subject(name, net, POLICY, {"test": report}, checks)


class _Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.images, self.links, self.external = [], [], []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag == "img":
            self.images.append(values)
        for name in ("src", "href"):
            value = values.get(name) or ""
            if value.startswith(("http", "//")):
                self.external.append(value)
        if tag == "a":
            self.links.append(values["href"])


@pytest.mark.parametrize("pair", [False, True])
def test_report_is_one_file_that_loads_nothing(tmp_path, tiny_set, pair):
    subjects = [_subject("with <EGT>", tiny_set)] + ([_subject("without", tiny_set)] if pair else [])
    speed = {
        "batch size 1": {
            "speedup": 2.5,
            "low": 2.4,
            "high": 2.6,
            "plain_ms": 1.0,
            "ours_ms": 0.4,
            "accuracy_drop": 0.01,
            "cost": 0.3,
            "images": 256,
            "rounds": 5,
        }
    }
    path = write_report(
        tmp_path / "deep" / "report.html", subjects, {"test": tiny_set}, MADE, speed=speed, plain_accuracy=0.9
    )
    text = path.read_text()
    page = _Page()
    page.feed(text)
    assert page.external == []
    assert "<script" not in text
    assert len(page.images) >= 4
    assert all(image["alt"] for image in page.images)
    assert all(f'id="{link[1:]}"' in text for link in page.links)
    assert text.count("<svg") == 4
    assert "with &lt;EGT&gt;" in text
    assert re.search(r"<b>2.50 <a [^>]*>times faster</a></b> at batch size 1", text)
    assert re.search(r"skill</a> of <b>-?\d", text)
    assert text.count("<svg") == text.count('<svg role="img" aria-label=')
    assert len(text) < 5e6
    ids = re.findall(r'<(?:\w+) id="([^"]+)"', re.sub(r"<svg.*?</svg>", "", text, flags=re.DOTALL))
    assert len(ids) == len(set(ids))
    for part in text.split("<h2 ")[1:]:  # every number with its data, seed and command
        if "<td>" in part or 'id="gallery"' in part:
            assert "training seed 0" in part
            assert "<code>exitlens report a</code>" in part
    with pytest.raises(xl.OutputExistsError):
        write_report(path, subjects, {"test": tiny_set}, MADE)


def test_a_report_without_faithfulness_or_speed(tmp_path, tiny_set):
    subjects = [_subject("run", tiny_set, faithful=False)]
    text = write_report(tmp_path / "r.html", subjects, {"test": tiny_set}, MADE).read_text()
    assert text.count("<svg") == 3
    with pytest.raises(xl.InputError, match="subjects"):
        write_report(tmp_path / "x.html", [], {}, MADE)


def test_overlay_is_brightest_where_attention_is():
    base = Image.new("RGB", (40, 40), (100, 100, 100))
    attention = torch.zeros(4, 4)
    attention[0, 0] = 1
    shown = draw_overlay(base, attention).convert("L")
    assert shown.getpixel((3, 3)) > shown.getpixel((35, 35)) + 50


def test_pictures_restore_colours():
    values = xl.Preprocess((8, 8), (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
    pixels = torch.randint(0, 255, (3, 8, 8), dtype=torch.uint8)
    shown = draw_image(values.normalise(pixels), values, side=8)
    assert shown.getpixel((2, 5)) == tuple(pixels[:, 5, 2].tolist())
    assert draw_image(torch.zeros(1, 8, 8), None, side=16).size == (16, 16)


def test_explanations_as_files(tmp_path, net, images):
    why = xl.explain(net, images[0], POLICY)
    paths = save_explanation(why, tmp_path / "out", xl.Preprocess((16, 16)))
    pictures = [f"explanation_exit{k}.{form}" for k in range(3) for form in ("png", "svg")]
    names = [*pictures, "explanation_strip.png", "explanation.json", "explanation_manifest.json"]
    assert sorted(p.name for p in paths) == sorted(names)
    with Image.open(tmp_path / "out" / "explanation_strip.png") as strip:
        assert strip.width > 600
    with pytest.raises(xl.OutputExistsError, match="choose another"):
        save_explanation(why, tmp_path / "out", None)


def test_compare_takes_turns_and_gives_the_ratio():
    calls = []
    speed = compare(lambda x: calls.append("a"), lambda x: calls.append("b"), [(torch.zeros(2),)] * 3, rounds=2)
    assert calls.count("a") == calls.count("b") == 9
    assert speed.images == 6
    assert speed.low <= speed.speedup <= speed.high


def test_too_few_images_for_a_batch(images):
    with pytest.raises(xl.InputError, match="batch_size: 64"):
        compare_attention(make_net(), POLICY, images, 64)


def test_timings_leave_the_networks_alone(tiny_set, images):
    net, plain = make_net(), TinyNet()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert compare_adaptive(plain, net, POLICY, images, 8, rounds=1).speedup > 0
    assert compare_attention(net, POLICY, images, 8, rounds=1).speedup > 0
    settings = TrainingSettings(1, 8, 1e-3, 0.0, 0, False, True, False)
    assert compare_step_time(net, tiny_set, xl.EGTLoss(), xl.EGTLoss(weight=0.0), settings, steps=3).speedup > 0
    assert plain.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_contact_sheet_has_a_row_an_image_and_frames_the_answer(net, images):
    rows = xl.explain_batch(net, images[:3], POLICY)
    one = draw_contact_sheet({"a": rows}, None)
    two = draw_contact_sheet({"a": rows, "b": rows}, None)
    assert two.width > one.width
    assert one.height == two.height
    frames = {ImageColor.getrgb(pick_exit_colour(why.answered, 3)) for why in rows}
    assert frames <= {colour for _, colour in one.getcolors(100_000)}


def test_plots_take_ink_and_paper_from_the_page_and_exits_keep_their_colour(tiny_set):
    subjects = [_subject(name, tiny_set) for name in ("one", 'the "other"')]
    series = [plots.Series(s.name, s.reports["test"], s.faithfulness["test"]) for s in subjects]
    bars = {plots.plot_exit_shares: 3, plots.plot_accuracy_cost: 3, plots.plot_consistency: 2, plots.plot_deletion: 3}
    for draw, exits in bars.items():
        svg = draw(series)
        ElementTree.fromstring(svg)
        drawn = set(re.findall(r"(?:fill|stroke): (#\w+)", svg))
        colours = {pick_exit_colour(k, 3).lower() for k in range(exits)}
        assert colours <= drawn <= colours | {"#8a8a8a", "#ffffff", "#000000"}
        assert "currentColor" in svg
        assert "the &quot;other&quot;" in svg
        assert plots.INK not in svg
        assert plots.PAPER not in svg


def test_a_report_compares_equals(tmp_path, tiny_set):
    one = _subject("one", tiny_set)
    net = xl.attach(TinyNet(), ["a"], 4, tiny_set.first(1).inputs)
    net.describe(classes=tiny_set.classes, preprocess=tiny_set.preprocess)
    policy = xl.Policy((0.9,))
    other = Subject("other", net, policy, {"test": xl.evaluate(xl.collect(net, tiny_set), policy)})
    with pytest.raises(xl.InputError, match="equally many exits"):
        write_report(tmp_path / "x.html", [one, other], {"test": tiny_set}, MADE)


def test_names_are_only_names(tmp_path, tiny_set):
    subjects = [
        _subject(name, tiny_set) for name in ("a$x^$ <b>", "a very long name of a run that leaves no room for a plot")
    ]
    text = write_report(tmp_path / "r.html", subjects, {"test": tiny_set}, MADE).read_text()
    assert "a$x^$ &lt;b&gt;" in text
    assert "a very long name of a r…" in text


def test_a_gate_is_shown_and_defined(tmp_path, tiny_set):
    one = _subject("gated", tiny_set)
    gate = xl.Gate(((0.0, 0.0, 0.0, 0.25),) * 2, (0.1, math.inf))
    policy = xl.Policy((0.26, 0.26), gate=gate)
    report = xl.evaluate(xl.collect(one.net, tiny_set), policy)
    subject = Subject("gated", one.net, policy, {"test": report}, one.faithfulness)
    text = write_report(tmp_path / "r.html", [subject], {"test": tiny_set}, MADE).read_text()
    assert 'id="w-gate"' in text
    assert "<td>0.100</td><td>none</td>" in text
    assert "gate: 0.250, limit 0.100" in text
    assert "was not trusted: its estimated divergence from the final one is 0.250, over the limit 0.100" in text
    assert 'id="w-gate"' not in write_report(tmp_path / "s.html", [one], {"test": tiny_set}, MADE).read_text()


def test_words_fit_the_heads(tmp_path, tiny_set):
    for head, said in (("evidence", "not a picture drawn afterwards"), ("average", "energy of their features")):
        net = xl.attach(TinyNet(), ["a", "b"], 4, tiny_set.first(1).inputs, head=head)
        net.describe(classes=tiny_set.classes, preprocess=tiny_set.preprocess)
        subject = Subject(head, net, POLICY, {"test": xl.evaluate(xl.collect(net, tiny_set), POLICY)})
        text = write_report(tmp_path / f"{head}.html", [subject], {"test": tiny_set}, MADE).read_text()
        assert said in text
        assert ("not a picture drawn afterwards" in text) == (head == "evidence")


def test_one_image_has_no_chance_level(tmp_path, tiny_set):
    text = write_report(
        tmp_path / "r.html", [_subject("x", tiny_set.first(1))], {"test": tiny_set.first(1)}, MADE
    ).read_text()
    assert ">nan<" not in text
    assert "Early exits look" not in text


def test_a_network_without_early_exits_has_no_report(tmp_path, tiny_set):
    net = xl.attach(TinyNet(), [], 4, tiny_set.first(1).inputs)
    policy = xl.Policy(())
    subject = Subject("plain", net, policy, {"test": xl.evaluate(xl.collect(net, tiny_set), policy)})
    with pytest.raises(xl.InputError, match="early exit"):
        write_report(tmp_path / "r.html", [subject], {"test": tiny_set}, MADE)


def test_large_images_keep_the_report_small(tmp_path):
    pixels = torch.randint(0, 255, (6, 3, 640, 480), dtype=torch.uint8)  # noise: the worst case
    data = xl.ImageSet(pixels, torch.arange(6) % 4, ("a", "b", "c", "d"))
    net = xl.attach(TinyNet(), ["a", "b"], 4, data.first(1).inputs)
    net.describe(classes=data.classes, preprocess=data.preprocess)
    subject = Subject("x", net, POLICY, {"test": xl.evaluate(xl.collect(net, data), POLICY)})
    assert write_report(tmp_path / "r.html", [subject], {"test": data}, MADE).stat().st_size < 5e6 / 6
    assert max(draw_image(data.first(1).inputs[0], data.preprocess).size) == 320


def test_the_gallery_is_of_all_classes_of_sorted_data(tiny_set):
    images = tiny_set.images.repeat(40, 1, 1, 1)
    labels = torch.arange(len(images)) // (len(images) // 4)
    data = xl.ImageSet(images, labels, tiny_set.classes, preprocess=tiny_set.preprocess)
    chosen = pick_images(_subject("x", tiny_set, faithful=False), data, 12)
    assert len(chosen) == 12
    assert len(data.subset(torch.tensor(chosen)).labels.unique()) >= 3


def test_a_uniform_map_is_as_pale_in_every_picture():
    base, uniform, sharp = Image.new("RGB", (40, 40), (100,) * 3), torch.full((4, 4), 1 / 16), torch.eye(4) / 4
    bright = [np.asarray(draw_overlay(base, m)).max() for m in (uniform, sharp)]
    assert bright[0] < bright[1] - 60
    assert np.asarray(draw_heat(uniform))[..., 3].max() < np.asarray(draw_heat(sharp))[..., 3].max() - 60


def test_titles_of_a_contact_sheet(net, images):
    rows = xl.explain_batch(net, images[:3], POLICY)
    plain, titled = draw_contact_sheet({"": rows}, None), draw_contact_sheet({"": rows}, None, titles=["a", "b", "c"])
    assert titled.height == plain.height + 3 * 20
