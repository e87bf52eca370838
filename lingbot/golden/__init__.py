"""Comparison with golden tensors computed by the published model (what `lingbot-parity` runs)."""
