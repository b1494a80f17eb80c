import math

import numpy as np
import pytest
import torch

import exitlens as xl
from exitlens.modalities import arrays
from exitlens.modalities.series import (
    SERIES,
    TIME_FIRST,
    RawSeries,
    arrange_series,
    compute_log_mel,
    decode_series,
    fit_length,
    list_columns,
    make_spectrogram,
    read_sound,
)  # fmt: skip
from exitlens.types.inputs import InputFormat
from exitlens.types.preprocessing import SeriesPreprocess


def test_the_axis_of_time_is_that_of_the_network():
    assert SERIES.adapt(InputFormat((), (2, 9))) is SERIES
    assert SERIES.adapt(InputFormat((), (9, 2), channels_last=True)) is TIME_FIRST
    assert (SERIES.count_channels((2, 9)), TIME_FIRST.count_channels((9, 2))) == (2, 2)
    assert SERIES.make_example(2, 9).shape == (1, 2, 9)
    assert TIME_FIRST.make_example(2, 9).shape == (1, 9, 2)


def test_segments_take_the_mean_of_their_channel():
    series = torch.tensor([[[1.0, 2, 3, 6, 0], [0, 0, 0, 0, 5]]])
    cells = torch.tensor([[True, False]])  # the first three of five steps
    expected = torch.tensor([[[2.4, 2.4, 2.4, 6, 0], [1, 1, 1, 0, 5]]])
    torch.testing.assert_close(SERIES.delete(series, cells), expected)
    torch.testing.assert_close(TIME_FIRST.delete(series.mT, cells), expected.mT)
    torch.testing.assert_close(SERIES.insert(series, ~cells), expected)


def test_regions_and_exchanges_follow_the_axis_of_time():
    series, donors = torch.zeros(1, 2, 8), torch.ones(1, 2, 8)
    chosen = SERIES.choose_region(torch.tensor([[0.1, 0.9]]), series, 0.25)
    assert chosen.tolist() == [[*[False] * 6, True, True]]
    assert SERIES.exchange(series, donors, chosen).sum(1).tolist() == [[0, 0, 0, 0, 0, 0, 2, 2]]
    assert torch.equal(TIME_FIRST.choose_region(torch.tensor([[0.1, 0.9]]), series.mT, 0.25), chosen)
    assert torch.equal(TIME_FIRST.exchange(series.mT, donors.mT, chosen), SERIES.exchange(series, donors, chosen).mT)
    steps = torch.arange(8.0).repeat(1, 2, 1)
    assert SERIES.paint_over(steps, chosen)[0, 1].tolist() == [0, 1, 2, 3, 4, 4, 4, 4]
    assert torch.equal(TIME_FIRST.paint_over(steps.mT, chosen), SERIES.paint_over(steps, chosen).mT)
    assert TIME_FIRST.view_grid(steps.mT).shape == (1, 2, 8)


def test_what_a_network_cannot_take_is_said():
    given = InputFormat((), (9, 2), channels_last=True)
    with pytest.raises(xl.errors.InputError, match=r"series: expected \(B,T,2\), got \(1, 9, 3\)"):
        TIME_FIRST.check(torch.zeros(1, 9, 3), given, "series", torch.zeros(1))
    with pytest.raises(xl.errors.InputError, match=r"\(3,\) is far below the network's \(9,\)"):
        TIME_FIRST.check(torch.zeros(1, 3, 2), given, "series", torch.zeros(1))
    with pytest.raises(xl.errors.InputError, match="NaN"):
        TIME_FIRST.check(torch.full((1, 9, 2), torch.nan), given, "series", torch.zeros(1))
    assert TIME_FIRST.check(torch.zeros(1, 12, 2), given, "series", torch.zeros(1))[0].shape == (1, 12, 2)


def test_curves_stand_over_shaded_time():
    scale = SeriesPreprocess((1.0, 0.0), (2.0, 1.0), time_first=True)
    for modality, sample, preprocess in ((SERIES, torch.randn(2, 50), None), (TIME_FIRST, torch.randn(50, 2), scale)):
        drawn = modality.draw_map(sample, preprocess, torch.tensor([0.5, 0.25, 0.25]), torch.zeros(3), 'a "map"')
        assert (drawn.count("<rect"), drawn.count("<polyline")) == (3, 2)
        assert "50.0 % of the attention" in drawn
        assert 'aria-label="a &quot;map&quot;"' in drawn


TWO = xl.data.SeriesPreprocess((0.0, 0.0), (1.0, 1.0))


def write(path, text):
    path.write_text(text)
    return path


