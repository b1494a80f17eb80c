"""Data to train, calibrate and test on: read, split and batched."""

from exitlens.data.files import load_folder, load_torchvision, load_unlabelled
from exitlens.data.masks import MaskSet, load_masks
from exitlens.data.sets import ArraySet, ImageSet, LazySet
from exitlens.data.splits import split_set
from exitlens.data.streams import ImageStream
from exitlens.data.texts import TextSet, read_texts, word_tokenizer
from exitlens.modalities.image import read_image
from exitlens.types.preprocessing import (
    MelSpectrogram,
    Preprocess,
    SeriesPreprocess,
    TextPreprocess,
    VectorPreprocess,
    VolumePreprocess,
)

__all__ = [
    "ArraySet", "ImageSet", "ImageStream", "LazySet", "MaskSet", "MelSpectrogram", "Preprocess", "SeriesPreprocess",
    "TextPreprocess", "TextSet", "VectorPreprocess", "VolumePreprocess", "load_folder", "load_masks", "load_torchvision",
    "load_unlabelled", "read_image", "read_texts", "split_set", "word_tokenizer",
]  # fmt: skip
