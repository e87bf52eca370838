"""Attention of a training clip: what every chunk would find in its cache when driving.

The clip is laid out as n clean chunks followed by the same n chunks noised. A clean chunk sees the
clean history and itself; a noisy chunk sees the clean history and its own noisy frames
(teacher forcing, as in Self Forcing, arXiv:2506.08009, section 3). Instead of one masked call,
each chunk attends to exactly the frames its window shows, so nothing is computed to be masked.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lingbot.model.kv_cache import KVCacheConfig, visible_frames
from lingbot.model.kv_format import PLAIN, KVFormat
from lingbot.model.sdpa import attend


class TeacherForcing:
    """Keys and values of a clip of `chunks` clean and `chunks` noisy chunks.

    Args:
        config: the window and sink that driving will have.
        chunks: n, clean chunks of the clip.
        frames_per_chunk: latent frames of a chunk.
    """

    format: KVFormat = PLAIN

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
        queries = q.unbind(1)  # taken apart at once: gradients come together in one tensor
        halves = [x.split(self.chunks, dim=1) for x in (k, v)]
        clean_k, clean_v = (clean.flatten(1, 2) for clean, _ in halves)
        noisy_k, noisy_v = (noisy.unbind(1) for _, noisy in halves)
        starts = range(0, self.chunks * self.frames_per_chunk, self.frames_per_chunk)
        seen = [visible_frames(first, self.frames_per_chunk, self.config) for first in starts]
        attended = []
        for chunk, query in enumerate(queries[: self.chunks]):
            keys, values = (_joined(self._runs(seen[chunk], x)) for x in (clean_k, clean_v))
            attended.append(attend(query, keys, values))
        for chunk, query in enumerate(queries[self.chunks :]):
            past = [frame for frame in seen[chunk] if frame < chunk * self.frames_per_chunk]
            past_k, past_v = (self._runs(past, x) for x in (clean_k, clean_v))
            keys = _joined([*past_k, noisy_k[chunk]])
            attended.append(attend(query, keys, _joined([*past_v, noisy_v[chunk]])))
        return torch.stack(attended, dim=1)

    def store(self, layer: int, k: Tensor, v: Tensor) -> None:
        raise RuntimeError("a training clip has no context update: call attend")

    def slots(self, layer: int) -> None:
        return None  # every chunk of a clip is attended to where it is

    def _runs(self, frames: list[int], x: Tensor) -> list[Tensor]:
        """Runs of clean frames, mostly one, as views of x [B, n * S, h, D]: nothing is copied."""
        tokens = x.shape[1] // (self.chunks * self.frames_per_chunk)
        runs: list[list[int]] = []
        for frame in frames:
            if runs and frame == runs[-1][-1] + 1:
                runs[-1].append(frame)
            else:
                runs.append([frame])
        return [x[:, run[0] * tokens : (run[-1] + 1) * tokens] for run in runs]


def _joined(runs: list[Tensor]) -> Tensor:
    return runs[0] if len(runs) == 1 else torch.cat(runs, dim=1)
