import numpy as np
import pytest

import exitlens as xl
from exitlens.data.arrays.raw import ArrayReading
from exitlens.data.arrays.reading import find_samples, is_array, open_numbers, read_array_parts
from exitlens.data.formats.reading import Reading
from exitlens.data.sources import DataSource, open_source
from exitlens.modalities import IMAGE, SERIES, TEXT, VECTOR, VOLUME
from tests.data.arrays.conftest import TS


def test_what_a_source_has(tmp_path, series_folder):
    (tmp_path / "x.csv").write_text("patient,a,b,label\np,1,2.5,0\nq,2,3.5,1\n")
    (tmp_path / "x.ts").write_text(TS)
    assert find_samples(str(tmp_path / "x.ts"), "series", "") is SERIES
    assert find_samples(str(series_folder), "arrays", "") is SERIES
    assert find_samples("x", "texts", "") is TEXT
    assert find_samples("x", "folder", "") is IMAGE
    path = str(tmp_path / "x.csv")
    assert find_samples(path, "numbers", "", ["patient"]) is VECTOR
    assert open_source(path, group_by="patient").modality is VECTOR
    assert open_numbers(path, "numbers").kinds == {"patient": "string", "a": "integer", "b": "float", "label": "integer"}
    assert [is_array(kind) for kind in (SERIES, VOLUME, VECTOR, TEXT, IMAGE)] == [True, True, True, False, False]


def test_parts_have_no_scale_yet(series_folder):
    parts, note = read_array_parts(str(series_folder), "arrays", Reading(), ArrayReading())
    assert (list(parts.sets), note) == ([""], "")
    assert parts.sets[""].preprocess == xl.SeriesPreprocess((0.0,) * 2, (1.0,) * 2)
    with pytest.raises(xl.InputError, match="is a folder of class folders, without columns"):
        read_array_parts(str(series_folder), "arrays", Reading("series=a"), ArrayReading())


@pytest.mark.parametrize(("name", "kind", "shape"), [("motifs", SERIES, (2, 128)), ("blobs", VOLUME, (1, 20, 20, 20))])
def test_generated_data_by_name(name, kind, shape):
    source = open_source(name, seed=1, background_agreement=0.5)
    assert (source.modality, source.format, source.contents) == (kind, None, "")
    assert DataSource(**source.to_dict()) == source
    data = source.load("validation")
    assert data.inputs.shape[1:] == shape
    assert data.masks is not None
    small = open_source(name, size=16).load("validation")
    assert small.values.shape[-1] == 16
    own = small.preprocess.scaled([1.0] * shape[0], [2.0] * shape[0])
    if kind is SERIES:
        own = xl.SeriesPreprocess(own.mean, own.std, length=16)
    again = open_source(name).load("validation", preprocess=own)
    np.testing.assert_allclose(again.inputs.numpy(), (small.values.numpy() - 1) / 2, rtol=1e-5, atol=1e-6)
    with pytest.raises(xl.InputError, match="mel: it is for sounds"):
        open_source(name, mel=8).load("test")
    with pytest.raises(xl.InputError, match="they are for data from files"):
        open_source(name, columns="label=a")
