"""What a training step makes anew on its way back instead of keeping it.

A clip at full size has tens of thousands of tokens, and a block keeps about thirty vectors of each.
Recomputing, only what goes into a block is kept, for another forward in time. Attention is most of
that time and little of that memory, so that its outputs may be kept all the same; not where it is
spelled out in matmuls, as in bfloat16 on a CPU. Exchanges between ranks are made anew as well.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
    noop_context_fn,
)

Recompute = Literal["nothing", "blocks", "all_but_attention"]

_aten = torch.ops.aten
_KEPT = (
    _aten._scaled_dot_product_cudnn_attention.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
)


def check_recompute(what: str) -> str:
    """Return the name of what is recomputed, or raise ValueError where it is none."""
    if what not in get_args(Recompute):
        raise ValueError(f"recompute={what!r} is not known: choose one of {get_args(Recompute)}")
    return what


def run_block(what: str, block: Callable[..., Tensor], x: Tensor, *args: Any, **kw: Any) -> Tensor:
    """What `block` makes of x, its activations kept or, with gradients, made anew when needed."""
    if what == "nothing" or not torch.is_grad_enabled():
        return block(x, *args, **kw)
    contexts = noop_context_fn
    if what == "all_but_attention":
        contexts = partial(create_selective_checkpoint_contexts, _keep_attention)
    made = checkpoint(
        block, x, *args, use_reentrant=False, preserve_rng_state=False, context_fn=contexts, **kw
    )
    assert isinstance(made, Tensor)
    return made


def _keep_attention(context: Any, operation: Any, *args: Any, **kw: Any) -> CheckpointPolicy:
    kept = operation in _KEPT
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
