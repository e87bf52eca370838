"""What a causal golden file must hold for its metadata, checked before anything is built.

Sizes come from a file that anybody may have written, so each is held against a tensor, or bounded
where no tensor has it.
"""

from __future__ import annotations

import re

import torch

from lingbot.golden.compare import GoldenFile, UnusableFile
from lingbot.model import CausalLingBotTransformer, TransformerConfig

LONGEST_TEXT, WIDEST_WINDOW = 4096, 4096


def check_layers(golden: GoldenFile) -> None:
    """Raises UnusableFile where the metadata have another number of blocks than the weights."""
    found = {
        match[1] for name in golden.names if (match := re.match(r"model\.blocks\.(\d+)\.", name))
    }
    if len(found) != golden.number("num_layers"):
        raise UnusableFile(
            f"metadata num_layers={golden.text('num_layers')}, and the weights are of {len(found)}"
        )


def check_causal(golden: GoldenFile, config: TransformerConfig, passes: int) -> None:
    """Raises UnusableFile for a tensor that is missing, or of another shape than by metadata."""
    chunks, frames = golden.number("num_chunks"), golden.number("frames_per_chunk")
    size = golden.number("latent_height"), golden.number("latent_width")
    for name, value, most in (
        ("text_len", config.text_len, LONGEST_TEXT),
        ("local_attn_size", golden.number("local_attn_size"), WIDEST_WINDOW),
    ):
        if value > most:
            raise UnusableFile(f"metadata {name}={value}: at most {most} can be compared")
    clip, chunk = (chunks * frames, *size), (frames, *size)
    channels = config.out_channels
    expected = {
        "noise": (channels, *clip),
        "condition": (config.in_channels - channels, *clip),
        "control": (1, config.control_channels, *clip),
        "renoise": (chunks, passes - 1, channels, *chunk),
        "flow": (chunks, passes, channels, *chunk),
        "x0": (channels, *clip),
        "context_flow": (chunks, channels, *chunk),
        **dict.fromkeys(("timesteps", "x0_sigmas", "renoise_sigmas"), (passes,)),
    }
    with torch.device("meta"):
        model = CausalLingBotTransformer(config).state_dict()
    expected |= {f"model.{name}": tuple(tensor.shape) for name, tensor in model.items()}
    for name, shape in expected.items():
        if golden.shape(name) != shape:
            raise UnusableFile(
                f"tensor {name!r} is {list(golden.shape(name))}, by the metadata it is "
                f"{list(shape)}"
            )
    unknown = sorted(n for n in golden.names if n.startswith("model.") and n not in expected)
    if unknown:
        raise UnusableFile(f"its model has more weights than the published one: {unknown[:3]}")
    text = golden.shape("text")
    if len(text) != 2 or not 0 < text[0] <= config.text_len or text[1] != config.text_dim:
        raise UnusableFile(
            f"tensor 'text' is {list(text)}: up to {config.text_len} tokens of {config.text_dim}"
        )
    for name in ("cache_k_last", "cache_v_last"):
        if len(golden.shape(name)) != 4:
            raise UnusableFile(f"tensor {name!r} is no [batch, tokens, heads, head width]")
