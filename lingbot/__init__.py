"""LingBot on Lightning: train, distil and drive LingBot-World.

A causal, camera-controlled video diffusion transformer that makes a world chunk by chunk, fast
enough to steer it live. `lingbot.module` is the LightningModule, `lingbot.realtime` the session.
"""

__version__ = "0.1.0"
