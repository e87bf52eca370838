"""A forward hook on any module that has weights fires in a pass."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from tests.kernels.driving import applied, chosen, drive

CONFIGS: dict[str, dict[str, Any]] = {
    "reference": {},
    "packed": {"pack_qkv": True},
    "fp8": {"pack_qkv": True, "linears": "fp8", "kv": "fp8"},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_module_that_has_weights_is_called(name: str) -> None:
    transformer = applied(chosen(**CONFIGS[name]))
    fired: set[str] = set()
    having = {
        key: module
        for key, module in transformer.named_modules()
        if not isinstance(module, nn.ModuleList)
        and any(True for _ in (*module.parameters(), *module.buffers()))
    }
    for key, module in having.items():
        module.register_forward_hook(lambda *_, key=key: fired.add(key))
    drive(transformer, chunks=1)
    assert having.keys() - fired == set()
    assert {"", "blocks.0", "blocks.2.self_attn", "patch_embedding", "blocks.1.norm3"} <= fired
