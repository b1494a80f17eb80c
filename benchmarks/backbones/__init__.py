"""Which backbones can be cut into stages, and how exactly."""
