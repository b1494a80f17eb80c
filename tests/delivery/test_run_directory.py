from pathlib import Path

import numpy as np
import pytest
import torch

import exitlens as xl
from exitlens.data.sources import DataSource, open_source
from exitlens.delivery.bundle import find_bundle
from exitlens.delivery.run_data import read_source, write_source
from exitlens.delivery.run_directory import (
    describe_origin,
    load_calibrated,
    load_named,
    load_samples,
    replace_policy,
    save_trained,
    shorten_names,
    stream_samples,
)
from exitlens.modalities import SERIES


def test_names_of_runs_are_short_and_differ(tmp_path):
    paths = [tmp_path / "x", tmp_path / "y" / "x", tmp_path / "z" / "bundle"]
    assert shorten_names(paths) == ["x", "x (2)", "z"]


def test_answers_to_other_columns_are_others(net):
    policy = xl.Policy((0.5, 0.5))
    plain, other = (describe_origin(net, policy, "x.parquet", columns) for columns in ("", "image=b"))
    assert (plain["input"], other["input"]) == ("x.parquet", "x.parquet (image=b)")
    assert plain | {"input": ""} == other | {"input": ""}


def test_run_directories(tmp_path):
    source = DataSource("scenes", seed=3)
    run = tmp_path / "run"
    with pytest.raises(xl.BundleError, match="no bundle"):
        find_bundle(run)
    write_source(run, source, resume=False)
    with pytest.raises(xl.OutputExistsError, match="not empty"):
        write_source(run, source, resume=False)
    with pytest.raises(xl.DataError, match="other data"):
        write_source(run, DataSource("fashion"), resume=True)
    net = xl.attach("small", ["layer1", "layer2", "layer3"], 10, torch.zeros(1, 3, 40, 40))
    xl.save(net, None, run / "bundle")
    assert find_bundle(run) == find_bundle(run / "bundle") == run / "bundle"
    assert xl.load(run)[0].fingerprint() == net.fingerprint()
    assert read_source(run) == read_source(run / "bundle") == source
    replace_policy(run / "bundle", xl.Policy.never(4))
    assert xl.load(run / "bundle")[1] == xl.Policy.never(4)
    (run / "data.json").write_text("{")
    with pytest.raises(xl.DataError, match="damaged"):
        read_source(run)
    (run / "data.json").unlink()
    with pytest.raises(xl.DataError, match="pass --data"):
        read_source(run)


@pytest.fixture
def small():
    return xl.attach("small", ["layer1"], 10, torch.zeros(1, 3, 40, 40))


def test_a_policy_is_replaced_and_the_others_stay(small, tmp_path):
    own, fast, other = xl.Policy((0.5,)), xl.Policy((0.1,)), xl.Policy((0.9,))
    xl.save(small, own, tmp_path / "bundle", policies={"fast": fast})
    replace_policy(tmp_path, other, "certified")
    assert xl.load_policies(tmp_path) == {"default": own, "fast": fast, "certified": other}
    replace_policy(tmp_path, other, "fast")
    replace_policy(tmp_path, fast)
    assert xl.load_policies(tmp_path) == {"default": fast, "fast": other, "certified": other}
    assert load_named(tmp_path) == {"fast": other, "certified": other}


def test_a_policy_is_loaded_by_name(small, tmp_path):
    xl.save(small, None, tmp_path / "bundle")
    with pytest.raises(xl.PolicyError, match=r"has no policy yet: run exitlens calibrate --bundle \S+$"):
        load_calibrated(tmp_path)
    replace_policy(tmp_path, xl.Policy((0.1,)), "fast")
    with pytest.raises(xl.PolicyError, match=r"no policy of its own, but \['fast'\] by name: run exitlens calibrate"):
        load_calibrated(tmp_path)
    with pytest.raises(xl.PolicyError, match=r"none named 'slow', but \['fast'\]: run exitlens .* --name slow$"):
        load_calibrated(tmp_path, "slow")
    assert load_calibrated(tmp_path, "fast")[1] == xl.Policy((0.1,))
    replace_policy(tmp_path, xl.Policy((0.5,)))
    assert load_calibrated(tmp_path)[1] == load_calibrated(tmp_path, "default")[1] == xl.Policy((0.5,))


def test_of_a_network_that_was_trained_on_the_policies_are_left_out(small, tmp_path):
    bundle = tmp_path / "bundle"
    assert save_trained(small, bundle, overwrite=False) == []
    own, by_hand = xl.Policy((0.5,), network=small.identity()), xl.Policy((0.1,))
    xl.save(small, own, bundle, policies={"fast": own, "mine": by_hand}, overwrite=True)
    assert save_trained(small, bundle, overwrite=True) == ["mine"]  # nobody says for which weights it was made
    assert xl.load_policies(bundle) == {"default": own, "fast": own}
    with torch.no_grad():
        small.head(0).classifier.weight.mul_(-1)
    assert save_trained(small, bundle, overwrite=True) == ["default", "fast"]
    assert xl.load_policies(bundle) == {}
    with pytest.raises(xl.OutputExistsError, match="overwrite"):
        save_trained(small, bundle, overwrite=False)


