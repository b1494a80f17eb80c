"""Which versions of Python, PyTorch, timm and transformers exitlens works with: tried in fresh environments."""
