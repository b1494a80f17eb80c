"""Volumes: floats ``(B,C,D,H,W)``, whose deletion fills in the mean; drawn as projections; files ``.npy`` and NIfTI."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from exitlens.errors import DataError, first_line, import_extra
from exitlens.modalities.arrays import check_count, check_finite, open_regular, read_npy
from exitlens.modalities.base import Modality
from exitlens.types.preprocessing import VolumePreprocess

NIFTI_FILES = (".nii", ".nii.gz")
VOLUME_FILES = (".npy", *NIFTI_FILES)
SIDE = 120  # pixels that a drawing is wide


class VolumeModality(Modality):
    """Volumes with samples ``(C,D,H,W)``."""

    name, plural, axes = "volume", "volumes", ("C", "D", "H", "W")
    expected = "a float tensor (B,C,D,H,W) of volumes"
    preprocess = VolumePreprocess
    reader = "xl.data.VolumePreprocess.normalise"
    given = "a file of a volume, or a folder of them"
    head = "context"
    grid, side = (3, 3, 3), 32

    def decode(self, path: Path, preprocess: VolumePreprocess) -> Tensor:
        """Read a file of one volume, and resize it."""
        values = decode_volume(path)
        if len(values) != len(preprocess.mean):
            raise DataError(f"{path}: expected {len(preprocess.mean)} channel(s) as in training, got {len(values)}")
        return resize_volume(values, preprocess.size)

    def draw_map(self, sample: Tensor, preprocess: object, attention: Tensor, evidence: Tensor, label: str) -> str:
        """Draw the first channel's largest values along each axis, and its most attended slice.

        The squares of a projection sum the attention and evidence of what lies behind them.
        """
        from exitlens.display import map_svg, to_picture  # matplotlib takes a while to import

        shown = preprocess.restore(sample.float().cpu()) if isinstance(preprocess, VolumePreprocess) else sample
        values = shown.float().cpu()[0]  # (D,H,W)
        values = (values - values.min()) / (values.max() - values.min()).clamp_min(1e-12)
        parts = [
            (f"{label}, from the {seen}", values.amax(axis), attention.sum(axis), evidence.sum(axis))
            for axis, seen in enumerate(("front", "top", "side"))
        ]
        at = int(attention.sum((1, 2)).argmax())
        depth = min(len(values) - 1, int((at + 0.5) * len(values) / len(attention)))
        share = attention[at] / attention[at].sum().clamp_min(1e-12)
        parts.append((f"{label}, slice {depth} of {len(values)}", values[depth], share, evidence[at]))
        drawn = ""
        for tip, pixels, weight, adds in parts:
            base = to_picture(pixels[None])
            base = base.resize((SIDE, max(1, round(SIDE * base.height / base.width))))
            drawn += map_svg(base, weight, adds, tip, str(SIDE))
        return f'<div style="display:flex;gap:3px">{drawn}</div>'


VOLUME = VolumeModality()


def decode_volume(path: Path) -> Tensor:  # -> (C,D,H,W) float32
    """Decode one file by its suffix.

    A ``.npy`` file holds ``(D,H,W)`` or ``(C,D,H,W)``. NIfTI's axes are turned to the nearest of left-right, back-front and
    bottom-top (``nibabel.as_closest_canonical``) and reversed, ``(D,H,W) = (z,y,x)``; axes after the third become channels.
    Voxels are not rescaled, whatever their size in millimetres.
    """
    name = str(path)
    if path.name.lower().endswith(NIFTI_FILES):
        array = _read_nifti(path, name)
    elif path.suffix.lower() == ".npy":
        array = read_npy(path, name)
    else:
        raise DataError(f"{name}: not a file of a volume: expected {', '.join(VOLUME_FILES)}")
    if array.ndim not in (3, 4):
        raise DataError(f"{name}: expected one volume in a file, (D,H,W) or (C,D,H,W), got an array {array.shape}")
    values = torch.from_numpy(array.reshape(-1, *array.shape[-3:]))
    check_finite(values, name)
    return values


def resize_volume(values: Tensor, size: tuple[int, int, int]) -> Tensor:  # (C,D,H,W) -> (C,*size)
    """Resize by averages if no axis grows, otherwise by trilinear interpolation."""
    shape = tuple(values.shape[1:])
    if shape == size:
        return values
    if all(new <= old for new, old in zip(size, shape, strict=True)):
        return F.interpolate(values[None], size, mode="area")[0]
    return F.interpolate(values[None], size, mode="trilinear", align_corners=False)[0]


def _read_nifti(path: Path, name: str) -> Any:  # -> (C,D,H,W) float32
    package = import_extra("nibabel", "volumes", f"reading {name}")
    with open_regular(path, name):
        pass
    try:
        image = package.Nifti1Image.from_filename(path)
        if len(image.shape) < 3:
            raise DataError(f"{name}: expected one volume of three axes or more, got {image.shape}")
        check_count(image.shape, name)
        image = package.as_closest_canonical(image)
        array = np.asarray(image.get_fdata(dtype=np.float32, caching="unchanged"))
    except DataError:
        raise
    except (EOFError, zlib.error) as error:
        raise DataError(f"{name}: it is truncated ({error}). Fix: copy it again") from error
    except Exception as error:  # nibabel raises many kinds for hostile files
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise DataError(f"{name}: truncated or damaged, or not NIfTI ({reason})") from error
    return np.ascontiguousarray(array.reshape(*array.shape[:3], -1).transpose(3, 2, 1, 0))
