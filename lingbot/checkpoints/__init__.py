"""Weights and runs on disk: how they are written, what they say of themselves."""
