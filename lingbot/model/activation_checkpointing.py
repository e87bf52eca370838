"""What a training step recomputes in its backward pass instead of keeping it.

A clip at full size has tens of thousands of tokens, and a block keeps about thirty vectors of each.
Recomputing, only what goes into a block is kept, for another forward in time. Attention is most of
that time and little of that memory, so that its outputs may be kept all the same; not where it is
spelled out in matmuls, as in bfloat16 on a CPU. Exchanges between ranks are recomputed as well.
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

ActivationCheckpointing = Literal["none", "full", "selective"]

_aten = torch.ops.aten
_KEPT = (
    _aten._scaled_dot_product_cudnn_attention.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
)


def check_activation_checkpointing(kind: str) -> str:
    """The kind of activation checkpointing, if it is one.

    Raises:
        ValueError: for any other word.
    """
    known = get_args(ActivationCheckpointing)
    if kind not in known:
        raise ValueError(f"activation_checkpointing={kind!r} is not known: choose one of {known}")
    return kind


def run_block(kind: str, block: Callable[..., Tensor], x: Tensor, *args: Any, **kw: Any) -> Tensor:
    """Calls `block` on x; with gradients, its activations are kept as `kind` says.

    Args:
        kind: `none` keeps all of them, `full` only x, `selective` x and what attention returned.
    """
    if kind == "none" or not torch.is_grad_enabled():
        return block(x, *args, **kw)
    contexts = noop_context_fn
    if kind == "selective":
        contexts = partial(create_selective_checkpoint_contexts, _keep_attention)
    made = checkpoint(
        block, x, *args, use_reentrant=False, preserve_rng_state=False, context_fn=contexts, **kw
    )
    assert isinstance(made, Tensor)
    return made


def _keep_attention(context: Any, operation: Any, *args: Any, **kw: Any) -> CheckpointPolicy:
    kept = operation in _KEPT
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
