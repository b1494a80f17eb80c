"""Bundles go to a stand-in for the Hub and come back; what is refused, what breaks off, and what is never fetched."""

import hashlib
import json
import pickle
import shutil
import sys
from pathlib import Path

import pytest
import torch

import exitlens as xl
from exitlens.delivery.hub import fetch_bundle, is_address, parse_address, refuse_address
from exitlens.errors import BundleError, HubError, InputError, MissingExtraError, WeightsWarning
from tests.conftest import TinyNet, make_net
from tests.hub import open_hub

constants = pytest.importorskip("huggingface_hub.constants")
POLICY, FAST = xl.Policy((0.8, 0.7)), xl.Policy((0.5, 0.5))


@pytest.fixture
def written(tmp_path):
    return xl.save(make_net(), POLICY, tmp_path / "bundle", policies={"fast": FAST})


@pytest.fixture
def hub(tmp_path):
    with open_hub(tmp_path / "cache") as hub:
        yield hub


@pytest.fixture
def pushed(hub, written):
    """The bundle as a stranger would have it on the Hub, at hf://user/name."""
    hub.put("user/name", {path.name: path.read_bytes() for path in written.iterdir()})
    return hub


def load(address="hf://user/name"):
    return xl.load(address, backbone=TinyNet())


@pytest.mark.slow
def test_answers_are_bit_equal_after_the_round_trip(hub, written, images):
    address = xl.push_to_hub(written, "user/name")
    assert address == f"hf://user/name@{hub.commits['user/name'][-1][0]}"
    before, _ = xl.load(written, backbone=TinyNet())
    for given in (address, "hf://user/name", Path("hf://user/name"), "hf://models/user/name@main"):
        net, policy = load(given)
        assert policy == POLICY
        assert all(torch.equal(a.logits, b.logits) for a, b in zip(net(images), before(images), strict=True))
        first, again = xl.predict(before, images, policy), xl.predict(net, images, policy)
        assert torch.equal(first.probabilities, again.probabilities)
        assert torch.equal(first.exits, again.exits)
    assert xl.load_policies("hf://user/name") == {"default": POLICY, "fast": FAST}


def test_pushing_replaces_the_bundle_and_nothing_else(hub, written, tmp_path):
    notes = {"notes.txt": b"mine", "stage_0.onnx": b"of the bundle before", "golden.npz": b"", ".gitattributes": b""}
    hub.put("user/name", notes)
    (written / "certificate_requests.json").write_text("{}")
    xl.push_to_hub(written, "hf://user/name", message="better")
    files = {path.name: path.read_bytes() for path in written.iterdir() if path.name != "certificate_requests.json"}
    assert hub.commits["user/name"][-1][1] == {**files, "notes.txt": b"mine", ".gitattributes": b""}
    shutil.copytree(written, tmp_path / "run" / "bundle")
    xl.push_to_hub(tmp_path / "run", "user/other", private=True)
    assert hub.private == {"user/other"}


def test_a_revision_is_read_and_pushed_to(pushed, written):
    first = pushed.read("user/name")[0]
    second = pushed.put("user/name", {"README.md": b"emptied"})
    assert load(f"hf://user/name@{first}")[1] == POLICY
    with pytest.raises(BundleError, match=r"hf://user/name: it holds no manifest.json.* Fix: "):
        load(f"hf://user/name@{second}")
    for call in (lambda: load("hf://user/name@v9"), lambda: xl.push_to_hub(written, "user/name@v9")):
        with pytest.raises(HubError, match=r"hf://user/name: 404.*Revision.*Not.*Found.* Fix: .* check name and revision"):
            call()


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("hf://user/name", ("user/name", None)),
        ("hf://models/user/name/", ("user/name", None)),
        ("hf://user/a.b-c_1@v1.0", ("user/a.b-c_1", "v1.0")),
        ("hf://user/name@refs/pr/3", ("user/name", "refs/pr/3")),
        ("hf://user/name@a%2Fbranch", ("user/name", "a/branch")),
    ],
)
def test_addresses_are_those_of_huggingface_hub(address, parts):
    assert parse_address(address) == parse_address(Path(address)) == parts
    theirs = pytest.importorskip("huggingface_hub.utils._hf_uris").parse_hf_uri(address.rstrip("/"))
    assert (theirs.id, theirs.revision, theirs.path_in_repo) == (*parts, "")


@pytest.mark.parametrize(
    "address", ["hf://name", "hf://user/name/folder", "hf://datasets/user/name", "hf://user/name@", "hf:/"]
)
def test_other_addresses_are_refused(address):
    with pytest.raises(InputError, match=r"bundle: expected hf://USER/NAME .* Fix: "):
        fetch_bundle(address)


def test_paths_are_left_alone(tmp_path):
    assert not is_address(tmp_path)
    assert fetch_bundle(tmp_path) == refuse_address(tmp_path) == tmp_path


