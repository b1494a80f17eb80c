"""From a network and its policy to files that run without PyTorch."""
