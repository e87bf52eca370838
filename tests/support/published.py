"""Tiny random checkpoints in the two layouts in which LingBot-World is published.

The Diffusers-style folder holds everything: `transformer/`, `vae/`, `text_encoder/`, `tokenizer/`.
The original one has the transformer in `lingbot_world_fast/`, and its VAE and text encoder are
taken from a folder of the other kind. Both hold the transformer as shards with an index.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from lingbot.codec.video import build_codec
from lingbot.model import CausalLingBotTransformer, TransformerConfig

LAYOUTS = {"original": "lingbot_world_fast", "diffusers": "transformer"}
WORDS = ["<pad>", "</s>", "<unk>", "noon", "dusk", "grass", "sand", "warm", "sparse"]
SIZES = {
    "dim": 48, "ffn_dim": 64, "num_heads": 4, "num_layers": 1, "text_dim": 16, "text_len": 8,
}  # fmt: skip
# options that make an experiment of published size one of such a folder
AT_THIS_SIZE = [
    *(f"model.{name}={value}" for name, value in SIZES.items()),
    "camera.height=32", "camera.width=48",
]  # fmt: skip


def published_folder(folder: Path, layout: str) -> list[str]:
    """Writes a checkpoint of a layout; returns the options that drive it."""
    torch.manual_seed(11)
    transformer = CausalLingBotTransformer(TransformerConfig(**SIZES)).to(torch.bfloat16)
    write_shards(folder / LAYOUTS[layout], transformer.state_dict())
    parts = folder if layout == "diffusers" else folder / "parts"
    build_codec(
        base_dim=8, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
        temperal_downsample=[False, True, True],
    ).save(parts / "vae")  # fmt: skip
    write_umt5(parts, SIZES["text_dim"])
    elsewhere = [f"codec.folder={parts / 'vae'}", f"text.folder={parts}"]
    return [f"weights={folder}", *AT_THIS_SIZE, *(elsewhere if layout == "original" else [])]


def write_shards(folder: Path, state: Mapping[str, Tensor]) -> None:
    """Two shards and an index."""
    folder.mkdir(parents=True)
    names = sorted(state)
    weight_map = {}
    for i, part in enumerate((names[::2], names[1::2])):
        shard = f"diffusion_pytorch_model-0000{i + 1}-of-00002.safetensors"
        save_file({name: state[name].contiguous() for name in part}, folder / shard)
        weight_map |= dict.fromkeys(part, shard)
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def write_umt5(folder: Path, width: int) -> None:
    """A UMT5 that knows a few words, with its tokenizer."""
    config = UMT5Config(
        vocab_size=len(WORDS), d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2
    )
    UMT5EncoderModel(config).save_pretrained(folder / "text_encoder")
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder / "tokenizer")
