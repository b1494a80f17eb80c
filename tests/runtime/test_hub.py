"""Edge bundles come from a stand-in for the Hub: by the library's rules, and without PyTorch."""

import hashlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import exitlens as xl
import exitlens_runtime as er
from exitlens.delivery import hub as library
from exitlens_runtime import hub as runtime
from tests.hub import TOKEN, open_hub

constants = pytest.importorskip("huggingface_hub.constants")
FETCHERS = {"library": (library, xl.errors), "runtime": (runtime, er)}


@pytest.fixture
def hub(tmp_path):
    with open_hub(tmp_path / "cache") as hub:
        yield hub


@pytest.fixture
def pushed(hub, edge):
    hub.put("user/edge", {path.name: path.read_bytes() for path in edge.iterdir() if path.name != "README.md"})
    return hub


@pytest.fixture(params=FETCHERS)
def fetcher(request):
    """Either way to fetch a bundle, with the errors that it raises."""
    return FETCHERS[request.param]


def test_answers_are_bit_equal_after_the_round_trip(hub, edge, runtime, images):
    address = xl.push_to_hub(edge, "user/edge")
    assert "ONNX files (float32)" in hub.commits["user/edge"][-1][1]["README.md"].decode()
    expected = runtime.predict(images.numpy(), attention=True)
    for given in (address, "hf://user/edge"):
        answers = er.load(given, threads=1).predict(images.numpy(), attention=True)
        for name in ("labels", "exits", "confidence", "probabilities"):
            assert np.array_equal(getattr(answers, name), getattr(expected, name))
        assert all(map(np.array_equal, answers.attention, expected.attention))


def test_an_interrupted_download_loses_nothing(pushed, fetcher, monkeypatch):
    module, errors = fetcher
    older = module.fetch_bundle("hf://user/edge")
    commit, files = pushed.read("user/edge")
    newer = pushed.put("user/edge", files | {"policy.json": files["policy.json"] + b" "})
    pushed.cut = "policy.json"
    with pytest.raises(
        errors.HubError, match=r"hf://user/edge: peer closed connection .* Fix: .* files that have arrived are kept"
    ):
        module.fetch_bundle("hf://user/edge")
    pushed.status = 503
    with pytest.warns(
        UserWarning, match=f"hf://user/edge: the Hub cannot be reached .* the copy of commit {commit[:12]} is used"
    ):
        assert module.fetch_bundle("hf://user/edge") == older
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert module.fetch_bundle("hf://user/edge") == older
    with pytest.raises(errors.HubError, match=r"Fix: .* HF_HUB_OFFLINE"):
        module.fetch_bundle(f"hf://user/edge@{newer}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    pushed.status, pushed.cut = 0, ""
    assert module.fetch_bundle("hf://user/edge").name == newer


def test_the_copy_on_disk_is_used_whatever_breaks_the_connection(pushed, fetcher, monkeypatch):
    module, errors = fetcher
    older = module.fetch_bundle("hf://user/edge")

    def refuse(*_, **__):
        raise OSError("the proxy wants a password")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", refuse)
    with pytest.warns(UserWarning, match=r"the Hub cannot be reached \(the proxy wants a password\): the copy of commit"):
        assert module.fetch_bundle("hf://user/edge") == older
    with pytest.raises(errors.HubError, match=r"hf://user/none: the proxy wants a password\. Fix: "):
        module.fetch_bundle("hf://user/none")


def test_refusals_say_what_to_do(pushed, fetcher, tmp_path, monkeypatch):
    module, errors = fetcher
    assert module.fetch_bundle(tmp_path) == tmp_path
    for address in ("hf://user", "hf://datasets/user/name", "hf://user/edge/folder"):
        with pytest.raises(errors.InputError, match="expected hf://USER/NAME"):
            module.fetch_bundle(address)
    pushed.put("user/empty", {"notes.txt": b""})
    with pytest.raises(errors.BundleError, match=r"hf://user/empty: it holds no manifest.json.* Fix: "):
        module.fetch_bundle(Path("hf://user/empty"))
    with pytest.raises(errors.HubError, match=r"hf://user/none: .*Repository Not Found.* Fix: .* check name"):
        module.fetch_bundle("hf://user/none")
    with pytest.raises(errors.HubError, match=r"hf://user/edge: 404.*Revision.* Fix: .* check name and revision"):
        module.fetch_bundle("hf://user/edge@v9")
    pushed.gated.add("user/edge")
    with pytest.raises(errors.HubError, match=r"hf://user/edge: .* gated repo .* Fix: .* ask for access on its page"):
        module.fetch_bundle("hf://user/edge")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(xl.ExitlensError if module is library else er.HubError, match=r"Fix: pip install '.*\[hub\]'"):
        module.fetch_bundle("hf://user/edge")


class Bomb:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_an_edge_bundle_from_a_stranger_runs_no_code(pushed, tmp_path):
    mark = tmp_path / "mark"
    files = pushed.read("user/edge")[1]
    hostile = {"exitlens_runtime.py": b"1 / 0", "net.pkl": pickle.dumps(Bomb(mark)), "custom_ops.so": b""}
    np.savez(tmp_path / "golden.npz", images=np.array([Bomb(mark)], object))
    golden, manifest = (tmp_path / "golden.npz").read_bytes(), json.loads(files["manifest.json"])
    manifest["sha256"]["golden.npz"] = hashlib.sha256(golden).hexdigest()
    pushed.put("user/edge", files | hostile | {"golden.npz": golden, "manifest.json": json.dumps(manifest).encode()})
    with pytest.raises(er.BundleError, match=r"golden.npz: cannot be read \(Object arrays cannot be loaded"):
        er.load("hf://user/edge")
    pushed.put("user/edge", files | hostile)
    assert er.load("hf://user/edge").num_exits == 3
    assert not [line for line in pushed.log for name in hostile if name in line]
    assert not mark.exists()


@pytest.mark.slow
def test_it_needs_neither_torch_nor_the_library(pushed, edge, tmp_path, images):
    """In a process of its own, with the variables that a user would set."""
    np.save(tmp_path / "images.npy", images.numpy())
    code = (
        "import sys; sys.modules |= {'torch': None, 'exitlens': None}\n"
        "import numpy, exitlens_runtime\n"
        "net = exitlens_runtime.load('hf://user/edge', threads=1)\n"
        f"print(net.predict(numpy.load({str(tmp_path / 'images.npy')!r})).exits.tolist())"
    )
    given = {"HF_ENDPOINT": pushed.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | given, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == str(er.load(edge, threads=1).predict(images.numpy()).exits.tolist()), done.stderr
