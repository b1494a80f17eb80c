"""Generated data to try exitlens on: garments on coloured backgrounds, reviews, series with a motif, volumes with a blob."""

from exitlens.data.demo import label_pixels, load_blobs, load_fashion, load_motifs, load_reviews, load_scenes

from exitlens.data.demo import make_blobs, make_motifs, make_reviews, make_scenes  # isort: skip

__all__ = [
    "label_pixels", "load_blobs", "load_fashion", "load_motifs", "load_reviews", "load_scenes",
    "make_blobs", "make_motifs", "make_reviews", "make_scenes",
]  # fmt: skip
