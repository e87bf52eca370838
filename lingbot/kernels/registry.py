"""The ways to carry out a block's arithmetic, by name.

A new one is a function from "are q, k and v packed?" to `Ops`, and a line in `REGISTRY`;
`tests/kernels/test_registry.py` holds every entry to the reference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any

import torch

from lingbot.kernels import linears
from lingbot.model.ops import REFERENCE, Ops


@dataclass(frozen=True)
class Implementation:
    """One way to carry out the arithmetic.

    Args:
        ops: its functions, for q, k and v apart (False) or packed (True).
        trains: whether it has a backward pass.
        packed_only: whether it takes q, k and v no other way.
        elsewhere: what runs in its place where the weights are not on a GPU; None: it runs there.
    """

    ops: Callable[[bool], Ops]
    trains: bool = True
    packed_only: bool = False
    elsewhere: str | None = None


@cache
def reference_ops(packed: bool) -> Ops:
    """One kernel per operation: the functions of `lingbot.model.ops`."""
    return replace(REFERENCE, qkv=linears.qkv, kv=linears.kv) if packed else REFERENCE


@cache
def compiled_ops(packed: bool) -> Ops:
    """The same by `torch.compile`: all blocks share the code, so it is compiled once."""
    return compile_ops(reference_ops(packed))


def compile_ops(ops: Ops, compiler: Callable[..., Any] = torch.compile) -> Ops:
    """Compiles each of the functions."""
    functions = {
        field.name: compiler(getattr(ops, field.name), dynamic=False)
        for field in fields(ops)
        if field.name != "name"
    }
    return replace(ops, name="compiled", **functions)


def triton_ops(packed: bool) -> Ops:
    """Fused by hand in Triton.

    Raises:
        ImportError: without Triton.
    """
    from lingbot.kernels import triton_ops

    triton_ops.block_kernels()
    return triton_ops.TRITON


REGISTRY = {
    "reference": Implementation(reference_ops),
    "compiled": Implementation(compiled_ops),
    "triton": Implementation(triton_ops, trains=False, packed_only=True, elsewhere="compiled"),
}
