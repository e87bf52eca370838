"""Attention of a training clip: what every chunk would find in its cache when driving.

The clip is laid out as n clean chunks followed by the same n chunks noised. A clean chunk sees the
clean history and itself; a noisy chunk sees the clean history and its own noisy frames
(teacher forcing, as in Self Forcing, arXiv:2506.08009, section 3). Instead of one masked call,
each chunk attends to exactly the frames its window shows, so nothing is computed to be masked.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lingbot.model.attention import attend
from lingbot.model.kv_cache import KVCacheConfig, visible_frames


class TeacherForcing:
    """Memory of a clip of `chunks` clean and `chunks` noisy chunks.

    Args:
        config: the window and sink that driving will have.
        chunks: n, clean chunks of the clip.
        frames_per_chunk: latent frames of a chunk.
    """

    def __init__(self, config: KVCacheConfig, chunks: int, frames_per_chunk: int) -> None:
        config.check_chunk(frames_per_chunk)
        self.config, self.chunks, self.frames_per_chunk = config, chunks, frames_per_chunk

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v [B, 2n, S, h, D] -> [B, 2n, S, h, D]."""
        if q.shape[1] != 2 * self.chunks:
            raise ValueError(
                f"{q.shape[1]} chunks where a clip of {self.chunks} clean and as many noisy ones "
                "was announced"
            )
        clean_k, clean_v = (x[:, : self.chunks].flatten(1, 2) for x in (k, v))
        attended = []
        for chunk in range(2 * self.chunks):
            past_k, past_v = (self._past(chunk % self.chunks, x) for x in (clean_k, clean_v))
            keys = torch.cat([*past_k, k[:, chunk]], dim=1)
            values = torch.cat([*past_v, v[:, chunk]], dim=1)
            attended.append(attend(q[:, chunk], keys, values))
        return torch.stack(attended, dim=1)

    def store(self, layer: int, k: Tensor, v: Tensor) -> None:
        raise RuntimeError("a training clip has no context update: call attend")

    def home(self, layer: int) -> None:
        return None  # every chunk of a clip is attended to where it is

    def _past(self, chunk: int, x: Tensor) -> list[Tensor]:
        """Runs of clean frames before `chunk` that it sees, from x [B, n * S, h, D]."""
        first = chunk * self.frames_per_chunk
        tokens = x.shape[1] // (self.chunks * self.frames_per_chunk)
        seen = [i for i in visible_frames(first, self.frames_per_chunk, self.config) if i < first]
        runs: list[list[int]] = []
        for frame in seen:
            if runs and frame == runs[-1][-1] + 1:
                runs[-1].append(frame)
            else:
                runs.append([frame])
        return [x[:, run[0] * tokens : (run[-1] + 1) * tokens] for run in runs]
