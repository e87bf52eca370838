"""What a session leaves behind on a long drive, chunk by chunk: frames, latents, keys and values.

`drive_freely` is what a user does. `follow` only makes context updates, from the chunks of another
session: the history is the same in both, so what differs between their keys and values is the
arithmetic's error alone, without the sampler's feedback. Recordings lie on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lingbot.camera.controls import Controls
from lingbot.model import KVCache
from lingbot.realtime.session import PastChunk, RealtimeSession

KeysValues = dict[int, tuple[Tensor, Tensor]]  # layer -> keys, values [B, tokens, heads, head_dim]


@dataclass(frozen=True)
class LongDrive:
    """Everything from outside that decides what a session shows; alike for all settings.

    Args:
        image: first frame, uint8 [H, W, 3].
        prompt: what the world is.
        controls: one a realtime step.
        seed: of the session's noise.
    """

    image: Tensor
    prompt: str
    controls: tuple[Controls, ...]
    seed: int


class ChunkRecord(NamedTuple):
    """One chunk of a session.

    Args:
        inputs: of its context update, the clean latents among them.
        frames: uint8 [T, H, W, 3].
        history: the keys and values it left at the recorded layers.
    """

    inputs: PastChunk
    frames: Tensor
    history: KeysValues


def drive_freely(
    session: RealtimeSession, drive: LongDrive, layers: Sequence[int]
) -> Iterator[ChunkRecord]:
    """Drive from the start, every chunk over the history that the session made itself."""
    session.reset(drive.image, drive.prompt, drive.seed)
    for controls in drive.controls:
        frames = session.step(controls).clone()  # pinned memory, used again
        session.finish_chunk()
        assert session.last_chunk is not None
        inputs = to_device(session.last_chunk, torch.device("cpu"))
        yield ChunkRecord(inputs, frames, keys_and_values(session.model.kv_cache, layers))


def follow(
    session: RealtimeSession, drive: LongDrive, chunks: Iterable[PastChunk], layers: Sequence[int]
) -> Iterator[KeysValues]:
    """Make the context updates of another session's chunks, from the start; no sampling."""
    session.reset(drive.image, drive.prompt, drive.seed)
    for chunk in chunks:
        here = to_device(chunk, session.device)
        with torch.no_grad():
            session.model.begin_chunk(here.controls, here.condition, here.first_frame)
            session.model.update_context(here.clean)
        yield keys_and_values(session.model.kv_cache, layers)


def keys_and_values(memory: KVCache, layers: Sequence[int]) -> KeysValues:
    """Copies, on the CPU, of what the current chunk left in the memory."""
    found = {}
    for layer in layers:
        keys, values = memory.of_chunk(layer)
        found[layer] = keys.cpu(), values.cpu()
    return found


def to_device(chunk: PastChunk, device: torch.device) -> PastChunk:
    """The same chunk with its tensors on a device."""
    tensors = (chunk.controls.to(device), chunk.condition.to(device), chunk.clean.to(device))
    return PastChunk(chunk.first_frame, *tensors)
