"""Folders and files of tiny series, made when a test asks for them."""

import numpy as np
import pytest

TS = """# a comment
@problemName tiny
@timeStamps false
@univariate false
@dimensions 2
@equalLength true
@classLabel true run Walk
@data
1,2,3:4,5,6:run
7,8,9:10,11,12:Walk
"""


@pytest.fixture
def series_folder(tmp_path):
    """24 series of two channels and 30 steps in two classes, as ``.npy``; the second class is larger."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(("calm", "wild")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(12):
            values = rng.normal(5, 1 + 3 * label, (2, 30)).astype(np.float32)
            np.save(tmp_path / "data" / name / f"p{i // 3}_{i:02}.npy", values)
    return tmp_path / "data"
