"""Layers that stand for a linear and add something of their own, as LoRA does.

An adapter says what it comes to by `merged_weights()`, which returns the state of the plain layer
that computes the same: for a linear `{"weight": ..., "bias": ...}`. Layers of the peft library,
which merge in place, are understood too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

BASES = ("base", "base_layer")  # what adapters call the linear that they stand for


def is_adapter(module: nn.Module) -> bool:
    """Whether a layer stands for another, which it can be merged with."""
    return has(module, "merged_weights") or has(module, "get_base_layer", "merge", "unmerge")


def weights_of(adapter: Any) -> dict[str, Tensor]:
    """The state of the plain layer that an adapter comes to."""
    if has(adapter, "merged_weights"):
        return {name: tensor.detach() for name, tensor in adapter.merged_weights().items()}
    merged = bool(adapter.merged)  # peft's: whether it is merged at the moment
    if not merged:
        adapter.merge(safe_merge=True)
    base = adapter.get_base_layer()
    weights = {name: tensor.detach().clone() for name, tensor in base.state_dict().items()}
    if not merged:
        adapter.unmerge()
    return weights


@torch.no_grad()
def plain_linear(layer: nn.Module) -> nn.Linear:
    """A linear as it is, an adapter as the linear that it comes to."""
    if isinstance(layer, nn.Linear):
        return layer
    weights = weights_of(layer)
    outputs, inputs = weights["weight"].shape
    plain = nn.Linear(inputs, outputs, bias="bias" in weights, device="meta")
    for name, value in weights.items():
        setattr(plain, name, nn.Parameter(value, requires_grad=False))
    return plain


def has(module: nn.Module, *methods: str) -> bool:
    """Whether a module has all of these methods."""
    return all(callable(getattr(module, method, None)) for method in methods)
