"""Whether what is asked for fits into memory, said before anything is built.

Needs are lower bounds and the room is an upper one (all of a GPU's memory; of the host's what no
other process holds), so that nothing is refused that would fit. What passes may still be too much.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch

from lingbot.model.sizes import (
    conditioner_bytes,
    history_bytes,
    kept_bytes,
    pass_bytes,
    text_bytes,
)
from lingbot.module import LingBotModule
from lingbot.parts import outline_codec, weigh

GIB = 2**30
HOST_FILES = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
CGROUP_1 = Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")
FLOAT32 = 4
FRAMES_AT_ONCE = 4  # that one latent frame is decoded to
REMEDIES = {
    "weights": "a smaller model, or codec",
    "keys and values": "a smaller kv_cache.window, or kv_cache.max_frames",
    "the prompt": "a smaller model.text_len",
    "camera scale and shift": "conditioner_cache=off, or fewer frames_per_chunk",
    "a pass": "a smaller camera.height and camera.width, or fewer frames_per_chunk",
    "the decode": "a smaller camera.height and camera.width",
    "gradients": "strategy=sharded_sequence_parallel on more GPUs",
    "the optimizer": "strategy=sharded_sequence_parallel on more GPUs, or optimizer=muon",
    "activations": "module.activation_checkpointing=full, or shorter or fewer clips in a batch",
    "clips": "fewer or shorter clips",
    "frames": "shorter drives, or fewer of them",
}

Need = dict[str, int]  # bytes by what they are for; the keys are those of REMEDIES


def driving_need(
    module: LingBotModule, dtype: torch.dtype, ranks: int = 1, shards: int = 1
) -> Need:
    """Bytes that each rank needs to drive a world, at the least.

    Args:
        dtype: of the transformer.
        ranks: that share tokens, heads and pictures.
        shards: ranks that the transformer's weights are sharded over.
    """
    config, grid, item = module.config, module.grid, dtype.itemsize
    weights = weigh(module, item)
    kept = 1 if module.kernels.kv == "fp8" else item
    held = 1 if module.kernels.linears == "fp8" else item  # once they are quantised
    tokens = grid.tokens // ranks
    need = {
        "weights": weights.transformer * held // item // shards
        + weights.codec
        + weights.text_encoder // shards,
        "keys and values": history_bytes(config, module.kv_cache, grid, kept) // ranks,
        "the prompt": text_bytes(config, item),
        "a pass": pass_bytes(config, tokens),
        "the decode": _decode_bytes(module) // ranks,
    }
    if module.conditioner_cache != "off":
        need["camera scale and shift"] = conditioner_bytes(config, grid, item) // ranks
    return need


def training_need(
    module: LingBotModule,
    shape: tuple[int, int],
    kept: float,
    sequence_ranks: int = 1,
    shards: int = 1,
) -> Need:
    """Bytes that each rank needs to train a world, at the least.

    Args:
        shape: clips in a batch of a rank, latent frames of a clip.
        kept: bytes of the optimizer for a byte of a weight.
        sequence_ranks: that share the tokens of a clip.
        shards: ranks that the weights are sharded over; 1 where each holds them whole.
    """
    weights = weigh(module, FLOAT32)
    clips, frames = shape
    tokens = 2 * clips * frames * module.grid.tokens_per_frame // sequence_ranks
    trained = weights.trained * FLOAT32 // shards  # in float32, whatever passes run in
    return {
        "weights": trained + weights.codec,
        "gradients": trained,
        "the optimizer": int(trained * kept),
        "a pass": pass_bytes(module.config, tokens),
        "activations": kept_bytes(module.config, tokens),
    }


def check_fits(need: Mapping[str, int], device: str | None, processes: int = 1) -> None:
    """Refuses what a device or the host has no room for.

    Args:
        need: bytes of one process, by what they are for.
        device: cpu, cuda, or None where nothing is known of it.
        processes: that share the host; GPUs are not shared.

    Raises:
        ValueError: with all the numbers and what would help.
    """
    room = None if device is None else gpu_room() if device.startswith("cuda") else host_room()
    count = processes if device == "cpu" else 1
    total = count * sum(need.values())
    if room is None or total <= room:
        return
    parts = sorted(need.items(), key=lambda part: -part[1])
    shown = ", ".join(
        f"{_gib(count * size)} {name}" for name, size in parts if count * size > total / 100
    )
    remedies = [REMEDIES[name] for name, size in parts if count * size > total / 10]
    where = "this machine has" if device == "cpu" else "a GPU of this machine has"
    raise ValueError(
        f"about {_gib(total)} GiB of memory would be needed ({shown}), and {where} {_gib(room)} "
        f"GiB{' free' if device == 'cpu' else ''}: choose {'; '.join(remedies)}"
    )


def host_room() -> int | None:
    """Bytes of main memory and swap that no process holds, within this process's control group."""
    rooms = []
    meminfo, limit = HOST_FILES
    with suppress(OSError):
        lines = (line.split() for line in meminfo.read_text().splitlines())
        found = {words[0]: 1024 * int(words[1]) for words in lines}
        if "MemAvailable:" in found:
            rooms.append(found["MemAvailable:"] + found.get("SwapFree:", 0))
    for file in (limit, CGROUP_1):
        with suppress(OSError):
            text = file.read_text().strip()
            rooms += [int(text)] if text.isdecimal() else []
    return min(rooms, default=None)


def gpu_room() -> int | None:
    """Bytes of this machine's largest GPU, asked of its driver: CUDA itself is not touched.

    A process that has started CUDA cannot be forked any more, and ranks are started later.
    """
    try:
        driver = ctypes.CDLL("libnvidia-ml.so.1")
        if driver.nvmlInit_v2():
            return None
    except (OSError, AttributeError):
        return None
    try:
        return max((_total(driver, index) for index in range(_count(driver))), default=0) or None
    finally:
        driver.nvmlShutdown()


def _count(driver: ctypes.CDLL) -> int:
    count = ctypes.c_uint()
    return 0 if driver.nvmlDeviceGetCount_v2(ctypes.byref(count)) else count.value


def _total(driver: ctypes.CDLL, index: int) -> int:
    handle, memory = ctypes.c_void_p(), (ctypes.c_ulonglong * 3)()  # total, free, used
    if driver.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)):
        return 0
    return 0 if driver.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)) else memory[0]


def _decode_bytes(module: LingBotModule) -> int:
    """The frames of one latent frame, and what the decoder's last level makes of them."""
    pixels = FRAMES_AT_ONCE * module.camera.height * module.camera.width
    codec = outline_codec(module._make_codec)
    if codec is None:
        return pixels * 3 * FLOAT32
    config = codec.vae.config
    width = (config.decoder_base_dim or config.base_dim) * config.dim_mult[0]
    patch = config.patch_size or 1
    return pixels * (3 * FLOAT32 + width * codec.dtype.itemsize // patch**2)


def _gib(size: float) -> str:
    number = size / GIB
    return f"{number:,.0f}" if number >= 10 else f"{number:.1f}" if number >= 1 else f"{number:.2g}"
