"""Names and types of our own groups; a value of another type is refused.

A class of one's own in `_target_` may take keys that are not here. Whatever is made by this package
may not: `lingbot.conf.check` refuses what nobody would read.

The values are in the YAML files, the rules between values in the constructors. Trainer, callbacks,
loggers, strategies and optimizers are other people's and stay untyped.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf


@dataclass
class Model:
    """Sizes of the transformer."""

    _target_: str = "lingbot.model.TransformerConfig"
    dim: int = MISSING
    ffn_dim: int = MISSING
    num_heads: int = MISSING
    num_layers: int = MISSING
    text_dim: int = MISSING
    text_len: int = MISSING
    freq_dim: int = 256
    in_channels: int = 36
    out_channels: int = 16
    patch_size: list[int] = field(default_factory=lambda: [1, 2, 2])
    control: str = "cam"  # or act: directions and keys
    eps: float = 1e-6


@dataclass
class TrainedCodec:
    """A video codec from a diffusers folder."""

    _target_: str = "lingbot.codec.video.load_codec"
    _partial_: bool = True
    folder: str = MISSING
    dtype: str = "float32"
    memory_format: str = "channels_last_3d"


@dataclass
class NewCodec:
    """A video codec to be trained: sizes of diffusers' AutoencoderKLWan."""

    _target_: str = "lingbot.codec.video.build_codec"
    _partial_: bool = True
    dtype: str = "float32"
    memory_format: str = "channels_last_3d"
    base_dim: int = MISSING
    dim_mult: list[int] = MISSING
    num_res_blocks: int = MISSING
    temperal_downsample: list[bool] = MISSING  # as diffusers spells it
    z_dim: int = 16
    patch_size: int | None = None
    in_channels: int = 3
    out_channels: int = 3
    is_residual: bool = False


@dataclass
class ByteText:
    """The small trainable text encoder."""

    _target_: str = "lingbot.codec.text.ByteTextEncoder"
    _partial_: bool = True
    text_dim: int = MISSING
    text_len: int = MISSING
    kernel_size: int = 7


@dataclass
class UMT5Text:
    """The text encoder of the public checkpoints."""

    _target_: str = "lingbot.codec.text.UMT5TextEncoder"
    _partial_: bool = True
    folder: str = MISSING
    text_len: int = MISSING
    dtype: str = "bfloat16"


@dataclass
class RandomText:
    """Encodings that stand for any prompt, for measuring."""

    _target_: str = "lingbot.benchmark.inputs.RandomTextEncoder"
    _partial_: bool = True
    text_dim: int = MISSING
    text_len: int = MISSING


@dataclass
class Camera:
    """Keys or poses to rays."""

    _target_: str = "lingbot.camera.controls.CameraControl"
    _partial_: bool = True
    kind: str = MISSING
    height: int = MISSING
    width: int = MISSING
    frames_per_chunk: int = MISSING
    intrinsics: list[float] = MISSING
    translation_scale: Any = MISSING  # a length, or "offline"
    recorded_scale: Any = "published"  # or a length


@dataclass
class Schedule:
    """Noise levels."""

    _target_: str = "lingbot.diffusion.flow.FlowSchedule"
    shift: float = MISSING
    kind: str = MISSING


@dataclass
class Sampler:
    """The passes of a chunk."""

    _target_: str = "lingbot.diffusion.sampler.FewStepSampler"
    schedule: Schedule = field(default_factory=Schedule)
    indices: list[int] = MISSING


@dataclass
class KVCache:
    """How much history a chunk sees, in latent frames."""

    _target_: str = "lingbot.model.KVCacheConfig"
    window: int = MISSING
    sink: int = MISSING
    max_frames: int = 96


@dataclass
class ConditionerCache:
    """When the camera's scale and shift are computed anew: step, denoise or off."""

    policy: str = MISSING


@dataclass
class Kernels:
    """How arithmetic is carried out, of transformer and VAE."""

    _target_: str = "lingbot.kernels.KernelConfig"
    ops: str = MISSING
    pack_qkv: bool = MISSING
    linears: str = MISSING
    kv: str = MISSING
    vae: str = MISSING
    cuda_graph: bool = MISSING


@dataclass
class FlowMatching:
    """The training objective."""

    _target_: str = "lingbot.diffusion.flow_matching.FlowMatching"
    schedule: Any = MISSING
    frames_per_chunk: int = MISSING
    few_step_indices: list[int] = MISSING
    few_step_fraction: float = MISSING
    history_noise: float = MISSING
    resampled_history: float = MISSING


