"""The explorer's page and the report in a real browser; skipped where there is no Chromium."""

import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

import exitlens as xl
from exitlens.delivery.report import describe_provenance, measure_subjects, write_report
from exitlens.delivery.run_directory import load_samples
from tests.conftest import judge_few
from tests.delivery.explorer.conftest import save_texts
from tests.hostile import hostile_files

CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium"),
]
SHOTS = Path(os.environ.get("EXITLENS_SCREENSHOTS", ".screenshots"))  # kept by CI
SHOTS.mkdir(parents=True, exist_ok=True)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@contextmanager
def _served(log: Path, *words: str):
    """`exitlens app` in a process of its own: its address and process number."""
    with log.open("w") as sink:
        process = subprocess.Popen([sys.executable, "-m", "exitlens", "app", *words], stdout=sink, stderr=subprocess.STDOUT)
        try:
            yield _address(log, process), process.pid
        finally:
            process.terminate()  # not SIGINT, which a shell's background jobs ignore
            process.wait(60)


@pytest.fixture(scope="module")
def address(trained, tmp_path_factory):
    """With two bundles."""
    log = tmp_path_factory.mktemp("app") / "log.txt"
    with _served(log, "--bundle", str(trained), "--compare", str(trained)) as found:
        yield found


def _address(log: Path, process: subprocess.Popen, seconds: float = 90) -> str:
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        if match := re.search(r"Open (http://127\.0\.0\.1:\d+)", log.read_text()):
            return match[1]
        time.sleep(0.1)
    raise AssertionError(f"exitlens app has no address: {log.read_text()}")


@contextmanager
def _opened(browser, address: str, ready: str, **options):
    """The page, once ``ready`` is there; afterwards, that it asked nothing of another machine and complained of nothing."""
    opened = browser.new_page(**{"viewport": {"width": 1300, "height": 1000}} | options)
    outside, complaints = [], []
    opened.on("request", lambda r: outside.append(r.url) if not r.url.startswith((address, "data:", "blob:")) else None)
    opened.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.goto(address)
    opened.wait_for_selector(ready, timeout=60_000)
    yield opened
    opened.close()
    assert outside == complaints == []


@pytest.fixture
def page(browser, address):
    with _opened(browser, address[0], "#xl-answer-1 .xl-exit") as opened:
        yield opened


ANSWER, ROUTED = "#xl-answer-0 .xl-answer", "#xl-routed-0 .xl-routed"  # without the signs of progress around them


PAINTED = """(() => { const c = document.querySelector('#xl-brush');
  return c.getContext('2d').getImageData(0, 0, c.width, c.height).data.filter((v, i) => i % 4 === 3 && v).length; })()"""


def _text(page, selector: str) -> str:
    return page.locator(selector).first.inner_text()


