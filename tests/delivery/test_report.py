import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
import torch
from PIL import Image, ImageColor

import exitlens as xl
from exitlens.delivery import plots
from exitlens.delivery.pictures import contact_sheet, overlay, picture, save_explanation
from exitlens.delivery.report import write_report
from exitlens.delivery.speed import compare, compare_adaptive, compare_attention, compare_step_time
from exitlens.delivery.subjects import Provenance, Subject
from exitlens.model.steps import TrainingSettings
from exitlens.types.display import exit_colour
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
    assert text.count("<svg") == text.count('role="img" aria-label=')
    assert len(text) < 5e6
    ids = re.findall(r'<(?:\w+) id="([^"]+)"', re.sub(r"<svg.*?</svg>", "", text, flags=re.DOTALL))
    assert len(ids) == len(set(ids))
    for part in text.split("<h2 ")[1:]:  # every number with its data, seed and command
        if "<td>" in part and 'id="policy"' not in part:
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
    shown = overlay(base, attention).convert("L")
    assert shown.getpixel((3, 3)) > shown.getpixel((35, 35)) + 50


def test_pictures_restore_colours():
    values = xl.Preprocess((8, 8), (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
    pixels = torch.randint(0, 255, (3, 8, 8), dtype=torch.uint8)
    shown = picture(values.normalise(pixels), values, side=8)
    assert shown.getpixel((2, 5)) == tuple(pixels[:, 5, 2].tolist())
    assert picture(torch.zeros(1, 8, 8), None, side=16).size == (16, 16)


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
    one = contact_sheet({"a": rows}, None)
    two = contact_sheet({"a": rows, "b": rows}, None)
    assert two.width > one.width
    assert one.height == two.height
    frames = {ImageColor.getrgb(exit_colour(why.answered, 3)) for why in rows}
    assert frames <= {colour for _, colour in one.getcolors(100_000)}


def test_plots_take_ink_and_paper_from_the_page_and_exits_keep_their_colour(tiny_set):
    subjects = [_subject(name, tiny_set) for name in ("one", 'the "other"')]
    series = [plots.Series(s.name, s.reports["test"], s.faithfulness["test"]) for s in subjects]
    bars = {plots.exit_shares: 3, plots.accuracy_cost: 3, plots.consistency: 2, plots.deletion: 3}
    for draw, exits in bars.items():
        svg = draw(series)
        ElementTree.fromstring(svg)
        drawn = set(re.findall(r"(?:fill|stroke): (#\w+)", svg))
        colours = {exit_colour(k, 3).lower() for k in range(exits)}
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
