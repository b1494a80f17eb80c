"""Whether certified thresholds keep their promises, counted over many calibrations."""
