"""Files of predictions that grow batch by batch."""
