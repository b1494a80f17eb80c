import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import exitlens as xl
from exitlens.data.readers import refuse_bad
from exitlens.data.sources import DataSource, open_source
from exitlens.delivery.bundle import find_bundle, replace_network, replace_policy, save_trained
from exitlens.delivery.run_directory import (
    describe_origin,
    load_calibrated,
    load_samples,
    read_network,
    read_source,
    record_source,
    remembers_skipping,
    shorten_names,
    stream_samples,
)
from exitlens.io import read_tensors, write_tensors
from exitlens.modalities import SERIES
from exitlens.model.backbones.weights import unique_state
from exitlens.types.settings import NetworkSettings, ReadSettings
from exitlens.workflow.training.setup import build_network
from tests.conftest import make_tiny_set


def write_source(run, source, resume=False, skip_bad=False):
    with record_source(run, source, resume=resume, skip_bad=skip_bad):
        pass


def test_names_of_runs_are_short_and_differ(tmp_path):
    paths = [tmp_path / "x", tmp_path / "y" / "x", tmp_path / "z" / "bundle"]
    assert shorten_names(paths) == ["x", "x (2)", "z"]


def test_answers_of_others_or_to_other_columns_are_others(net):
    policy = xl.Policy((0.5, 0.5))
    plain, other = (describe_origin(net, policy, "x.parquet", columns) for columns in ("", "image=b"))
    assert (plain["input"], other["input"]) == ("x.parquet", "x.parquet (image=b)")
    assert plain | {"input": ""} == other | {"input": ""}
    stricter = describe_origin(net, xl.Policy((0.5, 0.6)), "x.parquet")
    with torch.no_grad():
        net.head(0).classifier.weight.mul_(2)
    retrained = describe_origin(net, policy, "x.parquet")
    for changed, made in (("policy", stricter), ("network", retrained)):
        assert [name for name in plain if made[name] != plain[name]] == [changed]


@pytest.mark.slow
def test_run_directories(tmp_path):
    source = DataSource("scenes", seed=3)
    run = tmp_path / "run"
    with pytest.raises(xl.errors.BundleError, match="expected a bundle or a run directory"):
        find_bundle(run)
    write_source(run, source)
    with pytest.raises(xl.errors.OutputExistsError, match="not empty"):
        write_source(run, source)
    with pytest.raises(xl.errors.DataError, match="other data"):
        write_source(run, DataSource("fashion"), resume=True)
    net = xl.attach("small", ["layer1", "layer2", "layer3"], 10, torch.zeros(1, 3, 40, 40))
    xl.save(net, None, run / "bundle")
    assert find_bundle(run) == find_bundle(run / "bundle") == run / "bundle"
    assert xl.load(run)[0].fingerprint() == net.fingerprint()
    assert read_source(run) == read_source(run / "bundle") == (source, False)
    replace_policy(run / "bundle", xl.Policy.never(4))
    assert xl.load(run / "bundle")[1] == xl.Policy.never(4)
    (run / "data.json").write_text("{")
    with pytest.raises(xl.errors.DataError, match="damaged"):
        read_source(run)
    (run / "data.json").unlink()
    with pytest.raises(xl.errors.DataError, match="pass --data"):
        read_source(run)


def set_epochs(run, **changes):
    settings = json.loads((run / "settings.json").read_text())
    settings["settings"] |= changes
    (run / "settings.json").write_text(json.dumps(settings))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    run, data = tmp_path_factory.mktemp("stopped") / "run", make_tiny_set()
    net = build_network(NetworkSettings(exits="layer1"), data)
    write_source(run, DataSource("scenes"))
    xl.fit(net, data, data, epochs=2, out_dir=run, progress=False)
    set_epochs(run, epochs=3)
    return run, net


@pytest.fixture
def unfinished(stopped, tmp_path):
    """A run that was stopped after two of three epochs, and the network as it was then."""
    return Path(shutil.copytree(stopped[0], tmp_path / "run")), copy.deepcopy(stopped[1])


@pytest.mark.slow
def test_the_best_epoch_of_an_unfinished_run_is_taken_with_a_warning(unfinished):
    run, net = unfinished
    best, note = read_tensors(run / "best.safetensors")
    with pytest.warns(xl.errors.WeightsWarning, match=rf"epoch {note['epoch']}, the best so far\. Fix: .* --resume"):
        loaded, policy = xl.load(run)
    assert policy is None
    assert loaded.info == net.info
    for name, value in unique_state(loaded).items():
        assert torch.equal(value, best[name])
    assert read_source(run)[0] == DataSource("scenes")
    replace_policy(run, xl.Policy((0.5,), network=loaded.identity()))
    with pytest.warns(xl.errors.WeightsWarning, match="has not ended"):  # for as long as it has not
        assert xl.load(run)[1].thresholds == (0.5,)
    replace_network(run, loaded, {"fast": xl.Policy((0.5,), network=loaded.identity())})  # as tune does
    with pytest.warns(xl.errors.WeightsWarning, match="has not ended"):
        xl.load(run)
    assert list(xl.load_policies(run)) == ["fast"]