def test_a_csv_has_a_channel_for_each_column(tmp_path):
    path = write(tmp_path / "x.csv", 'time,"a, b",c\n2020-01-01,1,2\n2020-01-02,3,4\n\n')
    found = decode_series(path)
    assert found.values.tolist() == [[1.0, 3.0], [2.0, 4.0]]
    assert (found.names, found.rate) == (("a, b", "c"), 0.0)
    assert decode_series(write(path, "1,2\n3,4\n5,6\n")).values.tolist() == [[1, 3, 5], [2, 4, 6]]
    assert decode_series(write(path, ",a\n0,5\n1,6\n")).names == ("a",)  # as pandas writes it, with its index


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it is empty. Fix: leave it out"),
        ("a,b\n", "it is empty, except for its first line"),
        ("a,b\n1,2\n3\n", "line 3: 1 fields, the first line has 2"),
        ("a,b\n1,2\n3,4,5\n", "line 3: 3 fields, the first line has 2"),
        ("time,b\n1,2\n3,4,5\n", "line 3: 3 fields, the first line has 2"),
        ("a,b\n1,2,3\n3,4,5\n", "line 2: 3 fields"),
        ("a,b\n1,2\n3,\n", "line 3: a gap for column 'b'. Fix: fill it"),
        ("a,b\n1,x\n", "line 2: expected a number for column 'b', got 'x'"),
        ("1,2\n3,x\n", "line 2: expected a number for column '1', got 'x'"),
        ("a,b\n1,nan\n", "a gap .NaN. at step 0 of channel 'b'"),
        ("a,b\n1,1e300\n", "an infinite value at step 0 of channel 'b'"),
        ("a,a\n1,2\n", "two columns have one name"),
        ("time\n1\n", "no channels, only"),
        ("a;b\n1;2\n", "expected a number"),
    ],
)
def test_bad_csv(tmp_path, text, message):
    with pytest.raises(xl.errors.DataError, match=f"x.csv.*{message}"):
        decode_series(write(tmp_path / "x.csv", text))


def test_npy_has_channels_first(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(6).reshape(2, 3))
    assert SERIES.read(tmp_path / "x.npy", TWO).tolist() == [[[0, 1, 2], [3, 4, 5]]]
    np.save(tmp_path / "y.npy", np.arange(4))
    assert decode_series(tmp_path / "y.npy").values.tolist() == [[0, 1, 2, 3]]
    np.save(tmp_path / "z.npy", np.zeros((3, 2)))
    with pytest.raises(xl.errors.DataError, match=r"expected 2 channel\(s\) as in training, got 3. Fix: transpose it"):
        SERIES.decode(tmp_path / "z.npy", TWO)
    np.save(tmp_path / "v.npy", np.zeros((3, 2, 2)))
    with pytest.raises(
        xl.errors.DataError, match=r"expected one series in a file, \(T,\) or \(C,T\), got an array \(3, 2, 2\)"
    ):
        decode_series(tmp_path / "v.npy")
    with pytest.raises(xl.errors.DataError, match=r"not a file of a series: expected .npy, .csv"):
        decode_series(tmp_path / "x.txt")


def test_parquet(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    def save(**columns):
        parquet.write_table(pa.table(columns), tmp_path / "x.parquet")
        return tmp_path / "x.parquet"

    path = save(timestamp=["a", "b"], x=[1, 2], y=[0.5, 1.5])
    found = decode_series(path)
    assert (found.values.tolist(), found.names) == ([[1.0, 2.0], [0.5, 1.5]], ("x", "y"))
    assert list_columns(path) == {"timestamp": True, "x": True, "y": True}
    with pytest.raises(xl.errors.DataError, match=r"a gap .NaN. at step 1 of channel 'x'"):
        decode_series(save(x=[1, None]))
    with pytest.raises(xl.errors.DataError, match="its column 'word' has string, expected numbers"):
        decode_series(save(x=[1], word=["a"]))
    assert list_columns(save(x=[1], word=["a"])) == {"x": True, "word": False}
    with pytest.raises(xl.errors.DataError, match="no columns of numbers"):
        decode_series(save(time=["a"]))
    with pytest.raises(xl.errors.DataError, match=r"it is empty \(shape \(0, 1\)\)"):
        decode_series(save(x=pa.array([], pa.float32())))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(xl.errors.DataError, match="cannot be read as Parquet"):
        decode_series(path)
    assert list_columns(path) == {}


def test_channels_length_and_rate_of_training():
    raw = RawSeries(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), ("a", "b"), 100.0)
    named = xl.data.SeriesPreprocess((0.0, 0.0), (1.0, 1.0), length=4, names=("b", "a"))
    assert arrange_series(raw, named, "x").tolist() == [[4, 5, 6, 0], [1, 2, 3, 0]]
    with pytest.raises(xl.errors.DataError, match=r"x: no channel 'c' among \['a', 'b'\]"):
        arrange_series(raw, xl.data.SeriesPreprocess((0.0,), (1.0,), names=("c",)), "x")
    with pytest.raises(xl.errors.DataError, match=r"x: its sampling rate is 100 Hz, the network's 50 Hz. Fix: resample it"):
        arrange_series(raw, xl.data.SeriesPreprocess((0.0,) * 2, (1.0,) * 2, rate=50.0), "x")
    assert arrange_series(raw, TWO, "x").shape == (2, 3)
    assert fit_length(raw.values, 2).tolist() == [[1, 2], [4, 5]]


