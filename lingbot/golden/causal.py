"""Drives the golden chunks with the golden weights and noise, comparing every tensor made."""

from __future__ import annotations

import json
from collections.abc import Callable

import torch
from torch import Tensor

from lingbot.diffusion.flow import FlowSchedule
from lingbot.diffusion.sampler import FewStepSampler
from lingbot.golden.compare import Comparison, GoldenFile, UnusableFile, WorstOf, compare
from lingbot.golden.layout import check_causal, check_layers
from lingbot.model import (
    CachedTransformer,
    CausalLingBotTransformer,
    Exchange,
    KVCacheConfig,
    LocalExchange,
    TransformerConfig,
)

TOLERANCE = 2e-5
MakeExchange = Callable[[int, int], Exchange]  # tokens of a chunk, heads


def golden_config(golden: GoldenFile) -> TransformerConfig:
    """Sizes of the golden model, from the metadata."""
    check_layers(golden)
    sizes = ("dim", "ffn_dim", "num_heads", "num_layers", "text_dim", "text_len", "freq_dim")
    try:
        return TransformerConfig(
            **{name: golden.number(name) for name in sizes},
            in_channels=golden.number("in_channels"),
            out_channels=golden.number("out_channels"),
            patch_size=tuple(json.loads(f"[{golden.text('patch_size')}]")),
            control=golden.text("control_type"),  # type: ignore[arg-type]
        )
    except (ValueError, TypeError) as error:
        raise UnusableFile(f"its metadata describe no model: {error}") from error


def compare_causal(
    golden: GoldenFile, make_exchange: MakeExchange | None = None
) -> list[Comparison]:
    """Rows for every flow, clean chunk, context flow, cache row, and the levels used.

    Args:
        golden: a causal golden file.
        make_exchange: (tokens of a chunk, heads) -> exchange; the identity when left out.

    Raises:
        UnusableFile: when weights, metadata and tensors do not belong together.
    """
    sampler = golden_sampler(golden)
    check_causal(golden, golden_config(golden), len(sampler.levels))
    model = _cached_transformer(golden, make_exchange)
    frames = model.grid.frames
    noise, control, condition = (golden[k] for k in ("noise", "control", "condition"))
    renoise = golden["renoise"]
    rows = {k: WorstOf(k, golden[k], TOLERANCE) for k in ("flow", "x0", "context_flow")}
    with torch.no_grad():
        model.set_text(golden["text"][None])
        for chunk in range(golden.number("num_chunks")):
            span = slice(chunk * frames, (chunk + 1) * frames)
            model.begin_chunk(control[:, :, span], condition[None, :, span], span.start)
            clean = _sample(model, sampler, noise[None, :, span], renoise[chunk], rows, chunk)
            rows["x0"].give((slice(None), span), clean[0])
            rows["context_flow"].give(chunk, model.predict(clean, 0.0)[0])
            model.update_context(clean)
    return [
        *(row.row() for row in rows.values()),
        *_cache_rows(golden, model),
        *_level_rows(golden, sampler),
    ]


def _sample(
    model: CachedTransformer,
    sampler: FewStepSampler,
    noise: Tensor,
    renoise: Tensor,
    rows: dict[str, WorstOf],
    chunk: int,
) -> Tensor:
    passes, fresh = iter(range(len(sampler.levels))), iter(renoise)

    def predict(noisy: Tensor, timestep: float) -> Tensor:
        flow = model.predict(noisy, timestep)
        rows["flow"].give((chunk, next(passes)), flow[0])
        return flow

    return sampler(noise, predict, lambda: next(fresh)[None])


def _cached_transformer(
    golden: GoldenFile, make_exchange: MakeExchange | None
) -> CachedTransformer:
    config = golden_config(golden)
    transformer = CausalLingBotTransformer(config)
    try:
        transformer.load_state_dict(golden.state_dict())
        cache = KVCacheConfig(
            window=golden.number("local_attn_size"),
            sink=golden.number("sink_size"),
            max_frames=golden["noise"].shape[1],
        )
        grid = config.grid(
            golden.number("frames_per_chunk"),
            golden.number("latent_height"),
            golden.number("latent_width"),
        )
        exchange = (
            LocalExchange(config.num_heads)
            if make_exchange is None
            else make_exchange(grid.tokens, config.num_heads)
        )
        return CachedTransformer(transformer, cache, grid, exchange)
    except (RuntimeError, ValueError) as error:
        raise UnusableFile(str(error)) from error


def golden_sampler(golden: GoldenFile) -> FewStepSampler:
    """The sampler that the metadata describe."""
    try:
        indices = json.loads(golden.text("timestep_indices"))
        return FewStepSampler(FlowSchedule(float(golden.text("flow_shift"))), indices)
    except (ValueError, TypeError, LookupError) as error:
        raise UnusableFile(f"its metadata describe no sampler: {error}") from error


def _cache_rows(golden: GoldenFile, model: CachedTransformer) -> list[Comparison]:
    """The last layer's cache; under sequence parallelism this rank's heads of it."""
    here, rank = model.exchange.local_heads, model.exchange.rank
    heads = slice(rank * here, (rank + 1) * here)
    last = model.transformer.config.num_layers - 1
    return [
        compare(name, ours, golden[name][:, :, heads], TOLERANCE)
        for name, ours in zip(
            ("cache_k_last", "cache_v_last"), model.kv_cache.in_time_order(last), strict=True
        )
    ]


def _level_rows(golden: GoldenFile, sampler: FewStepSampler) -> list[Comparison]:
    ours = {
        "timesteps": [level.timestep for level in sampler.levels],
        "x0_sigmas": [level.x0_sigma for level in sampler.levels],
        "renoise_sigmas": [level.renoise_sigma for level in sampler.levels],
    }
    return [
        compare(name, torch.tensor(values, dtype=torch.float64), golden[name], 1e-6)
        for name, values in ours.items()
    ]
