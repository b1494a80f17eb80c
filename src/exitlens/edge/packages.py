"""export_package: write what Triton, MLServer, KServe or BentoML start, with an edge bundle inside."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import exitlens
from exitlens.edge.export import FORMAT, MANIFEST, POLICIES
from exitlens.errors import BundleError, ExportError, InputError, OutputExistsError, PolicyError, suggest
from exitlens.io import read_json, replace_directory, verify_checksums, write_text
from exitlens.types.policies import DEFAULT

EDGE, INPUTS = "edge", "inputs"  # where the bundle lies in a package; what requests call a network's one tensor
BATCH, DELAY_MS = 64, 2  # samples or requests that a server gathers; how long MLServer waits for them
DATATYPES = {"float32": "FP32", "int64": "INT64"}
NAME = re.compile("[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")  # a name that Kubernetes takes, too


class Tensor(NamedTuple):
    """An input or output of a model in a server: its name, its datatype in the protocol, and the shape of one sample."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Packed:
    """The edge bundle in a package, the model's name in the server, and the policy that it answers by."""

    manifest: Mapping[str, Any]
    name: str
    policy: str

    @property
    def note(self) -> str:
        """Say what wrote the package, from which network."""
        return f"Written by exitlens {exitlens.__version__}, network {self.version}."

    @property
    def version(self) -> str:
        """Return the start of the network's fingerprint."""
        return str(self.manifest["network"])[:12]

    @property
    def takes_texts(self) -> bool:
        """Return whether the bundle knows how texts become its inputs."""
        return "tokenizer" in (self.manifest["preprocess"] or {})

    @cached_property
    def inputs(self) -> list[Tensor]:
        """List what requests have, named as in :mod:`exitlens.serving`."""
        given = self.manifest["inputs"]
        is_alone = len(given) == 1 and given[0]["dtype"] == "float32"
        return [Tensor(INPUTS if is_alone else x["name"], DATATYPES[x["dtype"]], tuple(x["shape"])) for x in given]

    @cached_property
    def outputs(self) -> list[Tensor]:
        """List what responses have; maps have the size of the largest."""
        classes, maps = int(self.manifest["num_classes"]), [part["map_shape"] for part in self.manifest["segments"]]
        outputs = [Tensor("label", "INT64", (classes,) if self.manifest.get("task") == "multilabel" else ())]
        outputs += [Tensor("probabilities", "FP32", (classes,)), Tensor("exit", "INT64", ())]
        outputs += [Tensor("confidence", "FP32", ()), Tensor("cost", "FP32", ())]
        largest = tuple(max(sizes) for sizes in zip(*maps, strict=True))
        return [*outputs, Tensor("attention", "FP32", largest), Tensor("attention_shape", "INT64", (len(largest),))]

    def require(self, *packages: str) -> str:
        """Return ``requirements.txt``."""
        extra = "[text]" if self.takes_texts else ""
        return "\n".join([f"exitlens-runtime{extra}=={exitlens.__version__}", *packages, ""])


Files = dict[str, str]  # contents by name, of the text files of a package


def write_for_triton(packed: Packed) -> Files:
    """Return a model for the Python backend: a directory of a model repository."""

    def describe(tensor: Tensor) -> str:
        return f'{{ name: "{tensor.name}" data_type: TYPE_{tensor.datatype} dims: {list(tensor.shape) or [1]} }}'

    lines = [f"# {packed.note}", 'backend: "python"', f"max_batch_size: {BATCH}"]
    for key, tensors in (("input", packed.inputs), ("output", packed.outputs)):
        lines += [f"{key} [", ",\n".join(f"  {describe(tensor)}" for tensor in tensors), "]"]
    lines += ["dynamic_batching { }  # what waits goes together; max_queue_delay_microseconds: 2000 waits for company"]
    lines += ["instance_group [ { kind: KIND_CPU count: 1 } ]"]
    for key, value in (("policy", packed.policy), ("threads", "0")):  # 0: one for each processor
        lines += [f'parameters {{ key: "{key}" value: {{ string_value: "{value}" }} }}']
    model = f'"""{packed.note}"""\n\nfrom exitlens_runtime.servers.triton import TritonPythonModel as TritonPythonModel\n'
    needed = packed.require("numpy>=1.26,<2")
    return {"config.pbtxt": "\n".join([*lines, ""]), "1/model.py": model, "requirements.txt": needed}


