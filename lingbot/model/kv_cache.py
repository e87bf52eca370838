"""Keys and values of a session: a protected sink of first frames and a ring of the latest.

Keys arrive already rotated to their absolute frame, and attention does not care about the order of
its keys, so a new chunk simply overwrites the oldest slots: nothing is ever shifted or copied.
Filled slots are always a prefix of the memory, so what a chunk sees is a view. All passes of a
realtime step write the same slots; the context update leaves the clean chunk there.
Letters: B batch, S tokens of a chunk, h local heads, D head width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from lingbot.model.checks import check_count
from lingbot.model.exchange import PeerTensor, plain_zeros
from lingbot.model.kv_format import PLAIN, KVFormat
from lingbot.model.rope import Grid

MOST_FRAMES = 1_000_000_000  # latent frames: eight years


@dataclass(frozen=True)
class KVCacheConfig:
    """How much history a chunk sees, in latent frames.

    Args:
        window: frames visible to a chunk, sink and the chunk itself included; -1 keeps everything.
        sink: first frames of the session that are never dropped.
        max_frames: frames the memory is made for when `window` is -1.

    Raises:
        ValueError: when sink, window and max_frames contradict each other.
    """

    window: int = -1
    sink: int = 0
    max_frames: int = 96

    def __post_init__(self) -> None:
        check_count("kv_cache.max_frames", self.max_frames, high=MOST_FRAMES)
        if check_count("kv_cache.window", self.window, low=-1, high=MOST_FRAMES) == 0:
            raise ValueError(
                f"kv_cache.window={self.window}: give a positive number of latent frames, "
                "or -1 for the whole history"
            )
        check_count("kv_cache.sink", self.sink, low=0)
        if self.sink and self.window == -1:
            raise ValueError(
                f"kv_cache.sink={self.sink}: nothing is ever dropped with kv_cache.window=-1, so "
                "there is no sink to keep; give a window, or sink=0"
            )
        if self.sink and self.sink >= self.window:
            raise ValueError(
                f"kv_cache.sink={self.sink} must be smaller than kv_cache.window={self.window}"
            )

    @property
    def capacity(self) -> int:
        """Latent frames the memory holds."""
        return self.max_frames if self.window == -1 else self.window

    @property
    def ring(self) -> int:
        """Latent frames outside the sink."""
        return self.capacity - self.sink

    def check_chunk(self, frames_per_chunk: int) -> None:
        """Raises ValueError when a chunk would overwrite itself in the ring."""
        if frames_per_chunk > self.ring:
            raise ValueError(
                f"a chunk of {frames_per_chunk} latent frames does not fit the ring of {self.ring} "
                f"(capacity {self.capacity} - sink {self.sink}): raise kv_cache.window "
                f"to at least {self.sink + frames_per_chunk} or lower the sink"
            )


def visible_frames(first_frame: int, frames: int, config: KVCacheConfig) -> list[int]:
    """Latent frames that the chunk [first_frame, first_frame + frames) sees, itself included."""
    end = first_frame + frames
    if config.window == -1:
        return list(range(end))
    start = max(config.sink, end - config.ring)
    return [*range(min(config.sink, end)), *range(start, end)]


class KVCache:
    """Preallocated keys and values of every layer, written chunk by chunk.

    Args:
        config: window and sink in latent frames.
        grid: token grid of one chunk.
        layers, batch, heads, head_dim: sizes; `heads` are those of this rank.
        dtype: of the weights that make keys and values.
        format: how they are kept.
        zeros: makes the memory, see `lingbot.model.exchange`.

    Raises:
        ValueError: when a chunk does not fit the ring.
    """

    def __init__(
        self,
        config: KVCacheConfig,
        grid: Grid,
        *,
        layers: int,
        batch: int,
        heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        format: KVFormat = PLAIN,
        zeros: Callable[[tuple[int, ...], torch.dtype, torch.device], PeerTensor] = plain_zeros,
    ) -> None:
        config.check_chunk(grid.frames)
        self.config, self.grid, self.format = config, grid, format
        shape = (layers, 2, batch, config.capacity * grid.tokens_per_frame, heads, head_dim)
        with torch.inference_mode(False):  # written to in whatever mode the caller is
            self._whole = zeros(shape, format.dtype(dtype), device)
            self._memory = self._whole.tensor.unbind(0)
        self.reset()

    def reset(self) -> None:
        """Forgets everything; the memory itself stays."""
        self._frame_of_slot: list[int] = []  # filled slots, in slot order
        self._ring_frames = 0  # frames ever placed in the ring
        self._runs: list[tuple[int, int, int]] = []  # (frame in chunk, slot, count)

    @property
    def bytes(self) -> int:
        return sum(m.numel() * m.element_size() for m in self._memory)

    @property
    def frames_visible(self) -> int:
        return len(self._frame_of_slot)

    def begin_chunk(self, first_frame: int) -> None:
        """Gives the next chunk its slots; the oldest frames outside the sink make room.

        Raises:
            RuntimeError: when a memory that keeps everything is full.
            ValueError: when `first_frame` is not after the frames already held, or the sink's
                frames have been skipped.
        """
        self.check_place(first_frame)
        slots = [self._claim_slot(first_frame + i) for i in range(self.grid.frames)]
        self._runs = list(_runs(slots))

    def fill_random(self, first_frame: int, generator: torch.Generator) -> None:
        """Fills the memory as if every chunk before `first_frame` had been driven; for measuring.

        Keys and values are normal random numbers: what a chunk costs then is what it costs after a
        long drive, and what it sees is noise.

        Raises:
            ValueError: for a frame at which no chunk starts.
        """
        if first_frame % self.grid.frames:
            raise ValueError(
                f"no chunk starts at frame {first_frame}: give a multiple of {self.grid.frames}"
            )
        self.reset()
        for start in range(0, first_frame, self.grid.frames):
            self.begin_chunk(start)
        for memory in self._memory:
            self.format.fill_random(memory, generator)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Stores the chunk's k, v and attends over all that is visible: [B, 1, S, h, D] each."""
        self.store(layer, k, v)
        keys, values = self.visible(layer)
        return self.format.attend(q.squeeze(1), keys, values).unsqueeze(1)

    def slots(self, layer: int) -> PeerTensor | None:
        """The chunk's slots, a view [2, B, S, h, D], where they are one behind the other."""
        if len(self._runs) != 1:
            return None
        (_, slot, count), tokens = self._runs[0], self.grid.tokens_per_frame
        place = slice(slot * tokens, (slot + count) * tokens)
        return self._whole._replace(tensor=self._memory[layer][:, :, place])

    def store(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Writes the chunk's keys and values [B, 1, S, h, D] into its slots, if not there yet."""
        slots = self.slots(layer)
        if slots is not None and (k.data_ptr(), v.data_ptr()) == (
            slots.tensor[0].data_ptr(), slots.tensor[1].data_ptr(),
        ):  # fmt: skip
            return
        tokens = self.grid.tokens_per_frame
        keys, values = self._memory[layer].unbind(0)
        for frame, slot, count in self._runs:
            source = slice(frame * tokens, (frame + count) * tokens)
            target = slice(slot * tokens, (slot + count) * tokens)
            keys[:, target].copy_(k[:, 0, source])
            values[:, target].copy_(v[:, 0, source])

    def of_chunk(self, layer: int) -> tuple[Tensor, Tensor]:
        """Copies of the current chunk's keys and values [B, S, h, D], as its last pass left them.

        Decoded, whatever they are kept in.

        Raises:
            RuntimeError: before the first chunk.
        """
        if not self._runs:
            raise RuntimeError("the memory holds no chunk yet: call begin_chunk before a pass")
        tokens = self.grid.tokens_per_frame
        slots = [slice(slot * tokens, (slot + count) * tokens) for _, slot, count in self._runs]
        keys, values = (
            torch.cat([half[:, own] for own in slots], dim=1)
            for half in self.format.decode_kv(*self._memory[layer])
        )
        return keys, values

    def visible(self, layer: int) -> tuple[Tensor, Tensor]:
        """Views of the filled slots: keys and values [B, visible tokens, h, D]."""
        filled = self._memory[layer][:, :, : self.frames_visible * self.grid.tokens_per_frame]
        return filled[0], filled[1]

    def in_time_order(self, layer: int) -> tuple[Tensor, Tensor]:
        """Copies of the visible keys and values sorted by frame, as the published code has them.

        Decoded, whatever they are kept in.
        """
        order = sorted(range(self.frames_visible), key=self._frame_of_slot.__getitem__)
        keys, values = (
            rows.unflatten(1, (-1, self.grid.tokens_per_frame))[:, order].flatten(1, 2)
            for rows in self.format.decode_kv(*self.visible(layer))
        )
        return keys, values

    def check_place(self, first_frame: int) -> None:
        """Raises what `begin_chunk` would; nothing changes."""
        held, sink = self._frame_of_slot, self.config.sink
        if held and first_frame <= max(held):
            raise ValueError(
                f"chunk at frame {first_frame} comes after frame {max(held)}: "
                "chunks are placed in order; reset() starts again"
            )
        if len(held) < sink and first_frame != len(held):
            raise ValueError(
                f"chunk at frame {first_frame} before frame {len(held)}: the first {sink} frames "
                "are the sink and come first"
            )
        if self.config.window == -1 and len(held) + self.grid.frames > self.config.capacity:
            raise RuntimeError(
                f"frames {first_frame}..{first_frame + self.grid.frames - 1}: the memory keeps the "
                f"whole history of at most {self.config.capacity} latent frames and is full; "
                "raise kv_cache.max_frames or give kv_cache a window"
            )

    def _claim_slot(self, frame: int) -> int:
        if frame < self.config.sink:
            slot = frame
        else:
            slot = self.config.sink + self._ring_frames % self.config.ring
            self._ring_frames += 1
        if slot == len(self._frame_of_slot):
            self._frame_of_slot.append(frame)
        else:
            self._frame_of_slot[slot] = frame
        return slot


def _runs(slots: Iterable[int]) -> Iterable[tuple[int, int, int]]:
    """Consecutive slots as (frame in chunk, first slot, count)."""
    start, first, count = 0, -1, 0
    for i, slot in enumerate(slots):
        if count and slot == first + count:
            count += 1
            continue
        if count:
            yield start, first, count
        start, first, count = i, slot, 1
    if count:
        yield start, first, count