@pytest.mark.slow
def test_an_unfinished_run_that_goes_on_has_another_best_epoch(unfinished):
    run, net = unfinished
    with pytest.warns(xl.errors.WeightsWarning):
        first, _ = xl.load(run)
    replace_policy(run, xl.Policy((0.5,), network=first.identity()))
    with torch.no_grad():
        net.head(0).classifier.weight.mul_(-1)
    write_tensors(run / "best.safetensors", unique_state(net), {"epoch": 3})
    with pytest.warns(xl.errors.WeightsWarning, match="epoch 3"):
        loaded, policy = xl.load(run)
    assert loaded.fingerprint() == net.fingerprint()
    assert policy is None  # it was chosen for other weights
    save_trained(net, run / "bundle", overwrite=True)  # as fit does at its end: no warning any more
    assert xl.load(run)[0].fingerprint() == net.fingerprint()


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"epochs": 2}, {"patience": 0}], ids=["all epochs", "out of patience"])
def test_a_whole_run_without_a_bundle_is_loaded_without_a_warning(unfinished, changes):
    run, _ = unfinished
    set_epochs(run, **changes)
    assert xl.load(run)[0].num_exits == 2


@pytest.mark.slow
def test_a_run_without_an_epoch_or_with_a_damaged_record(unfinished):
    run, _ = unfinished
    (run / "settings.json").write_text("{}")
    with pytest.raises(xl.errors.BundleError, match=r"cannot be built as settings\.json says"):
        xl.load(run)
    (run / "best.safetensors").unlink()
    with pytest.raises(
        xl.errors.BundleError, match=r"ended before its first epoch did\. Fix: go on with exitlens fit --resume"
    ):
        xl.load(run)


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


@pytest.mark.slow
def test_a_policy_is_loaded_by_name(small, tmp_path):
    xl.save(small, None, tmp_path / "bundle")
    with pytest.raises(xl.errors.PolicyError, match=r"has no policy yet\. Fix: run exitlens calibrate --bundle \S+$"):
        load_calibrated(tmp_path)
    replace_policy(tmp_path, xl.Policy((0.1,)), "fast")
    with pytest.raises(
        xl.errors.PolicyError, match=r"no policy of its own, but \['fast'\] by name\. Fix: run exitlens calibrate"
    ):
        load_calibrated(tmp_path)
    with pytest.raises(
        xl.errors.PolicyError, match=r"none named 'slow', but \['fast'\]\. Fix: run exitlens .* --name slow$"
    ):
        load_calibrated(tmp_path, "slow")
    assert load_calibrated(tmp_path, "fast")[1] == xl.Policy((0.1,))
    replace_policy(tmp_path, xl.Policy((0.5,)))
    assert load_calibrated(tmp_path)[1] == load_calibrated(tmp_path, "default")[1] == xl.Policy((0.5,))


@pytest.mark.slow
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
    with pytest.raises(xl.errors.OutputExistsError, match="overwrite"):
        save_trained(small, bundle, overwrite=False)