def write_for_mlserver(packed: Packed) -> Files:
    """Return a model's directory for ``mlserver start``."""

    def describe(tensor: Tensor) -> dict[str, Any]:
        return {"name": tensor.name, "datatype": tensor.datatype, "shape": [-1, *(tensor.shape or [1])]}  # as MLServer sends

    tensors = {"inputs": list(map(describe, packed.inputs)), "outputs": list(map(describe, packed.outputs))}
    batching = {"max_batch_size": BATCH, "max_batch_time": DELAY_MS / 1000}
    extra = {"policy": packed.policy, "threads": 0}
    parameters = {"uri": f"./{EDGE}", "version": packed.version, "extra": extra}
    model = {"name": packed.name, "platform": "exitlens", "implementation": "exitlens_runtime.servers.mlserver.Cascade"}
    settings = {**model, **batching, **tensors, "parameters": parameters}
    return {
        "model-settings.json": json.dumps(settings, indent=2) + "\n",
        "settings.json": json.dumps({"parallel_workers": 0}) + "\n",  # processes would copy every tensor
        "requirements.txt": packed.require("mlserver>=1.6,<2"),
    }


def write_for_kserve(packed: Packed) -> Files:
    """Return a custom predictor: an image to build, and the ``InferenceService`` that runs it."""
    service = f"""# {packed.note}
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: {packed.name}
spec:
  predictor:
    containers:
      - name: kserve-container
        image: {packed.name}:{packed.version}  # docker build -t NAME:TAG ., with your registry
        args: ["--model_name", "{packed.name}", "--policy", "{packed.policy}", "--threads", "1"]
"""
    image = f"""# {packed.note}
FROM python:3.12-slim
COPY requirements.txt .
RUN pip install --no-cache-dir -r requirements.txt
COPY {EDGE} /{EDGE}
ENTRYPOINT ["python", "-m", "exitlens_runtime.servers.kserve", "--edge", "/{EDGE}"]
"""
    return {"inference-service.yaml": service, "Dockerfile": image, "requirements.txt": packed.require("kserve>=0.15,<1")}


def write_for_bentoml(packed: Packed) -> Files:
    """Return a service for ``bentoml serve`` and ``bentoml build``."""
    if len(packed.inputs) > 1 and not packed.takes_texts:
        raise ExportError(
            f"server: BentoML gathers batches of one array, this network takes {[x.name for x in packed.inputs]}. "
            "Fix: choose triton, mlserver or kserve."
        )
    given = packed.inputs[0].name
    argument = "texts: list[str]" if packed.takes_texts else f"{given}: np.ndarray"
    array = f'{{"{given}": {given}.astype(np.{packed.manifest["inputs"][0]["dtype"]})}}'
    read = "self.net.preprocess.encode(texts)" if packed.takes_texts else array
    service = f'''"""{packed.note}"""

from pathlib import Path
from typing import Any, NamedTuple

import bentoml
import numpy as np

import exitlens_runtime
from exitlens_runtime.servers import DEFAULT_OUTPUTS, OUTPUTS, answer


@bentoml.service(name="{packed.name}")
class Cascade:
    def __init__(self) -> None:
        self.net = exitlens_runtime.load(Path(__file__).parent / "{EDGE}", policy="{packed.policy}", threads=0)

    @bentoml.api(batchable=True, max_batch_size={BATCH})
    def classify(self, {argument}) -> list[dict[str, Any]]:
        return self._answer({read}, DEFAULT_OUTPUTS)

    @bentoml.api(batchable=True, max_batch_size={BATCH})
    def explain(self, {argument}) -> list[dict[str, Any]]:
        return self._answer({read}, OUTPUTS)

    def _answer(self, tensors: dict[str, np.ndarray], wanted: tuple[str, ...]) -> list[dict[str, Any]]:
        try:
            outputs = answer(self.net, tensors, wanted)
        except exitlens_runtime.InputError as error:
            raise bentoml.exceptions.InvalidArgument(str(error)) from error
        return [dict(zip(outputs, row)) for row in zip(*(values.tolist() for values in outputs.values()))]
'''
    build = f"""# {packed.note}
service: "service:Cascade"
include: ["service.py", "{EDGE}/"]
python:
  requirements_txt: requirements.txt
"""
    return {"service.py": service, "bentofile.yaml": build, "requirements.txt": packed.require("bentoml>=1.4,<2", "numpy")}


