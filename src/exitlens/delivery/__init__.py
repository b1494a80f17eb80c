"""What leaves the process: bundles, pictures, reports, the demo."""
