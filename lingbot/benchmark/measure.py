"""What one rank does: builds the settings, drives their sessions in turns, keeps every step.

One session's history is alive at a time, over one world's weights (see `lingbot.benchmark.worlds`),
so that a comparison at full size needs no more memory than a drive.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import torch
import torch.distributed as dist
from hydra.utils import instantiate

from lingbot.benchmark.flops import StepFlops
from lingbot.benchmark.inputs import random_controls, random_picture
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
from lingbot.benchmark.worlds import Worlds, release_memory
from lingbot.camera.controls import Controls
from lingbot.module import LingBotModule
from lingbot.parallel.exchange import SequenceExchange
from lingbot.parallel.pushed_exchange import PushedExchange
from lingbot.realtime.session import RealtimeSession

PROMPT = "noon, grass"


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
        self._exchanges: dict[tuple[int, int, str], SequenceExchange] = {}

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
        exchange = self._exchange(setting, module)
        log = None if exchange is None else exchange.log
        with module.new_session(picture, PROMPT, self.plan.seed, exchange, log) as session:
            self._wait()
            began = time.perf_counter()
            session.reset(picture, PROMPT, self.plan.seed)
            session.step(next(controls))
            first_frame_ms = 1000 * (time.perf_counter() - began)
            session.pretend_history(steady_step(module.kv_cache, module.grid.frames))
            self._wait()
            for _ in range(self.plan.warmup_steps):
                session.step(next(controls))
                session.finish_chunk()
            steps = timed_steps(session, islice(controls, self.plan.steps))
            peak = peak_bytes(self.device)
            if isinstance(exchange, PushedExchange):
                peak += exchange.uncounted_bytes
        warmup = 1 + self.plan.warmup_steps
        return SessionRecord(index, number, first_frame_ms, warmup, peak, steps)

    def _exchange(self, setting: Setting, module: LingBotModule) -> SequenceExchange | None:
        """Of several ranks, made once a setting: it may hold memory that others write."""
        if self.group is None:
            return None
        tokens, heads = module.grid.tokens, module.config.num_heads
        key = tokens, heads, repr(setting.strategy)
        if key not in self._exchanges:
            self._exchanges[key] = build_strategy(setting).exchange_over(
                self.group, tokens, heads, self.device, self.pictures
            )
        return self._exchanges[key]

    def _facts(self, setting: Setting) -> SettingFacts:
        module: LingBotModule = instantiate(setting.module, _convert_="all")
        config, grid = module.config, module.grid
        visible = module.kv_cache.capacity * grid.tokens_per_frame
        passes = len(module.sampler.indices)
        ranks = self.group.size() if self.group else 1
        dtype = DTYPES[setting.dtype]
        kernels = module.kernels
        shape = StepShape(
            config, grid.tokens, visible, passes, ranks, dtype, self.device,
            kernels.linears == "fp8", kernels.kv == "fp8",
            pushed=isinstance(self._exchange(setting, module), PushedExchange),
        )  # fmt: skip
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
    """Realtime steps one right after another, and right after those of the warm-up.

    On a GPU a step returns while its context update is still at work, so that the first one waits
    for that of the step before, as all do, and the last one does not wait for its own.
    """
    first, marks = session.step_index, [time.perf_counter()]
    for given in controls:
        session.step(given)
        marks.append(time.perf_counter())  # frames are out
        session.finish_chunk()
        marks.append(time.perf_counter())
    reports = session.all_reports(first)  # waits for the device
    starts, ends = marks[::2], marks[1::2]
    return [
        StepRecord(report, 1000 * (end - start), 1000 * (following - start))
        for report, start, end, following in zip(reports, starts, ends, starts[1:], strict=False)
    ]


def peak_bytes(device: torch.device) -> int:
    """Memory at its fullest: allocated on the GPU since the last reset, or resident in all."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
