"""Demo data, generated or packaged, with masks of the parts that decide the class."""
