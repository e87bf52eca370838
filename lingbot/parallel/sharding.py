"""Shards the weights of a world over all ranks by FSDP2, one block at a time, and joins them again.

FSDP gathers a module's weights when its `forward` runs; the transformer and its blocks are entered
by a few other methods too, which are registered so that the weights are there as well.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor

from lingbot.model import CausalLingBotTransformer

TRANSFORMER_ENTRIES = ("embed_controls", "embed_text", "embed_time", "update_context")
BLOCK_ENTRIES = ("text_kv", "update_kv")


def shard_weights(
    transformer: CausalLingBotTransformer,
    text_encoder: nn.Module,
    mesh: DeviceMesh,
    dtype: torch.dtype | None = None,
) -> None:
    """Shards transformer and trained text encoder in place; the first rank's weights, all over.

    Args:
        mesh: (data, sequence); weights are sharded over both.
        dtype: of gathered weights, and so of the arithmetic; shards and summed gradients keep the
            weights' own. None leaves gathered weights in it, too.
    """
    world = mesh["data", "sequence"]._flatten("world")
    device = torch.device(mesh.device_type)
    _broadcast(transformer, device)
    policy = MixedPrecisionPolicy(
        param_dtype=dtype, reduce_dtype=torch.float32 if dtype else None, cast_forward_inputs=False
    )
    for block in transformer.blocks:
        fully_shard(block, mesh=world, mp_policy=policy)
        for name in BLOCK_ENTRIES:
            register_fsdp_forward_method(block, name)
    fully_shard(transformer, mesh=world, mp_policy=policy)
    for name in TRANSFORMER_ENTRIES:
        register_fsdp_forward_method(transformer, name)
    if any(parameter.requires_grad for parameter in text_encoder.parameters()):
        _broadcast(text_encoder, device)
        fully_shard(text_encoder, mesh=world, mp_policy=policy)


@torch.no_grad()
def _broadcast(module: nn.Module, device: torch.device) -> None:
    """Give all ranks what the first one has; over `device`, wherever it lies."""
    for tensor in module.state_dict().values():
        moved = tensor.to(device)
        dist.broadcast(moved, src=0)
        tensor.copy_(moved)


def check_sharded(module: nn.Module) -> None:
    """Raises TypeError for trained parameters that are whole: ranks would not share gradients."""
    whole = [
        name
        for name, parameter in module.named_parameters()
        if parameter.requires_grad and not isinstance(parameter, DTensor)
    ]
    if whole:
        raise TypeError(
            f"{len(whole)} trained parameters are not sharded ({whole[0]}, ...): nothing would "
            f"average their gradients; apply fully_shard to them in configure_model, or use "
            f"SequenceParallelStrategy"
        )


def is_sharded(module: nn.Module) -> bool:
    """Whether any of its weights lie on several ranks."""
    return any(isinstance(part, FSDPModule) for part in module.modules())


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """Its state; of sharded weights whole, on the CPU of the first rank, and empty on the others.

    All ranks of sharded weights ask together.
    """
    if not is_sharded(module):
        return module.state_dict()
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return dict(get_model_state_dict(module, options=options))  # type: ignore[arg-type]
