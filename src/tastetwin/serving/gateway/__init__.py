"""Model gateway: favors in, twins out; no torch, no ONNX Runtime."""