@pytest.mark.slow
def test_an_interrupted_download_loses_nothing(pushed, written, tmp_path, images, monkeypatch):
    before = load()[0](images)[-1].logits
    newer = xl.save(make_net("keep"), POLICY, tmp_path / "newer")
    commit = pushed.put("user/name", {path.name: path.read_bytes() for path in newer.iterdir()})
    pushed.cut = "weights.safetensors"
    with pytest.raises(
        HubError, match=r"hf://user/name: peer closed connection .* Fix: .* files that have arrived are kept"
    ):
        load()
    partial = tmp_path / "cache" / "models--user--name" / "snapshots" / commit
    assert partial.is_dir()
    with pytest.raises(BundleError):
        load(partial)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # the older copy is still what the name means
    assert torch.equal(load()[0](images)[-1].logits, before)
    with pytest.raises(HubError, match=r"Fix: .* HF_HUB_OFFLINE"):
        load(f"hf://user/name@{commit}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    pushed.status = 503
    with pytest.warns(WeightsWarning, match=r"hf://user/name: the Hub cannot be reached .* the copy of commit .* Fix: "):
        assert torch.equal(load()[0](images)[-1].logits, before)
    pushed.status, pushed.cut = 0, ""
    pushed.log.clear()
    assert torch.equal(load()[0](images)[-1].logits, make_net("keep")(images)[-1].logits)
    assert [line.rpartition("/")[2] for line in pushed.log if line.startswith("GET /user/name/resolve")] == [
        "weights.safetensors"
    ]


def test_refusals_say_what_to_do(pushed, written, monkeypatch):
    pushed.gated.add("user/name")
    with pytest.raises(HubError, match=r"hf://user/name: .* gated repo .* Fix: .* ask for access on its page"):
        load()
    with pytest.raises(HubError, match=r"hf://user/none: .*Repository Not Found.* Fix: .* check name .*hf auth login"):
        load("hf://user/none")
    monkeypatch.setenv("HF_TOKEN", "another")
    pushed.private.add("user/name")
    with pytest.raises(HubError, match="Repository Not Found"):
        load()
    with pytest.raises(HubError, match=r"hf://user/name: .*401.* Fix: .*log in by `hf auth login`"):
        xl.push_to_hub(written, "user/name")
    pushed.private.clear()
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match=r"hf://user/name: .*refused.* Fix: .* check the connection"):
        load()
    with pytest.raises(HubError, match=r"hf://user/a\.\.b: .*user/a\.\.b.* Fix: .* check name"):
        load("hf://user/a..b")


def test_only_bundles_are_pushed(hub, tmp_path, monkeypatch):
    for manifest in (None, [], {"sha256": {}}):
        if manifest is not None:
            (tmp_path / "manifest.json").write_text(json.dumps(manifest))
        for directory in (tmp_path, "hf://user/name"):
            with pytest.raises(BundleError, match=r"directory: expected a bundle, got .* Fix: "):
                xl.push_to_hub(directory, "user/name")
    (tmp_path / "manifest.json").write_text(json.dumps({"kind": "exitlens", "sha256": {"policy.json": "0"}}))
    with pytest.raises(BundleError, match=r"policy\.json: missing"):
        xl.push_to_hub(tmp_path, "user/name")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r"exitlens\[hub\]"):
        fetch_bundle("hf://user/name")
    assert not hub.log


def test_what_is_on_the_hub_is_not_changed_there(net):
    for call in (lambda: xl.save(net, POLICY, "hf://user/name"), lambda: refuse_address(Path("hf://user/name"))):
        with pytest.raises(
            BundleError, match=r"hf://user/name is on the Hub .* Fix: .* hf download user/name --local-dir DIR"
        ):
            call()


class Bomb:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_a_bundle_from_a_stranger_runs_no_code(pushed, written, tmp_path):
    mark = tmp_path / "mark"
    code, pickled = f"open({str(mark)!r}, 'w')".encode(), pickle.dumps(Bomb(mark))
    files = {path.name: path.read_bytes() for path in written.iterdir()}
    hostile = {
        "modeling.py": code,
        "__init__.py": code,
        "pytorch_model.bin": pickled,
        "best.pt": pickled,
        "x/setup.py": code,
    }
    pushed.put("user/name", files | hostile | {"bundle/manifest.json": b"{}", "config.json": b"{}"})
    assert load()[1] == POLICY
    assert {path.name for path in fetch_bundle("hf://user/name").iterdir()} == set(files)
    assert not [line for line in pushed.log for name in hostile if line.endswith(f"main/{name}") or f"/{name}" in line]

    manifest = json.loads(files["manifest.json"])  # a manifest that names code, and weights that are a pickle
    manifest["sha256"]["modeling.py"] = hashlib.sha256(code).hexdigest()
    pushed.put("user/name", files | hostile | {"manifest.json": json.dumps(manifest).encode()})
    with pytest.raises(BundleError, match=r"modeling.py: missing"):
        load()
    manifest = json.loads(files["manifest.json"])
    manifest["sha256"]["weights.safetensors"] = hashlib.sha256(pickled).hexdigest()
    pushed.put("user/name", files | {"manifest.json": json.dumps(manifest).encode(), "weights.safetensors": pickled})
    with pytest.raises(BundleError, match=r"weights.safetensors: damaged"):
        load()
    assert not mark.exists()
    pickle.loads(pickled)  # which would have left one
    assert mark.exists()
