"""Regions that no network chose: the middle, edges, the spectral residual; and means over them with their errors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_edt
from torch import Tensor

SIDE, BLUR, REACH = 64, 2.5, 5  # of the spectral residual: width of the image, and of the Gaussian, in pixels
COLOUR_LEVELS, MAP_POWER, PSEUDO_COUNT, ROUNDS = 8, 0.2, 0.05, 3  # levels of each channel; see segment_by_colour
EDGE = 0.05  # width of an image's edge, by its shorter side
LEAST = 0.02  # probability of a pixel where the map is least, and at the edge
TINY = 1e-12


def centre_map(size: Sequence[int]) -> Tensor:  # -> (1,*size)
    """Return a map that falls with the distance to the middle, in which every axis has the same length."""
    axes = [torch.linspace(-1, 1, n) if n > 1 else torch.zeros(1) for n in size]
    return -torch.stack(torch.meshgrid(*axes, indexing="ij")).square().sum(0).sqrt()[None]


def edge_energy(x: Tensor) -> Tensor:  # (B,C,*S) -> (B,*S)
    """Return the magnitude of the gradient by central differences, over all channels and axes of locations."""
    axes = [axis for axis in range(2, x.ndim) if x.shape[axis] > 1]
    if not axes:
        return torch.zeros_like(x[:, 0])
    return torch.stack(torch.gradient(x.float(), dim=axes)).square().sum((0, 2)).sqrt()


def spectral_residual(x: Tensor) -> Tensor:  # (B,C,H,W) -> (B,64,w)
    """Return what stands out from an image's smooth log spectrum (Hou & Zhang, CVPR 2007, eq. 5 to 8).

    As in the authors' program the image is grey, 64 pixels wide, the log amplitude is averaged over 3x3 frequencies, and the
    result is blurred by a Gaussian with a standard deviation of 2.5 pixels; ours is 64 pixels along its shorter side.
    """
    scale = SIDE / min(x.shape[2:])
    size = [max(SIDE, round(scale * n)) for n in x.shape[2:]]
    grey = F.interpolate(x.float().mean(1, keepdim=True), size, mode="bilinear", antialias=True, align_corners=False)
    spectrum = torch.fft.fft2(grey)
    log_amplitude = spectrum.abs().clamp_min(TINY).log()
    residual = log_amplitude - F.avg_pool2d(F.pad(log_amplitude, (1, 1, 1, 1), mode="replicate"), 3, 1)
    salient = torch.fft.ifft2(torch.polar(residual.exp(), spectrum.angle())).abs().square()
    bell = torch.exp(-torch.arange(-REACH, REACH + 1, device=x.device).square() / (2 * BLUR**2))
    kernel = (bell / bell.sum())[:, None] * (bell / bell.sum())
    return F.conv2d(salient, kernel[None, None], padding=REACH)[:, 0]


def segment_by_colour(x: Tensor, maps: Tensor) -> Tensor:  # (B,C,H,W), (B,H,W) -> (B,H,W)
    """Return the probability that a pixel belongs to what the map points at, by its colour and, weakly, by the map.

    Colours inside and outside are counted in histograms, weighed by the map. Bayes' rule makes a sharper map of them; its
    mean over 3x3 pixels weighs the next count (GrabCut, Rother et al., SIGGRAPH 2004; there the colours are Gaussian
    mixtures, and a graph cut stands in the place of the mean). The last map is not averaged, since that would add a rim. At
    most three channels count. The edge of the image, 5 % of its shorter side wide, counts as outside, because backgrounds
    reach it and few objects do: else a map that is spread would outline the background.
    """
    edge = torch.ones_like(maps[0], dtype=torch.bool)
    width = max(1, round(EDGE * min(edge.shape)))
    edge[width:-width, width:-width] = False
    x = x[:, :3].flatten(2).float()
    low, high = x.amin(2, keepdim=True), x.amax(2, keepdim=True)
    levels = ((x - low) / (high - low).clamp_min(TINY) * COLOUR_LEVELS).long().clamp_max(COLOUR_LEVELS - 1)  # (B,C,N)
    colours = (levels * COLOUR_LEVELS ** torch.arange(x.shape[1], device=x.device)[:, None]).sum(1)  # (B,N)
    flat = maps.flatten(1).float()
    inside = (flat / flat.amax(1, keepdim=True).clamp_min(TINY)).clamp(LEAST, 1 - LEAST)
    inside = inside.masked_fill(edge.flatten(), LEAST)
    prior = MAP_POWER * torch.logit(inside)
    for _ in range(ROUNDS):
        parts = torch.stack([inside, 1 - inside])  # (2,B,N)
        counts = parts.new_zeros(2, len(x), COLOUR_LEVELS ** x.shape[1]).scatter_add(2, colours.expand_as(parts), parts)
        for axis in range(x.shape[1]):  # colours beside a colour count, too
            counts = _blur_axis(counts, COLOUR_LEVELS**axis)
        counts += PSEUDO_COUNT
        likelihood = (counts / counts.sum(2, keepdim=True)).gather(2, colours.expand_as(parts)).log()
        posterior = torch.sigmoid(likelihood[0] - likelihood[1] + prior).view(len(x), 1, *maps.shape[1:])
        inside = F.avg_pool2d(F.pad(posterior, (1, 1, 1, 1), mode="replicate"), 3, 1).flatten(1)
        inside = inside.masked_fill(edge.flatten(), LEAST)
    return posterior[:, 0]


def _blur_axis(counts: Tensor, step: int) -> Tensor:  # (...,L**C) -> the same, by (1,2,1)/4 along the axis with this step
    levels = counts.view(*counts.shape[:-1], -1, COLOUR_LEVELS, step)
    padded = torch.cat([levels[..., :1, :], levels, levels[..., -1:, :]], -2)
    return ((padded[..., :-2, :] + 2 * levels + padded[..., 2:, :]) / 4).view_as(counts)


def find_nearest_outside(cells: Tensor) -> Tensor:  # (B,*S) bool -> (B,S) int64
    """Return, for each location, the flat index of the nearest one that is not marked: its own if it is not.

    Distances are Euclidean, in locations. Where everything is marked, each location is its own nearest.
    """
    shape = tuple(cells.shape[1:])
    rows = list[Tensor]()
    for row in cells.cpu().numpy():
        if row.all():
            rows.append(torch.arange(math.prod(shape)))
            continue
        places = distance_transform_edt(row, return_distances=False, return_indices=True)
        rows.append(torch.from_numpy(np.ravel_multi_index(tuple(places), shape).reshape(-1)))
    return torch.stack(rows).to(cells.device)


def widen(cells: Tensor) -> Tensor:  # (B,*S) bool -> (B,*S) bool
    """Mark the locations that touch a marked one, too, along axes or diagonally."""
    pools = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
    return pools[cells.ndim - 2](cells[:, None].float(), 3, stride=1, padding=1)[:, 0] > 0.5


def average(values: Tensor) -> tuple[Tensor, Tensor]:  # (N,...) -> (...), (...)
    """Return the mean over samples and its standard error, which is 0 for a single sample."""
    values = values.double()
    spread = values.std(0, correction=1) if len(values) > 1 else torch.zeros_like(values[0])
    return values.mean(0), spread / len(values) ** 0.5
