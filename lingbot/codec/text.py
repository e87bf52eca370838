"""Text encoders: a small trainable one for BlockWorld's prompt words, UMT5 for published sizes.

Both map a list of prompts to `[batch, tokens, text_dim]`, as many tokens as the longest prompt has
and zeros after the shorter ones; the transformer pads to its full text length. An encoding does not
depend on what else is in the batch. UMT5: arXiv:2304.09151, as Wan uses it (arXiv:2503.20314).
"""

import logging
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from transformers import AutoTokenizer, UMT5EncoderModel

from lingbot.codec.video import DTYPES, check_dtype
from lingbot.model.checks import check_count
from lingbot.model.transformer import MOST

log = logging.getLogger(__name__)

PAD, BEGIN, FIRST_BYTE = 0, 1, 2
VOCABULARY = FIRST_BYTE + 256


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
        FileNotFoundError: a folder or config is missing. Raised before anything is loaded.
    """

    def __init__(self, folder: str | Path, text_len: int = 512, dtype: str = "bfloat16") -> None:
        super().__init__()
        check_dtype(dtype)
        encoder_folder, tokenizer_folder = Path(folder) / "text_encoder", Path(folder) / "tokenizer"
        for needed in (encoder_folder / "config.json", tokenizer_folder / "tokenizer_config.json"):
            if not needed.is_file():
                raise FileNotFoundError(
                    f"UMT5TextEncoder needs {needed}; folder={str(folder)!r} must be a local "
                    f"Diffusers-style checkpoint with text_encoder/ and tokenizer/ in it."
                )
        self.text_len = text_len
        self.tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder, local_files_only=True)
        encoder = UMT5EncoderModel.from_pretrained(
            encoder_folder, dtype=DTYPES[dtype], local_files_only=True
        )
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


def _along_tokens(convolution: nn.Conv1d, x: Tensor) -> Tensor:
    """A 1D convolution over the tokens of `x` `[batch, tokens, width]`."""
    return rearrange(convolution(rearrange(x, "b n d -> b d n")), "b d n -> b n d")
