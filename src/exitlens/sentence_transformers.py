"""Sentence encoders with exits, asked as sentence-transformers' models are (docs/guides/vectors.md)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from exitlens.errors import InputError, import_extra, require
from exitlens.model.attach import attach
from exitlens.model.backbones.sentences import EXTRA, Sentences
from exitlens.model.heads import HeadKind
from exitlens.model.network import ExitNet
from exitlens.types import Policy
from exitlens.types.inputs import map_inputs
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
    """

    def __init__(self, net: ExitNet, policy: Policy) -> None:
        require(net, ExitNet, "net")
        check_policy(net, policy)
        if net.info.task != "embedding" or not isinstance(net.info.preprocess, TextPreprocess):
            raise InputError("net: expected one that answers vectors to texts. Fix: see attach_sentence_transformer.")
        self.net, self.policy, self.preprocess = net, policy, net.info.preprocess

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
        batches = (self.preprocess.encode(texts[i : i + batch_size]) for i in range(0, len(texts), batch_size))
        answers = predict_stream(self.net, batches, self.policy, progress=bool(show_progress_bar))
        vectors = torch.cat(
            [torch.empty(0, self.net.info.num_classes, device=self.net.device), *(p.labels for p in answers)]
        )
        rows: Any = vectors if convert_to_tensor else vectors.cpu().numpy() if convert_to_numpy else list(vectors)
        return rows[0] if isinstance(sentences, str) else rows
