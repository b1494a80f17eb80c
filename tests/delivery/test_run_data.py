import json
import shutil

import pytest

import exitlens as xl
from exitlens.data.checks import refuse_bad
from exitlens.data.sources import DataSource, open_source
from exitlens.delivery.run_data import read_source, record_source, remembers_skipping, write_source
from exitlens.delivery.run_directory import load_samples

SCENES = DataSource("scenes", seed=3)


def test_records_of_data_from_before_groups_are_read(tmp_path):
    source = DataSource("scenes", seed=3)
    write_source(tmp_path / "run", source, resume=False)
    path = tmp_path / "run" / "data.json"
    old = {k: v for k, v in json.loads(path.read_text()).items() if k not in ("columns", "group_by", "split_by")}
    path.write_text(json.dumps(old))
    write_source(tmp_path / "run", source, resume=True)
    path.write_text(json.dumps(old))
    with pytest.raises(xl.DataError, match="other data"):
        write_source(tmp_path / "run", DataSource("scenes", seed=3, group_by="x"), resume=True)


def test_a_run_remembers_that_bad_files_are_left_out(tmp_path, folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, "own")
    source, run = open_source("own"), tmp_path / "run"
    assert not remembers_skipping(run)
    write_source(run, source, resume=False)
    assert "skip_bad" not in json.loads((run / "data.json").read_text())  # as before, and readable by what came before
    assert not remembers_skipping(run)
    write_source(run, source, resume=True, skip_bad=True)
    assert read_source(run) == source
    assert remembers_skipping(run)
    assert remembers_skipping(run, str(tmp_path / "own"))  # the same data by another name
    assert not remembers_skipping(run, str(folder))
    assert not remembers_skipping(run, "scenes")
    (run / "data.json").write_text("[]")
    assert not remembers_skipping(run)
    with pytest.raises(xl.DataError, match="damaged"):
        read_source(run)


def test_later_verbs_leave_out_what_training_left_out(tmp_path, folder):
    run, source = tmp_path / "run", open_source(str(folder), size=40)
    train = source.load("train")
    net = xl.attach("small", ["layer1"], 2, train.first(1).inputs)
    net.describe(classes=train.classes, preprocess=train.preprocess)
    for skip_bad in (False, True):
        write_source(run, source, resume=True, skip_bad=skip_bad)
        assert load_samples(run, net, "test").skip_bad == skip_bad
        assert load_samples(run, net, "test", skip_bad=True).skip_bad
        assert not load_samples(run, net, "test", str(shutil.copytree(folder, tmp_path / f"{skip_bad}"))).skip_bad


def _fail(run, error, begun):
    with record_source(run, SCENES, resume=False):
        if begun:
            (run / "settings.json").write_text("{}")
        raise error


@pytest.mark.parametrize("begun", [True, False])
def test_an_error_about_a_bad_file_says_how_to_go_on_where_there_is_a_run(tmp_path, begun):
    run = tmp_path / "run"
    with pytest.raises(xl.DataError) as caught:
        _fail(run, refuse_bad("x.png: cannot be read", "repair it"), begun)
    assert "--resume" not in str(caught.value)
    notes = getattr(caught.value, "__notes__", [])
    assert notes == [f"the run so far is in {run}: the same command with --resume --skip-bad goes on"] * begun
    assert run.exists() == begun


def test_other_errors_do_not_speak_of_bad_files(tmp_path):
    with pytest.raises(xl.DataError) as caught:
        _fail(tmp_path / "run", xl.DataError("data: gone"), True)
    assert not hasattr(caught.value, "__notes__")
