"""Options and what is nonsense in them: for each command, keys with fine and with bad values.

`NUMBERS` get more bad values made by chance, of the kinds that no number option takes.
"""

from __future__ import annotations

from typing import NamedTuple

TINY = (
    "model.dim=48", "model.ffn_dim=64", "model.num_heads=4", "model.num_layers=1",
    "camera.height=32", "camera.width=48", "codec=blockworld_untrained", "codec.base_dim=8",
)  # fmt: skip
BASES: dict[str, tuple[str, ...]] = {
    "lingbot-generate": (*TINY, "weights=null", "num_steps=1", "trainer.accelerator=cpu"),
    "lingbot-train": (
        *TINY, "trainer.accelerator=cpu", "data.num_frames=21", "data.train_clips=2",
        "data.val_clips=1", "data.batch_size=1", "data.num_workers=0", "trainer.max_steps=2",
        "trainer.val_check_interval=2", "scheduler.warmup_steps=1", "callbacks.contact_sheet=null",
    ),
    "lingbot-evaluate": (
        *TINY, "weights=null", "device=cpu", "num_scenes=1", "num_chunks=1", "chunks=[1]",
        "other_drives=1",
    ),
    "lingbot-bench": (
        *TINY, "device=cpu", "threads=1", "sessions=1", "steps=1", "warmup_steps=0",
    ),
    "lingbot-drift": (
        *TINY, "weights=null", "device=cpu", "num_chunks=1",
        "compare=conditioner_cache:[step,off]",
    ),
    "lingbot-parity": (),
    "lingbot.world": (),
}  # fmt: skip
DRIVING = ("lingbot-generate", "lingbot-evaluate", "lingbot-bench", "lingbot-drift")
ALL = (*DRIVING, "lingbot-train")
GENERATE, TRAIN = ("lingbot-generate",), ("lingbot-train",)
EVALUATE, BENCH, DRIFT = ("lingbot-evaluate",), ("lingbot-bench",), ("lingbot-drift",)
RUNS = (*GENERATE, *TRAIN)


class Option(NamedTuple):
    """A key, on whose command line, with values that must be taken and values that must not."""

    commands: tuple[str, ...]
    key: str
    fine: tuple[str, ...]
    bad: tuple[str, ...]
    whole: bool = False
    beside: tuple[str, ...] = ()  # other options that make sense of it


NOT_NUMBERS = ("nan", "inf", "-inf", "abc", "[]", "[1]", "{a: 1}", "''")
BELOW_ONE = ("0", "-1")
HUGE = ("1000000000000", "99999999999999999999")


def count(
    commands: tuple[str, ...], key: str, fine: str, bad: tuple[str, ...] = BELOW_ONE, *beside: str
) -> Option:
    """A whole number; huge ones are nonsense too."""
    return Option(commands, key, tuple(fine.split()), (*bad, *HUGE), True, beside)


def number(
    commands: tuple[str, ...], key: str, fine: str, bad: tuple[str, ...] = BELOW_ONE, *beside: str
) -> Option:
    """A number with a fraction."""
    return Option(commands, key, tuple(fine.split()), bad, False, beside)


