"""Everything that changes speed and not meaning, for the transformer and the VAE alike.

`apply` is the only place where arithmetic is swapped; `registry` has the ways to carry out a block.
"""

from lingbot.kernels.apply import apply, stream_frames
from lingbot.kernels.config import KernelConfig
from lingbot.kernels.registry import REGISTRY

__all__ = ["REGISTRY", "KernelConfig", "apply", "stream_frames"]