@dataclass
class WarmupCosine:
    """The learning rate over a run."""

    _target_: str = "lingbot.learning_rate.warmup_cosine"
    _partial_: bool = True
    warmup_steps: int | None = MISSING
    warmup_fraction: float = MISSING
    total_steps: int = MISSING
    floor: float = MISSING


@dataclass
class Paths:
    """The only place with folders."""

    root_dir: str = MISSING
    output_dir: str = MISSING
    data_dir: str = MISSING


@dataclass
class World:
    """What all commands have in common: plain options, then the groups."""

    command: str = MISSING
    seed: int = MISSING
    weights: str | None = None
    frames_per_chunk: int = MISSING
    schedule: str = MISSING
    fps: int = MISSING
    module: Any = MISSING
    model: Any = MISSING
    codec: Any = MISSING
    text: Any = MISSING
    camera: Any = MISSING
    sampler: Any = MISSING
    kv_cache: Any = MISSING
    conditioner_cache: Any = MISSING
    kernels: Any = MISSING
    paths: Any = MISSING
    # {experiment=NAME: [commands]}: in experiments and debug settings of a few commands only
    meant_for: dict[str, list[str]] = field(default_factory=dict)


@dataclass
class Run(World):
    """What a Lightning Trainer runs: lingbot-generate and lingbot-train."""

    strategy: Any = MISSING
    trainer: Any = MISSING
    callbacks: Any = MISSING
    logger: Any = MISSING


@dataclass
class Generate(Run):
    """Options of lingbot-generate."""

    actions: str | None = None
    folder: str | None = None
    sample_drive: str = MISSING
    num_steps: int | None = None
    prompt_events: Any = None  # {step: prompt}
    prompt: str | None = None
    image: str | None = None
    scene: str | None = None
    scene_seed: int = MISSING


@dataclass
class Evaluate(World):
    """Options of lingbot-evaluate."""

    split: str = MISSING
    num_scenes: int = MISSING
    num_chunks: int = MISSING
    chunks: list[int] = MISSING
    other_drives: int = MISSING
    device: str = MISSING
    sheet_scenes: int = MISSING
    sheet_columns: int = MISSING
    readme_scenes: list[int] = MISSING
    readme_columns: int = MISSING


@dataclass
class Bench(World):
    """Options of lingbot-bench."""

    strategy: Any = MISSING
    logger: Any = MISSING
    ranks: Any = MISSING  # a number, a list of them, or auto
    compare: str | None = None
    decode: bool = MISSING
    sessions: int = MISSING
    warmup_steps: int = MISSING
    steps: int = MISSING
    device: str = MISSING
    dtype: str = MISSING
    threads: int | None = None
    timeout_s: float = MISSING


@dataclass
class Drift(World):
    """Options of lingbot-drift."""

    compare: str | None = None
    num_chunks: int = MISSING
    scene: int = MISSING
    image: str | None = None
    prompt: str | None = None
    layers: list[int] | None = None
    device: str = MISSING
    dtype: str = MISSING


@dataclass
class Train(Run):
    """Options of lingbot-train."""

    data: Any = MISSING
    objective: Any = MISSING
    optimizer: Any = MISSING
    scheduler: Any = MISSING
    ckpt_path: str | None = None
    trust_run_code: bool = False
    export_dir: str | None = None
    optimized_metric: str = MISSING


GROUPS: dict[str, dict[str, type]] = {
    "model": {"schema": Model},
    "codec": {"schema_trained": TrainedCodec, "schema_new": NewCodec},
    "text": {"schema_bytes": ByteText, "schema_umt5": UMT5Text, "schema_random": RandomText},
    "camera": {"schema": Camera},
    "sampler": {"schema": Sampler},
    "kv_cache": {"schema": KVCache},
    "conditioner_cache": {"schema": ConditionerCache},
    "kernels": {"schema": Kernels},
    "objective": {"schema": FlowMatching},
    "scheduler": {"schema_warmup_cosine": WarmupCosine},
    "paths": {"schema": Paths},
}


def register_schemas() -> None:
    """Put the schemas where the defaults lists of the YAML files find them.

    Those of groups that make something stay open for the keys of other people's classes.
    """
    store = ConfigStore.instance()
    store.store(name="generate_schema", node=Generate)
    store.store(name="train_schema", node=Train)
    store.store(name="evaluate_schema", node=Evaluate)
    store.store(name="bench_schema", node=Bench)
    store.store(name="drift_schema", node=Drift)
    for group, schemas in GROUPS.items():
        for name, node in schemas.items():
            open_to_more = hasattr(node, "_target_")
            flags = {"struct": False} if open_to_more else None
            store.store(group=group, name=name, node=OmegaConf.structured(node, flags=flags))
