"""Sentence encoders with exits, asked as sentence-transformers' models are (docs/guides/vectors.md)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from exitlens.errors import InputError, import_extra, require
from exitlens.model.attach import attach
from exitlens.model.backbones.build import rebuild_backbone
from exitlens.model.backbones.sentences import EXTRA, Sentences
from exitlens.model.heads import HeadKind
from exitlens.model.network import ExitNet
from exitlens.types import Policy
from exitlens.types.inputs import MASK, map_inputs
from exitlens.types.preprocessing import TextPreprocess
from exitlens.workflow.inference import check_policy, predict_stream

__all__ = ["ExitEncoder", "Sentences", "attach_sentence_transformer"]


def attach_sentence_transformer(
    model: Any, at: Sequence[str] | int, *, length: int | None = None, head: HeadKind = "evidence"
) -> ExitNet:
    """Attach exits to a trained ``SentenceTransformer``; the final exit's vectors stay those of its ``encode``.

    They have norm 1: those of a model without ``Normalize`` are those of ``encode(..., normalize_embeddings=True)``.

    Args:
        model: a transformer with pooling by ``mean`` or ``cls``, or a directory or name that ``SentenceTransformer`` opens.
        at: names of modules such as ``encoder.encoder.layer.1`` (``encoder.`` and what the transformer calls it), or how
            many exits, as in :func:`exitlens.attach`.
        length: tokens that every sentence is cut or padded to, by default as many as the model takes. Time grows with it.
        head: of the early exits, as in :func:`exitlens.attach`; ``"skip"`` is much nearer to the model's vectors.

    Raises:
        InputError: for a model of other modules, with a default prompt or with ``truncate_dim``.
    """
    if isinstance(model, str | Path):
        package = import_extra("sentence_transformers", EXTRA, "attach_sentence_transformer")
        model = package.SentenceTransformer(str(model), device="cpu")
    backbone = Sentences.read(model).eval()
    preprocess = TextPreprocess(model.tokenizer.backend_tokenizer.to_str(), length or model.max_seq_length)
    example = map_inputs(preprocess.encode(["A sentence."]), lambda tensor: tensor.to(model.device))
    width: Any = backbone.encoder.config.hidden_size  # type: ignore[union-attr]
    net = attach(backbone, at, width, example, final="keep", task="embedding", head=head)
    net.describe(preprocess=preprocess)
    return net


class ExitEncoder:
    """A network of :func:`attach_sentence_transformer` and its policy, with the ``encode`` of sentence-transformers.

    Args:
        net: a network that answers vectors to texts.
        policy: calibrated for it; its early exits answer the sentences that they are sure of.
        lengths: in tokens, below the network's: sentences that fit are padded to these. It changes no vector and saves time.
            The network is attached for each, which takes seconds; the weights are shared.
    """

    def __init__(self, net: ExitNet, policy: Policy, *, lengths: Sequence[int] = ()) -> None:
        require(net, ExitNet, "net")
        check_policy(net, policy)
        if net.info.task != "embedding" or not isinstance(net.info.preprocess, TextPreprocess):
            raise InputError("net: expected one that answers vectors to texts. Fix: see attach_sentence_transformer.")
        self.net, self.policy, self.preprocess, whole = net, policy, net.info.preprocess, net.info.preprocess.length
        if not all(isinstance(length, int) and 0 < length < whole for length in lengths):
            raise InputError(
                f"lengths: expected integers below {whole}, the network's, got {lengths!r}. Fix: leave others out."
            )
        self.nets = {length: _shorten(net, length) for length in sorted(lengths)} | {whole: net}

    def encode(
        self,
        sentences: str | Iterable[str],
        *,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        normalize_embeddings: bool = False,  # they are
    ) -> Any:
        """Return the vector ``(D,)`` of a sentence, or ``(N,D)`` of several, ``float32`` and of norm 1.

        They are a NumPy array; with ``convert_to_tensor`` a tensor, with neither a list of tensors.
        """
        texts = [sentences] if isinstance(sentences, str) else list(sentences)
        vectors = torch.empty(len(texts), self.net.info.num_classes, device=self.net.device)
        parts, counts = _split(texts, batch_size), [0] * len(texts)  # of tokens
        if len(self.nets) > 1:
            counts = [int(count) for part in parts for count in self.preprocess.encode(part)[MASK].sum(1)]
        for before, (length, net) in zip((-1, *self.nets), self.nets.items(), strict=False):
            rows = [i for i, count in enumerate(counts) if before < count <= length]
            read = replace(self.preprocess, length=length).encode
            batches = (read([texts[i] for i in part]) for part in _split(rows, batch_size))
            answers = predict_stream(net, batches, self.policy, progress=bool(show_progress_bar))
            vectors[rows] = torch.cat([vectors[:0], *(pred.labels for pred in answers)])
        given: Any = vectors if convert_to_tensor else vectors.cpu().numpy() if convert_to_numpy else list(vectors)
        return given[0] if isinstance(sentences, str) else given


def _split(values: list[Any], size: int) -> list[list[Any]]:
    return [values[i : i + size] for i in range(0, len(values), size)]


def _shorten(net: ExitNet, length: int) -> ExitNet:
    """Return the network for shorter texts, with the same weights."""
    info: Any = net.info
    preprocess = replace(info.preprocess, length=length)
    example = map_inputs(preprocess.encode(["A sentence."]), lambda tensor: tensor.to(net.device))
    backbone = rebuild_backbone(info).to(net.device)
    short = attach(backbone, info.at, info.num_classes, example, final="keep", task="embedding", head=info.head)
    short.load_state_dict(net.state_dict(), assign=True)
    short.describe(preprocess=preprocess)
    return short.eval()