@pytest.mark.slow
def test_other_data_in_parts_or_whole(trained, tmp_path, folder):
    net, _ = xl.load(trained)
    assert len(load_samples(trained, net, "test", ReadSettings(str(folder)))) == 60
    for split, number in (("train", 20), ("test", 5)):
        for name in ("dark", "bright"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(number):
                (tmp_path / split / name / f"{split}{i}.png").write_bytes((folder / name / f"{i:02}.png").read_bytes())
    found = load_samples(trained, net, "test", ReadSettings(str(tmp_path), group_by=r"(\w+)\.png"))
    assert len(found) == 10
    assert len(found.groups.unique()) == 5
    assert len(load_samples(trained, net, "calibration", ReadSettings(str(tmp_path)))) == 4
    with pytest.raises(xl.errors.InputError, match="they are for other data"):
        load_samples(trained, net, "test", ReadSettings(columns="label=x"))


@pytest.mark.slow
def test_data_are_read_as_the_network_reads_images(small, tmp_path, folder):
    small.describe(preprocess=xl.data.Preprocess((40, 40), (0.5,) * 3, (0.5,) * 3))
    write_source(tmp_path, DataSource("scenes"))
    xl.save(small, None, tmp_path / "bundle")
    for given in ("", "scenes"):
        data = load_samples(tmp_path, small, "validation", ReadSettings(given))
        assert data.preprocess == small.info.preprocess
        assert data.masks is not None
    two = xl.attach("small", ["layer1"], 2, torch.zeros(1, 3, 40, 40))
    two.describe(preprocess=small.info.preprocess)
    (tmp_path / "data.json").unlink()
    write_source(tmp_path, open_source(str(folder), size=40), resume=True)
    assert load_samples(tmp_path, two, "validation").preprocess == small.info.preprocess


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


@pytest.mark.slow
def test_series_for_a_network_come_as_it_takes_them(tmp_path):
    folder = tmp_path / "data"
    for label, name in enumerate(("calm", "wild")):
        (folder / name).mkdir(parents=True)
        for i in range(8):
            np.save(folder / name / f"{i}.npy", np.random.default_rng(i).normal(0, 1 + label, (2, 64)))
    net = xl.attach(xl.build_backbone("small", 2, 2, modality=SERIES), 2, 2, torch.zeros(1, 2, 64)).eval()
    net.describe(classes=("calm", "wild"), preprocess=xl.data.SeriesPreprocess((0.5, 0.0), (2.0, 1.0)))
    data = load_samples(folder, net, "test", ReadSettings(str(folder), workers=0))
    assert (len(data), data.preprocess, data.classes) == (16, net.info.preprocess, ("calm", "wild"))
    stream = stream_samples(net, ReadSettings(str(folder)), batch_size=5)
    assert torch.cat(list(stream)).equal(data.inputs)
    policy = xl.Policy((0.6, 0.6))
    answers = list(xl.predict_stream(net, folder, policy, batch_size=5))
    assert torch.cat([pred.labels for pred in answers]).equal(xl.predict(net, data.inputs, policy).labels)
    assert describe_origin(net, policy, str(folder))["contents"] == ""  # their names say which they are
    with pytest.raises(xl.errors.InputError, match="cache: it is for images, these data are series"):
        stream_samples(net, ReadSettings(str(folder), cache=folder), batch_size=5)
    (folder / "x.csv").write_text("text,label\nhello,calm\n")
    with pytest.raises(xl.errors.BundleError, match="its network takes series"):
        load_samples(folder, net, "test", ReadSettings(str(folder / "x.csv")))
    generated = load_samples(Path(), net, "validation", ReadSettings("motifs"))
    assert (generated.preprocess, generated.values.shape[2]) == (net.info.preprocess, 64)


def test_a_run_remembers_that_bad_files_are_left_out(tmp_path, folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, "own")
    source, run = open_source("own"), tmp_path / "run"
    assert not remembers_skipping(run)
    write_source(run, source)
    assert "skip_bad" not in json.loads((run / "data.json").read_text())  # as before, and readable by what came before
    assert not remembers_skipping(run)
    write_source(run, source, resume=True, skip_bad=True)
    assert read_source(run) == (source, True)
    assert remembers_skipping(run)
    assert remembers_skipping(run, str(tmp_path / "own"))  # the same data by another name
    assert not remembers_skipping(run, str(folder))
    assert not remembers_skipping(run, "scenes")
    (run / "data.json").write_text("[]")
    assert not remembers_skipping(run)
    with pytest.raises(xl.errors.DataError, match="damaged"):
        read_source(run)


@pytest.mark.slow
def test_later_verbs_leave_out_what_training_left_out(tmp_path, folder):
    run, source = tmp_path / "run", open_source(str(folder), size=40)
    train = source.load("train")
    net = xl.attach("small", ["layer1"], 2, train.first(1).inputs)
    net.describe(classes=train.classes, preprocess=train.preprocess)
    for skip_bad in (False, True):
        write_source(run, source, resume=True, skip_bad=skip_bad)
        assert load_samples(run, net, "test").skip_bad == skip_bad
        assert load_samples(run, net, "test", ReadSettings(skip_bad=True)).skip_bad
        other = ReadSettings(str(shutil.copytree(folder, tmp_path / f"{skip_bad}")))
        assert not load_samples(run, net, "test", other).skip_bad


BAD_FILE = refuse_bad("x.png: cannot be read", "repair it")


@pytest.mark.parametrize(
    ("error", "begun", "is_told"),
    [(BAD_FILE, True, True), (BAD_FILE, False, False), (xl.errors.DataError("data: gone"), True, False)],
)
def test_an_error_about_a_bad_file_says_how_to_go_on_where_there_is_a_run(tmp_path, error, begun, is_told):
    run, error = tmp_path / "run", copy.copy(error)

    def fail():
        if begun:
            (run / "settings.json").write_text("{}")
        raise error

    with pytest.raises(xl.errors.DataError) as caught, record_source(run, DataSource("scenes"), resume=False):
        fail()
    assert "--resume" not in str(caught.value)
    notes = getattr(caught.value, "__notes__", [])
    assert notes == [f"the run so far is in {run}: the same command with --resume --skip-bad goes on"] * is_told
    assert run.exists() == begun


def test_a_run_keeps_the_network_that_it_began_with(tmp_path):
    source, first = DataSource("scenes"), NetworkSettings(exits="layer1", init_weights=Path("weights.pt"))
    for resume, network in ((False, first), (True, NetworkSettings(backbone="timm:other"))):
        with record_source(tmp_path / "r", source, resume=resume, network=network):
            pass
    assert read_network(tmp_path / "r") == first
    assert read_source(tmp_path / "r") == (source, False)
