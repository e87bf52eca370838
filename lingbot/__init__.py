"""LingBot on Lightning: train, distil and drive LingBot-World.

A causal, camera-controlled video diffusion transformer that makes a world chunk by chunk, fast
enough to steer it live:

    import lingbot

    session = lingbot.load_world("blockworld").new_session("first_frame.png", prompt="noon, grass")
    frames = session.step("w")  # uint8 [T, H, W, 3]

Importing the package is quick: what a name needs is imported when it is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lingbot.errors import UserError as UserError
    from lingbot.module import LingBotModule as LingBotModule
    from lingbot.realtime.session import RealtimeSession as RealtimeSession
    from lingbot.world import load_world as load_world
    from lingbot.world import save_world as save_world

__version__ = "0.1.0"

_HOMES = {
    "LingBotModule": "lingbot.module",
    "RealtimeSession": "lingbot.realtime.session",
    "UserError": "lingbot.errors",
    "load_world": "lingbot.world",
    "save_world": "lingbot.world",
}
__all__ = ["LingBotModule", "RealtimeSession", "UserError", "load_world", "save_world"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lingbot' has no attribute {name!r}: there are {__all__}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
