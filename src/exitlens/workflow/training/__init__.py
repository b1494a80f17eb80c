"""fit: the training loop, its steps, log and checkpoints."""
