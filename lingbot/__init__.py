"""LingBot on Lightning: train, distil and drive LingBot-World.

A causal, camera-controlled video diffusion transformer that makes a world chunk by chunk, fast
enough to steer it live. `lingbot.module` is the LightningModule, `lingbot.realtime` the session.
Importing the package makes `Trainer(strategy="sequence_parallel")` known to Lightning.
"""

import lingbot.parallel.strategy  # noqa: F401  (registers the strategy)

__version__ = "0.1.0"
