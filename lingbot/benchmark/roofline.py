"""The floor of a realtime step: its matmuls, attentions and exchanges alone, measured here and now.

Each shape is timed at this rank's token count and in the run's dtype, with whatever PyTorch does
fastest, or in 8 bits where the setting runs it so. It counts as often as a step needs it: the
camera conditioner once, whatever the setting's policy. Norms, rotations, residuals, quantising,
launches and waiting cost nothing in it and nothing overlaps, so a step that hides its exchange can
get below. It is measured twice: every shape by itself, in bursts too short for a device to reach
the limit of its power; and all of them in a step's order, for as long as a step, at the clock that
the device can keep.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lingbot.benchmark.records import Floor
from lingbot.kernels.fp8 import Fp8Linear, quantise_rows
from lingbot.kernels.fp8_kv import attend_in_fp8, encode, encode_keys_values
from lingbot.model import TransformerConfig
from lingbot.model.sdpa import attend_by_matmul
from lingbot.parallel.collectives import as_bytes
from lingbot.parallel.mailbox import Mailbox
from lingbot.parallel.splits import even_splits

WARM, ROUNDS, REPEATS = 3, 3, 8
BLOCK = (
    "qkv", "to_heads", "self_attention", "to_tokens", "out",
    "out", "cross_attention", "out", "ffn_in", "ffn_out",
)  # fmt: skip
PARTS = ("linears", "self_attention", "cross_attention", "camera_conditioner", "exchange")
PART_OF = {
    "self_attention": "self_attention", "cross_attention": "cross_attention",
    "camera": "camera_conditioner", "to_heads": "exchange", "to_tokens": "exchange",
}  # fmt: skip


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
    fp8_kv: bool = False
    pushed: bool = False


Work = Callable[[], object]


def measure_floor(shape: StepShape, group: dist.ProcessGroup | None) -> Floor:
    """The floor of one rank. All ranks of the group measure at once."""
    bench = _Floor(shape, group)
    works = {**bench.linears(), **bench.attentions(), **bench.exchanges()}
    layers, passes = shape.config.num_layers, shape.passes
    blocks = passes * layers + layers - 1  # the context update has no last block
    block = [name for name in BLOCK if name in works]
    order = ["camera"] * 4 * layers + block * blocks + ["kv"]
    calls = {name: bench.best(work) for name, work in works.items()}
    parts = {part: 0.0 for part in PARTS if group is not None or part != "exchange"}
    for name in order:
        parts[PART_OF.get(name, "linears")] += calls[name]
    sustained = bench.sustained([works[name] for name in order])
    return Floor(parts, {name: 1000 * elapsed for name, elapsed in calls.items()}, sustained)


class _Floor:
    def __init__(self, shape: StepShape, group: dist.ProcessGroup | None) -> None:
        self.shape, self.group = shape, group
        ranks = shape.ranks
        self.local = even_splits(shape.chunk_tokens, ranks).sizes[dist.get_rank() if group else 0]
        self.generator = torch.Generator(shape.device).manual_seed(0)

    def linears(self) -> dict[str, Work]:
        d, f = self.shape.config.dim, self.shape.config.ffn_dim
        make = self._fp8_linear if self.shape.fp8_linears else self._linear
        shapes = {"qkv": (d, 3 * d), "out": (d, d), "ffn_in": (d, f), "ffn_out": (f, d)}
        shapes |= {"kv": (d, 2 * d), "camera": (d, d)}
        return {name: make(*sizes) for name, sizes in shapes.items()}

    def attentions(self) -> dict[str, Work]:
        c, tokens = self.shape.config, self.shape.chunk_tokens
        own = c.num_heads // self.shape.ranks
        make = self._fp8_attention if self.shape.fp8_kv else self._attention
        return {
            "self_attention": make(own, tokens, self.shape.visible_tokens),
            "cross_attention": self._attention(c.num_heads, self.local, c.text_len),
        }

    def exchanges(self) -> dict[str, Work]:
        """Packed q, k, v and the output, pushed, or by a fixed-size all-to-all on either path."""
        if self.group is None:
            return {}
        rows = self.shape.ranks * -(-self.shape.chunk_tokens // self.shape.ranks)
        width = self.shape.config.dim // self.shape.ranks
        make = self._push if self.shape.pushed else self._all_to_all
        return {name: make(rows, n * width) for name, n in (("to_heads", 3), ("to_tokens", 1))}

    @torch.no_grad()
    def best(self, work: Work) -> float:
        """Milliseconds of one call in the fastest of a few rounds."""
        for _ in range(WARM):
            work()
        return min(self._time([work] * REPEATS) for _ in range(ROUNDS)) / REPEATS

    @torch.no_grad()
    def sustained(self, works: Sequence[Work]) -> float:
        """Milliseconds of all of them without a pause, right after the same once before.

        A CPU has no such limit to reach, and others at work on it: there the fastest of a few.
        """
        for work in works:
            work()
        rounds = 1 if self.shape.device.type == "cuda" else ROUNDS
        return min(self._time(works) for _ in range(rounds))

    def _linear(self, inputs: int, outputs: int) -> Work:
        return partial(F.linear, self._random(self.local, inputs), self._random(outputs, inputs))

    def _fp8_linear(self, inputs: int, outputs: int) -> Work:
        linear = nn.Linear(inputs, outputs, bias=False, device="meta")
        linear.weight = nn.Parameter(self._random(outputs, inputs), requires_grad=False)
        return partial(Fp8Linear(linear), quantise_rows(self._random(self.local, inputs)))

    def _fp8_attention(self, heads: int, queries: int, keys: int) -> Work:
        width = self.shape.config.head_dim
        q = encode(self._random(1, queries, heads, width))
        k, v = encode_keys_values(*(self._random(1, keys, heads, width) for _ in range(2)))
        return partial(attend_in_fp8, q, k, v)

    def _attention(self, heads: int, queries: int, keys: int) -> Work:
        """The fastest of the ways to attend that this device has."""
        width = self.shape.config.head_dim
        q = self._random(1, heads, queries, width)
        k, v = (self._random(1, heads, keys, width) for _ in range(2))
        kernels: list[Callable[..., Tensor]] = [F.scaled_dot_product_attention]
        kernels.append(_cudnn_attention if self.shape.device.type == "cuda" else attend_by_matmul)
        possible: list[Work] = []
        for kernel in kernels:
            try:
                kernel(q, k, v)
            except RuntimeError:  # cuDNN does not take every head width and dtype
                continue
            possible.append(partial(kernel, q, k, v))
        return min(possible, key=self.best)

    def _all_to_all(self, rows: int, width: int) -> Work:
        sent = self._random(rows, width)
        if self.shape.fp8_kv:
            sent = as_bytes(encode(sent))
        received = torch.empty_like(sent)
        return partial(dist.all_to_all_single, received, sent, group=self.group)

    def _push(self, rows: int, width: int) -> Work:
        assert self.group is not None
        ranks, rank = self.shape.ranks, self.group.rank()
        sent = self._random(rows, width)
        sent = (encode(sent) if self.shape.fp8_kv else sent).unflatten(0, (ranks, -1))
        size = sent.numel() * sent.element_size()
        mailbox = Mailbox(self.group, self.shape.device, size, timeout_s=600.0)
        inbox = mailbox.inbox((rows, width), sent.dtype)

        def push() -> None:
            mailbox.push(sent, inbox, rank * rows // ranks * width)
            mailbox.wait()

        return push

    def _random(self, *shape: int) -> Tensor:
        like = {"dtype": self.shape.dtype, "device": self.shape.device}
        return torch.randn(shape, generator=self.generator, **like)  # type: ignore[call-overload]

    def _time(self, works: Sequence[Work]) -> float:
        """Milliseconds of all of them, one after the other."""
        if self.group is not None:
            dist.barrier(group=self.group)
        if self.shape.device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            for work in works:
                work()
            end.record()
            end.synchronize()
            return begin.elapsed_time(end)
        began = time.perf_counter()
        for work in works:
            work()
        return 1000 * (time.perf_counter() - began)


def _cudnn_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return F.scaled_dot_product_attention(q, k, v)
