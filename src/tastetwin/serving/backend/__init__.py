"""Model backend: tensors in, tensors out, by the Open Inference Protocol."""
