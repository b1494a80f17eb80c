"""Exit heads, and the small layers (necks) before them."""
