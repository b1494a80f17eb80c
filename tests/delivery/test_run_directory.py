import pytest
import torch

import exitlens as xl
from exitlens.delivery.bundle import find_bundle
from exitlens.delivery.run_directory import read_source, replace_policy, shorten_names, write_source


def test_names_of_runs_are_short_and_differ(tmp_path):
    paths = [tmp_path / "x", tmp_path / "y" / "x", tmp_path / "z" / "bundle"]
    assert shorten_names(paths) == ["x", "x (2)", "z"]


def test_run_directories(tmp_path):
    from exitlens.data.sources import DataSource

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
