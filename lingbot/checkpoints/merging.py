"""Adapted layers go out merged: an exported world has the published names, whoever trained it.

What an adapter (LoRA and the like) comes to is `lingbot.model.adapters`' business. Whatever else
has other names or shapes than a published transformer cannot be exported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lingbot.model import CausalLingBotTransformer, TransformerConfig
from lingbot.model.adapters import has, is_adapter, weights_of
from lingbot.parallel.sharding import whole_state


def merged_state(module: nn.Module) -> dict[str, Tensor]:
    """The state of a module whose adapted layers are merged; sharded weights as `whole_state`."""
    module = _without_wrapper(module)
    return _merged(module, whole_state(module))


@torch.no_grad()
def check_exportable(transformer: nn.Module, config: TransformerConfig) -> None:
    """Refuses a transformer that would not load again as one of this configuration.

    Raises:
        ValueError: naming tensors that a world does not have, lacks, or has in another shape.
    """
    transformer = _without_wrapper(transformer)
    state = _merged(transformer, transformer.state_dict())
    with torch.device("meta"):
        published = CausalLingBotTransformer(config).state_dict()
    said = [
        f"{len(names)} tensors {words} ({', '.join(sorted(names)[:3])})"
        for names, words in (
            (state.keys() - published.keys(), "that a world does not have"),
            (published.keys() - state.keys(), "missing"),
            ({n for n in state.keys() & published.keys() if state[n].shape != published[n].shape},
             "of another shape"),
        )
        if names
    ]  # fmt: skip
    if said:
        raise ValueError(
            f"this {type(transformer).__name__} cannot be exported as a world: {', '.join(said)}; "
            "give the layers that hold them merged_weights(), see lingbot.model.adapters, or "
            "train with export_dir=null"
        )


def _merged(module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state with adapted layers' own entries in place of their parts'."""
    made = dict(state)
    for name, layer in _adapted(module):
        prefix = f"{name}." if name else ""
        made = {key: value for key, value in made.items() if not key.startswith(prefix)}
        made |= {f"{prefix}{key}": _whole(value) for key, value in weights_of(layer).items()}
    return made


def _adapted(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The outermost adapted layers, with their names."""
    if is_adapter(module):
        yield name, module
        return
    for child_name, child in module.named_children():
        yield from _adapted(child, f"{name}.{child_name}" if name else child_name)


def _without_wrapper(module: nn.Module) -> nn.Module:
    """The model that peft wraps, whose names are the published ones."""
    if has(module, "get_base_model"):
        return module.get_base_model()  # type: ignore[operator]
    return module


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
