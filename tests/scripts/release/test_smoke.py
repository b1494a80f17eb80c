"""The smoke path, in environments that only pretend; tests/test_readme.py runs the README's lines themselves."""

import json
import zipfile

import pytest

from scripts.release.environments import StepError
from scripts.release.smoke import agree, list_requirements, run_library, run_runtime, write_example

ANSWERS = [["Bag", 0, 0.9], ["Coat", 3, 0.5]]


class Pretended:
    """Answers commands by their first two words."""

    def __init__(self, answers, installed=()):
        self.answers, self.installed, self.asked = answers, dict.fromkeys(installed, "1"), []

    def run(self, *words, cwd):
        self.asked.append(words)
        return self.answers.get(words[:2], "")

    def list_installed(self):
        return self.installed


def test_the_example_is_the_readmes_on_few_images():
    code = write_example()
    compile(code, "example", "exec")
    assert "limit=96" in code
    assert "xl.load(" in code


def test_the_library_is_exported_after_it_was_tried(tmp_path):
    environment = Pretended({("exitlens", "--version"): "exitlens 1.2.3\n"})
    run_library(environment, tmp_path, "1.2.3")
    assert [words[:2] for words in environment.asked[1:]] == [("python", "-I"), ("exitlens", "export")]
    assert (tmp_path / "example.py").exists()
    with pytest.raises(StepError, match=r"expected 1\.2\.4, got exitlens 1\.2\.3"):
        run_library(environment, tmp_path, "1.2.4")


def test_the_runtime_answers_as_the_library_and_without_pytorch(tmp_path):
    (tmp_path / "answers.json").write_text(json.dumps(ANSWERS))
    lines = "".join(json.dumps({"label": a, "exit": b, "confidence": c + 1e-6}) + "\n" for a, b, c in ANSWERS)
    answers = {("exitlens-run", "--version"): "exitlens-run 1.2.3", ("exitlens-run", "edge"): lines}
    run_runtime(Pretended(answers, ["numpy"]), tmp_path, "1.2.3")
    with pytest.raises(StepError, match=r"without \['torch'\]"):
        run_runtime(Pretended(answers, ["torch"]), tmp_path, "1.2.3")
    answers[("exitlens-run", "edge")] = lines.replace("Bag", "Shirt")
    with pytest.raises(StepError, match="expected the library's answers"):
        run_runtime(Pretended(answers), tmp_path, "1.2.3")
    with pytest.raises(StepError, match="--version"):
        run_runtime(Pretended(answers), tmp_path, "1.0.0")


def test_answers_agree_up_to_rounding():
    assert agree(ANSWERS, [["Bag", 0, 0.9000001], ["Coat", 3, 0.5]])
    assert not agree(ANSWERS, ANSWERS[:1])
    assert not agree(ANSWERS, [["Bag", 1, 0.9], ANSWERS[1]])
    assert not agree(ANSWERS, [["Bag", 0, 0.8], ANSWERS[1]])


def test_requirements_of_a_wheel(tmp_path):
    asked = ["numpy>=1.26", "onnx>=1.17; extra == 'onnx'", "timm; extra == 'timm'", "odd; sys_platform == 'none'"]
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        wheel.writestr("a-1.dist-info/METADATA", "Name: a\n" + "".join(f"Requires-Dist: {one}\n" for one in asked))
    assert list_requirements(tmp_path / "a.whl") == ["numpy>=1.26"]
    assert list_requirements(tmp_path / "a.whl", ["onnx"]) == ["numpy>=1.26", "onnx>=1.17"]
