import csv

from exitlens.workflow.training.log import flatten_row, format_epoch, write_log

ROW = {"epoch": 2, "seconds": 1.234, "loss": {"total": 0.5}, "accuracy": [0.25, 0.75], "cc": [0.5]}


def test_one_epoch_as_a_line_and_as_numbers():
    assert format_epoch(ROW, 8) == "epoch 2/8: loss 0.500 | val accuracy 25.0 75.0 | map CC with final 0.50"
    assert "CC" not in format_epoch(ROW | {"cc": []}, 8)
    flat = {"epoch": 2, "seconds": 1.23, "loss_total": 0.5, "accuracy_exit0": 0.25, "accuracy_exit1": 0.75, "cc_exit0": 0.5}
    assert flatten_row(ROW) == flat


def test_the_log_is_csv(tmp_path):
    write_log(tmp_path / "log.csv", [ROW, ROW | {"epoch": 3}])
    rows = list(csv.DictReader((tmp_path / "log.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["2", "3"]
    assert float(rows[0]["accuracy_exit1"]) == 0.75
