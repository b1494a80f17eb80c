"""Data to train, calibrate and test on: read, split and batched."""
