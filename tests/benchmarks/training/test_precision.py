"""The benchmark of half precision runs every way."""

from benchmarks.training import precision


def test_every_way_is_timed(capsys):
    precision.main(["--backbone", "small", "--size", "32", "--batch", "2", "--rounds", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(precision.WAYS)
    assert lines[0].endswith("1.00 times fit's")
