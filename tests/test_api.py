"""What users import by name."""

from __future__ import annotations

import subprocess
import sys

import pytest

import lingbot
from lingbot.errors import UserError
from lingbot.module import LingBotModule
from lingbot.realtime.session import RealtimeSession
from lingbot.world import load_world

LIBRARIES = ("lightning", "torch", "diffusers", "transformers", "hydra", "wandb")


@pytest.mark.processes
def test_importing_the_package_imports_no_library():
    code = f"import lingbot, sys; print([n for n in {LIBRARIES} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_names_that_users_need_are_there():
    assert lingbot.load_world is load_world
    assert lingbot.RealtimeSession is RealtimeSession
    assert lingbot.LingBotModule is LingBotModule
    assert lingbot.UserError is UserError
    assert set(lingbot.__all__) <= set(dir(lingbot))
    assert lingbot.__version__
    with pytest.raises(AttributeError, match=r"no attribute 'load_word': there are .*load_world"):
        _ = lingbot.load_word