def test_other_data_in_parts_or_whole(trained, tmp_path, folder):
    net, _ = xl.load(trained)
    assert len(load_samples(trained, net, "test", str(folder))) == 60
    for split, number in (("train", 20), ("test", 5)):
        for name in ("dark", "bright"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(number):
                (tmp_path / split / name / f"{split}{i}.png").write_bytes((folder / name / f"{i:02}.png").read_bytes())
    found = load_samples(trained, net, "test", str(tmp_path), group_by=r"(\w+)\.png")
    assert len(found) == 10
    assert len(found.groups.unique()) == 5
    assert len(load_samples(trained, net, "calibration", str(tmp_path))) == 4
    with pytest.raises(xl.InputError, match="they are for other data"):
        load_samples(trained, net, "test", columns="label=x")


def test_data_are_read_as_the_network_reads_images(tmp_path, folder):
    net = xl.attach("small", ["layer1"], 10, torch.zeros(1, 3, 40, 40))
    net.describe(preprocess=xl.Preprocess((40, 40), (0.5,) * 3, (0.5,) * 3))
    write_source(tmp_path, DataSource("scenes"), resume=False)
    xl.save(net, None, tmp_path / "bundle")
    for given in ("", "scenes"):
        data = load_samples(tmp_path, net, "validation", given)
        assert data.preprocess == net.info.preprocess
        assert data.masks is not None
    two = xl.attach("small", ["layer1"], 2, torch.zeros(1, 3, 40, 40))
    two.describe(preprocess=net.info.preprocess)
    (tmp_path / "data.json").unlink()
    write_source(tmp_path, open_source(str(folder), size=40), resume=True)
    assert load_samples(tmp_path, two, "validation").preprocess == net.info.preprocess


def test_rows_named_by_number_are_of_the_same_contents(net, tmp_path):
    policy, path = xl.Policy((0.5, 0.5)), tmp_path / "t.csv"

    def describe(columns=""):
        return describe_origin(net, policy, str(path), columns)["contents"]

    path.write_text("text,id\none,a\ntwo,b\n")
    before = describe()
    assert before == describe() != ""
    assert describe("key=id") == ""  # a key says which row it is
    path.write_text("text,id\nnew,c\none,a\ntwo,b\n")
    assert describe() != before
    assert describe_origin(net, policy, str(tmp_path))["contents"] == ""  # names of files


@pytest.fixture
def series(tmp_path):
    """A network for series of two channels, and a folder of files for it."""
    torch.manual_seed(0)
    for label, name in enumerate(("calm", "wild")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(8):
            np.save(tmp_path / "data" / name / f"{i}.npy", np.random.default_rng(i).normal(0, 1 + label, (2, 64)))
    net = xl.attach(xl.build_backbone("small", 2, 2, modality=SERIES), 2, 2, torch.zeros(1, 2, 64))
    net.describe(classes=("calm", "wild"), preprocess=xl.SeriesPreprocess((0.5, 0.0), (2.0, 1.0)))
    return net.eval(), tmp_path / "data"


def test_series_for_a_network_come_as_it_takes_them(series):
    net, folder = series
    data = load_samples(folder, net, "test", str(folder), workers=0)
    assert (len(data), data.preprocess, data.classes) == (16, net.info.preprocess, ("calm", "wild"))
    stream = stream_samples(net, str(folder), batch_size=5)
    assert torch.cat(list(stream)).equal(data.inputs)
    policy = xl.Policy((0.6, 0.6))
    answers = list(xl.predict_stream(net, folder, policy, batch_size=5))
    assert torch.cat([pred.labels for pred in answers]).equal(xl.predict(net, data.inputs, policy).labels)
    assert describe_origin(net, policy, str(folder))["contents"] == ""  # their names say which they are
    with pytest.raises(xl.InputError, match="cache: it is for images, these data are series"):
        stream_samples(net, str(folder), batch_size=5, cache=folder)
    (folder / "x.csv").write_text("text,label\nhello,calm\n")
    with pytest.raises(xl.BundleError, match="its network takes series"):
        load_samples(folder, net, "test", str(folder / "x.csv"))


def test_generated_series_have_the_network_s_scale(series):
    net, _ = series
    data = load_samples(Path(), net, "validation", "motifs")
    assert data.preprocess == net.info.preprocess
    assert data.values.shape[2] == 64
