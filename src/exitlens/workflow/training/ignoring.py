"""What must not matter (``fit(ignore=)``): parts of the inputs that training takes from other samples."""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from exitlens.errors import InputError, suggest
from exitlens.modalities import TEXT, Modality, SeveralInputs
from exitlens.modalities.arrays import read_npy
from exitlens.modalities.image import open_picture
from exitlens.modalities.vector import VectorModality
from exitlens.model.network import ExitNet
from exitlens.types.inputs import (
    MASK,
    Inputs,
    count_rows,
    draw_donors,
    find_inner,
    find_tokens_name,
    list_tensors,
    replace_rows,
    take_rows,
)
from exitlens.types.preprocessing import TextPreprocess
from exitlens.types.settings import Ignored

SHARE = 0.7  # of each batch
TRIES = 3  # donors whose backgrounds are tried before a donor's object is shown in a background
BACKGROUND = "background"


def read_ignored(ignore: Any) -> Ignored:
    """Return what :func:`exitlens.fit` was asked to ignore as a record; see there for what it may be."""
    if hasattr(ignore, "ignore"):
        if ignore.ignore is None:
            fix = "leave it out, or name a mask, channels or words"
            raise InputError(f"ignore: no part of the inputs can be exchanged for {ignore!r:.200}. Fix: {fix}")
        return read_ignored(ignore.ignore)
    if ignore is None:
        return Ignored()
    if isinstance(ignore, Ignored):
        return ignore
    if isinstance(ignore, str):
        if ignore != BACKGROUND:
            fix = f"pass channels or words as a tuple (--ignore-channels, --ignore-words).{suggest(ignore, [BACKGROUND])}"
            raise InputError(f"ignore: expected {BACKGROUND!r}, a mask, or names in a tuple, got {ignore!r}. Fix: {fix}")
        return Ignored(background=True)
    if isinstance(ignore, Path):
        return Ignored(masks=(pack_mask(read_mask(ignore)),))
    if isinstance(ignore, Tensor | np.ndarray):
        return Ignored(masks=(pack_mask(torch.as_tensor(ignore)),))
    if not isinstance(ignore, Iterable):
        raise InputError(f"ignore: expected {BACKGROUND!r}, a mask or names, got {type(ignore).__name__}")
    parts = list(ignore)
    if parts and all(isinstance(part, str) for part in parts) and BACKGROUND not in parts:
        return Ignored(names=tuple(parts))
    records = [read_ignored(part) for part in parts]
    masks, names = ([value for record in records for value in getattr(record, name)] for name in ("masks", "names"))
    return Ignored(any(record.background for record in records), tuple(dict.fromkeys(masks)), tuple(dict.fromkeys(names)))


def pack_mask(mask: Tensor) -> str:  # (*S) bool
    """Return a mask as short text, which a run's record can hold."""
    if mask.ndim not in (1, 2, 3) or not bool(((mask == 0) | (mask == 1)).all()) or not 0 < int(mask.sum()) < mask.numel():
        seen = f"{tuple(mask.shape)} {mask.dtype}"
        raise InputError(
            f"ignore: expected a mask (H,W), (T,) or (D,H,W) of True and False, with some of both, got {seen}. "
            "Fix: True is where the input must not matter, the same in all samples."
        )
    bits = np.packbits(mask.bool().cpu().numpy().flatten()).tobytes()
    return f"{'x'.join(map(str, mask.shape))}:{base64.b64encode(zlib.compress(bits, 9)).decode()}"


def unpack_mask(text: str) -> Tensor:  # -> (*S) bool
    """Return the mask that :func:`pack_mask` made a text of."""
    sides, _, code = text.partition(":")
    try:
        shape = tuple(map(int, sides.split("x")))
        bits = np.frombuffer(zlib.decompress(base64.b64decode(code, validate=True)), np.uint8)
        values = np.unpackbits(bits, count=math.prod(shape))
        return torch.from_numpy(values.reshape(shape)).bool()
    except (ValueError, zlib.error) as error:
        raise InputError(f"ignore: a mask cannot be read from {text!r:.40} ({error})") from error