def _find_changed(page, selector: str, before: str, seconds: float = 30) -> str:
    """The text once it is another."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (now := page.locator(selector).first.inner_html()) != before:
            return now
        time.sleep(0.1)
    raise AssertionError(f"{selector} did not change")


def test_pick_move_paint_compare(page):
    assert page.locator("#xl-answer-0 .xl-exit").count() == page.locator("#xl-answer-1 .xl-exit").count() == 4
    page.locator("#xl-relevance input").check()  # which it is from the start, unless this machine is slow just now
    page.wait_for_function("document.querySelectorAll('#xl-answer-0 .xl-depends').length === 4")
    before = page.locator(ANSWER).inner_html()
    page.locator("#xl-relevance input").uncheck()
    before = _find_changed(page, ANSWER, before)
    assert page.locator("#xl-answer-0 .xl-depends").count() == 0
    page.locator("[data-example='1']").click()
    before = _find_changed(page, ANSWER, before)
    page.wait_for_selector("#xl-routed-0 .xl-share", timeout=60_000)
    routed, other = page.locator(ROUTED).inner_html(), page.locator("#xl-routed-1 .xl-routed").inner_html()
    number = page.locator("#xl-threshold-0-0 input[type=number]")
    number.fill("1.01")  # never: the tiny network's calibrated thresholds are 0
    number.press("Tab")
    assert "100.0 %" in routed.split("xl-share")[1]
    assert "0.0 %" in _find_changed(page, ROUTED, routed).split("xl-share")[1][:12]
    assert "nothing is promised" in _text(page, ROUTED)
    assert page.locator("#xl-routed-1 .xl-routed").inner_html() == other  # the other bundle's thresholds stay
    before = page.locator(ANSWER).inner_html()
    box = page.locator("#xl-brush").bounding_box()
    page.mouse.move(box["x"] + 40, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + 200, box["y"] + 200, steps=8)
    page.mouse.up()
    before = _find_changed(page, ANSWER, before)
    page.locator("#xl-brush").focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "Space"):
        page.keyboard.press(key)
    before = _find_changed(page, ANSWER, before)
    page.wait_for_timeout(1500)  # for the picture alone: signs of progress fade
    page.screenshot(path=SHOTS / "explorer.png", full_page=True)
    assert page.evaluate(PAINTED) > 0
    page.locator("#xl-clear").click()
    before = _find_changed(page, ANSWER, before)
    page.wait_for_function(f"{PAINTED} === 0")
    page.mouse.click(box["x"] + 60, box["y"] + 60)
    before = _find_changed(page, ANSWER, before)
    page.locator("[data-example='2']").click()
    _find_changed(page, ANSWER, before)
    page.wait_for_function(f"{PAINTED} === 0")  # what was painted over the one is not left over the other
    page.locator("#xl-opacity input[type=number]").fill("0.2")
    page.locator("#xl-opacity input[type=number]").press("Tab")
    page.wait_for_function("getComputedStyle(document.querySelector('.xl-heat')).opacity === '0.2'")


def test_upload_a_picture_and_a_broken_file(page, tmp_path, address):
    Image.new("RGB", (50, 40), (200, 30, 30)).save(tmp_path / "good.png")
    Image.effect_noise((6000, 4000), 60).convert("RGB").save(tmp_path / "large.jpg", quality=70)  # 24 million pixels
    Image.new("RGBA", (6000, 4000), (9, 90, 200, 255)).save(tmp_path / "large.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "good.png").read_bytes()[:60])
    before = page.locator(ANSWER).inner_html()
    for name in ("good.png", "large.jpg", "large.png", "good.png", "large.jpg", "large.png"):
        page.locator("#xl-upload input[type=file]").set_input_files(tmp_path / name)
        before = _find_changed(page, ANSWER, before)
        page.locator("#xl-upload button[aria-label*='lear'], #xl-upload button[aria-label*='emove']").first.click()
    page.locator("#xl-upload input[type=file]").set_input_files(tmp_path / "broken.png")
    alert = page.wait_for_selector("#xl-message [role=alert]")
    assert "broken.png" in alert.inner_text()
    assert "cannot be read as an image" in alert.inner_text()
    assert _peak(address[1]) < 1024


def _peak(process: int) -> float:
    """Most megabytes that the whole server ever held."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())[1]) / 1024


def test_everything_is_named_and_reachable(page):
    assert page.eval_on_selector_all("img:not([alt]), svg[role=img]:not([aria-label])", "found => found.length") == 0
    page.locator("[data-example='0']").focus()
    reached = set()
    for _ in range(60):
        reached.add(page.evaluate("(document.activeElement.closest('[id^=xl-]') || {}).id || ''"))
        page.keyboard.press("Tab")
    wanted = {
        "xl-brush",
        "xl-size",
        "xl-clear",
        "xl-opacity",
        "xl-relevance",
        *(f"xl-threshold-{i}-{k}" for i in (0, 1) for k in range(3)),
    }
    assert wanted <= reached, wanted - reached
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


@pytest.mark.long  # tests/delivery/explorer/test_interface.py has the same without a browser
def test_texts_are_shaded_token_by_token(browser, tmp_path):
    bundle = save_texts(tmp_path, xl.Policy((0.99, 0.99)))
    with (
        _served(tmp_path / "log.txt", "--bundle", str(bundle)) as (address, _),
        _opened(browser, address, "#xl-answer-0 .xl-exit") as page,
    ):
        before = page.locator(ANSWER).inner_html()
        page.locator("#xl-text textarea").fill("the film was good")
        page.locator("#xl-text textarea").press("Enter")
        before = _find_changed(page, ANSWER, before)
        assert page.locator("#xl-answer-0 .xl-exit").count() == 3
        assert page.locator("#xl-answer-0 .xl-tokens").first.inner_text().split()[1:-1] == ["the", "film", "was", "good"]
        shades = "found => new Set(found.map((e) => getComputedStyle(e).backgroundColor)).size"
        assert page.eval_on_selector_all("#xl-answer-0 .xl-tokens span", shades) > 2
        assert page.evaluate(CONTRAST.replace("SELECTOR", ".xl-answer *")) == []
        number = page.locator("#xl-threshold-0-0 input[type=number]")
        number.fill("0")  # always
        number.press("Tab")
        _find_changed(page, ANSWER, before)
        assert "exit 0 answered" in _text(page, ANSWER)
        page.screenshot(path=SHOTS / "explorer-text.png", full_page=True)


