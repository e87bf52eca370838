"""Sequence parallelism: splits of a chunk's tokens, the exchange between ranks, and the strategy.

Import from the modules: `sequence_parallel` and `strategy` need Lightning, the others only torch.
"""
