import pytest

import exitlens as xl
from exitlens.data.reviews import load_reviews
from tests.data.conftest import PREPROCESS


def test_split_set_is_disjoint_and_keeps_every_class(folder):
    data, _ = xl.load_folder(folder, PREPROCESS)
    parts = xl.split_set(data, (0.6, 0.2, 0.2))
    assert sum(len(p) for p in parts) == len(data)
    images = [image.numpy().tobytes() for part in parts for image in part.inputs]
    assert len(set(images)) == len(data)
    assert all(set(part.labels.tolist()) == {0, 1, 2} for part in parts)
    with pytest.raises(xl.InputError, match="sum to 1"):
        xl.split_set(data, (0.5, 0.2))
    with pytest.raises(xl.DataError, match="need 13 or more"):
        xl.split_set(data, (1 / 13,) * 13)


def test_split_set_takes_encoded_texts_too():
    pytest.importorskip("tokenizers")
    data = load_reviews("validation", limit=40)
    parts = xl.split_set(data, (0.5, 0.5))
    assert sorted(parts[0].texts + parts[1].texts) == sorted(data.texts)
    assert parts[0].masks.shape == (20, 32)
