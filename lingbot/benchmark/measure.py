"""What one rank does: builds the settings, drives their sessions in turns, keeps every step.

One world's weights and one session's history are alive at a time, so that a comparison at full size
needs no more memory than a drive. Settings that are built from the same nodes share transformer,
codec and text encoder; another setting's are built anew from the same seed.
"""

from __future__ import annotations

import gc
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from hydra.utils import instantiate
from torch import Tensor

from lingbot.benchmark.flops import StepFlops
from lingbot.benchmark.inputs import WithoutDecoder, random_controls, random_picture
from lingbot.benchmark.plan import DTYPES, Plan, build_strategy, steady_step
from lingbot.benchmark.records import (
    Floor,
    RankRecord,
    SessionRecord,
    SettingFacts,
    StepRecord,
)
from lingbot.benchmark.roofline import StepShape, measure_floor
from lingbot.benchmark.settings import Setting
from lingbot.benchmark.statistics import percentile, turns
from lingbot.camera.controls import Controls
from lingbot.module import LingBotModule
from lingbot.realtime.session import RealtimeSession

PROMPT = "noon, grass"
# what a module passes on to its sessions; everything else may shape what is built
OF_A_SESSION = ("camera", "sampler", "kv_cache", "conditioner_cache", "decode")


class Worlds:
    """Modules over built parts, of which one set is alive at a time."""

    def __init__(self, device: torch.device, seed: int) -> None:
        self.device, self.seed = device, seed
        self._nodes: object = None
        self._parts: dict[str, Any] = {}

    def module(self, setting: Setting) -> LingBotModule:
        """The setting's module, with the parts of the last one where their nodes are equal."""
        module: LingBotModule = instantiate(setting.module, _convert_="all")
        built_from = {k: v for k, v in setting.module.items() if k not in OF_A_SESSION}
        nodes = (built_from, setting.dtype)
        if nodes != self._nodes:
            self._nodes, self._parts = None, {}
            release_memory(self.device)
            self._parts, self._nodes = self._build(setting), nodes
        for name, part in self._parts.items():
            setattr(module, name, part)
        if not setting.decode:
            module.codec, module.decode = WithoutDecoder(module.codec), "whole"
        return module

    def _build(self, setting: Setting) -> dict[str, Any]:
        """As Lightning builds for `precision=bf16-true`: in the dtype, on the device."""
        module: LingBotModule = instantiate(setting.module, _convert_="all")
        torch.manual_seed(self.seed)
        with default_dtype(DTYPES[setting.dtype]), self.device:
            module.configure_model()
        module.to(self.device).eval().requires_grad_(False)
        names = ("transformer", "text_encoder", "codec")
        return {name: getattr(module, name) for name in names}


class Measurement:
    """The settings on one rank of a group, or alone.

    Args:
        settings: checked by `lingbot.benchmark.plan`.
        plan: how they are measured.
        device: this rank's.
        group: the ranks' process group; None for one rank.
        tell: is told in words how far it is.
    """

    def __init__(
        self,
        settings: Sequence[Setting],
        plan: Plan,
        device: torch.device,
        group: dist.ProcessGroup | None,
        tell: Callable[[str], None],
    ) -> None:
        self.settings, self.plan, self.device = settings, plan, device
        self.group, self.tell = group, tell
        self.pictures = dist.new_group() if group is not None else None
        self.worlds = Worlds(device, plan.seed)
        self._floors: dict[StepShape, Floor] = {}

    def run(self, device_name: str) -> RankRecord:
        """Floors first, then all sessions in turns."""
        self.tell("measuring the floor")
        facts = [self._facts(setting) for setting in self.settings]
        self._floors.clear()
        release_memory(self.device)
        sessions = []
        for number, index in turns(len(self.settings), self.plan.sessions):
            record = self._session(index, number)
            sessions.append(record)
            median = percentile([step.cadence_ms for step in record.steps], 50)
            self.tell(
                f"session {number + 1} of {self.plan.sessions}, {self.settings[index].label}: "
                f"{median:,.1f} ms a step"
            )
        rank = dist.get_rank() if self.group else 0
        return RankRecord(rank, device_name, torch.get_num_threads(), facts, sessions)

    def _session(self, index: int, number: int) -> SessionRecord:
        setting = self.settings[index]
        module = self.worlds.module(setting)
        release_memory(self.device)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        controls = random_controls(module.grid.frames, self.plan.seed)
        picture = random_picture(module.camera.height, module.camera.width, self.plan.seed)
        with self._open(module, setting, picture) as session:
            self._wait()
            began = time.perf_counter()
            session.reset(picture, PROMPT, self.plan.seed)
            session.step(next(controls))
            first_frame_ms = 1000 * (time.perf_counter() - began)
            session.pretend_history(steady_step(module.kv_cache, module.grid.frames))
            for _ in range(self.plan.warmup_steps):
                session.step(next(controls))
            session.finish_chunk()
            self._wait()
            steps = timed_steps(session, islice(controls, self.plan.steps))
        warmup = 1 + self.plan.warmup_steps
        peak = peak_bytes(self.device)
        return SessionRecord(index, number, first_frame_ms, warmup, peak, steps)

    def _open(self, module: LingBotModule, setting: Setting, picture: Tensor) -> RealtimeSession:
        if self.group is None:
            return module.new_session(picture, PROMPT, self.plan.seed)
        strategy = build_strategy(setting)
        exchange = strategy.exchange_over(
            self.group, module.grid.tokens, module.config.num_heads, self.pictures
        )
        return module.new_session(
            picture, PROMPT, self.plan.seed, exchange, strategy.communication_log
        )

    def _facts(self, setting: Setting) -> SettingFacts:
        module: LingBotModule = instantiate(setting.module, _convert_="all")
        config, grid = module.config, module.grid
        visible = module.kv_cache.capacity * grid.tokens_per_frame
        passes = len(module.sampler.indices)
        ranks = self.group.size() if self.group else 1
        dtype = DTYPES[setting.dtype]
        shape = StepShape(config, grid.tokens, visible, passes, ranks, dtype, self.device)
        if shape not in self._floors:
            self._floors[shape] = measure_floor(shape, self.group)
        flops = StepFlops(config, grid, visible)
        return SettingFacts(
            floor=self._floors[shape],
            dtype=setting.dtype,
            chunk_tokens=grid.tokens,
            visible_tokens=visible,
            window_full_at_step=steady_step(module.kv_cache, grid.frames),
            flops={
                "without_conditioner": flops.step(passes, 0),
                "conditioner_of_a_block": flops.conditioner,
            },
        )

    def _wait(self) -> None:
        """Ranks start together, with nothing left to do on the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        if self.group is not None:
            dist.barrier(group=self.group)


def timed_steps(session: RealtimeSession, controls: Iterator[Controls]) -> list[StepRecord]:
    """Realtime steps one right after another; the last one is done when the device is."""
    first, starts, ends = session.step_index, [], []
    for given in controls:
        starts.append(time.perf_counter())
        session.step(given)
        ends.append(time.perf_counter())
        session.finish_chunk()
    reports = session.all_reports(first)  # waits for the device
    starts.append(time.perf_counter())
    return [
        StepRecord(report, 1000 * (end - start), 1000 * (following - start))
        for report, start, end, following in zip(reports, starts, ends, starts[1:], strict=False)
    ]


def peak_bytes(device: torch.device) -> int:
    """Memory at its fullest: allocated on the GPU since the last reset, or resident in all."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def release_memory(device: torch.device) -> None:
    """What nothing holds any more goes back before the next large allocation."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """New parameters are made in this dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