WRITERS: Mapping[str, Callable[[Packed], Files]] = {
    "triton": write_for_triton,
    "mlserver": write_for_mlserver,
    "kserve": write_for_kserve,
    "bentoml": write_for_bentoml,
}


def export_package(
    edge: str | Path, directory: str | Path, server: str, *, policy: str = DEFAULT, overwrite: bool = False
) -> Path:
    """Write an edge bundle as a model for another server, with the files that the server is configured by.

    Args:
        edge: an edge bundle, which :func:`exitlens.export` wrote.
        directory: a new directory, which appears complete or not at all. Its name is the model's in the server: lower-case
            letters, digits and ``-``. For ``triton`` and ``mlserver`` it belongs into the model repository.
        server: ``triton``, ``mlserver``, ``kserve`` or ``bentoml``.
        policy: name of the policy in the bundle that answers.
        overwrite: replace an earlier package; files that it did not have stay.

    Raises:
        InputError: for an unknown server, or a name that servers do not take.
        ExportError: if the server cannot run the network.
        BundleError: for a missing or altered edge bundle; PolicyError: for an unknown policy.
    """
    source, (target, place) = Path(edge).resolve(), place_package(directory, server, overwrite=overwrite)
    files = WRITERS[server](Packed(_read_manifest(source, policy), target.name, policy))
    with replace_directory(target, {Path(name).parts[0] for name in (*files, place)}) as temporary:
        shutil.copytree(source, temporary / place)
        for name, text in files.items():
            write_text(temporary / name, text)
    return target


def place_package(directory: str | Path, server: str, *, overwrite: bool = False) -> tuple[Path, str]:
    """Return where a package is written, and where in it the edge bundle lies; see :func:`export_package`."""
    target, place = Path(directory).resolve(), f"1/{EDGE}" if server == "triton" else EDGE
    if server not in WRITERS:
        raise InputError(f"server: expected one of {', '.join(WRITERS)}, got {server!r}.{suggest(server, WRITERS)}")
    if not NAME.fullmatch(target.name):
        raise InputError(
            f"directory: its name is the model's, of a-z, 0-9 and - (63 at most), got {target.name!r}. Fix: rename it."
        )
    if target.exists() and not (overwrite and (target / place / MANIFEST).is_file()):
        fix = "Fix: choose another directory (overwrite=True replaces an earlier package)."
        raise OutputExistsError(f"directory: {target} exists. {fix}")
    return target, place


def _read_manifest(source: Path, policy: str) -> dict[str, Any]:
    """Return the manifest of an edge bundle whose files are whole and which has this policy."""
    manifest = read_json(source / MANIFEST) if (source / MANIFEST).is_file() else None
    if not isinstance(manifest, dict) or "segments" not in manifest or manifest.get("format") != FORMAT:
        raise BundleError(f"edge: expected an edge bundle of format {FORMAT}, got {source}. Fix: run exitlens export.")
    verify_checksums(source, manifest)
    names = [DEFAULT, *(read_json(source / POLICIES) if POLICIES in manifest["sha256"] else ())]
    if policy not in names:
        raise PolicyError(f"policy: expected one of {names}, got {policy!r}.{suggest(policy, names)}")
    return manifest
