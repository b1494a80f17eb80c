"""Networks of series, volumes, vectors and several inputs, as people write them; images and texts come by name."""
