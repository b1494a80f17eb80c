"""Sentence encoders: a transformer and the pooling of its tokens, as one backbone."""

from __future__ import annotations

from typing import Any, Self

import torch.nn.functional as F
from torch import Tensor, nn

from exitlens.errors import InputError

EXTRA, POOLING = "sentence-transformers", ("mean", "cls")
MODULES = ["Transformer", "Pooling", "Normalize"]


class Sentences(nn.Module):
    """A transformer and the pooling of its tokens to a vector of norm 1, as a backbone that exits are attached to.

    Args:
        encoder: of transformers: takes ``input_ids`` and ``attention_mask`` ``(B,N)``, and returns tokens ``(B,N,D)`` first.
        pooling: ``mean`` of the tokens that are no padding, or the first, ``cls``.
    """

    def __init__(self, encoder: nn.Module, pooling: str = "mean") -> None:
        super().__init__()
        self.encoder, self.pooling = encoder, pooling

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:  # (B,N) each -> (B,D)
        """Return vectors of norm 1."""
        tokens = self.encoder(input_ids, attention_mask)[0]
        if self.pooling == "cls":
            return F.normalize(tokens[:, 0], dim=1)
        keep = attention_mask[..., None].to(tokens.dtype)
        return F.normalize((tokens * keep).sum(1) / keep.sum(1), dim=1)

    @classmethod
    def read(cls, model: Any) -> Self:
        """Return the same network as a ``SentenceTransformer``, of which it shares the weights."""
        parts = {type(module).__name__: module for module in model}
        pool, names = parts.get("Pooling"), [*parts]
        pooling = getattr(pool, "pooling_mode", None) or getattr(pool, "get_pooling_mode_str", str)()  # the latter before 6
        if names not in (MODULES, MODULES[:2]) or pooling not in POOLING or model.truncate_dim or model.default_prompt_name:
            raise InputError(
                "model: expected a transformer, pooling by mean or cls, and Normalize or nothing; no default prompt, no "
                f"truncate_dim; got {names}, pooling {pooling}, {model.default_prompt_name!r} and {model.truncate_dim}. "
                "Fix: pool and normalise in a module of your own around its transformer (docs/guides/vectors.md)."
            )
        return cls(parts["Transformer"].auto_model, pooling)