NUMBERS = (
    # the model
    count(ALL, "model.dim", "48 96", ("0", "-48", "50", "7")),
    count(ALL, "model.ffn_dim", "64 96"),
    count(ALL, "model.num_heads", "4 2", ("0", "-4", "5", "100")),
    count(ALL, "model.num_layers", "1 2"),
    count(ALL, "model.text_dim", "64 32"),
    count(ALL, "model.text_len", "64 100"),
    count(ALL, "model.freq_dim", "32 256", ("0", "-2", "3")),
    count(ALL, "model.in_channels", "36", ("0", "-1", "1", "35", "37")),
    count(ALL, "model.out_channels", "16", ("0", "-1", "15", "99")),
    number(ALL, "model.eps", "1e-6 1e-5", ("0", "-1", "1", "1e300")),
    # the camera
    count(ALL, "camera.height", "32 48", ("0", "-32", "20", "33", "1600000", "16400")),
    count(ALL, "camera.width", "48 64", ("0", "-32", "20", "33", "1600000", "16400")),
    count(ALL, "camera.frames_per_chunk", "3", ("0", "-1", "1", "2", "4")),
    number(ALL, "camera.translation_scale", "0.2 1.5", ("0", "-1", "1e-300", "1e300")),
    # what a chunk sees
    count(ALL, "kv_cache.window", "18 6", ("0", "-2", "1", "2"), "kv_cache=sliding_sink3"),
    count(ALL, "kv_cache.sink", "3 0", ("-1", "18", "17", "100"), "kv_cache=sliding_sink3"),
    count(ALL, "kv_cache.max_frames", "96 30", ("0", "-1", "1"), "kv_cache=full"),
    number(ALL, "sampler.schedule.shift", "5 10 1", ("0", "-5", "1e308", "1e6")),
    count(ALL, "frames_per_chunk", "3", ("0", "-1")),
    count(ALL, "seed", "0 7", ("-1",)),
    count(ALL, "fps", "16 24"),
    # the codec and the text encoder
    count(ALL, "codec.base_dim", "8 16"),
    count(ALL, "codec.num_res_blocks", "1"),
    count(ALL, "codec.z_dim", "16", ("0", "-1", "8", "17")),
    count(ALL, "codec.patch_size", "2", ("0", "-1", "3", "4")),
    count(ALL, "codec.in_channels", "12", ("0", "3", "-1")),
    count(ALL, "codec.out_channels", "12", ("0", "4", "-1")),
    count((*GENERATE, *EVALUATE, *DRIFT, *TRAIN), "text.kernel_size", "7 3", ("0", "2", "-1")),
    count(ALL, "text.text_dim", "64", ("0", "-1", "5")),
    count(ALL, "text.text_len", "64 32", ("0", "-1", "65")),
    # drives
    count(GENERATE, "num_steps", "1 2", ("0", "-1", "500")),
    count(GENERATE, "scene_seed", "0 5", ("-1",)),
    count(GENERATE, "callbacks.video_writer.quality", "0 20 51", ("-1", "52")),
    count(GENERATE, "callbacks.video_writer.fps", "12"),
    count(GENERATE, "callbacks.step_log.warmup_steps", "0 1", ("-1",)),
    count(GENERATE, "callbacks.step_plot.fps", "12"),
    # Trainer
    count(RUNS, "trainer.devices", "1", ("0", "-2", "true", "64", "[0,0]", "1,1")),
    count(RUNS, "trainer.num_nodes", "1", ("0", "-1", "2", "true")),
    number(GENERATE, "+trainer.limit_predict_batches", "1 1.0", ("0", "-1", "1.5", "true")),
    number(TRAIN, "+trainer.limit_train_batches", "2 1.0", ("0", "-1", "1.5")),
    number(TRAIN, "+trainer.limit_val_batches", "1 0", ("-1", "1.5")),
    count(TRAIN, "+trainer.accumulate_grad_batches", "1 2"),
    count(TRAIN, "trainer.log_every_n_steps", "1 10"),
    number(TRAIN, "trainer.gradient_clip_val", "1.0 0.5", ("-1",)),
    count(TRAIN, "trainer.max_steps", "2", ("0", "-2")),
    count(TRAIN, "trainer.val_check_interval", "2 1", ("0", "-1")),
    count(TRAIN, "trainer.num_sanity_val_steps", "0 1", ("-2",)),
    number(TRAIN, "trainer.check_val_every_n_epoch", "null", ("0", "-1", "1.5")),
    number(TRAIN, "+trainer.overfit_batches", "1", ("-1", "1.5")),
    # training
    count(TRAIN, "data.num_frames", "21 33", ("0", "-3", "1", "20")),
    count(TRAIN, "data.train_clips", "2 3"),
    count(TRAIN, "data.val_clips", "1 2"),
    count(TRAIN, "data.batch_size", "1 2", ("0", "-1", "3")),
    count(TRAIN, "data.val_batch_size", "1 4", ("0", "-1")),
    count(TRAIN, "data.encode_batch_size", "1 4"),
    count(TRAIN, "data.latent_frames", "3 6", ("0", "-1", "5", "7", "100")),
    count(TRAIN, "data.num_workers", "0", ("-1", "100000")),
    count(TRAIN, "data.height", "32", ("0", "20", "64")),
    number(TRAIN, "optimizer.lr", "1e-3 1e-5", ("0", "-1")),
    number(TRAIN, "optimizer.weight_decay", "0 0.1", ("-1",)),
    number(TRAIN, "optimizer.momentum", "0.5 0", ("1", "-0.5", "2"), "optimizer=muon"),
    number(TRAIN, "optimizer.adam_ratio", "0.5", ("-1",), "optimizer=muon"),
    count(TRAIN, "optimizer.smallest_side", "5 1", ("0", "-1"), "optimizer=muon"),
    number(TRAIN, "scheduler.floor", "0 0.5 1", ("-0.1", "2")),
    number(TRAIN, "objective.few_step_fraction", "0 0.5 1", ("-0.1", "1.1")),
    number(TRAIN, "objective.history_noise", "0 0.5", ("-0.1", "1.1")),
    number(TRAIN, "objective.resampled_history", "0 0.5", ("-0.1", "1.1")),
    count(TRAIN, "objective.frames_per_chunk", "3", ("0", "-1", "2", "4")),
    # evaluation, bench, drift
    count(EVALUATE, "num_scenes", "1"),
    count(EVALUATE, "num_chunks", "1", ("0", "-1", "49")),
    count(EVALUATE, "other_drives", "1 2"),
    count(EVALUATE, "sheet_columns", "3"),
    count(EVALUATE, "readme_columns", "3"),
    number(EVALUATE, "sheet_scenes", "0 1", ("-1", "1.5")),
    count(BENCH, "sessions", "1"),
    count(BENCH, "steps", "1 2"),
    count(BENCH, "warmup_steps", "0 1", ("-1",)),
    count(BENCH, "threads", "1"),
    count(BENCH, "ranks", "1", ("0", "-1", "3", "64", "[1,1]", "some", "1.5")),
    number(BENCH, "timeout_s", "100", ("0", "-1", "1e300")),
    number(BENCH, "strategy.timeout_s", "100", ("0", "-1", "1e300")),
    number(GENERATE, "strategy.timeout_s", "100", ("0", "-1", "1e300"),
           "strategy=sequence_parallel"),
    count(DRIFT, "num_chunks", "1 2", ("0", "-1", "90000")),
    count(DRIFT, "scene", "0 3", ("-1",)),
)  # fmt: skip

