"""MLflow models of networks with their policy: log, save, load, and serve by ``mlflow models serve`` (extra ``mlflow``)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from exitlens import __version__
from exitlens.delivery.bundle import save
from exitlens.delivery.run_directory import load_calibrated
from exitlens.errors import InputError, import_extra, require
from exitlens.modalities.image import decode_image
from exitlens.model.network import ExitNet
from exitlens.types import Policy
from exitlens.types.inputs import Inputs
from exitlens.types.preprocessing import Preprocess, Preprocessing, TextPreprocess, VectorPreprocess
from exitlens.types.tasks import WITH_CLASSES, name_answers, refuse_task
from exitlens.workflow.inference import predict

OUTPUTS = {"label": "string", "exit": "long", "confidence": "double", "cost": "double"}
IMAGE, TEXT = "image", "text"  # columns of raw samples


def log_model(net: ExitNet, policy: Policy, name: str = "model", *, raw: bool = False, **options: Any) -> Any:
    """Log a model to the active run of MLflow, or to a new one; return its ``ModelInfo``.

    Its ``predict`` returns a table with the columns ``label`` (the class's name), ``exit``, ``confidence`` and ``cost``.
    What is stored is a bundle (safetensors and JSON), and no pickle.

    Args:
        net: a network that can be built from its source, not one around a module of your own.
        policy: calibrated for this network.
        name: the model's name.
        raw: take samples as people have them, as tables: a column ``text``, a column ``image`` of encoded pictures, or the
            columns of a vector's named features. By default it takes inputs as :func:`exitlens.predict` does: an array
            ``(B,...)``, or several by name.
        options: further arguments of ``mlflow.pyfunc.log_model``, such as ``input_example`` and ``registered_model_name``.

    Raises:
        InputError: a network that cannot be built from its source, or one that does not know how raw samples become inputs.
    """
    with TemporaryDirectory() as folder:
        described = _describe(net, policy, raw, Path(folder)) | options
        return import_extra("mlflow.pyfunc", "mlflow", "log_model").log_model(name=name, **described)


def save_model(net: ExitNet, policy: Policy, path: str | Path, *, raw: bool = False, **options: Any) -> None:
    """Write a model to a new directory ``path``, as :func:`log_model` logs it."""
    with TemporaryDirectory() as folder:
        described = _describe(net, policy, raw, Path(folder)) | options
        import_extra("mlflow.pyfunc", "mlflow", "save_model").save_model(str(path), **described)


def load_model(model_uri: str) -> tuple[ExitNet, Policy]:
    """Load the network and its policy back, as :func:`exitlens.load` does.

    ``mlflow.pyfunc.load_model`` loads the same model as one that answers arrays or tables.

    Args:
        model_uri: where the model is, such as ``models:/NAME/1``, ``runs:/RUN/model`` or a directory.
    """
    mlflow = import_extra("mlflow", "mlflow", "load_model")
    path = Path(mlflow.artifacts.download_artifacts(str(model_uri)))
    return load_calibrated(path / mlflow.models.Model.load(str(path)).flavors["python_function"]["data"])


def _describe(net: ExitNet, policy: Policy, raw: bool, folder: Path) -> dict[str, Any]:
    """Write the bundle to a folder; return the arguments of MLflow about it."""
    require(net, ExitNet, "net")
    require(policy, Policy, "policy", "see exitlens.calibrate")
    refuse_task(net.info.task, "net: a model for MLflow", WITH_CLASSES)
    sources = [member.source for member in net.info.members] or [net.info.source]
    if not all(sources):
        raise InputError(
            "net: MLflow builds it anew without your code, and it is around a module of your own. "
            "Fix: attach exits to a source such as 'torchvision:resnet18', or log the bundle as artifacts (xl.save)."
        )
    schema = import_extra("mlflow.types", "mlflow", "log_model")
    if raw:
        inputs = [schema.ColSpec(kind, name) for name, kind in _list_columns(net.info.preprocess).items()]
    else:
        example = net.info.example(next(net.parameters()))
        named = example if isinstance(example, Mapping) else {None: example}
        inputs = [schema.TensorSpec(x.cpu().numpy().dtype, (-1, *x.shape[1:]), name) for name, x in named.items()]
    outputs = schema.Schema([schema.ColSpec(kind, name) for name, kind in OUTPUTS.items()])
    extras = {"mlflow"} | {source.partition(":")[0] for source in sources} & {"hf", "timm"}
    extras |= {"hf"} if raw and isinstance(net.info.preprocess, TextPreprocess) else set()
    version = torch.__version__.split("+")[0]
    return {
        "loader_module": __name__,
        "data_path": str(save(net, policy, folder / "bundle")),
        "signature": import_extra("mlflow.models", "mlflow", "log_model").ModelSignature(schema.Schema(inputs), outputs),
        "pip_requirements": [f"exitlens[{','.join(sorted(extras))}]=={__version__}", f"torch=={version}"],
    }


def _list_columns(preprocess: Preprocessing | None) -> dict[str, str]:
    """Return the columns of raw samples, and the kind of each."""
    if isinstance(preprocess, TextPreprocess):
        return {TEXT: "string"}
    if isinstance(preprocess, Preprocess):
        return {IMAGE: "binary"}
    if isinstance(preprocess, VectorPreprocess) and preprocess.names:
        return dict.fromkeys(preprocess.names, "double")
    raise InputError(
        "raw: it is for texts, images and vectors of named features whose preprocessing the network knows. "
        "Fix: say it by net.describe(preprocess=...), or leave raw out."
    )


class BundleModel:
    """What ``mlflow.pyfunc`` calls: a network with its policy, which answers arrays or tables."""

    def __init__(self, net: ExitNet, policy: Policy) -> None:
        self.net, self.policy = net, policy

    def predict(self, model_input: Any) -> Any:
        """Return the answers to arrays, several by name, or a table of raw samples, as a table with a row for each."""
        pred = predict(self.net, self._read(model_input), self.policy)
        columns = {
            "label": name_answers(pred.labels, self.net.info.classes),
            "exit": pred.exits.numpy(),
            "confidence": pred.confidence.numpy().astype(np.float64),
            "cost": self.net.cost[pred.exits].numpy().astype(np.float64),
        }
        return import_extra("pandas", "mlflow", "an MLflow model").DataFrame(columns)

    def _read(self, given: Any) -> Inputs:
        if isinstance(given, Mapping):
            return {name: _copy(values) for name, values in given.items()}
        if isinstance(given, np.ndarray):
            return _copy(given)
        preprocess = self.net.info.preprocess
        if isinstance(preprocess, TextPreprocess):
            return preprocess.encode(given[TEXT].tolist())
        if isinstance(preprocess, VectorPreprocess):
            return preprocess.normalise(_copy(given[list(preprocess.names)].to_numpy()))
        if not isinstance(preprocess, Preprocess):
            raise InputError(f"model_input: expected an array, or several by name, got {type(given).__name__}")
        size, channels = preprocess.size, len(preprocess.mean)
        pixels = [decode_image(bytes(cell), f"row {i}", size, channels) for i, cell in enumerate(given[IMAGE])]
        return preprocess.normalise(torch.stack(pixels))


def _copy(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(values, order="C"))  # PyTorch takes neither read-only arrays nor negative strides


def _load_pyfunc(path: str) -> BundleModel:
    """Load a model for MLflow, which asks for this name."""
    return BundleModel(*load_calibrated(Path(path)))
