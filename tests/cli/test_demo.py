"""demo on the command line."""

import json
from pathlib import Path

import pytest
from PIL import Image

import exitlens as xl


@pytest.mark.slow
def test_demo_in_its_quick_form(tmp_path, call):
    code, out, err = call("demo", "--quick", "--out", tmp_path / "d", "--json")
    assert code == 0, err
    result = json.loads(out)
    assert json.loads((tmp_path / "d" / "result.json").read_text()) == result
    for name in ("baseline", "egt"):
        for condition in ("agreeing", "disagreeing"):
            values = result[name][condition]
            assert len(values["accuracy"]) == len(values["deletion"]) == len(values["deletion_random"]) == 4
            assert (
                len(values["attention_cc"])
                == len(values["attention_cc_null"])
                == len(values["skill"])
                == len(values["kl"])
                == 3
            )
    for name in ("batch_1", "batch_64"):
        assert {"speedup", "accuracy_drop", "cost"} <= set(result["speed"][name])
    assert {"step_time_ratio", "seconds", "seed", "versions", "machine"} <= set(result)
    assert (tmp_path / "d" / "report.html").exists()
    code, *_ = call("explain", "--bundle", tmp_path / "d", "--image", _scene(tmp_path))
    assert code == 0
    code, _, err = call("demo", "--quick", "--out", tmp_path / "d")
    assert code == 2
    assert "finished demo" in err


def _scene(tmp_path: Path) -> Path:
    scene = xl.load_scenes("test", limit=1)
    path = tmp_path / "scene.png"
    Image.fromarray(scene.images[0].permute(1, 2, 0).numpy()).save(path)
    return path
