"""Linears in the place of others: q, k and v out of one matmul, 8 bits, adapters.

`replace_linears` is how any of them takes its place. A replacement has the names of what it
replaces in state dicts, so that weights on disk do not tell how they were held in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lingbot.model.adapters import BASES, is_adapter, plain_linear
from lingbot.model.attention import SelfAttention
from lingbot.model.exchange import Exchange
from lingbot.model.kv_store import LayerKV
from lingbot.model.linear import Linear, linear
from lingbot.model.ops import Rope, pack_kv, pack_qkv

PACKED = ("q", "k", "v")


def replace_linears(
    module: nn.Module,
    make: Callable[[nn.Linear], nn.Module],
    wanted: Callable[[str], bool] = lambda name: True,
) -> list[str]:
    """Puts `make(linear)` in the place of linears below a module; returns their names.

    Of an adapter (see `lingbot.model.adapters`) the linear that it stands for is replaced, and its
    own are left as they are.

    Args:
        module: changed in place.
        make: makes the replacement.
        wanted: by the name of a linear, or of its adapter, below the module.
    """
    found = [(name, place) for name, place in _linears(module) if wanted(name)]
    for _, place in found:
        old = module.get_submodule(place)
        assert isinstance(old, nn.Linear)
        module.set_submodule(place, make(old))
    return [name for name, _ in found]


def _linears(module: nn.Module, name: str = "") -> Iterator[tuple[str, str]]:
    """Names of linears, an adapter's by its own, and where they are."""
    if isinstance(module, nn.Linear):
        yield name, name
    elif is_adapter(module):
        for base in BASES:
            if isinstance(getattr(module, base, None), nn.Linear):
                yield name, f"{name}.{base}"
    else:
        for child, layer in module.named_children():
            yield from _linears(layer, f"{name}.{child}" if name else child)


class PackedLinear(Linear):
    """Several linears of one input as one, their outputs one behind the other.

    Its weight has an attribute `stacked`, the number of matrices in it, for optimizers that treat a
    matrix as a whole.

    Args:
        parts: with biases.
    """

    def __init__(self, parts: list[nn.Linear]) -> None:
        first = parts[0]
        outputs = sum(part.out_features for part in parts)
        super().__init__(first.in_features, outputs, device="meta", dtype=first.weight.dtype)
        with torch.no_grad():
            trained = first.weight.requires_grad
            weight, bias = (
                torch.cat([getattr(part, name) for part in parts]) for name in ("weight", "bias")
            )
        self.weight = nn.Parameter(weight, requires_grad=trained)
        self.bias = nn.Parameter(bias, requires_grad=trained)
        self.weight.stacked = len(parts)  # type: ignore[attr-defined]

    def forward(self, x: Tensor, skip: int = 0) -> Tensor:
        """x [..., in] -> [..., out - skip].

        Args:
            skip: the first of the outputs that are not wanted.
        """
        return linear(x, self.weight[skip:], self.bias[skip:])


def pack(attention: SelfAttention) -> None:
    """Puts one linear `qkv` in the place of q, k and v; state dicts go on to have the three.

    Adapters in their place are merged.
    """
    parts = [plain_linear(getattr(attention, name)) for name in PACKED]
    for name in PACKED:
        delattr(attention, name)
    attention.qkv = PackedLinear(parts)
    attention.register_state_dict_post_hook(_take_apart)
    attention.register_load_state_dict_pre_hook(_put_together)
    attention.register_load_state_dict_post_hook(_name_missing)


def is_packed(attention: SelfAttention) -> bool:
    """Whether q, k and v are one linear."""
    return hasattr(attention, "qkv")


def packed(attention: SelfAttention) -> nn.Module:
    """The linear `qkv` of a packed attention: a `PackedLinear`, or what replaced it."""
    layer = attention.qkv
    assert isinstance(layer, nn.Module)
    return layer


def qkv(
    attention: SelfAttention, x: Tensor, rope: Rope, kv: LayerKV, exchange: Exchange
) -> tuple[Tensor, ...]:
    """`lingbot.model.ops.qkv` where q, k and v are packed."""
    q, k, v = packed(attention)(x).chunk(3, dim=-1)
    return pack_qkv(attention, q, k, v, rope, kv, exchange)


def kv(
    attention: SelfAttention, x: Tensor, rope: Rope, kv: LayerKV, exchange: Exchange
) -> tuple[Tensor, ...]:
    """`lingbot.model.ops.kv` where q, k and v are packed."""
    k, v = packed(attention)(x, skip=x.shape[-1]).chunk(2, dim=-1)
    return pack_kv(attention, k, v, rope, kv, exchange)


def _take_apart(
    module: nn.Module, state: dict[str, Any], prefix: str, local_metadata: dict[str, Any]
) -> None:
    """`qkv.weight` becomes `q.weight`, `k.weight`, `v.weight`: views of it."""
    for kind in ("weight", "bias"):
        packed = state.pop(f"{prefix}qkv.{kind}")
        for name, part in zip(PACKED, packed.chunk(len(PACKED)), strict=True):
            state[f"{prefix}{name}.{kind}"] = part


def _put_together(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """The opposite, where all three are there."""
    for kind in ("weight", "bias"):
        names = [f"{prefix}{name}.{kind}" for name in PACKED]
        if all(name in state for name in names):
            state[f"{prefix}qkv.{kind}"] = torch.cat([state.pop(name) for name in names])


def _name_missing(module: nn.Module, incompatible: Any) -> None:
    """What is missing is told by its published names."""
    missing: list[str] = incompatible.missing_keys
    for name in [name for name in missing if ".qkv." in f".{name}"]:
        place = missing.index(name)
        missing[place : place + 1] = [name.replace("qkv.", f"{part}.") for part in PACKED]