def read_mask(path: Path) -> Tensor:  # -> (*S) bool
    """Read a mask: a picture, white where the input must not matter, or a ``.npy`` file of 0 and 1."""
    if path.suffix.lower() == ".npy":
        return torch.from_numpy(read_npy(path, str(path)) != 0)
    return torch.from_numpy(np.array(open_picture(path, 1)) > 127)


class Ignoring:
    """Takes what must not matter from other samples, in a share of each batch; labels stay.

    Nothing of the old background is left around an object, because a rim is enough to keep a cue. A background comes from
    others' backgrounds where one of three donors has it at that place, and elsewhere from the first donor as it is (in
    texts it stays). Words go both ways: a text gets the donor's ignored words in place of its own, and if the donor has
    more of them, in place of other tokens.

    Args:
        ignored: what must not matter.
        net: its inputs' kind, channels and tokenizer tell what names mean.
        train: a data set; with ``ignored.background`` it has ``masks``.
    """

    def __init__(self, ignored: Ignored, net: ExitNet, train: Any) -> None:
        self.modality, self.objects = net.input_spec.modality, None
        if ignored.background:
            self.objects = getattr(train, "masks", None)
            if not isinstance(self.objects, Tensor) or len(self.objects) != len(train):
                fix = "pass a data set with .masks, which say where the objects are, or a mask for all samples"
                raise InputError(f"ignore: 'background' needs the masks of the training data. Fix: {fix}")
        self.mask = self._join_masks([unpack_mask(text) for text in ignored.masks])
        preprocess = net.info.preprocess or getattr(train, "preprocess", None)
        self.words, self.channels = list[int](), list[int]()
        if ignored.names and self.modality is TEXT:
            self.words = sorted({i for word in ignored.names for i in _find_tokens(word, preprocess)})
        elif ignored.names:
            known = _number_channels(self.modality, net, preprocess)
            self.channels = sorted({i for name in ignored.names for i in _find_channels(name, known)})

    def _join_masks(self, masks: Sequence[Tensor]) -> Tensor | None:
        """Return the union of masks of all samples, which have to lie on locations of the inputs."""
        if not masks:
            return None
        kind = self.modality.first if isinstance(self.modality, SeveralInputs) else self.modality
        axes = max(1, len(kind.axes) - ("C" in kind.axes))
        for mask in masks:
            if mask.ndim != axes or mask.shape != masks[0].shape:
                wanted = f"{axes} axes" if mask.ndim != axes else f"the shape of the others, {tuple(masks[0].shape)}"
                raise InputError(f"ignore: expected masks of {kind.plural} with {wanted}, got {tuple(mask.shape)}")
        return torch.stack(list(masks)).any(0)

    def exchange(self, inputs: Inputs, objects: Tensor | None = None) -> Inputs:
        """Return a batch with what must not matter from other samples; ``objects`` ``(B,*S)`` are the batch's masks."""
        rows, *donors = draw_donors(count_rows(inputs), SHARE, TRIES)
        if not len(rows):
            return inputs
        changed, *others = (take_rows(inputs, at) for at in (rows, *donors))
        if objects is not None:
            hidden = [objects[at] for at in donors]
            changed = exchange_background(self.modality, changed, others, objects[rows], hidden)
        if self.mask is not None:
            cells = self.mask.to(list_tensors(inputs)[0].device).expand(len(rows), *self.mask.shape)
            changed = self.modality.exchange(changed, others[0], cells)
        if self.channels:
            changed = self._exchange_channels(changed, others[0])
        if self.words:
            changed = self._exchange_words(changed, others[0])
        return replace_rows(inputs, rows, changed)

    def _exchange_channels(self, changed: Inputs, donor: Inputs) -> Inputs:
        assert isinstance(changed, Tensor)
        assert isinstance(donor, Tensor)
        axis = 1 + self.modality.channel_axis
        chosen = torch.zeros(changed.shape[axis], dtype=torch.bool, device=changed.device)
        chosen[self.channels] = True
        return torch.where(chosen.view([-1 if i == axis else 1 for i in range(changed.ndim)]), donor, changed)

    def _exchange_words(self, changed: Inputs, donor: Inputs) -> Inputs:
        assert isinstance(changed, Mapping)
        assert isinstance(donor, Mapping)
        name = find_tokens_name(changed)
        ids, given = changed[name], donor[name]  # (n,N)
        words = torch.tensor(self.words, device=ids.device)
        chosen, offered = torch.isin(ids, words), torch.isin(given, words) & donor[MASK].bool()
        inner = find_inner(changed[MASK])
        chosen = chosen & inner
        plain = self.modality.exchange(changed, donor, chosen)
        assert isinstance(plain, Mapping)
        chance = torch.rand(ids.shape).to(ids.device)  # own ignored words give way first, then other tokens
        rank = torch.where(chosen, -1.0, torch.where(inner, chance, 2.0)).argsort(dim=1, stable=True).argsort(dim=1)
        offers = given.gather(1, offered.int().argsort(dim=1, descending=True, stable=True))  # ignored words to the front
        takes = inner & (rank < offered.sum(1, keepdim=True))
        return {**plain, name: torch.where(takes, offers.gather(1, rank), plain[name])}


