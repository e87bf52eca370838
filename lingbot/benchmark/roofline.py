"""The floor of a realtime step: its matmuls, attentions and exchanges alone, measured here and now.

Each shape is timed by itself at this rank's token count and in the run's dtype, with whatever
PyTorch does fastest, or in 8 bits where the setting runs it so. It counts as often as a step needs
it: the camera conditioner once, whatever the setting's policy. Norms, rotations, residuals,
quantising, launches and waiting cost nothing in it and nothing overlaps, so a step that hides its
exchange can get below.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lingbot.benchmark.records import Floor
from lingbot.model import TransformerConfig
from lingbot.model.attention import attend_by_matmul
from lingbot.model.fp8 import Fp8Linear, quantise_rows
from lingbot.model.fp8_attention import attend_in_fp8, encode, encode_keys_values
from lingbot.parallel.collectives import as_bytes
from lingbot.parallel.splits import even_splits

WARM, ROUNDS, REPEATS = 3, 3, 8


@dataclass(frozen=True)
class StepShape:
    """Sizes that a step's floor depends on."""

    config: TransformerConfig
    chunk_tokens: int
    visible_tokens: int
    passes: int
    ranks: int
    dtype: torch.dtype
    device: torch.device
    fp8_linears: bool = False
    fp8_attention: bool = False


def measure_floor(shape: StepShape, group: dist.ProcessGroup | None) -> Floor:
    """The floor of one rank. All ranks of the group measure at once."""
    bench = _Floor(shape, group)
    calls = {**bench.linears(), **bench.attentions(), **bench.exchanges()}
    layers, passes = shape.config.num_layers, shape.passes
    blocks = passes * layers + layers - 1  # the context update has no last block
    linears = blocks * (calls["qkv"] + 3 * calls["out"] + calls["ffn_in"] + calls["ffn_out"])
    parts = {
        "linears": linears + calls["kv"],
        "self_attention": blocks * calls["self_attention"],
        "cross_attention": blocks * calls["cross_attention"],
        "camera_conditioner": layers * 4 * calls["camera"],
    }
    if group is not None:
        parts["exchange"] = blocks * (calls["to_heads"] + calls["to_tokens"])
    return Floor(parts, {name: 1000 * elapsed for name, elapsed in calls.items()})


class _Floor:
    def __init__(self, shape: StepShape, group: dist.ProcessGroup | None) -> None:
        self.shape, self.group = shape, group
        ranks = shape.ranks
        self.local = even_splits(shape.chunk_tokens, ranks).sizes[dist.get_rank() if group else 0]
        self.generator = torch.Generator(shape.device).manual_seed(0)

    def linears(self) -> dict[str, float]:
        d, f = self.shape.config.dim, self.shape.config.ffn_dim
        measure = self._fp8_linear if self.shape.fp8_linears else self._linear
        shapes = {"qkv": (d, 3 * d), "out": (d, d), "ffn_in": (d, f), "ffn_out": (f, d)}
        exact = {"kv": (d, 2 * d), "camera": (d, d)}  # in every setting
        return {name: measure(*sizes) for name, sizes in shapes.items()} | {
            name: self._linear(*sizes) for name, sizes in exact.items()
        }

    def attentions(self) -> dict[str, float]:
        c, tokens = self.shape.config, self.shape.chunk_tokens
        own = c.num_heads // self.shape.ranks
        measure = self._fp8_attention if self.shape.fp8_attention else self._attention
        return {
            "self_attention": measure(own, tokens, self.shape.visible_tokens),
            "cross_attention": self._attention(c.num_heads, self.local, c.text_len),
        }

    def exchanges(self) -> dict[str, float]:
        """Fixed-size all-to-alls of packed q, k, v and of the output, whatever path a run takes."""
        if self.group is None:
            return {}
        rows = self.shape.ranks * -(-self.shape.chunk_tokens // self.shape.ranks)
        width = self.shape.config.dim // self.shape.ranks
        return {name: self._all_to_all(rows, n * width)
                for name, n in (("to_heads", 3), ("to_tokens", 1))}  # fmt: skip

    def _linear(self, inputs: int, outputs: int) -> float:
        x, weight = self._random(self.local, inputs), self._random(outputs, inputs)
        return self._best(lambda: F.linear(x, weight))

    def _fp8_linear(self, inputs: int, outputs: int) -> float:
        linear = nn.Linear(inputs, outputs, bias=False, device="meta")
        linear.weight = nn.Parameter(self._random(outputs, inputs), requires_grad=False)
        layer, rows = Fp8Linear(linear), quantise_rows(self._random(self.local, inputs))
        return self._best(lambda: layer(rows))

    def _fp8_attention(self, heads: int, queries: int, keys: int) -> float:
        width = self.shape.config.head_dim
        q = encode(self._random(1, queries, heads, width))
        k, v = encode_keys_values(*(self._random(1, keys, heads, width) for _ in range(2)))
        return self._best(lambda: attend_in_fp8(q, k, v))

    def _attention(self, heads: int, queries: int, keys: int) -> float:
        width = self.shape.config.head_dim
        q = self._random(1, heads, queries, width)
        k, v = (self._random(1, heads, keys, width) for _ in range(2))
        return min(self._best(partial(kernel, q, k, v)) for kernel in self._kernels(q, k, v))

    def _kernels(self, q: Tensor, k: Tensor, v: Tensor) -> list[Callable[..., Tensor]]:
        """The ways to attend that this device has."""
        kernels: list[Callable[..., Tensor]] = [F.scaled_dot_product_attention]
        kernels.append(_cudnn_attention if self.shape.device.type == "cuda" else attend_by_matmul)
        possible = []
        for kernel in kernels:
            try:
                kernel(q, k, v)
            except RuntimeError:  # cuDNN does not take every head width and dtype
                continue
            possible.append(kernel)
        return possible

    def _all_to_all(self, rows: int, width: int) -> float:
        sent = self._random(rows, width)
        if self.shape.fp8_attention:
            sent = as_bytes(encode(sent))
        received = torch.empty_like(sent)
        return self._best(lambda: dist.all_to_all_single(received, sent, group=self.group))

    def _random(self, *shape: int) -> Tensor:
        like = {"dtype": self.shape.dtype, "device": self.shape.device}
        return torch.randn(shape, generator=self.generator, **like)  # type: ignore[call-overload]

    @torch.no_grad()
    def _best(self, work: Callable[[], object]) -> float:
        """Milliseconds of one call in the fastest of a few rounds."""
        for _ in range(WARM):
            work()
        return min(self._round(work) for _ in range(ROUNDS)) / REPEATS

    def _round(self, work: Callable[[], object]) -> float:
        if self.group is not None:
            dist.barrier(group=self.group)
        if self.shape.device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            for _ in range(REPEATS):
                work()
            end.record()
            end.synchronize()
            return begin.elapsed_time(end)
        began = time.perf_counter()
        for _ in range(REPEATS):
            work()
        return 1000 * (time.perf_counter() - began)


def _cudnn_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return F.scaled_dot_product_attention(q, k, v)
