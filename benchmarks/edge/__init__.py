"""What exported networks promise: the same decisions, times against PyTorch and plain ONNX Runtime, sizes, int8, the browser."""
