"""Volumes in files: ``.npy``, and NIfTI (extra ``volumes``), whose axes are turned so that all point the same way."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from exitlens.errors import DataError, import_extra
from exitlens.modalities.files.arrays import check_count, check_finite, open_regular, read_npy
from exitlens.types.scaling import VolumePreprocess

NIFTI_FILES = (".nii", ".nii.gz")
VOLUME_FILES = (".npy", *NIFTI_FILES)


def decode_volume(path: Path, name: str = "") -> Tensor:  # -> (C,D,H,W) float32
    """Decodes one file.

    Args:
        path: its suffix says the format. In ``.npy`` there is ``(D,H,W)`` or ``(C,D,H,W)``. NIfTI's axes are turned to
            the nearest of left-right, back-front, bottom-top (``nibabel.as_closest_canonical``) and taken in reverse,
            ``(D,H,W) = (z,y,x)``; what comes after the third axis are channels. Voxels are taken as they are, whatever
            their size in millimetres.
        name: of the file, for errors; by default its path.

    Raises:
        DataError: for a file that is missing, truncated, damaged, empty, too large, or that has gaps.
        MissingExtraError: for NIfTI without ``nibabel``.
    """
    name = name or str(path)
    if path.name.lower().endswith(NIFTI_FILES):
        found = _read_nifti(path, name)
    elif path.suffix.lower() == ".npy":
        found = read_npy(path, name)
    else:
        raise DataError(f"{name}: it is no volume: expected {', '.join(VOLUME_FILES)}")
    if found.ndim not in (3, 4):
        raise DataError(f"{name}: expected an array (D,H,W) or (C,D,H,W), got {found.shape}: a file holds one volume")
    values = torch.from_numpy(found.reshape(-1, *found.shape[-3:]))
    check_finite(values, name)
    return values


def read_volume(path: Path, preprocess: VolumePreprocess, name: str = "") -> Tensor:  # -> (C,D,H,W) float32
    """A file's volume, resized, not yet normalised; raises :class:`DataError` as :func:`decode_volume`, and for channels."""
    name = name or str(path)
    values = decode_volume(path, name)
    if len(values) != len(preprocess.mean):
        raise DataError(f"{name}: expected {len(preprocess.mean)} channel(s) as in training, got {len(values)}")
    return resize_volume(values, preprocess.size)


def resize_volume(values: Tensor, size: tuple[int, int, int]) -> Tensor:  # (C,D,H,W) -> (C,*size)
    """By averages where no axis grows, otherwise by trilinear interpolation."""
    own = tuple(values.shape[1:])
    if own == size:
        return values
    if all(new <= old for new, old in zip(size, own, strict=True)):
        return F.interpolate(values[None], size, mode="area")[0]
    return F.interpolate(values[None], size, mode="trilinear", align_corners=False)[0]


def _read_nifti(path: Path, name: str) -> Any:  # -> (D,H,W) or (C,D,H,W) float32
    package = import_extra("nibabel", "volumes", f"reading {name}")
    with open_regular(path, name):
        pass
    try:
        image = package.Nifti1Image.from_filename(path)
        if len(image.shape) < 3:
            raise DataError(f"{name}: expected three axes or more, got {image.shape}: a file holds one volume")
        check_count(image.shape, name)
        image = package.as_closest_canonical(image)
        found = np.asarray(image.get_fdata(dtype=np.float32, caching="unchanged"))
    except DataError:
        raise
    except (EOFError, zlib.error) as error:
        raise DataError(f"{name}: it is truncated ({error}): copy it again") from error
    except Exception as error:  # nibabel raises many kinds for hostile files
        said = str(error).splitlines()[0] if str(error) else ""
        raise DataError(f"{name}: truncated or damaged, or no NIfTI ({type(error).__name__}: {said})") from error
    found = found.reshape(*found.shape[:3], -1).transpose(3, 2, 1, 0)  # (C,D,H,W)
    return np.ascontiguousarray(found)
