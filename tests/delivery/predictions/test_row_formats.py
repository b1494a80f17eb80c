"""Rows as CSV, JSON lines and Parquet; files are tested with all three in test_file."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import exitlens as xl
from exitlens.delivery.predictions.row_formats import CsvFormat, JsonLinesFormat, Row, check_suffix, name_rows

ROWS = [Row('a "b".png', "cat", 0, 0.5), Row("two\nlines.png", "dog", 1, 0.25, 0.125)]


@pytest.mark.parametrize("kind", [CsvFormat, JsonLinesFormat])
def test_what_is_encoded_is_decoded_and_a_broken_end_is_found(kind):
    form = kind()
    content = form.header + form.encode(ROWS)
    assert form.decode(content) == ROWS
    assert content.startswith(form.start)
    assert form.count_whole(content) == len(content)
    assert form.count_whole(content[:-1]) == len(form.header + form.encode(ROWS[:1]))
    with pytest.raises(ValueError, match="row 1"):
        form.decode(form.header + form.encode([Row("a", "b", "first", 1.0)]))


@pytest.mark.parametrize(("name", "suffix"), [("p.CSV", ".csv"), ("p.jsonl", ".jsonl"), ("p.parquet", ".parquet")])
def test_suffixes(name, suffix):
    assert check_suffix(Path(name)) == suffix


def test_rows_have_the_names_of_samples_that_were_read_ahead(net, images):
    samples = SimpleNamespace(files=[Path(f"{i}.png") for i in range(40)])
    net.describe(classes=("a", "b", "c", "d"))
    policy = xl.Policy((0.5, 0.5))
    predictions = [xl.predict(net, part, policy) for part in images.split(16)]
    batches = list(name_rows(net, predictions, samples))
    assert [len(rows) for rows in batches] == [16, 16, 8]
    rows = [row for batch in batches for row in batch]
    assert [row.file for row in rows] == [f"{i}.png" for i in range(40)]
    labels = torch.cat([pred.labels for pred in predictions])
    assert [row.label for row in rows] == ["abcd"[i] for i in labels.tolist()]
    assert rows[0].divergence_estimate is None
