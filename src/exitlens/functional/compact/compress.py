"""From logits to their compact form, and hashes of samples, for whoever meets the same samples again."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

from exitlens.types.compact import LARGEST, NODES, CompactLogits, chebyshev_nodes, scale_distances
from exitlens.types.inputs import check_labels


def compress(logits: Tensor, labels: Tensor | None = None) -> CompactLogits:  # (*S,C), (S_0,)
    """Logits in compact form.

    Raises:
        InputError: unless the labels are integers in ``[0, C)``, one for each row of the first axis.
    """
    logits, count = logits.float(), logits.shape[-1]
    if labels is not None:
        check_labels(labels, len(logits), count)
    values, order = logits.topk(count if count <= LARGEST else LARGEST + 1, -1)
    kept = min(count, LARGEST)
    top, classes = values[..., :kept], _put_answer_first(order[..., :kept], logits.argmax(-1))
    distances = (top[..., :1].double() - logits.double()).scatter(-1, order[..., :kept], math.nan)
    near = top[..., :1] - values[..., kept : kept + 1] if kept < count else torch.zeros_like(top[..., :1])
    far = top[..., :1] - logits.amin(-1, keepdim=True) if kept < count else near
    span = torch.cat([near, far], -1)
    label = None
    if labels is not None:
        at = labels.view(-1, *[1] * (logits.ndim - 1)).expand(*logits.shape[:-1], 1)
        label = logits.gather(-1, at).squeeze(-1)
    small = torch.int16 if count < 2**15 else torch.int32
    return CompactLogits(top.contiguous(), classes.to(small), label, span, _weigh_nodes(distances, span), count)


def _put_answer_first(classes: Tensor, answers: Tensor) -> Tensor:  # (*S,m), (*S) -> (*S,m)
    """The class of the largest logit in front; of equal ones argmax takes the lowest class, and topk any."""
    found = classes == answers[..., None]
    place = found.byte().argmax(-1, keepdim=True)  # 0 where it is not among them
    swapped = classes.scatter(-1, place, classes[..., :1])
    return torch.cat([answers[..., None], swapped[..., 1:]], -1)


def _weigh_nodes(distances: Tensor, span: Tensor) -> Tensor:  # (*S,C) NaN where kept, (*S,2) -> (*S,n)
    """Weights with which a sum over nodes is that over the distances, of every polynomial in the scaled log distance.

    By Chebyshev moments: sums of T_j, from the recurrence, and the discrete cosine transform of them.
    """
    centre, half, shift = scale_distances(span)
    logs = (distances + shift[..., None]).clamp_min(1e-30).log()
    t = (logs - centre[..., None]) / half[..., None].clamp_min(1e-9)
    others = ~t.isnan()
    t = t.nan_to_num(0.0).clamp(-1, 1)
    before, now, moments = others.double(), t, [others.sum(-1).double(), t.sum(-1)]
    for _ in range(NODES - 2):
        before, now = now, torch.addcmul(-before, t, now, value=2)
        moments.append(now.sum(-1))
    orders = torch.arange(NODES, dtype=torch.float64)
    transform = 2 / NODES * (orders[:, None] * chebyshev_nodes(NODES).acos()).cos()
    transform[0] /= 2
    return (torch.stack(moments, -1) @ transform).float()


def hash_rows(rows: Tensor) -> Tensor:  # (N,*S) -> (N,) int64
    """A hash of the bytes of every row."""
    whole = rows.contiguous().numpy()
    return torch.tensor(
        [int.from_bytes(hashlib.blake2b(row.tobytes(), digest_size=8).digest(), "big", signed=True) for row in whole]
    )
