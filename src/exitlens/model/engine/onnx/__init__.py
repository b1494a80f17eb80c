"""Parts of a network as ONNX files, and an engine that answers by them."""
