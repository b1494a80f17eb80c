import json

import pytest

import exitlens as xl
from exitlens.workflow.training.run import TrainingRun
from exitlens.workflow.training.step import TrainingSettings


def row(*accuracy):
    return {"epoch": 1, "seconds": 0.5, "loss": {"total": 0.0}, "accuracy": list(accuracy), "cc": []}


@pytest.fixture
def run(net):
    return TrainingRun(net, xl.EGTLoss(), TrainingSettings(3, 8, 1e-3, 0.0, 0, False, False, False), None, 0, None)


def test_the_best_epoch_is_the_first_of_the_best_mean_accuracy(run):
    assert run.best_epoch == 0
    for accuracy in ((0.2, 0.4), (0.5, 0.5), (0.6, 0.4), (0.1, 0.2)):
        run.save(row(*accuracy))
    assert (run.best_epoch, run.epochs_done, run.seconds) == (2, 4, 2.0)


def test_there_is_nothing_to_resume_without_a_directory(run):
    with pytest.raises(xl.TrainingError, match="out_dir"):
        run.open(True, None)


def test_runs_from_before_losses_had_a_reach_trained_the_whole_network(net, tiny_set, tmp_path):
    settings = TrainingSettings(3, 8, 1e-3, 0.0, 0, False, False, False)

    def open_run(resume, **how):
        TrainingRun(net, xl.EGTLoss(**how), settings, None, 0, tmp_path).open(resume, tiny_set)

    open_run(False, target="attention", reach="network", every=1)
    record = json.loads((tmp_path / "settings.json").read_text())
    del record["loss"]["reach"], record["loss"]["target"], record["loss"]["every"]
    (tmp_path / "settings.json").write_text(json.dumps(record))
    open_run(True, target="attention", reach="network", every=1)
    with pytest.raises(xl.TrainingError, match="reach"):
        open_run(True, target="attention", reach="heads")