WORDS = (
    Option(ALL, "model.control", ("cam",), ("pose", "''", "5", "[cam]")),
    Option(ALL, "camera.kind", ("cam",), ("act", "pose", "''", "5")),
    Option(ALL, "schedule", ("exact", "published"), ("guess", "''", "5", "[exact]")),
    Option(ALL, "conditioner_cache.policy", ("step", "denoise"), ("sometimes", "''", "true")),
    Option(ALL, "kernels.ops", ("reference",), ("fast", "fused", "''", "1")),
    Option(ALL, "kernels.linears", ("bf16",), ("fp4", "''", "false")),
    Option(ALL, "kernels.kv", ("bf16",), ("fp4", "''")),
    Option(ALL, "kernels.pack_qkv", ("false",), ("maybe", "[]")),
    Option(ALL, "kernels.vae", ("reference",), ("quick", "''")),
    Option(ALL, "kernels.cuda_graph", ("true",), ("maybe", "''")),
    Option(ALL, "module.decode", ("whole", "auto"), ("half", "5", "null")),
    Option(ALL, "codec.dtype", ("float32", "bfloat16"), ("float64", "int8", "''", "5")),
    Option(ALL, "codec.memory_format", ("contiguous",), ("nchw", "''")),
    Option(ALL, "codec.is_residual", ("true",), ("maybe", "[]")),
    Option(GENERATE, "scene", ("blockworld",), ("atlantis", "''", "5")),
    Option(GENERATE, "callbacks.step_log.table", ("true", "false"), ("maybe", "5", "null", "''")),
    Option(GENERATE, "callbacks.video_writer.first_frame", ("false",), ("maybe", "1", "null")),
    Option(RUNS, "trainer.precision", ("32-true",), ("31", "double", "''", "bf17-mixed", "[]")),
    Option(RUNS, "trainer.accelerator", ("cpu",), ("warp", "''", "5")),
    Option(GENERATE, "trainer.enable_progress_bar", ("false",), ("maybe", "3")),
    Option(TRAIN, "+trainer.gradient_clip_algorithm", ("norm",), ("max", "5")),
    Option(TRAIN, "+trainer.deterministic", ("false",), ("maybe", "3")),
    Option(TRAIN, "+trainer.detect_anomaly", ("false",), ("maybe", "3")),
    Option(TRAIN, "module.activation_checkpointing", ("none", "full"), ("half", "5", "null")),
    Option(TRAIN, "data.content", ("latents",), ("video", "5", "null")),
    Option(TRAIN, "+data.device", ("cpu",), ("abc", "cuda:99", "5", "''")),
    Option((*EVALUATE, *BENCH, *DRIFT), "device", ("cpu",), ("tpu", "cuda:99", "''", "5", "[]")),
    Option(EVALUATE, "split", ("val",), ("holdout", "''", "5")),
    Option((*BENCH, *DRIFT), "dtype", ("float32",), ("float8", "''", "5")),
    Option(BENCH, "decode", ("false",), ("maybe", "null")),
    Option(BENCH, "strategy.push", ("null",), ("true", "often", "3")),
    Option(GENERATE, "strategy.uniform_fast_path", ("false",), ("often", "3", "1.5"),
           beside=("strategy=sequence_parallel",)),
    Option(GENERATE, "strategy.sequence_size", ("1", "auto"), ("0", "-1", "2", "abc", "true"),
           beside=("strategy=sequence_parallel",)),
)  # fmt: skip

