"""Text encoders: a small trainable one for BlockWorld's prompt words, UMT5 for published sizes.

Both map a list of prompts to `[batch, tokens, text_dim]`, as many tokens as the longest prompt has
and zeros after the shorter ones; the transformer pads to its full text length. An encoding does not
depend on what else is in the batch. UMT5: arXiv:2304.09151, as Wan uses it (arXiv:2503.20314).
"""

import logging
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from transformers import AutoTokenizer, UMT5EncoderModel

from lingbot.codec.video import DTYPES, check_dtype
from lingbot.model.checks import check_count
from lingbot.model.tensor_files import check_finite, stored_tensors, tensor_files
from lingbot.model.transformer import MOST

log = logging.getLogger(__name__)

PAD, BEGIN, FIRST_BYTE = 0, 1, 2
VOCABULARY = FIRST_BYTE + 256
ENCODER_FOLDER, TOKENIZER_FOLDER = "text_encoder", "tokenizer"
TOKENIZER_FILES = ("tokenizer.json", "spiece.model")


class ByteTextEncoder(nn.Module):
    """Prompts as UTF-8 bytes: embedding, positions and two convolutions wide enough for a word.

    Trained together with the transformer. A prompt starts with a begin token, so that an empty one
    has an encoding too.
    """

    def __init__(self, text_dim: int = 64, text_len: int = 64, kernel_size: int = 7) -> None:
        super().__init__()
        check_count("text.text_dim", text_dim, high=MOST)
        check_count("text.text_len", text_len, high=MOST)
        if check_count("text.kernel_size", kernel_size, high=2 * text_len + 1) % 2 == 0:
            raise ValueError(f"text.kernel_size={kernel_size}: give an odd one, which keeps length")
        self.text_dim, self.text_len = text_dim, text_len
        self.embedding = nn.Embedding(VOCABULARY, text_dim, padding_idx=PAD)
        self.positions = nn.Parameter(0.02 * torch.randn(text_len, text_dim))
        self.mix = nn.Conv1d(text_dim, text_dim, kernel_size, padding=kernel_size // 2)
        self.out = nn.Conv1d(text_dim, text_dim, kernel_size, padding=kernel_size // 2)
        self.norm = nn.LayerNorm(text_dim)

    def tokens(self, prompts: list[str]) -> Tensor:
        """Byte tokens of the prompts `[batch, tokens]`, zero-padded to the longest."""
        rows = [[BEGIN, *(FIRST_BYTE + byte for byte in prompt.encode())] for prompt in prompts]
        for prompt, row in zip(prompts, rows, strict=True):
            if len(row) > self.text_len:
                log.warning(
                    "prompt of %d bytes cut to %d bytes, all that the text encoder reads "
                    "(text.text_len=%d): %r",
                    *(len(row) - 1, self.text_len - 1, self.text_len, prompt),
                )
        width = min(self.text_len, max(len(row) for row in rows))
        padded = [(row + [PAD] * width)[:width] for row in rows]
        return torch.tensor(padded, device=self.positions.device)

    def forward(self, prompts: list[str]) -> Tensor:
        """Prompts to `[batch, tokens, text_dim]`."""
        tokens = self.tokens(prompts)
        given = rearrange(tokens != PAD, "b n -> b n 1")  # [batch, tokens, 1]
        x = (self.embedding(tokens) + self.positions[: tokens.shape[1]]) * given
        hidden = F.silu(_along_tokens(self.mix, x)) * given
        return self.norm(x + _along_tokens(self.out, hidden)) * given


class UMT5TextEncoder(nn.Module):
    """The frozen UMT5 encoder of a local Diffusers-style checkpoint.

    Args:
        folder: the checkpoint, with `text_encoder/` and `tokenizer/`; no hub is ever asked.
        text_len: longest prompt in tokens; the rest is cut.
        dtype: what the weights are held and computed in.

    Raises:
        FileNotFoundError: a folder, config or file is missing. Raised before anything is loaded.
        ValueError: weights or tokenizer cannot be used.
    """

    def __init__(self, folder: str | Path, text_len: int = 512, dtype: str = "bfloat16") -> None:
        super().__init__()
        check_dtype(dtype)
        check_umt5(folder)
        self.text_len, self.folder = text_len, Path(folder).absolute()
        self.tokenizer = _read_tokenizer(Path(folder) / TOKENIZER_FOLDER)
        encoder = _read_encoder(Path(folder) / ENCODER_FOLDER, DTYPES[dtype])
        self.encoder = encoder.eval().requires_grad_(False)

    @property
    def text_dim(self) -> int:
        return self.encoder.config.d_model

    @torch.no_grad()
    def forward(self, prompts: list[str]) -> Tensor:
        """Prompts to `[batch, tokens, text_dim]`, float32."""
        batch = self.tokenizer(
            prompts,
            padding="longest",
            truncation=True,
            max_length=self.text_len,
            add_special_tokens=True,
            return_tensors="pt",
        ).to(self.encoder.device)
        self._tell_cuts(prompts, batch.attention_mask.sum(1).tolist())
        hidden = self.encoder(
            batch.input_ids, attention_mask=batch.attention_mask
        ).last_hidden_state
        return hidden.float() * rearrange(batch.attention_mask, "b n -> b n 1")

    def _tell_cuts(self, prompts: list[str], lengths: list[int]) -> None:
        """Logs which prompts have more tokens than are read."""
        for prompt, length in zip(prompts, lengths, strict=True):
            if length == self.text_len and (
                len(whole := self.tokenizer(prompt).input_ids) > length
            ):
                log.warning(
                    "prompt of %d tokens cut to %d tokens, all that the text encoder reads "
                    "(text.text_len): %r",
                    *(len(whole), length, prompt),
                )


def check_umt5(folder: str | Path) -> None:
    """Refuses a folder without UMT5's tokenizer and whole files of weights; none are loaded.

    Raises:
        FileNotFoundError: naming what is missing.
        ValueError: for weights that are no whole safetensors files.
    """
    encoder, tokenizer = Path(folder) / ENCODER_FOLDER, Path(folder) / TOKENIZER_FOLDER
    words = [tokenizer / name for name in TOKENIZER_FILES]
    for needed in ([encoder / "config.json"], [tokenizer / "tokenizer_config.json"], words):
        if not any(file.is_file() for file in needed):
            raise FileNotFoundError(
                f"UMT5TextEncoder needs {' or '.join(map(str, needed))}; folder={str(folder)!r} "
                f"must be a local Diffusers-style checkpoint with text_encoder/ and tokenizer/."
            )
    files = tensor_files(encoder)
    if not files:
        raise FileNotFoundError(f"UMT5TextEncoder needs weights in {encoder}: *.safetensors")
    stored_tensors(files)


def _read_tokenizer(folder: Path) -> Any:
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of tokenizers, which has one class for all
        raise ValueError(f"{folder} holds no tokenizer that can be read: {error}") from error


def _read_encoder(folder: Path, dtype: torch.dtype) -> UMT5EncoderModel:
    """The encoder; transformers would make weights that are missing up at random."""
    try:
        encoder, found = UMT5EncoderModel.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:  # whatever transformers makes of another model's folder
        raise ValueError(f"{folder} holds no UMT5 encoder that can be read: {error}") from error
    wrong = [*found["missing_keys"], *(key[0] for key in found["mismatched_keys"])]
    if wrong:
        raise ValueError(
            f"{folder} does not hold UMT5's encoder: {len(wrong)} tensors missing or of another "
            f"shape ({', '.join(sorted(map(str, wrong))[:3])})"
        )
    for name, parameter in encoder.named_parameters():
        check_finite(parameter, f"{folder}: {name}")
    return encoder


def _along_tokens(convolution: nn.Conv1d, x: Tensor) -> Tensor:
    """A 1D convolution over the tokens of `x` `[batch, tokens, width]`."""
    return rearrange(convolution(rearrange(x, "b n d -> b d n")), "b d n -> b n d")
