"""Images to train, calibrate and test on."""
