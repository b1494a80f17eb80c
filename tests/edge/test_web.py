"""The page: what is in its folder, and that it answers in a browser as the library does."""

import hashlib
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import exitlens as xl
from exitlens.edge import web
from tests.conftest import make_net
from tests.exported import ask_page, draw_pictures, make_continuous, read_pictures, serve_page

pytest.importorskip("onnxruntime")


def describe(net):
    net.describe(classes=("w", "x", "y", "z"), preprocess=xl.data.Preprocess((16, 16)))
    return net


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A folder with files of the right names, and checksums to match."""
    folder = tmp_path / "dist"
    folder.mkdir()
    for name in web.FILES:
        (folder / name).write_text(name)
        monkeypatch.setitem(web.FILES, name, hashlib.sha256(name.encode()).hexdigest())
    return folder


@pytest.mark.slow
def test_the_folder_has_page_network_and_examples(fake, tmp_path):
    net, policy = describe(make_net()), xl.Policy((float("inf"), 0.8))
    Image.new("RGB", (9, 8)).save(tmp_path / "a b.png")
    path = xl.export_web(net, policy, tmp_path / "site", ort=fake, examples=[tmp_path / "a b.png"])
    network = json.loads((path / "network.json").read_text())
    assert (network["thresholds"], network["exits"], network["input"]) == (["never", 0.8], [1, 2], "images")
    assert network["examples"] == ["a b.png"]
    assert (path / "a b.png").read_bytes() == (tmp_path / "a b.png").read_bytes()
    manifest = json.loads((path / "manifest.json").read_text())
    assert {p.name for p in path.iterdir()} == {*manifest["sha256"], "manifest.json"}
    with pytest.raises(xl.errors.OutputExistsError, match="overwrite"):
        xl.export_web(net, policy, path, ort=fake)
    xl.export_web(net, policy, path, ort=fake, overwrite=True)
    for examples, match in (
        ("a b.png", "list of image files"),
        ([tmp_path / "c.png"], "c.png, which does not exist"),
        ([tmp_path / "a b.png"] * 2, "rename"),
        ([path / "page.js"], "rename"),
    ):
        with pytest.raises(xl.errors.InputError, match=match):
            xl.export_web(net, policy, tmp_path / "other", ort=fake, examples=examples)
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_other_or_missing_files_are_refused(fake, tmp_path, monkeypatch):
    net, policy = describe(make_net()), xl.Policy((0.8, 0.8))
    (fake / "ort.wasm.min.js").write_text("another version")
    with pytest.raises(xl.errors.ExportError, match="checksum"):
        xl.export_web(net, policy, tmp_path / "site", ort=fake)
    (fake / "ort.wasm.min.js").unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    for network, ort, message in (
        (net, fake, "missing"),
        (make_net(), fake, "how pictures become inputs"),
        (net, None, "npm, which fetches onnxruntime-web, is not installed"),
    ):
        with pytest.raises(xl.errors.ExportError, match=message):
            xl.export_web(network, policy, tmp_path / "site", ort=ort)
    assert {p.name for p in tmp_path.iterdir()} == {"dist"}


@pytest.fixture
def site(tmp_path):
    """The tiny network, its policy and its served page."""
    net, policy = describe(make_net()), xl.Policy((0.8, 0.7))
    Image.new("RGB", (20, 20), "red").save(tmp_path / "a red one.png")
    with serve_page(net, policy, tmp_path / "site", examples=[tmp_path / "a red one.png"]) as address:
        yield net, policy, address


@pytest.mark.slow
def test_answers_in_the_browser_are_the_librarys(site, tmp_path):
    from playwright.sync_api import sync_playwright

    net, policy, url = site
    rng, paths = np.random.default_rng(0), []
    for i in range(30):
        size = (16, 16) if i % 3 else (int(rng.integers(8, 60)), int(rng.integers(8, 60)))
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)).save(paths[-1])
    inputs = read_pictures(net, paths)
    expected = xl.predict(net, inputs, policy)
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"])
        page, asked = browser.new_page(), []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(url)
        page.wait_for_selector("body[data-ready]", timeout=60000)
        page.click("#examples button")
        page.wait_for_selector("body:not([data-busy]) #answer:not([hidden])", timeout=60000)
        assert page.inner_text("#title").startswith("a red one.png: ")
        page.goto(f"{url}#a%20red%20one.png")  # as pages ask that show this one in a frame
        page.reload()
        page.wait_for_selector("body[data-ready]:not([data-busy]) #answer:not([hidden])", timeout=60000)
        assert page.inner_text("#title").startswith("a red one.png: ")
        (tmp_path / "x.png").write_text("no picture")
        page.set_input_files("#files", [str(path) for path in [*paths, tmp_path / "x.png"]])
        page.wait_for_selector("body:not([data-busy]) #rows tr:nth-child(30)", timeout=60000)
        rows = page.evaluate("[...document.querySelectorAll('#rows tr')].map(r => [...r.cells].map(c => c.textContent))")
        assert "x.png cannot be read as a picture" in page.inner_text("#status")
        assert page.locator("figure").count() == 3
        assert page.locator("figure.answered").get_attribute("data-exit") == rows[0][2]
        browser.close()
    assert all(asked_url.startswith((url, "data:", "blob:")) for asked_url in asked)
    assert [row[1] for row in rows] == ["wxyz"[i] for i in expected.labels.tolist()]
    assert [int(row[2]) for row in rows] == expected.exits.tolist()
    assert [float(row[3]) for row in rows] == pytest.approx(expected.confidence.tolist(), abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("numbers", [pytest.param(2, marks=pytest.mark.long), 0], ids=["numbers", "vectors"])
def test_numbers_and_vectors_in_the_browser_are_the_librarys(numbers, tmp_path):
    net, paths = make_continuous(numbers), draw_pictures(tmp_path, 6)
    inputs = read_pictures(net, paths)
    never = xl.Policy.never(2, score="closeness" if numbers else "vector_closeness")
    scores = xl.predict(net, inputs, replace(never, thresholds=(0.0,))).confidence.sort().values
    policy = replace(never, thresholds=(scores[2:4].mean().item(),))
    expected = xl.predict(net, inputs, policy)
    assert sorted(set(expected.exits.tolist())) == [0, 1]
    with serve_page(net, policy, tmp_path / "site") as address, ask_page(address, paths) as (page, rows):
        assert page.inner_text("#about").startswith("2 numbers, 2 exits" if numbers else "Vectors of 8, 2 exits")
        assert page.locator("figure").count() == 2
        assert "closeness" in page.inner_text("#reason")
    assert [int(row[2]) for row in rows] == expected.exits.tolist()
    if numbers:
        told = torch.tensor([[float(word.split()[1]) for word in row[1].split(", ")] for row in rows])
        assert torch.allclose(told, expected.labels, rtol=1e-4, atol=1e-4)
        assert rows[0][1].startswith("length ")
        return
    alike = (expected.labels @ expected.labels.T).fill_diagonal_(-2)
    for row, cosines in zip(rows, alike, strict=True):
        assert row[1] == "most like " + ", ".join(
            f"{i}.png ({cosines[i]:.3f})" for i in cosines.argsort(descending=True)[:3]
        )
