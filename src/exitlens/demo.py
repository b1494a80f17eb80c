"""Generated data to try exitlens on: garments on coloured backgrounds, reviews, series with a motif, volumes with a blob."""

from exitlens.data.demo.garments import load_fashion, load_scenes, make_scenes
from exitlens.data.demo.reviews import load_reviews, make_reviews
from exitlens.data.demo.signals import load_blobs, load_motifs, make_blobs, make_motifs

__all__ = [
    "load_blobs",
    "load_fashion",
    "load_motifs",
    "load_reviews",
    "load_scenes",
    "make_blobs",
    "make_motifs",
    "make_reviews",
    "make_scenes",
]
