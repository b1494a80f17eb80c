"""Texts: integer tokens ``(B,N)``, alone or by name with their padding mask; deletion masks tokens out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from exitlens.errors import InputError
from exitlens.functional.baselines import Baseline
from exitlens.functional.maps import find_locations, top_cells
from exitlens.modalities.base import Modality, Named
from exitlens.modalities.parts import Part, list_word_parts
from exitlens.types.inputs import MASK, InputFormat, Inputs, find_inner, find_tokens_name
from exitlens.types.preprocessing import TextPreprocess


class TextModality(Modality):
    """Texts with samples ``(N,)``."""

    name, plural, axes = "text", "texts", ("N",)
    expected = "integer tokens (B,N), alone or in a dict such as {'input_ids': ..., 'attention_mask': ...}"
    preprocess = TextPreprocess
    reader = "xl.data.TextPreprocess.encode"
    given = "a file of texts, or a text"
    argument = "input_ids"
    head = "context"
    baselines = ("mean",)

    def fits(self, names: Sequence[str], shape: Sequence[int], dtypes: Sequence[torch.dtype]) -> bool:
        """True for integers: tokens and masks."""
        return len(shape) == 1 and bool(dtypes) and all(d in (torch.int64, torch.int32, torch.bool) for d in dtypes)

    def check(self, inputs: Inputs, given: InputFormat, name: str, like: Tensor) -> tuple[Tensor, ...]:
        """Check that the embedding knows all tokens and a mask leaves one to look at; convert to the dtypes of the trace."""
        if given.names and (not isinstance(inputs, Mapping) or not set(given.names) <= set(inputs)):
            got = sorted(inputs) if isinstance(inputs, Mapping) else type(inputs).__name__
            raise InputError(f"{name}: expected a dict with {list(given.names)}, got {got}: see {self.reader}")
        if not given.names and not isinstance(inputs, Tensor):
            raise InputError(f"{name}: expected a tensor of tokens (B,{given.shape[0]}), got {type(inputs).__name__}")
        tensors = tuple(inputs[n] for n in given.names) if isinstance(inputs, Mapping) else (inputs,)
        for part, tensor, known in zip(given.names or (name,), tensors, given.vocabulary, strict=True):
            where = f"{name}[{part!r}]" if given.names else name
            _check_tokens(tensor, where, (len(tensors[0]), *given.shape), known, like)
            if part == MASK and not bool(((tensor == 0) | (tensor == 1)).all()):
                raise InputError(f"{where}: expected 1 for a token and 0 for padding, got other values")
            if part == MASK and len(rows := (tensor[:, given.prefix :] == 0).all(1).nonzero()):
                raise InputError(f"{where}: text {int(rows[0])} has no token to look at. Fix: leave empty texts out")
        return tuple(t.to(dtype) for t, dtype in zip(tensors, given.dtypes, strict=True))

    def make_example(self, channels: int = 3, size: int = 0) -> Inputs:
        """Return the token 0, 64 times by default, without padding."""
        ids = torch.zeros(1, size or 64, dtype=torch.int64)
        return {"input_ids": ids, MASK: torch.ones_like(ids)}

    def count_channels(self, shape: Sequence[int]) -> int:
        """Return the usual number of an image, which builders of text classifiers ignore."""
        return 3

    def read(self, source: Path | str, preprocess: TextPreprocess) -> Inputs:
        """Encode the text itself."""
        return preprocess.encode([str(source)])

    def check_deletion(self, given: InputFormat, baseline: Baseline = "mean") -> None:
        """Raise :class:`InputError` for a network without a padding mask."""
        super().check_deletion(given, baseline)
        if MASK not in given.names:
            raise InputError(f"net: to delete from texts it has to take {MASK!r}. Fix: attach with an example that has it")

    def delete(self, inputs: Named, cells: Tensor, baseline: Baseline = "mean") -> Inputs:  # (B,N) by name, (B,N) bool
        """Mask the chosen tokens out like padding, as ERASER does (arXiv 1911.03429, section 4); no text loses all."""
        left = inputs[MASK] * ~cells
        return {**inputs, MASK: torch.where(left[:, 1:].any(1, keepdim=True), left, inputs[MASK])}

    def insert(self, inputs: Named, cells: Tensor, baseline: Baseline = "mean") -> Inputs:  # (B,N) by name, (B,N) bool
        """Keep the chosen tokens, and the first, which stands for the class."""
        others = ~cells
        others[:, 0] = False
        return self.delete(inputs, others)

    def exchange(self, inputs: Named, donors: Named, cells: Tensor) -> Inputs:  # (B,N) by name, (B,N) bool
        """Take the chosen tokens from the donors, whose own are repeated if they are fewer.

        The first and the last token of a text mark its ends: they stay, and donors give theirs to nobody.
        """
        ids, offered = find_tokens_name(inputs), find_inner(donors[MASK]).sum(1, keepdim=True)  # (B,1)
        source = 1 + (torch.arange(cells.shape[1], device=cells.device) - 1) % offered.clamp_min(1)
        chosen = cells & find_inner(inputs[MASK]) & (offered > 0)
        return {**inputs, ids: torch.where(chosen, donors[ids].gather(1, source), inputs[ids])}

    def paint_over(self, inputs: Named, cells: Tensor) -> Inputs:  # (B,N) by name, (B,N) bool
        """Replace the chosen tokens by the nearest others between the ends of their text, if it has any."""
        ids, position = find_tokens_name(inputs), torch.arange(cells.shape[1], device=cells.device)
        others = ~cells & find_inner(inputs[MASK])
        distance = (position[:, None] - position).abs().masked_fill(~others[:, None], len(position))  # (B,N,N)
        nearest = torch.where(cells & others.any(1, keepdim=True), distance.argmin(2), position)
        return {**inputs, ids: inputs[ids].gather(1, nearest)}

    def choose_region(self, maps: Tensor, inputs: Named, area: float) -> Tensor:  # (B,N) -> (B,N) bool
        """Mark the top share ``area`` of the tokens that are no padding."""
        return top_cells(maps, area, find_locations(maps))

    def list_parts(self, inputs: Named, preprocess: object, least: int) -> list[Part]:
        """List kinds of words that stand in the same places; without a tokenizer they are called by their numbers."""
        if isinstance(preprocess, TextPreprocess):
            return list_word_parts(inputs, preprocess.tokens, least)
        return list_word_parts(inputs, lambda ids: [str(i) for i in ids.tolist()], least)

    def name_locations(self, sample: Sequence[Tensor], given: InputFormat, preprocess: object) -> tuple[str, ...]:
        """Return the tokens without padding, if the network knows its tokenizer."""
        if not isinstance(preprocess, TextPreprocess):
            return ()
        ids = sample[0]
        length = int(sample[given.names.index(MASK)].sum()) if MASK in given.names else len(ids)
        return tuple(preprocess.tokens(ids[:length].cpu()))


TEXT = TextModality()


def _check_tokens(tensor: Tensor, name: str, shape: tuple[int, ...], known: int | None, like: Tensor) -> None:
    batch, length = shape
    if not isinstance(tensor, Tensor) or tensor.is_floating_point() or tuple(tensor.shape) != shape:
        seen = f"{tuple(tensor.shape)} {tensor.dtype}" if isinstance(tensor, Tensor) else type(tensor).__name__
        raise InputError(f"{name}: expected integers ({batch},{length}), got {seen}. Fix: pad or cut the texts to {length}")
    if batch == 0:
        raise InputError(f"{name}: the batch is empty. Fix: pass at least one text")
    if tensor.device != like.device:
        raise InputError(f"{name}: expected it on {like.device} as the network, got {tensor.device}. Fix: move it there")
    if known is not None and not bool(((tensor >= 0) & (tensor < known)).all()):
        low, high = int(tensor.min()), int(tensor.max())
        raise InputError(f"{name}: expected values in [0, {known}), got {low} to {high}. Fix: use the network's tokenizer")
