import csv
import hashlib
import json

import pytest
from PIL import Image

import exitlens as xl
from exitlens.delivery.explanations.folder import MANIFEST, SHEET, SHOWN, TABLE, explain_folder, summarize_line

PREPROCESS = xl.Preprocess((16, 16), (0.5,) * 3, (0.25,) * 3)


@pytest.fixture
def policy(net, images):
    """Half of the images leave at exit 0."""
    scores = sorted(why.exits[0].confidence for why in xl.explain_batch(net, images, xl.Policy.never(3)))
    return xl.Policy((scores[len(scores) // 2], 0.9))


def test_what_deserves_a_look_comes_first(net, images, policy, tmp_path):
    files = [tmp_path / f"{i:02}.png" for i in range(len(images))]
    done = []
    lines = explain_folder(
        net, policy, images.split(7), lambda i: str(files[i]), PREPROCESS, tmp_path / "out", advance=done.append
    )
    assert sum(done) == len(lines) == len(images)
    expected = xl.explain_batch(net, images, policy)
    ranks = sorted(
        range(len(images)), key=lambda i: (not expected[i].disagrees, -summarize_line("", expected[i]).divergence)
    )
    assert [line.file for line in lines] == [str(files[i]) for i in ranks]
    assert any(line.disagrees for line in lines)
    assert [line.disagrees for line in lines] == sorted((line.disagrees for line in lines), reverse=True)
    rows = list(csv.DictReader((tmp_path / "out" / TABLE).read_text().splitlines()))
    assert [row["file"] for row in rows] == [line.file for line in lines]
    assert {row["final"] for row in rows} <= {f"class {c}" for c in range(4)}
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert manifest["disagree"] == sum(line.disagrees for line in lines)
    for name, digest in manifest["sha256"].items():
        assert hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest() == digest
    with Image.open(tmp_path / "out" / SHEET) as sheet:
        assert sheet.height == 40 + SHOWN * 146 + 6


def test_what_is_there_is_not_overwritten(net, images, policy, tmp_path):
    (tmp_path / SHEET).write_bytes(b"mine")
    with pytest.raises(xl.OutputExistsError, match="contact_sheet"):
        explain_folder(net, policy, [images], str, PREPROCESS, tmp_path)
    assert (tmp_path / SHEET).read_bytes() == b"mine"
