"""Demo data, generated or packaged: garments and scenes, reviews, motifs and blobs, with masks of what decides."""
