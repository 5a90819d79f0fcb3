"""The mathematics of GRPO: tensors in, tensors out, never a config object."""
