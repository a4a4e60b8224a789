"""Evaluate: the held-out tasks, the baselines, the health of the lists, the gate and the report.

Works on arrays alone: neither torch, onnxruntime nor the engine is imported here; the model's vectors are passed in.
"""
