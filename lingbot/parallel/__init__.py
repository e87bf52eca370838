"""Sequence parallelism: splits of a chunk's tokens, the exchange between ranks, and the strategy.

Import from the modules: `lingbot.parallel.strategy` needs Lightning, the others only torch.
"""
