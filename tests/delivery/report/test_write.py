import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch

import exitlens as xl
from exitlens.delivery.pictures import draw_image
from exitlens.delivery.report.subjects import Provenance, Subject
from exitlens.delivery.report.write import write_report
from tests.conftest import TinyNet, make_timing
from tests.delivery.report.conftest import POLICY, make_subject

MADE = Provenance("exitlens report a", "32 images", "0", {"loss": "none"})


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
    subjects = [make_subject("with <EGT>", tiny_set)] + ([make_subject("without", tiny_set)] if pair else [])
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
    subjects = [make_subject("run", tiny_set, faithful=False)]
    text = write_report(tmp_path / "r.html", subjects, {"test": tiny_set}, MADE).read_text()
    assert text.count("<svg") == 3
    with pytest.raises(xl.InputError, match="subjects"):
        write_report(tmp_path / "x.html", [], {}, MADE)


def test_milliseconds_stand_beside_the_cost(tmp_path, tiny_set):
    subject, timing = make_subject("run", tiny_set, faithful=False), make_timing()
    assert "ms of a batch" not in write_report(tmp_path / "r.html", [subject], {"test": tiny_set}, MADE).read_text()
    trace = replace(xl.collect(subject.net, tiny_set), timing=timing)
    policy = xl.calibrate(trace, max_ms=5, percentile=95)
    timed = replace(subject, policy=policy, reports={"test": xl.evaluate(trace, policy)})
    text = write_report(tmp_path / "t.html", [timed], {"test": tiny_set}, MADE).read_text()
    assert "ms of a batch" in text
    assert "<td>10.500</td>" in text
    assert "medians of 20 rounds, batches of 64 on Slow 9000, 2 threads; quartiles 1.900 – 2.100, 4.900 – 5.100" in text
    assert "time of 95 % of the samples at most 5 ms for batches of 64 on Slow 9000" in text


def test_a_report_compares_equals(tmp_path, tiny_set):
    one = make_subject("one", tiny_set)
    net = xl.attach(TinyNet(), ["a"], 4, tiny_set.first(1).inputs)
    net.describe(classes=tiny_set.classes, preprocess=tiny_set.preprocess)
    policy = xl.Policy((0.9,))
    other = Subject("other", net, policy, {"test": xl.evaluate(xl.collect(net, tiny_set), policy)})
    with pytest.raises(xl.InputError, match="equally many exits"):
        write_report(tmp_path / "x.html", [one, other], {"test": tiny_set}, MADE)


def test_names_are_only_names(tmp_path, tiny_set):
    subjects = [
        make_subject(name, tiny_set) for name in ("a$x^$ <b>", "a very long name of a run that leaves no room for a plot")
    ]
    text = write_report(tmp_path / "r.html", subjects, {"test": tiny_set}, MADE).read_text()
    assert "a$x^$ &lt;b&gt;" in text
    assert "a very long name of a r…" in text


def test_a_gate_is_shown_and_defined(tmp_path, tiny_set):
    one = make_subject("gated", tiny_set)
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
        tmp_path / "r.html", [make_subject("x", tiny_set.first(1))], {"test": tiny_set.first(1)}, MADE
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
