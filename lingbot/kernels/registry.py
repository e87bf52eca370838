"""The ways to carry out a block's arithmetic, by name.

A new one is a function from "are q, k and v packed?" to `Ops`, and a line in `REGISTRY`; the tests
in `tests/kernels/test_registry.py` hold every entry to the reference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from functools import cache
from typing import Any

import torch

from lingbot.kernels import linears
from lingbot.model.ops import REFERENCE, Ops


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
    """Fused by hand in Triton; only packed, only on a GPU, only for driving.

    Raises:
        ImportError: without Triton.
    """
    from lingbot.kernels import triton_ops

    triton_ops.block_kernels()
    return triton_ops.TRITON


REGISTRY: dict[str, Callable[[bool], Ops]] = {
    "reference": reference_ops,
    "compiled": compiled_ops,
    "triton": triton_ops,
}