LISTS = (
    Option(ALL, "sampler.indices", ("[0,500]", "[0]"),
           ("[]", "[5,2]", "[0,0]", "[-1,5]", "[0,1000]", "[a]", "0", "[0.5]", "[nan]", "null")),
    Option(ALL, "camera.intrinsics", ("[520,520,416,240]",),
           ("[]", "[520,520]", "[0,520,416,240]", "[-1,520,416,240]", "[nan,520,416,240]",
            "[520,inf,416,240]", "[1e-30,1e-30,0,0]", "[a,b,c,d]", "5", "null",
            "[520,520,1e30,240]")),
    Option(ALL, "model.patch_size", ("[1,2,2]",),
           ("[1,0,2]", "[2,2,2]", "[1,2]", "[]", "[1,-2,2]", "[a,2,2]", "2", "[1,3,3]")),
    Option(ALL, "codec.dim_mult", ("[1,2,2]",), ("[]", "[0,0,0]", "[1]", "[1,-1,1]", "2", "[a]")),
    Option(ALL, "codec.temperal_downsample", ("[true,true]",),
           ("[]", "[true]", "[false,false]", "[maybe,true]", "true")),
    Option(TRAIN, "optimizer.betas", ("[0.9,0.99]",),
           ("[2,2]", "[0.9]", "[0.9,1]", "[-1,0.9]", "[nan,0.9]", "x", "5", "[a,b]")),
    Option(TRAIN, "objective.few_step_indices", ("[0,500]",),
           ("[]", "[-1]", "[1000]", "[5,2]", "[a]", "5")),
    Option(EVALUATE, "chunks", ("[1]",), ("[]", "[2]", "[0]", "[1,1]", "[a]", "1", "null")),
    Option(EVALUATE, "readme_scenes", ("[1]", "[]"), ("[0]", "[-1]", "[a]", "[1,1]")),
    Option(DRIFT, "layers", ("[0]", "null"), ("[]", "[1]", "[-1]", "[0,0]", "[a]", "0")),
    Option(DRIFT, "compare", ("conditioner_cache:[step,denoise]",),
           ("null", "kernels", "kernels:[reference]", "nonsense:[1,2]", "num_chunks:[1,2]",
            "conditioner_cache:[step,never]", "model.num_layers:[1,2]", "'conditioner_cache:['")),
    Option(BENCH, "compare", (),
           ("kernels", "conditioner_cache:[step]", "conditioner_cache:[step,step]",
            "ranks:[1,2]", "nonsense:[1,2]", "conditioner_cache:[step,off]")),  # of one session
    Option(GENERATE, "prompt_events", ("{0: night}", "null"),
           ("{9: night}", "{-1: night}", "{a: night}", "5", "[1]", "{0: 5}", "{0: ''}")),
    Option(GENERATE, "actions", ("w-9", "wj-3,none-6"),
           ("w-0", "q-3", "w--3", "w-", "-3", "w-1e9", "w-3,,a-3", "3", "w-nan", "''")),
    Option(GENERATE, "prompt", ("dusk", "night, snow"), ("''", "'   '")),
    Option(DRIFT, "prompt", ("dusk",), ("''", "'   '")),
)  # fmt: skip
