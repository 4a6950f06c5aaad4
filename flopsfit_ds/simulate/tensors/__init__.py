"""Tensors without memory, and what it takes for torch and DeepSpeed to run on them."""
