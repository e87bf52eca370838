"""What is going to be measured, and everything that can be refused before a weight exists."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf

from lingbot.benchmark.inputs import random_controls
from lingbot.benchmark.settings import Setting
from lingbot.building import build
from lingbot.data.control_stream import MOST_STEPS
from lingbot.device import check_processes
from lingbot.memory import check_fits, driving_need
from lingbot.model import KVCacheConfig
from lingbot.model.checks import check_count, check_number
from lingbot.module import LingBotModule
from lingbot.parallel.choice import check_exchange
from lingbot.parallel.sequence_parallel import LONGEST_TIMEOUT
from lingbot.parallel.splits import even_splits
from lingbot.parallel.strategy import SequenceParallelStrategy
from lingbot.parts import check_parts

MOST_THREADS = 64  # also where there are fewer cores
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Plan:
    """How the settings are measured.

    Args:
        ranks: numbers of ranks, one after another.
        device: cpu or cuda.
        sessions: of every setting.
        warmup_steps: of every session, after its first step.
        steps: measured steps of every session.
        threads: of all ranks together.
        timeout_s: longest silence of the ranks.
        seed: of weights, inputs and noise.
    """

    ranks: tuple[int, ...]
    device: str
    sessions: int
    warmup_steps: int
    steps: int
    threads: int
    timeout_s: float
    seed: int


def build_plan(cfg: DictConfig, settings: int) -> Plan:
    """The plan that the configuration describes.

    Raises:
        ValueError: for numbers, ranks or a device that cannot be measured with.
    """
    for name, low, high in (
        ("sessions", 1, MOST_STEPS), ("warmup_steps", 0, MOST_STEPS), ("steps", 1, MOST_STEPS),
    ):  # fmt: skip
        check_count(name, cfg[name], low, high)
    if settings > 1 and cfg.sessions % 2:
        raise ValueError(
            f"sessions={cfg.sessions}: to compare, give an even number, so that every setting has "
            "its turn first as often as last"
        )
    check_number("timeout_s", cfg.timeout_s, above=0, high=LONGEST_TIMEOUT)
    if cfg.threads is not None:
        check_count("threads", cfg.threads, 1, max(MOST_THREADS, 4 * (os.cpu_count() or 1)))
    device = check_device(cfg.device)
    ranks = check_ranks(_auto_ranks(cfg) if cfg.ranks == "auto" else cfg.ranks, device)
    threads = cfg.threads or torch.get_num_threads()
    return Plan(
        ranks, device, cfg.sessions, cfg.warmup_steps, cfg.steps, threads, cfg.timeout_s, cfg.seed
    )


def check_device(name: str) -> str:
    """cpu or cuda.

    Raises:
        ValueError: for anything else, and for CUDA where there is none.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise ValueError(
            f"device={name!r}: choose auto, cpu or cuda; ranks take one GPU each from the first on "
            "(CUDA_VISIBLE_DEVICES says which)"
        )
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device='cuda': there is no CUDA device here, choose auto or cpu")
    return name


def check_ranks(value: Any, device: str) -> tuple[int, ...]:
    """Numbers of ranks, each once.

    Raises:
        ValueError: for what is not positive whole numbers, or more ranks than GPUs.
    """
    ranks = OmegaConf.to_container(value) if isinstance(value, ListConfig) else value
    ranks = list(ranks) if isinstance(ranks, (list, tuple)) else [ranks]
    whole = all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in ranks)
    if not ranks or not whole or len(set(ranks)) < len(ranks):
        raise ValueError(f"ranks={value}: give a positive number, or different ones as [1,2,4]")
    if device == "cpu":
        check_processes("ranks", max(ranks))
    if device == "cuda" and max(ranks) > torch.cuda.device_count():
        raise ValueError(
            f"ranks={value}: every rank needs a GPU of its own and there are "
            f"{torch.cuda.device_count()} here; give at most that many, or device=cpu"
        )
    return tuple(ranks)


def check_setting(setting: Setting, plan: Plan) -> Setting:
    """The setting with its dtype decided.

    Raises:
        ValueError: for a setting that cannot be built, driven or split over the planned ranks.
    """
    setting = with_dtype(setting, plan.device)
    module: LingBotModule = build(setting.module, "module", LingBotModule)
    check_parts(module)
    for ranks in plan.ranks:
        check_fits(driving_need(module, DTYPES[setting.dtype], ranks), plan.device, ranks)
    steady_step(module.kv_cache, module.grid.frames)
    module.camera.chunk(next(random_controls(module.grid.frames, plan.seed)))
    strategy = build_strategy(setting)
    for ranks in plan.ranks:
        check_exchange(
            even_splits(module.grid.tokens, ranks), module.config.num_heads,
            strategy.uniform_fast_path, strategy.push, plan.device == "cuda",
        )  # fmt: skip
    return setting


def with_dtype(setting: Setting, device: str) -> Setting:
    """The setting with its dtype decided, for a cpu or cuda device.

    Raises:
        ValueError: for an unknown dtype.
    """
    where = "" if "=" not in setting.label else f"{setting.label}: "
    dtype = setting.dtype
    if dtype == "auto":
        dtype = "bfloat16" if device == "cuda" else "float32"
    if dtype not in DTYPES:
        raise ValueError(f"{where}dtype={dtype!r}: choose auto or one of {', '.join(DTYPES)}")
    return replace(setting, dtype=dtype)


def build_strategy(setting: Setting) -> SequenceParallelStrategy:
    """The strategy whose exchange is measured; it needs no Trainer for that.

    Raises:
        ValueError: for one that has no exchange over all ranks with whole weights.
    """
    strategy = build(setting.strategy, "strategy")
    if not isinstance(strategy, SequenceParallelStrategy):
        raise ValueError(
            f"a {type(strategy).__name__} strategy does not split a step over ranks: choose "
            "strategy=sequence_parallel"
        )
    for name in ("sequence_size", "data_size"):
        if setting.strategy.get(name, "auto") != "auto":
            raise ValueError(
                f"strategy.{name}={setting.strategy[name]}: all ranks are one sequence group here; "
                f"leave it auto and give ranks="
            )
    return strategy


def steady_step(cache: KVCacheConfig, frames: int) -> int:
    """The first realtime step from which on every slot of the history has been filled.

    Raises:
        ValueError: for a history that grows without end.
    """
    if cache.window == -1:
        raise ValueError(
            "a cache of the whole history grows in every step and has no steady state: choose "
            "kv_cache=sliding, or kv_cache.window=18 for so many latent frames"
        )
    return max(1, math.ceil(cache.capacity / frames))


def _auto_ranks(cfg: DictConfig) -> int:
    """Strategies differ in their exchange, which one rank does not have."""
    return 2 if cfg.compare is not None and cfg.compare.strip().startswith("strategy") else 1