def exchange_background(
    modality: Modality, inputs: Inputs, donors: Sequence[Inputs], objects: Tensor, hidden: Sequence[Tensor]
) -> Inputs:
    """Return a batch with all outside its objects from donors: from the first of them that hides nothing at a location.

    Where all donors have objects, the first one's shows; in texts, the old word stays.

    Args:
        inputs: a batch of n samples. donors: others for each, in several batches.
        objects: ``(n,*S)`` ``bool``, what stays. hidden: ``(n,*S)`` ``bool`` for each of ``donors``, their own objects.
    """
    left = ~objects.to(list_tensors(inputs)[0].device)  # (n,*S), what is still to be taken
    for donor, covered in zip(donors, hidden, strict=True):
        usable = ~covered.to(left.device)
        if modality is TEXT and isinstance(donor, Mapping):
            usable = usable & donor[MASK].bool()
        inputs = modality.exchange(inputs, donor, left & usable)
        left = left & ~usable
    return inputs if modality is TEXT else modality.exchange(inputs, donors[0], left)


def _find_tokens(word: str, preprocess: object) -> list[int]:
    """Return the ids of a word's tokens."""
    if not isinstance(preprocess, TextPreprocess):
        fix = "call net.describe(preprocess=xl.data.TextPreprocess(tokenizer, length)) first"
        raise InputError(f"ignore: words need the network's tokenizer. Fix: {fix}")
    ids, ends = (
        encoded["input_ids"][encoded["attention_mask"].bool()].tolist()
        for encoded in (preprocess.encode([word]), preprocess.encode([""]))
    )
    tokens = [i for i in ids if i not in ends]
    if not tokens or "[UNK]" in preprocess.tokens(torch.tensor(tokens)):
        raise InputError(f"ignore: the tokenizer does not know {word!r}. Fix: write words as they are in the texts")
    return tokens


def _number_channels(modality: Modality, net: ExitNet, preprocess: object) -> dict[str, tuple[int, ...]]:
    """Return channels, features and groups of features by name, and all channels by their number."""
    if isinstance(modality, SeveralInputs):
        raise InputError("ignore: names are for one input, this network takes several. Fix: pass a mask for the first")
    count = net.info.input_shape[modality.channel_axis]
    known = {str(i): (i,) for i in range(count)}
    known |= {name: (i,) for i, name in enumerate(getattr(preprocess, "names", ()))}
    return known | (dict(modality.groups) if isinstance(modality, VectorModality) else {})


def _find_channels(name: str, known: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    if name not in known:
        raise InputError(
            f"ignore: no channel is called {name!r}: expected one of {list(known)!s:.200}.{suggest(name, known)}"
        )
    return known[name]