RATE = 8000
MEL = xl.data.MelSpectrogram(bands=16)
SOUND = np.sin(np.arange(2400) / 5) * 0.5


@pytest.fixture
def soundfile():
    return pytest.importorskip("soundfile")


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
def test_sounds_as_waveforms(suffix, soundfile, tmp_path):
    path = tmp_path / f"x.{suffix}"
    soundfile.write(path, np.stack([SOUND, -SOUND], 1), RATE)
    values, rate = read_sound(path, "x")
    assert (values.shape, rate) == ((2, 2400), RATE)
    np.testing.assert_allclose(values[0].numpy(), SOUND, atol=0.1 if suffix == "ogg" else 1e-4)
    np.testing.assert_allclose(values[1].numpy(), -SOUND, atol=0.1 if suffix == "ogg" else 1e-4)
    preprocess = xl.data.SeriesPreprocess((0.0,) * 2, (0.5,) * 2, length=3000, rate=RATE)
    torch.testing.assert_close(SERIES.read(path, preprocess)[0, :, :2400], values * 2)
    with pytest.raises(
        xl.errors.DataError, match=r"x\.\w+: its sampling rate is 8000 Hz, the network's 16000 Hz.*-ar 16000"
    ):
        SERIES.read(path, xl.data.SeriesPreprocess((0.0,) * 2, (0.5,) * 2, rate=16000.0))


def test_sounds_as_spectrograms(soundfile, tmp_path):
    path = tmp_path / "x.wav"
    soundfile.write(path, np.stack([SOUND, 0 * SOUND], 1), RATE)
    mono = read_sound(path, "x")[0].mean(0)
    preprocess = xl.data.SeriesPreprocess((-1.0,) * 16, (2.0,) * 16, rate=RATE, mel=MEL)
    expected = (compute_log_mel(mono, MEL, RATE) + 1) / 2
    torch.testing.assert_close(SERIES.read(path, preprocess), expected[None])
    for length in (1, 10, 31, 50):
        preprocess = xl.data.SeriesPreprocess((-1.0,) * 16, (2.0,) * 16, rate=RATE, mel=MEL, length=length)
        bands = SERIES.read(path, preprocess)
        assert bands.shape == (1, 16, length)
        same = max(0, min(length, 31) - 2)  # steps whose windows do not reach the cut
        torch.testing.assert_close(bands[0, :, :same], expected[:, :same])
    assert bands[0, :, -1].max() == pytest.approx((math.log(1e-10) + 1) / 2)  # silence
    with pytest.raises(xl.errors.DataError, match="x: 79 samples are less than one step of 80"):
        make_spectrogram(torch.zeros(1, 79), MEL, RATE, 0, "x")


def test_bad_sounds(soundfile, tmp_path, monkeypatch):
    path = tmp_path / "x.wav"
    soundfile.write(path, SOUND[:0], RATE)
    with pytest.raises(xl.errors.DataError, match="x: it is empty: a sound without samples"):
        read_sound(path, "x")
    soundfile.write(path, SOUND, RATE)
    content = path.read_bytes()
    path.write_bytes(content[:-1000])
    with pytest.raises(xl.errors.DataError, match="x: it is truncated: 3,844 of 4,844 bytes"):
        read_sound(path, "x")
    path.write_bytes(content[:4] + b"\xff\xff\xff\xff" + content[8:])  # as programs write it to a pipe
    assert read_sound(path, "x")[0].shape == (1, 2400)
    path.write_bytes(b"RIFF")
    with pytest.raises(xl.errors.DataError, match="x: cannot be read as a sound"):
        read_sound(path, "x")
    flac = tmp_path / "x.flac"
    soundfile.write(flac, np.random.default_rng(0).normal(size=20000) * 0.1, RATE)
    flac.write_bytes(flac.read_bytes()[:9000])
    with pytest.raises(xl.errors.DataError, match=r"x: (it is truncated|cannot be read)"):
        read_sound(flac, "x")
    soundfile.write(path, [0.0, math.nan], RATE, subtype="FLOAT")
    with pytest.raises(xl.errors.DataError, match=r"x: a gap .NaN. at step 1"):
        read_sound(path, "x")
    monkeypatch.setattr(arrays, "MOST_VALUES", 1)
    with pytest.raises(xl.errors.DataError, match="2 values are over the limit of 1"):
        read_sound(path, "x")
