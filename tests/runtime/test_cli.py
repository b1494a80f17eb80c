"""The command line, and that neither torch nor the library is needed."""

import json
import re
import subprocess
import sys

import pytest
from PIL import Image

import exitlens as xl
import exitlens_runtime as er
from exitlens_runtime.cli import draw, list_files, main
from tests.runtime.conftest import NET


def test_the_command_line(edge, tmp_path, capsys):
    Image.new("RGB", (20, 20), "red").save(tmp_path / "a.png")
    main([str(edge), str(tmp_path), "--explain"])
    assert re.search(r"a\.png: . at exit \d: .*max probability .*\n  ", capsys.readouterr().out)
    main([str(edge), str(tmp_path / "a.png"), "--json"])
    row = json.loads(capsys.readouterr().out)
    assert set(row) == {"input", "label", "exit", "confidence", "reason"}
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path), "a.png"])
    assert stop.value.code == 2
    assert "no edge bundle" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    with pytest.raises(er.InputError, match="expected a folder with images"):
        list_files([str(tmp_path / "empty")])
    with pytest.raises(er.InputError, match="empty name"):
        list_files([""])
    assert draw([[0.0, 1.0], [0.5, 0.2]]) == ["    @@", "  ++::"]


def test_a_bad_file_does_not_stop_the_others(edge, tmp_path, capsys):
    for name in ("a.png", "c.png"):
        Image.new("RGB", (20, 20), "red").save(tmp_path / name)
    (tmp_path / "b.png").write_bytes(b"no image")
    with pytest.raises(SystemExit) as stop:
        main([str(edge), str(tmp_path), str(tmp_path / "missing.png"), "--json"])
    assert stop.value.code == 1
    out, err = capsys.readouterr()
    rows = [json.loads(line) for line in out.splitlines()]
    failed = [row["input"] for row in rows if "error" in row]
    assert failed == [str(tmp_path / "b.png"), str(tmp_path / "missing.png")]
    assert [row["input"] for row in rows if "label" in row] == [str(tmp_path / "a.png"), str(tmp_path / "c.png")]
    assert "b.png: cannot be read as an image" in err
    assert "2 of the files could not be read" in err


def test_a_policy_by_name(tmp_path, capsys):
    NET.describe(classes=("w", "x", "y", "z"), preprocess=xl.data.Preprocess((16, 16)))
    edge = xl.export(NET, xl.Policy((0.0, 0.0)), tmp_path / "e", policies={"last": xl.Policy.never(3)})
    Image.new("RGB", (20, 20), "red").save(tmp_path / "a.png")
    (tmp_path / "p.json").write_text((edge / "policy.json").read_text())
    for words, answered in (((), 0), (("--policy", "last"), 2), (("--policy", str(tmp_path / "p.json")), 0)):
        main([str(edge), str(tmp_path / "a.png"), "--json", *words])
        assert json.loads(capsys.readouterr().out)["exit"] == answered
    with pytest.raises(SystemExit):
        main([str(edge), str(tmp_path / "a.png"), "--policy", "fast"])
    assert "got 'fast'" in capsys.readouterr().err


def test_gates_are_told(tmp_path, capsys):
    NET.describe(classes=("w", "x", "y", "z"), preprocess=xl.data.Preprocess((16, 16)))
    gate = xl.types.Gate(((0.0,) * 4 + (-1.0,), (0.0,) * 4 + (1.0,)), (0.0, 0.0))  # refuses all, then none
    edge = xl.export(NET, xl.Policy((0.6, 0.6), gate=gate), tmp_path / "e")
    Image.new("RGB", (20, 20), "red").save(tmp_path / "a.png")
    main([str(edge), str(tmp_path / "a.png"), "--json"])
    row = json.loads(capsys.readouterr().out)
    assert (row["exit"], row["trust"], row["refused"]) == (1, 0.731059, 0)
    assert row["reason"].startswith("trust of the gate 0.731 >= 0.600; max probability ")


def test_it_needs_neither_torch_nor_the_library(edge):
    code = f"import sys, exitlens_runtime as er; er.load({str(edge)!r}); print(*{{'torch', 'exitlens'}} & set(sys.modules))"
    assert not subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
