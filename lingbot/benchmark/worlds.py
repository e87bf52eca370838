"""Modules for settings, one world's weights alive at a time.

Settings that are built from the same nodes share transformer, codec and text encoder; another
setting's are built anew from the same seed.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from hydra.utils import instantiate

from lingbot.benchmark.inputs import WithoutDecoder
from lingbot.benchmark.plan import DTYPES
from lingbot.benchmark.settings import Setting
from lingbot.module import LingBotModule

# what a module passes on to its sessions; everything else may shape what is built
OF_A_SESSION = ("camera", "sampler", "kv_cache", "conditioner_cache", "decode")
OF_ITS_KERNELS = ("cuda_graph",)


class Worlds:
    """Modules over built parts, of which one set is alive at a time."""

    def __init__(self, device: torch.device, seed: int) -> None:
        self.device, self.seed = device, seed
        self._nodes: object = None
        self._parts: dict[str, Any] = {}

    def module(self, setting: Setting) -> LingBotModule:
        """The setting's module, with the parts of the last one where their nodes are equal."""
        module: LingBotModule = instantiate(setting.module, _convert_="all")
        built_from = {k: v for k, v in setting.module.items() if k not in OF_A_SESSION}
        kernels = built_from.get("kernels") or {}
        built_from["kernels"] = {k: v for k, v in kernels.items() if k not in OF_ITS_KERNELS}
        nodes = (built_from, setting.dtype)
        if nodes != self._nodes:
            self._nodes, self._parts = None, {}
            release_memory(self.device)
            self._parts, self._nodes = self._build(setting), nodes
        for name, part in self._parts.items():
            setattr(module, name, part)
        if not setting.decode:
            module.codec, module.decode = WithoutDecoder(module.codec), "whole"
        return module

    def _build(self, setting: Setting) -> dict[str, Any]:
        """As Lightning builds for `precision=bf16-true`: in the dtype, on the device."""
        module: LingBotModule = instantiate(setting.module, _convert_="all")
        torch.manual_seed(self.seed)
        with default_dtype(DTYPES[setting.dtype]), self.device:
            module.configure_model()
        module.to(self.device).eval().requires_grad_(False)
        names = ("transformer", "text_encoder", "codec")
        return {name: getattr(module, name) for name in names}


def release_memory(device: torch.device) -> None:
    """What nothing holds any more goes back before the next large allocation."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """New parameters are made in this dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