CONTRAST = """() => {
  const rgb = (text) => (text.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
  const linear = (v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const light = (c) => c.slice(0, 3).map((v) => linear(v / 255))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (e) => { for (let n = e; n; n = n.parentElement) { const c = rgb(getComputedStyle(n).backgroundColor);
    if (c.length < 4 || c[3] > 0.99) return c; } return [255, 255, 255]; };
  const poor = [];
  for (const e of document.querySelectorAll("SELECTOR")) {
    if (![...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()) || !e.getClientRects().length) continue;
    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(behind(e))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) poor.push(`${ratio.toFixed(2)} ${e.tagName} ${e.textContent.trim().slice(0, 40)}`);
  }
  return poor;
}"""


def test_text_stands_out_from_what_is_behind_it(page):
    for theme in ("light", "dark"):
        page.goto(f"{page.url.partition('?')[0]}?__theme={theme}")
        page.wait_for_selector("#xl-answer-1 .xl-exit")
        page.wait_for_selector("#xl-routed-1 .xl-share")
        page.wait_for_timeout(1000)  # until signs of progress have faded
        assert page.evaluate(CONTRAST.replace("SELECTOR", "body *")) == [], theme
        page.screenshot(path=SHOTS / f"explorer-{theme}.png", full_page=True)


def test_maps_enlarge_and_all_classes_can_be_read(page):
    small = page.locator("#xl-answer-0 .xl-stack").first.bounding_box()["width"]
    button = page.locator("#xl-answer-0 .xl-enlarge").first
    button.focus()
    page.keyboard.press("Enter")
    assert page.locator("#xl-answer-0 .xl-stack").first.bounding_box()["width"] > 1.5 * small
    button.click()
    assert page.locator("#xl-answer-0 .xl-stack").first.bounding_box()["width"] == small


def test_hostile_files_through_the_server(address):
    """All of them, under names that climb: nothing is written outside the folder for uploads, and memory stays bounded."""
    import httpx

    files = hostile_files()
    for name, data in files.items():
        answer = httpx.post(f"{address[0]}/gradio_api/upload", files={"files": (f"../../{name}", data)}, timeout=60)
        assert answer.status_code < 500, name
        if answer.status_code == 200:
            stored = Path(answer.json()[0]).resolve()
            folder = next(folder for folder in stored.parents if folder.name.startswith("exitlens-"))
            climbed = [place / name for place in (stored.parents[1], *folder.parents, Path.cwd(), Path.cwd().parent)]
            assert not [path for path in climbed if path.exists()]
    for secret in (Path(__file__).resolve(), Path("/etc/passwd")):
        assert httpx.get(f"{address[0]}/gradio_api/file={secret}", timeout=60).status_code in (403, 404)
    assert _peak(address[1]) < 1024


def test_the_report_asks_for_nothing_and_fits_a_phone(browser, trained, tmp_path, monkeypatch):
    judge_few(monkeypatch)
    images = load_samples(trained, xl.load(trained / "bundle")[0], "test")
    subjects, made = (
        measure_subjects([trained] * 2, images),
        describe_provenance([trained] * 2, images, ["exitlens", "report"]),
    )
    path = write_report(tmp_path / "r.html", subjects, {"test": images}, made)
    assert path.stat().st_size < 5e6
    for scheme in ("light", "dark"):
        with _opened(browser, path.as_uri(), "h1", viewport={"width": 390, "height": 800}, color_scheme=scheme) as page:
            assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
            assert page.eval_on_selector_all("img:not([alt])", "found => found.length") == 0
            assert (
                page.evaluate(CONTRAST.replace("SELECTOR", "h1, h2, p, td, th, th a, li, figcaption, nav a, .tile *")) == []
            )
            broken = "found => found.filter((a) => !document.querySelector(a.getAttribute('href'))).length"
            assert page.eval_on_selector_all("a[href^='#']", broken) == 0
            page.screenshot(path=SHOTS / f"report-{scheme}.png")
